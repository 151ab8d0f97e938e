//! Every reason to wait, and that what waits for ever is told once.

use super::tests::{end_of, job_view, load, node_status, now, placed_rows, ready_with, rich_node, settings};
use super::*;
use crate::domain::needs::Resource;

fn reason(core: &Core, row: Row, needs: Needs) -> WaitReason {
    core.explain(1, row, &needs)
}

#[test]
fn every_reason_has_its_moment() {
    let mut core = Core::new(settings());
    let one = Needs::slots(1);
    let memory = |memory_bytes| Needs { memory_bytes, ..one };
    let alone = Needs { exclusive: true, ..one };
    let dedicated = Needs { dedicated_only: true, ..one };
    let both = Needs { gpus: 1, ..memory(50) };
    let several = Needs { instances: 3, ..one };
    let all = [one, Needs::slots(3), memory(101), memory(60), alone, dedicated, both, several];
    let tasks = all.iter().zip(1..).map(|(needs, row)| ready_with(row, *needs)).collect();
    load(&mut core, job_view(1), tasks);
    assert_eq!(reason(&core, 1, one), WaitReason::NoNodes);
    assert_eq!(core.explain(7, 1, &one), WaitReason::NotWaiting);
    let small = NodeStatus { dedicated: false, ..node_status(2) };
    let capacity = Capacity { memory_bytes: 100, ..Capacity::UNKNOWN };
    rich_node(&mut core, 0, NodeStatus { capacity, ..small });
    let graphics = Capacity { memory_bytes: 40, gpus: 4, ..Capacity::UNKNOWN };
    rich_node(&mut core, 1, NodeStatus { capacity: graphics, ..small });
    core.check().unwrap();
    assert_eq!(reason(&core, 1, one), WaitReason::BehindOthers, "nothing was placed yet");
    assert_eq!(reason(&core, 2, Needs::slots(3)), WaitReason::RequiredSlotsTooLarge { largest: 2 });
    let too_large = |resource, largest| WaitReason::ResourcesTooLarge { resource, largest };
    assert_eq!(reason(&core, 3, memory(101)), too_large(Resource::Memory, 100));
    assert_eq!(reason(&core, 6, dedicated), WaitReason::NoDedicatedNode);
    assert_eq!(reason(&core, 7, both), too_large(Resource::Gpus, 0), "of the nodes with the memory");
    assert_eq!(reason(&core, 8, several), WaitReason::TooFewNodes { fitting: 2 });
    let mut fx = Effects::default();
    core.place(&mut fx);
    let mut told = fx.unschedulable.clone();
    told.sort_unstable_by_key(|told| told.0);
    let rows: Vec<Row> = told.iter().map(|told| told.0).collect();
    assert_eq!(rows, [2, 3, 6, 7]);
    assert!(told.iter().all(|(_, _, reason)| reason.is_for_ever()));
    // Rows 1 and 4 run; the exclusive one has no empty node.
    assert_eq!(reason(&core, 4, memory(60)), WaitReason::NotWaiting);
    assert_eq!(reason(&core, 5, alone), WaitReason::NoEmptyNode);
    load(
        &mut core,
        job_view(2),
        [memory(61), one, one, one].into_iter().zip(20..).map(|(n, row)| ready_with(row, n)).collect(),
    );
    assert_eq!(core.explain(2, 20, &memory(61)), WaitReason::NoFreeResources { resource: Resource::Memory });
    placed_rows(&mut core);
    assert_eq!(core.explain(2, 23, &one), WaitReason::NoFreeSlots);
}

#[test]
fn what_no_node_could_run_is_told_once_for_its_kind() {
    let mut core = Core::new(settings());
    let huge = Needs { cpu_millis: 9000, ..Needs::slots(1) };
    load(&mut core, job_view(1), (1..=1000).map(|row| ready_with(row, huge)).collect());
    let told = |core: &mut Core| {
        let mut fx = Effects::default();
        core.place(&mut fx);
        core.check().unwrap();
        fx.unschedulable.iter().map(|(row, job, _)| (*job, *row)).collect::<Vec<_>>()
    };
    assert_eq!(told(&mut core), [], "without nodes nobody knows");
    let four = Capacity { cpu_millis: 4000, ..Capacity::UNKNOWN };
    let small = NodeStatus { capacity: four, ..node_status(4) };
    rich_node(&mut core, 0, small);
    assert_eq!(told(&mut core), [(1, 1)]);
    core.step(Input::Added { job: 1, tasks: vec![ready_with(1001, huge)] }, now(), &mut Effects::default());
    assert_eq!(told(&mut core), []);
    load(&mut core, job_view(2), vec![ready_with(2000, huge)]);
    assert_eq!(told(&mut core), [(2, 2000)]);
    // A larger node comes and takes one; when it goes, the others are hopeless
    // again, and that was said already.
    let conn = rich_node(&mut core, 1, node_status(1));
    assert_eq!(placed_rows(&mut core), [(1, "n1".to_owned())]);
    end_of(&mut core, conn, 1);
    core.step(Input::Goodbye { conn }, now(), &mut Effects::default());
    assert_eq!(told(&mut core), []);
    // What fitted before is told when the last node for it goes.
    let conn = rich_node(&mut core, 2, node_status(2));
    let wide = Needs { cpu_millis: 8000, ..Needs::slots(2) };
    load(&mut core, job_view(3), vec![ready_with(3000, wide), ready_with(3001, wide)]);
    core.step(Input::Terminate { job: 1, row: 2, needs: huge, reply: 0 }, now(), &mut Effects::default());
    placed_rows(&mut core);
    core.step(Input::Goodbye { conn }, now(), &mut Effects::default());
    let last = told(&mut core);
    assert!(last.contains(&(3, 3000)) || last.contains(&(3, 3001)), "{last:?}");
}
