//! Placement: order, shares, limits. Its fixtures serve the simulation too.

use super::*;

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
        ends_with_manager: false,
        default_retries: 2,
        wall_clock_end: None,
        preemptible: false,
        preparation: None,
    }
}

pub(super) fn ready(row: Row, slots: u16) -> ReadyTask {
    ready_with(row, Needs::slots(slots))
}

pub(super) fn ready_with(row: Row, needs: Needs) -> ReadyTask {
    let max_retries = crate::domain::spec::INHERIT_RETRIES;
    ReadyTask { row, needs, attempt: 0, retry_count: 0, internal_retries: 0, max_retries, affinity: 0 }
}

pub(super) fn node_status(slots: u16) -> NodeStatus {
    NodeStatus {
        slots,
        accepting: true,
        running_tasks: RunningTasks::Requeue,
        pack: false,
        by_creation: false,
        dedicated: true,
        capacity: Capacity::UNKNOWN,
    }
}

pub(super) fn name(node: usize) -> Arc<NodeId> {
    Arc::new(NodeId::parse(&format!("n{node}")).unwrap())
}

/// A core with nodes of so many slots each.
pub(super) fn core_with(nodes: &[u16]) -> (Core, Effects) {
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

pub(super) fn now() -> Now {
    Now { wall: Timestamp::from_micros(1), mono: Duration::ZERO }
}

pub(super) fn load(core: &mut Core, view: JobView, ready: Vec<ReadyTask>) {
    core.step(
        Input::Loaded { view, ready, running: Vec::new(), nodes: Vec::new(), dependants: Dependants::default() },
        now(),
        &mut Effects::default(),
    );
}

/// The end of a process that ran for so long.
pub(super) fn end(after: Duration) -> AttemptEnd {
    let end = Timestamp::from_micros(1_000_000_000_000);
    let start = Timestamp::from_micros(end.as_micros() - i64::try_from(after.as_micros()).unwrap());
    AttemptEnd {
        start: Some(start),
        end,
        exit_code: Some(0),
        failure: None,
        cause: EndCause::Exited,
        outputs_kept: false,
    }
}

pub(super) fn placed(fx: &Effects) -> Vec<(JobKey, Row, String)> {
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
    assert_eq!(core.explain(1, 1, &Needs::slots(4)), WaitReason::RequiredSlotsTooLarge { largest: 2 });
    assert_eq!(core.explain(2, 3, &Needs::slots(1)), WaitReason::MaxParallelTasks);
    assert_eq!(core.explain(2, 9, &Needs::slots(1)), WaitReason::NotWaiting);
}

/// A node with resources.
pub(super) fn rich_node(core: &mut Core, at: usize, status: NodeStatus) -> Conn {
    let conn = at as u64 + 1;
    let hello = Input::Hello { conn, node: name(at), incarnation: "1".into(), stream: 0, status, seen: Vec::new() };
    core.step(hello, now(), &mut Effects::default());
    conn
}

pub(super) fn end_of(core: &mut Core, conn: Conn, row: Row) {
    let end = AttemptEnd {
        start: None,
        end: Timestamp::from_micros(1),
        exit_code: Some(0),
        failure: None,
        cause: EndCause::Exited,
        outputs_kept: false,
    };
    let input = Input::Ended { conn, row, attempt: 1, instance: 0, end, action: JobAction::None };
    core.step(input, now(), &mut Effects::default());
}

pub(super) fn placed_rows(core: &mut Core) -> Vec<(Row, String)> {
    let mut fx = Effects::default();
    core.place(&mut fx);
    core.check().unwrap();
    placed(&fx).into_iter().map(|(_, row, node)| (row, node)).collect()
}

#[test]
fn resources_are_booked_and_what_fits_nowhere_stops_nobody() {
    let mut core = Core::new(settings());
    let capacity = Capacity { memory_bytes: 100, gpus: 1, ..Capacity::UNKNOWN };
    rich_node(&mut core, 0, NodeStatus { capacity, ..node_status(8) });
    rich_node(&mut core, 1, node_status(2));
    let mem = |bytes| Needs { memory_bytes: bytes, ..Needs::slots(1) };
    let never = Needs { gpus: 2, ..Needs::slots(1) };
    let tasks = vec![
        ready_with(1, never),
        ready_with(2, Needs { gpus: 1, ..mem(60) }),
        ready_with(3, Needs { gpus: 1, ..mem(10) }),
        ready(4, 1),
    ];
    load(&mut core, JobView { priority: 9, ..job_view(1) }, tasks);
    load(&mut core, job_view(2), vec![ready_with(11, mem(41)), ready_with(12, mem(30))]);
    let on = placed_rows(&mut core);
    let rows: Vec<Row> = on.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, [2, 4, 11, 12], "{on:?}");
    assert_eq!(on[0].1, "n0");
    // The gpu is free again, and with it the second task.
    end_of(&mut core, 1, 2);
    assert_eq!(placed_rows(&mut core), [(3, "n0".to_owned())]);
}

#[test]
fn exclusive_dedicated_and_manager_tasks_get_what_they_want() {
    let mut core = Core::new(settings());
    rich_node(&mut core, 0, NodeStatus { dedicated: false, ..node_status(4) });
    rich_node(&mut core, 1, node_status(2));
    let manager = Needs { exclusive: true, dedicated_only: true, manager: true, ..Needs::slots(1) };
    load(&mut core, job_view(1), vec![ready(1, 1), ready(2, 1), ready(3, 1), ready(4, 1), ready_with(9, manager)]);
    let on = placed_rows(&mut core);
    assert_eq!(on[0], (9, "n1".to_owned()), "the manager first, on the dedicated node, alone");
    assert!(on[1..].iter().all(|(_, node)| node == "n0"), "{on:?}");
    assert_eq!(on.len(), 5);
    // An exclusive task does not come to a node that has something.
    let alone = Needs { exclusive: true, ..Needs::slots(1) };
    load(&mut core, job_view(2), vec![ready_with(21, alone)]);
    assert_eq!(placed_rows(&mut core), []);
    for row in 1..=3 {
        end_of(&mut core, 1, row);
        assert_eq!(placed_rows(&mut core), []);
    }
    end_of(&mut core, 1, 4);
    assert_eq!(placed_rows(&mut core), [(21, "n0".to_owned())]);
}

#[test]
fn needs_beyond_the_limit_wait_for_their_turn() {
    let mut core = Core::new(settings());
    rich_node(&mut core, 0, node_status(1));
    let count = shapes::MAX_SHAPES as u64 + 50;
    let tasks = (1..=count).map(|row| ready_with(row, Needs { memory_bytes: row, ..Needs::slots(1) })).collect();
    load(&mut core, job_view(1), tasks);
    core.check().unwrap();
    assert_eq!(core.depth().0 as u64, count);
    let mut fx = Effects::default();
    let dropped = Needs { memory_bytes: count, ..Needs::slots(1) };
    core.step(Input::Terminate { job: 1, row: count, needs: dropped, reply: 0 }, now(), &mut fx);
    assert_eq!(fx.replies, [(0, Ok(()))]);
    let mut seen = Vec::new();
    while let [(row, _)] = placed_rows(&mut core)[..] {
        seen.push(row);
        end_of(&mut core, 1, row);
    }
    assert_eq!(seen, (1..count).collect::<Vec<_>>());
    assert_eq!(core.depth().0, 0);
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
