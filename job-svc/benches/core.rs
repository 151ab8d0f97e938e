//! Placements of the scheduler's core alone, over pools of different sizes.

use divan::Bencher;
use divan::counter::ItemsCount;
use job_svc::bench::{placements, placements_of};
use job_svc::domain::needs::Needs;

const TASKS: u64 = 200_000;

fn main() {
    divan::main();
}

/// Tasks of one slot.
#[divan::bench(args = [10, 1_000, 10_000], sample_count = 5)]
fn plain(bencher: Bencher<'_, '_>, nodes: usize) {
    bencher.counter(ItemsCount::new(TASKS)).bench(|| placements(TASKS, nodes));
}

/// Tasks with three different needs, two of them beyond slots.
#[divan::bench(args = [10, 1_000, 10_000], sample_count = 5)]
fn with_resources(bencher: Bencher<'_, '_>, nodes: usize) {
    let needs = [
        Needs::slots(1),
        Needs { memory_bytes: 4 << 30, ..Needs::slots(1) },
        Needs { cpu_millis: 1500, memory_bytes: 1 << 30, ..Needs::slots(1) },
    ];
    bencher.counter(ItemsCount::new(TASKS)).bench(|| placements_of(TASKS, nodes, &needs));
}
