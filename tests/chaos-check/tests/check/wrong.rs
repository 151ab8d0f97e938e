//! Each way of going wrong once, in a history made for it, with the reason that is given; and clocks that differ.

use kiln_chaos_check::verdict::Kind;
use kiln_chaos_check::{Rules, check};
use kiln_node::record::Event;
use proptest::sample::Index;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::damage::Damage;
use crate::right::{Failed, Shape, TaskShape, history, plain};

/// Has a place for every damage: two nodes, tasks with each kind of failure, one that was deleted, a watcher.
fn rich() -> Shape {
    let failed = |failed| TaskShape { failed: vec![failed], ..plain() };
    let tasks = vec![
        failed(Failed::AgentKilled),
        failed(Failed::NodeKilled),
        failed(Failed::Code),
        TaskShape { instances: 3, ..plain() },
        TaskShape { deleted: Some(true), ..plain() },
        plain(),
    ];
    Shape { nodes: 2, tasks, watchers: 1 }
}

#[test]
fn every_damage_has_a_place_and_is_found_with_a_reason() {
    let mut runner = TestRunner::deterministic();
    for damage in Damage::ALL {
        let mut reasons = Vec::new();
        for _ in 0..50 {
            let pick = proptest::arbitrary::any::<Index>().new_tree(&mut runner).unwrap().current();
            let mut history = history(&rich());
            if let Some(kind) = damage.apply(&mut history, &pick) {
                let verdict = check(&history, &Rules::default());
                let offender = verdict.offenders(kind).first();
                reasons.push(
                    offender.unwrap_or_else(|| panic!("{damage:?} is not found as {kind:?}: {verdict:?}")).clone(),
                );
            }
        }
        assert!(!reasons.is_empty(), "{damage:?} had no place");
        assert!(reasons.iter().all(|offender| !offender.what.is_empty() && offender.reason.len() > 10), "{reasons:?}");
    }
}

#[test]
fn what_clocks_may_differ_by_is_not_held_against_anybody() {
    let mut history =
        history(&Shape { nodes: 2, tasks: vec![TaskShape { failed: vec![Failed::Code], ..plain() }], watchers: 0 });
    // The node of the first attempt has a clock that goes ahead by 25: an attempt takes 20, and the next begins 10 later.
    let first = history.nodes.iter().find(|line| matches!(line.event, Event::Starting { .. })).unwrap().node.clone();
    for line in history.nodes.iter_mut().filter(|line| line.node == first) {
        line.time += 25;
    }
    let doubled = |clock_error| check(&history, &Rules { clock_error }).count(Kind::Doubled);
    assert_eq!((doubled(0), doubled(25)), (1, 0));
    assert!(check(&history, &Rules { clock_error: 25 }).is_kept());
}

#[test]
fn all_are_counted_and_the_first_are_listed() {
    let mut history = history(&Shape { nodes: 1, tasks: vec![plain(); 100], watchers: 0 });
    history.finals.clear();
    let verdict = check(&history, &Rules::default());
    assert_eq!((verdict.count(Kind::Lost), verdict.offenders(Kind::Lost).len()), (100, 20));
}

#[test]
fn a_hole_is_as_large_as_what_is_missing() {
    let mut history = history(&Shape { nodes: 1, tasks: vec![plain(); 10], watchers: 0 });
    history.events.retain(|event| !(event.source.starts_with("job-svc") && (1..=7).contains(&event.sequence)));
    let verdict = check(&history, &Rules::default());
    assert_eq!(verdict.count(Kind::Holes), 7);
    assert!(verdict.offenders(Kind::Holes)[0].reason.contains("1 to 7"), "{verdict:?}");
}
