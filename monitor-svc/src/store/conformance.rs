//! The contract of [`Store`], as one suite for every implementation.

use proptest::prelude::*;

use super::*;
use crate::domain::counts::{ACTIVE, RUNNING, SLOTS_USED, SUCCEEDED, TaskClass, task_deltas};

const SECOND: i64 = 1_000_000;

fn fact(source: &str, sequence: i64, account: &str, subject: &str, event_type: &str) -> Fact {
    Fact {
        source: source.into(),
        sequence,
        account: account.into(),
        subject: subject.into(),
        event_type: event_type.into(),
        time_micros: sequence * SECOND,
        deltas: Vec::new(),
        bytes: format!("{source} {sequence}").into_bytes().into(),
    }
}

fn sequences(events: &[Logged]) -> Vec<i64> {
    events.iter().map(|event| event.sequence).collect()
}

/// Checks everything; `store` is empty.
pub async fn suite(store: &dyn Store) {
    repetitions_are_dropped_and_positions_grow(store).await;
    topics_and_accounts_are_kept_apart(store).await;
    odd_subjects_hold_nothing_up(store).await;
    lists_filter_and_page(store).await;
    tasks_come_by_key(store).await;
    counters_add_up(store).await;
    gaps_are_seen_and_close(store).await;
    old_events_go_and_do_not_come_back(store).await;
}

async fn odd_subjects_hold_nothing_up(store: &dyn Store) {
    // Not so even that it could be compressed.
    let long: String = (0..1024_u32).map(|n| char::from_u32(0x4e00 + n * 7919 % 20_000).unwrap()).collect();
    let facts = [format!("containers/odd/blobs/{long}"), "containers/odd/blobs/a\0b".into()];
    let facts = (1..).zip(facts).map(|(n, subject)| fact("odd", n, "a", &subject, "storage.blob.created")).collect();
    assert_eq!(store.append(Arc::new(facts), 0).await.unwrap().new, 2);
    let found = store.topic("a", "containers/odd", 0, 9).await.unwrap();
    assert_eq!(sequences(&found), [1, 2]);
    assert!(long.starts_with(found[0].subject.strip_prefix("containers/odd/blobs/").unwrap()));
}

async fn repetitions_are_dropped_and_positions_grow(store: &dyn Store) {
    let batch = |range: std::ops::Range<i64>| range.map(|n| fact("one", n, "a", "jobs/rep", "t")).collect::<Vec<_>>();
    let first = store.append(Arc::new(batch(1..4)), 0).await.unwrap();
    assert_eq!((first.new, first.topics), (3, vec![("a".into(), "jobs/rep".into())]));
    let second = store.append(Arc::new([batch(2..6), batch(5..6)].concat()), 0).await.unwrap();
    assert_eq!(second.new, 2);
    let known = store.append(Arc::new(batch(1..6)), 0).await.unwrap();
    assert_eq!(known, Appended::default());
    let events = store.topic("a", "jobs/rep", 0, 100).await.unwrap();
    assert_eq!(sequences(&events), [1, 2, 3, 4, 5]);
    assert!(events.windows(2).all(|pair| pair[0].position < pair[1].position));
    let log = store.log().await.unwrap();
    assert_eq!((log.events, log.floor), (5, 0));
    assert!(log.last >= events[4].position);
    let rest = store.topic("a", "jobs/rep", events[1].position, 2).await.unwrap();
    assert_eq!(sequences(&rest), [3, 4]);
}

async fn topics_and_accounts_are_kept_apart(store: &dyn Store) {
    let facts = vec![
        fact("two", 1, "a", "jobs/x", "job.job.created"),
        fact("two", 2, "a", "jobs/x/tasks/t", "job.task.added"),
        fact("two", 3, "b", "jobs/x", "job.job.created"),
        fact("two", 4, "a", "jobs/x2", "job.job.created"),
        fact("two", 5, "a", "jobs/x", "job.job.state"),
    ];
    store.append(Arc::new(facts), 0).await.unwrap();
    assert_eq!(sequences(&store.topic("a", "jobs/x", 0, 100).await.unwrap()), [1, 2, 5]);
    assert_eq!(sequences(&store.topic("b", "jobs/x", 0, 100).await.unwrap()), [3]);
    assert!(store.topic("c", "jobs/x", 0, 100).await.unwrap().is_empty());
    let last = |types: &'static [&'static str]| async { store.last_of("a", "jobs/x", types).await.unwrap() };
    assert_eq!(last(&[]).await.unwrap().sequence, 5);
    assert_eq!(last(&["job.job.created"]).await.unwrap().sequence, 1);
    assert!(last(&["job.job.deleted"]).await.is_none());
}

async fn lists_filter_and_page(store: &dyn Store) {
    let facts: Vec<Fact> = (1..=20)
        .map(|n| {
            let kind = if n % 2 == 0 { "job.task.added" } else { "job.task.started" };
            fact("three", n, "list", &format!("jobs/l{}/tasks/t{n}", n % 3), kind)
        })
        .collect();
    store.append(Arc::new(facts), 0).await.unwrap();
    for (subject, kind, expected) in [
        ("", "", (1..=20).collect::<Vec<i64>>()),
        ("jobs/l1/", "", (1..=20).filter(|n| n % 3 == 1).collect()),
        ("jobs/l1/", "job.task.a", (1..=20).filter(|n| n % 3 == 1 && n % 2 == 0).collect()),
        ("", "job.task.s", (1..=20).filter(|n| n % 2 == 1).collect()),
        ("jobs/l1/tasks/t7", "", vec![7]),
        ("pools/", "", vec![]),
    ] {
        let (mut got, mut after) = (Vec::new(), Some(0));
        while let Some(from) = after {
            let filter = Filter { subject_prefix: subject.into(), type_prefix: kind.into() };
            let page = store.list("list", filter, from, 3).await.unwrap();
            assert!(page.events.len() <= 3);
            got.extend(sequences(&page.events));
            after = page.next;
        }
        assert_eq!(got, expected, "{subject} {kind}");
    }
}

async fn tasks_come_by_key(store: &dyn Store) {
    let facts = (1..=12).map(|n| fact("four", n, "tasks", &format!("jobs/j/tasks/t{}", n % 4), "x"));
    let noise = [fact("four", 13, "tasks", "jobs/j", "x"), fact("four", 14, "tasks", "jobs/j2/tasks/t9", "x")];
    store.append(Arc::new(facts.chain(noise).collect()), 0).await.unwrap();
    let first = store.tasks("tasks", "j", None, 3).await.unwrap();
    let keys: Vec<&str> = first.tasks.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!((keys, first.more), (vec!["t0", "t1", "t2"], true));
    assert_eq!(sequences(&first.tasks[1].1), [1, 5, 9]);
    let rest = store.tasks("tasks", "j", Some("t2".into()), 3).await.unwrap();
    assert_eq!((rest.tasks.len(), rest.tasks[0].0.as_str(), rest.more), (1, "t3", false));
    assert!(store.tasks("other", "j", None, 3).await.unwrap().tasks.is_empty());
}

async fn counters_add_up(store: &dyn Store) {
    let step = |sequence, time, old, new| Fact {
        time_micros: time * SECOND,
        deltas: task_deltas("jobs/c", Some("pools/p"), 2, old, new),
        ..fact("five", sequence, "count", "jobs/c/tasks/t", "x")
    };
    use TaskClass as C;
    // Two hours and some, so that every width is read.
    let facts = vec![
        step(1, 10, C::Absent, C::Active),
        step(2, 10, C::Absent, C::Active),
        step(3, 3_700, C::Active, C::Running),
        step(4, 7_300, C::Running, C::Succeeded),
    ];
    store.append(Arc::new([facts.clone(), facts].concat()), 0).await.unwrap();
    assert_eq!(store.first_change("count", "jobs/c").await.unwrap(), Some(10 * SECOND));
    assert_eq!(store.first_change("other", "jobs/c").await.unwrap(), None);
    for step in [1, 60, 600, 3600, 7200] {
        let start = 7_299.max(7_299 - 500 * step) * SECOND;
        let span = Span::new(start, start + 2 * step * SECOND, step * SECOND).unwrap();
        let points = span.points(store.changes("count", "jobs/c", span, None).await.unwrap());
        let last = &points[2].1;
        let counts = [ACTIVE, RUNNING, SUCCEEDED].map(|name| last.get(name).copied().unwrap_or(0));
        assert_eq!(counts, [1, 0, 1], "step {step}");
    }
    let span = Span::new(3_600 * SECOND, 7_400 * SECOND, 100 * SECOND).unwrap();
    let points = span.points(store.changes("count", "pools/p", span, None).await.unwrap());
    let used: Vec<i64> = points.iter().map(|(_, counters)| counters.get(SLOTS_USED).copied().unwrap_or(0)).collect();
    assert_eq!(used, (0..39).map(|n| if (1..37).contains(&n) { 2 } else { 0 }).collect::<Vec<_>>());
    // What was before a new job of the same id does not count.
    for step in [1, 60, 7200] {
        let span = Span::new(0, 2 * step * SECOND, step * SECOND).unwrap();
        let later = span.points(store.changes("count", "jobs/c", span, Some(20 * SECOND)).await.unwrap());
        let active: Vec<i64> = later.iter().map(|(_, counters)| counters.get(ACTIVE).copied().unwrap_or(0)).collect();
        assert_eq!(active, if step == 7200 { [0, -1, -1] } else { [0; 3] }, "step {step}");
    }
}

async fn gaps_are_seen_and_close(store: &dyn Store) {
    let add = |numbers: Vec<i64>, now| async move {
        let facts: Vec<Fact> = numbers.into_iter().map(|n| fact("gappy", n, "a", "jobs/gap", "x")).collect();
        store.append(Arc::new(facts), now).await.unwrap();
        store.gaps().await.unwrap().into_iter().find(|gap| gap.source == "gappy")
    };
    // What was announced before we listened is not missed.
    assert_eq!(add(vec![5, 6], 1).await, None);
    let gap = add(vec![8, 9], 2).await.unwrap();
    assert_eq!((gap.first_missing, gap.newest, gap.since_micros), (7, 9, 2));
    assert_eq!(add(vec![11], 3).await.unwrap().since_micros, 2);
    let gap = add(vec![7], 4).await.unwrap();
    assert_eq!((gap.first_missing, gap.since_micros), (10, 4));
    assert_eq!(store.accept_gaps(4).await.unwrap(), 0);
    assert_eq!(store.accept_gaps(5).await.unwrap(), 1);
    assert_eq!(add(vec![12], 6).await, None);
    // Late is still better than never.
    assert_eq!(add(vec![10], 7).await, None);
    assert_eq!(store.topic("a", "jobs/gap", 0, 100).await.unwrap().len(), 8);
}

async fn old_events_go_and_do_not_come_back(store: &dyn Store) {
    let facts: Vec<Fact> = (1..=10)
        .map(|n| Fact { time_micros: 1_000_000 * SECOND + n, ..fact("old", n, "keep", "jobs/old", "x") })
        .collect();
    store.append(Arc::new(facts.clone()), 0).await.unwrap();
    let before = store.log().await.unwrap();
    let keep = Keep { since_micros: 1_000_000 * SECOND + 5, max_events: u64::MAX, idle_since_micros: 0 };
    while store.prune(keep).await.unwrap().more {}
    assert_eq!(sequences(&store.topic("keep", "jobs/old", 0, 100).await.unwrap()), [5, 6, 7, 8, 9, 10]);
    let keep = Keep { max_events: 2, ..keep };
    while store.prune(keep).await.unwrap().more {}
    let left = store.topic("keep", "jobs/old", 0, 100).await.unwrap();
    assert_eq!(sequences(&left), [9, 10]);
    let log = store.log().await.unwrap();
    assert_eq!((log.events, log.last, log.floor), (2, before.last, left[0].position - 1));
    assert_eq!(store.append(Arc::new(facts), 0).await.unwrap().new, 0);
    // Seconds are gone, hours stay, and with them the sums: one task is active.
    let span = Span::new(2_000_000 * SECOND, 2_000_000 * SECOND, SECOND).unwrap();
    assert_eq!(store.changes("count", "jobs/c", span, None).await.unwrap().before[ACTIVE], 1);
    let keep = Keep { idle_since_micros: 1_000_000 * SECOND, ..keep };
    store.prune(keep).await.unwrap();
    assert!(store.changes("count", "jobs/c", span, None).await.unwrap().before.is_empty());
}

/// Everything that follows from the log, whatever came in which order.
async fn projections(store: &dyn Store) -> String {
    let mut text = String::new();
    for scope in ["jobs/s", "pools/p"] {
        for width in [1, 200, 10_000] {
            let span = Span::new(0, 900 * width * SECOND, width * SECOND).unwrap();
            let mut points = span.points(store.changes("a", scope, span, None).await.unwrap());
            for (_, counters) in &mut points {
                counters.retain(|_, count| *count != 0);
            }
            text.push_str(&format!("{points:?}\n"));
        }
    }
    for (key, mut events) in store.tasks("a", "s", None, 1000).await.unwrap().tasks {
        events.sort_by_key(|event| event.sequence);
        text.push_str(&format!("{key} {:?}\n", sequences(&events)));
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Events shuffled within a window, repeated, and cut into other batches
    /// give the same.
    #[test]
    fn order_and_repetition_do_not_matter(
        lives in proptest::collection::vec(0..5_usize, 1..40),
        moves in proptest::collection::vec((0..8_usize, any::<bool>(), 1..7_usize), 200),
    ) {
        use TaskClass as C;
        let path = [C::Absent, C::Active, C::Running, C::Active, C::Running, C::Succeeded];
        let mut facts = Vec::new();
        for (task, steps) in lives.iter().enumerate() {
            for step in 0..=*steps {
                let sequence = facts.len() as i64 + 1;
                facts.push(Fact {
                    deltas: task_deltas("jobs/s", Some("pools/p"), 1, path[step], path[step + 1]),
                    ..fact("s", sequence, "a", &format!("jobs/s/tasks/t{task}"), "x")
                });
            }
        }
        let mut shuffled = facts.clone();
        for (at, (by, repeat, _)) in moves.iter().enumerate() {
            let at = at % shuffled.len();
            let to = (at + by).min(shuffled.len() - 1);
            shuffled.swap(at, to);
            if *repeat {
                let again = shuffled[at].clone();
                shuffled.insert(to, again);
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (expected, got) = runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let one = sql::SqlStore::open(&dir.path().join("1.db")).await.unwrap();
            one.append(Arc::new(facts), 0).await.unwrap();
            let two = sql::SqlStore::open(&dir.path().join("2.db")).await.unwrap();
            let mut sizes = moves.iter().map(|(.., size)| *size).cycle();
            while !shuffled.is_empty() {
                let size = sizes.next().unwrap().min(shuffled.len());
                two.append(Arc::new(shuffled.drain(..size).collect()), 0).await.unwrap();
            }
            (projections(&one).await, projections(&two).await)
        });
        prop_assert_eq!(expected, got);
    }
}

#[tokio::test]
async fn each_database_keeps_the_contract() {
    for place in kiln_store::testing::TestStore::each() {
        let store = sql::SqlStore::open(place.config()).await.unwrap();
        suite(&store).await;
    }
}

/// How fast events are stored: `cargo test --release -p monitor-svc -- --ignored --nocapture rate`.
#[tokio::test]
#[ignore = "prints a figure, checks nothing"]
async fn rate() {
    const EVENTS: i64 = 200_000;
    let dir = tempfile::tempdir().unwrap();
    let store = sql::SqlStore::open(&dir.path().join("m.db")).await.unwrap();
    let facts: Vec<Fact> = (1..=EVENTS)
        .map(|n| Fact {
            time_micros: n * 100,
            deltas: task_deltas("jobs/j", Some("pools/p"), 1, TaskClass::Active, TaskClass::Running),
            bytes: vec![7; 250].into(),
            ..fact("s", n, "a", &format!("jobs/j/tasks/task-{:07}", n / 4), "job.task.assigned")
        })
        .collect();
    let begun = std::time::Instant::now();
    for batch in facts.chunks(5_000) {
        store.append(Arc::new(batch.to_vec()), 0).await.unwrap();
    }
    let seconds = begun.elapsed().as_secs_f64();
    let size = std::fs::metadata(dir.path().join("m.db")).unwrap().len();
    println!(
        "{EVENTS} events in {seconds:.1} s: {:.0}/s, {} bytes each",
        EVENTS as f64 / seconds,
        size / EVENTS as u64
    );
}
