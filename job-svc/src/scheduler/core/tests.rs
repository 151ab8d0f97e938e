//! Placement: order, shares, limits, and how fast it is. Its fixtures serve the simulation too.

use super::*;
use crate::domain::task::EndCause;

pub(super) const LEASE: Duration = Duration::from_secs(30);
pub(super) const MARGIN: Duration = Duration::from_secs(5);

pub(super) fn settings() -> Settings {
    Settings { patience: LEASE + MARGIN, linger: Duration::from_millis(50) }
}

pub(super) fn job_view(key: JobKey) -> JobView {
    JobView {
        key,
        version: 1,
        state: JobState::Active,
        priority: 0,
        max_parallel: None,
        created: Timestamp::from_micros(i64::try_from(key).unwrap()),
        ends_when_complete: false,
        exit_actions: false,
        default_retries: 2,
        wall_clock_end: None,
    }
}

pub(super) fn ready(row: Row, slots: u16) -> ReadyTask {
    let max_retries = crate::domain::spec::INHERIT_RETRIES;
    ReadyTask { row, slots, attempt: 0, retry_count: 0, internal_retries: 0, max_retries, affinity: 0 }
}

pub(super) fn node_status(slots: u16) -> NodeStatus {
    NodeStatus { slots, accepting: true, running_tasks: RunningTasks::Requeue, pack: false, by_creation: false }
}

pub(super) fn name(node: usize) -> Arc<NodeId> {
    Arc::new(NodeId::parse(&format!("n{node}")).unwrap())
}

/// A core with nodes of so many slots each.
fn core_with(nodes: &[u16]) -> (Core, Effects) {
    let (mut core, mut fx) = (Core::new(settings()), Effects::default());
    let now = Now { wall: Timestamp::from_micros(1), mono: Duration::ZERO };
    for (at, slots) in nodes.iter().enumerate() {
        let status = node_status(*slots);
        let conn = at as u64 + 1;
        core.step(
            Input::Hello { conn, node: name(at), incarnation: "1".into(), stream: 0, status, seen: Vec::new() },
            now,
            &mut fx,
        );
    }
    fx = Effects::default();
    (core, fx)
}

fn now() -> Now {
    Now { wall: Timestamp::from_micros(1), mono: Duration::ZERO }
}

fn load(core: &mut Core, view: JobView, ready: Vec<ReadyTask>) {
    core.step(Input::Loaded { view, ready, running: Vec::new() }, now(), &mut Effects::default());
}

fn placed(fx: &Effects) -> Vec<(JobKey, Row, String)> {
    let assigned = fx.tasks.iter().filter_map(|(row, job, event)| match event {
        TaskEvent::Assign { node, .. } => Some((*job, *row, node.to_string())),
        _ => None,
    });
    assigned.collect()
}

#[test]
fn priority_then_an_equal_share_then_age() {
    let (mut core, mut fx) = core_with(&[5]);
    load(&mut core, JobView { priority: -5, ..job_view(1) }, (1..=3).map(|row| ready(row, 1)).collect());
    load(&mut core, job_view(2), (11..=13).map(|row| ready(row, 1)).collect());
    load(&mut core, job_view(3), (21..=23).map(|row| ready(row, 1)).collect());
    core.place(&mut fx);
    let rows: Vec<Row> = placed(&fx).into_iter().map(|(_, row, _)| row).collect();
    assert_eq!(rows, [11, 21, 12, 22, 13]);
}

#[test]
fn older_jobs_first_if_the_pool_says_so() {
    let (mut core, mut fx) = core_with(&[4]);
    let status = NodeStatus { by_creation: true, ..node_status(4) };
    core.step(Input::Status { conn: 1, status }, now(), &mut fx);
    load(&mut core, job_view(2), (11..=13).map(|row| ready(row, 1)).collect());
    load(&mut core, job_view(1), (21..=23).map(|row| ready(row, 1)).collect());
    core.place(&mut fx);
    let rows: Vec<Row> = placed(&fx).into_iter().map(|(_, row, _)| row).collect();
    assert_eq!(rows, [21, 22, 23, 11]);
}

#[test]
fn pack_and_spread_and_affinity() {
    for (pack, expected) in [(true, [1, 3, 0]), (false, [1, 1, 2])] {
        let (mut core, mut fx) = core_with(&[4, 4, 4]);
        let status = NodeStatus { pack, ..node_status(4) };
        core.step(Input::Status { conn: 1, status }, now(), &mut fx);
        let liked = ReadyTask { affinity: crate::domain::spec::affinity_hash("N0"), ..ready(1, 1) };
        let tasks = std::iter::once(liked).chain((2..=4).map(|row| ready(row, 1))).collect();
        load(&mut core, job_view(1), tasks);
        core.place(&mut fx);
        let on = placed(&fx);
        assert_eq!(on[0].2, "n0", "the hint is followed");
        let mut counts: Vec<usize> =
            (0..3).map(|node| on.iter().filter(|(_, _, name)| *name == format!("n{node}")).count()).collect();
        counts.sort_unstable();
        let mut wanted = if pack { vec![0, 0, 4] } else { expected.to_vec() };
        wanted.sort_unstable();
        assert_eq!(counts, wanted, "pack {pack}");
    }
}

#[test]
fn a_wide_task_does_not_block_narrow_ones_and_limits_hold() {
    let (mut core, mut fx) = core_with(&[2]);
    load(&mut core, JobView { priority: 5, ..job_view(1) }, vec![ready(1, 4)]);
    load(&mut core, JobView { max_parallel: Some(1), ..job_view(2) }, vec![ready(2, 1), ready(3, 1)]);
    core.place(&mut fx);
    assert_eq!(placed(&fx).len(), 1);
    assert_eq!(core.explain(1, 1, 4), WaitReason::RequiredSlotsTooLarge { largest: 2 });
    assert_eq!(core.explain(2, 3, 1), WaitReason::MaxParallelTasks);
    assert_eq!(core.explain(2, 9, 1), WaitReason::NotWaiting);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 200, ..Default::default() })]

    /// Whatever waits: nothing is placed twice, no node gets more than it has,
    /// and no task of a lower priority is placed while one of a higher would fit.
    #[test]
    fn placements_are_sound(
        nodes in proptest::collection::vec(1_u16..6, 1..6),
        tasks in proptest::collection::vec((0_u64..4, 1_u16..5), 0..60),
    ) {
        let (mut core, mut fx) = core_with(&nodes);
        let mut by_job: BTreeMap<JobKey, Vec<ReadyTask>> = BTreeMap::new();
        for (at, (job, slots)) in tasks.iter().enumerate() {
            by_job.entry(*job).or_default().push(ready(at as u64 + 1, *slots));
        }
        for (job, tasks) in by_job {
            load(&mut core, JobView { priority: i32::try_from(job).unwrap(), ..job_view(job) }, tasks);
        }
        core.place(&mut fx);
        core.check().unwrap();
        let placed = placed(&fx);
        let mut rows: Vec<Row> = placed.iter().map(|(_, row, _)| *row).collect();
        rows.sort_unstable();
        rows.dedup();
        proptest::prop_assert_eq!(rows.len(), placed.len());
        let mut free: Vec<u16> = nodes.clone();
        for (_, row, node) in &placed {
            let node: usize = node[1..].parse().unwrap();
            let slots = tasks[usize::try_from(*row).unwrap() - 1].1;
            proptest::prop_assert!(free[node] >= slots);
            free[node] -= slots;
        }
        // What still waits fits nowhere.
        let most = free.iter().max().copied().unwrap_or(0);
        for (at, (_, slots)) in tasks.iter().enumerate() {
            if !rows.contains(&(at as u64 + 1)) {
                proptest::prop_assert!(*slots > most);
            }
        }
        // A task of the highest priority that fits an empty node is not left out
        // for one below it: the first placement is of the highest job.
        if let Some((first, _, _)) = placed.first() {
            let largest = nodes.iter().max().copied().unwrap_or(0);
            let best = tasks.iter().filter(|(_, slots)| *slots <= largest).map(|(job, _)| *job).max();
            proptest::prop_assert_eq!(Some(*first), best);
        }
    }
}

/// How many placements a second the core alone makes; run in release.
#[test]
#[ignore = "a measurement"]
fn placements_per_second() {
    let (mut core, _) = core_with(&[256; 40]);
    let count = 1_000_000_u64;
    load(&mut core, job_view(1), (1..=count).map(|row| ready(row, 1)).collect());
    let end = AttemptEnd {
        start: None,
        end: Timestamp::from_micros(1),
        exit_code: Some(0),
        failure: None,
        cause: EndCause::Exited,
        outputs_kept: false,
    };
    let began = std::time::Instant::now();
    let mut done = 0;
    while done < count {
        let mut fx = Effects::default();
        core.place(&mut fx);
        let sends: Vec<(Conn, Row, u32)> = fx
            .sends
            .iter()
            .filter_map(|send| match send {
                Send::Assign(conn, row, attempt) => Some((*conn, *row, *attempt)),
                _ => None,
            })
            .collect();
        let mut ended = Effects::default();
        for (conn, row, attempt) in sends {
            let input = Input::Ended { conn, row, attempt, end: end.clone(), action: JobAction::None };
            core.step(input, now(), &mut ended);
            done += 1;
        }
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.0} placements (with their ends) a second");
}
