//! Placements of the scheduler's core alone, over pools of different sizes.

use divan::Bencher;
use divan::counter::ItemsCount;
use job_svc::bench::World;
use job_svc::domain::needs::Needs;

const TASKS: u64 = 200_000;

fn main() {
    divan::main();
}

fn measure(bencher: Bencher<'_, '_>, nodes: usize, needs: &[Needs]) {
    let bencher = bencher.counter(ItemsCount::new(TASKS)).with_inputs(|| World::new(TASKS, nodes, needs));
    bencher.bench_local_values(World::run);
}

/// Tasks of one slot.
#[divan::bench(args = [10, 1_000, 10_000], sample_count = 5, sample_size = 1)]
fn plain(bencher: Bencher<'_, '_>, nodes: usize) {
    measure(bencher, nodes, &[Needs::slots(1)]);
}

/// Tasks with three different needs, two of them beyond slots.
#[divan::bench(args = [10, 1_000, 10_000], sample_count = 5, sample_size = 1)]
fn with_resources(bencher: Bencher<'_, '_>, nodes: usize) {
    let memory = Needs { memory_bytes: 4 << 30, ..Needs::slots(1) };
    let both = Needs { cpu_millis: 1500, memory_bytes: 1 << 30, ..Needs::slots(1) };
    measure(bencher, nodes, &[Needs::slots(1), memory, both]);
}
