//! Schedules against a model that walks minute by minute, and by hand.

use proptest::prelude::*;

use super::*;

const MINUTE: i64 = 60_000_000;

fn at(minute: i64) -> Timestamp {
    Timestamp::from_micros(minute * MINUTE)
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

#[test]
fn every_cell_of_the_table() {
    use ScheduleState as S;
    let timing = Timing { interval: Some(minutes(5)), ..Timing::default() };
    let events = [ScheduleEvent::Enable, ScheduleEvent::Disable, ScheduleEvent::Terminate, ScheduleEvent::Delete];
    let (ending, over, going) =
        (Err("JobScheduleBeingTerminated"), Err("JobScheduleCompleted"), Err("JobScheduleBeingDeleted"));
    let table = [
        (S::Active, [Ok(S::Active), Ok(S::Disabled), Ok(S::Terminating), Ok(S::Deleting)], Ok(())),
        (S::Disabled, [Ok(S::Active), Err("JobScheduleDisabled"), Ok(S::Terminating), Ok(S::Deleting)], Ok(())),
        (S::Terminating, [ending, ending, ending, Ok(S::Deleting)], Err("JobScheduleBeingTerminated")),
        (S::Completed, [over, over, over, Ok(S::Deleting)], Err("JobScheduleCompleted")),
        (S::Deleting, [going; 4], Err("JobScheduleBeingDeleted")),
    ];
    let reason = |error: Error| kiln_error::Error::from(error).reason().to_owned();
    for (state, cells, update) in table {
        let life = ScheduleLife { state, ..ScheduleLife::new(&timing, at(0)) };
        for (event, cell) in events.into_iter().zip(cells) {
            let got = life.apply(&timing, event, at(1)).map(|life| life.state).map_err(reason);
            assert_eq!(got, cell.map_err(str::to_owned), "{event:?} in {state:?}");
        }
        assert_eq!(life.check_update().map_err(reason), update.map_err(str::to_owned), "update in {state:?}");
    }
}

#[test]
fn ids_of_schedules_and_of_their_jobs() {
    let id = ScheduleId::parse("Nightly").unwrap();
    let job = id.job(12).unwrap();
    assert_eq!((job.as_str(), id.job_prefix().as_str()), ("Nightly:job-12", "nightly:"));
    assert_eq!(ScheduleId::of_job(&job), Some(id));
    assert_eq!(ScheduleId::of_job(&JobId::parse("nightly").unwrap()), None);
    assert!(matches!(ScheduleId::parse("a:b"), Err(None)));
    assert!(ScheduleId::parse(&"x".repeat(64)).unwrap().job(u64::MAX).is_ok());
}

/// A schedule with the jobs it made, driven only when [`plan`] asks for it.
struct Driven {
    timing: Timing,
    life: ScheduleLife,
    /// When the active job ends.
    ends: Option<i64>,
    look_at: Option<Timestamp>,
    /// When a job was created, and for which occurrence.
    runs: Vec<(i64, i64)>,
}

impl Driven {
    fn new(timing: Timing) -> Self {
        let life = ScheduleLife::new(&timing, at(0));
        Self { timing, life, ends: None, look_at: Some(at(0)), runs: Vec::new() }
    }

    fn wake(&mut self, minute: i64) {
        self.look_at = Some(at(minute));
    }

    /// Does what is to be done at this minute; `lasts` is how long a job runs.
    fn step(&mut self, minute: i64, lasts: impl Fn(usize) -> i64) {
        let now = at(minute);
        for _ in 0..8 {
            if self.look_at.is_none_or(|look_at| look_at > now) {
                return;
            }
            let jobs = Jobs { active: self.ends.is_some(), any: !self.runs.is_empty() };
            let plan = plan(&self.life, &self.timing, jobs, now);
            self.look_at = plan.look_at;
            assert!(plan.look_at.is_none_or(|look_at| look_at > now), "a look that leads to nothing: {plan:?}");
            let event = match plan.act {
                None => return,
                Some(Act::Create(due)) => {
                    assert_eq!(self.life.next_run_time(&self.timing, now), Some(due));
                    self.ends = Some(minute + lasts(self.runs.len()));
                    self.runs.push((minute, due.as_micros() / MINUTE));
                    ScheduleEvent::Created(due)
                }
                Some(Act::Complete) => ScheduleEvent::Ended,
                Some(other) => panic!("{other:?} of a schedule that goes on"),
            };
            self.life = self.life.apply(&self.timing, event, now).unwrap();
            self.wake(minute);
        }
        panic!("the plan does not come to rest");
    }
}

/// What happens to a schedule in a test.
#[derive(Debug, Clone)]
struct Story {
    first: i64,
    not_after: Option<i64>,
    window: Option<i64>,
    interval: Option<i64>,
    /// How long its jobs run, in turn.
    lasts: Vec<i64>,
    /// Begin and length of times at which nobody looks.
    outages: Vec<(i64, i64)>,
    /// Begin and length of times at which it is disabled.
    disabled: Vec<(i64, i64)>,
}

impl Story {
    fn timing(&self) -> Timing {
        let span = |count: i64| minutes(count.unsigned_abs());
        Timing {
            not_before: Some(at(self.first)),
            not_after: self.not_after.map(at),
            window: self.window.map(span),
            interval: self.interval.map(span),
        }
    }

    fn lasts(&self, run: usize) -> i64 {
        self.lasts[run % self.lasts.len()]
    }

    fn is_in(spans: &[(i64, i64)], minute: i64) -> bool {
        spans.iter().any(|(begin, length)| (*begin..begin + length).contains(&minute))
    }
}

const HORIZON: i64 = 3 * 24 * 60;

/// The model: what is due is one thing that comes, waits, is replaced, or goes.
fn walk(story: &Story) -> (Vec<(i64, i64)>, Option<i64>) {
    let mut waiting = None;
    let mut ends: Option<i64> = None;
    let (mut runs, mut completed) = (Vec::new(), None);
    let mut nothing_comes = false;
    for minute in 0..HORIZON {
        let comes = match story.interval {
            None => minute == story.first,
            Some(interval) => minute >= story.first && (minute - story.first) % interval == 0,
        };
        if comes {
            waiting = Some(minute);
        }
        if Story::is_in(&story.outages, minute) || completed.is_some() {
            continue;
        }
        ends = ends.filter(|end| *end > minute);
        let window = story.window.filter(|window| story.interval.is_none_or(|interval| *window <= interval));
        let lost = |due: i64| window.is_some_and(|window| minute - due > window);
        let enabled = !Story::is_in(&story.disabled, minute);
        let over = story.not_after.is_some_and(|end| minute >= end);
        if ends.is_none() && enabled && waiting.is_some_and(lost) && story.interval.is_none() {
            nothing_comes = true;
        }
        if ends.is_none() && (over || nothing_comes) {
            completed = Some(minute);
            continue;
        }
        if let Some(due) = waiting.filter(|due| enabled && !over && ends.is_none() && !lost(*due)) {
            waiting = None;
            nothing_comes = story.interval.is_none();
            ends = Some(minute + story.lasts(runs.len()));
            runs.push((minute, due));
        }
    }
    (runs, completed)
}

/// The real thing, looked at only when it asks for it or something happened.
fn drive(story: &Story) -> (Vec<(i64, i64)>, Option<i64>) {
    let mut driven = Driven::new(story.timing());
    for minute in 0..HORIZON {
        let wanted = Story::is_in(&story.disabled, minute);
        let is = driven.life.state == ScheduleState::Disabled;
        if Story::is_in(&story.outages, minute) {
            continue;
        }
        if driven.ends.is_some_and(|end| end <= minute) {
            driven.ends = None;
            driven.wake(minute);
        }
        if wanted != is && driven.life.state != ScheduleState::Completed {
            let event = if wanted { ScheduleEvent::Disable } else { ScheduleEvent::Enable };
            driven.life = driven.life.apply(&driven.timing, event, at(minute)).unwrap();
            driven.wake(minute);
        }
        driven.step(minute, |run| story.lasts(run));
    }
    (driven.runs, driven.life.end.map(|end| end.as_micros() / MINUTE))
}

fn spans() -> impl Strategy<Value = Vec<(i64, i64)>> {
    prop::collection::vec((0..HORIZON, 1..600_i64), 0..3)
}

prop_compose! {
    fn stories()(
        first in 0..2000_i64,
        run_for in prop::option::of(1..HORIZON),
        window in prop::option::of(1..300_i64),
        interval in prop::option::weighted(0.9, 1..400_i64),
        lasts in prop::collection::vec(1..500_i64, 1..5),
        outages in spans(),
        disabled in spans(),
    ) -> Story {
        Story { first, not_after: run_for.map(|length| first + length), window, interval, lasts, outages, disabled }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_the_walk_does(story in stories()) {
        prop_assert_eq!(drive(&story), walk(&story));
    }

    #[test]
    fn new_times_keep_the_rhythm(
        last in 0..1000_i64,
        now in 0..3000_i64,
        old in 1..100_i64,
        new in prop::option::of(1..100_i64),
        start in prop::option::of(0..5000_i64),
    ) {
        let timing = |interval: Option<i64>| Timing {
            interval: interval.map(|count| minutes(count.unsigned_abs())),
            not_before: start.map(at),
            ..Timing::default()
        };
        let (before, after) = (Timing { not_before: None, ..timing(Some(old)) }, timing(new));
        let now = now.max(last);
        let life = ScheduleLife::new(&before, at(0)).apply(&before, ScheduleEvent::Created(at(last)), at(last)).unwrap();
        let next = life.retimed(&before, &after, at(now)).next.map(|next| next.as_micros() / MINUTE);
        let expected = match new {
            Some(_) if before == after => Some(last + old),
            Some(new) => {
                let steps: Vec<i64> = (1..).map(|k| last + k * new).take_while(|due| *due <= now + new).collect();
                let due = steps.into_iter().find(|due| *due >= now).unwrap();
                Some(due.max(start.unwrap_or(0)))
            }
            None => None,
        };
        prop_assert_eq!(next, expected);
    }
}

fn hourly() -> Story {
    Story {
        first: 60,
        not_after: None,
        window: None,
        interval: Some(60),
        lasts: vec![10],
        outages: Vec::new(),
        disabled: Vec::new(),
    }
}

#[test]
fn several_days_of_an_hourly_schedule() {
    let (runs, completed) = drive(&hourly());
    let expected: Vec<(i64, i64)> = (1..72).map(|hour| (hour * 60, hour * 60)).collect();
    assert_eq!((runs, completed), (expected, None));
    let (runs, completed) = drive(&Story { not_after: Some(24 * 60), ..hourly() });
    assert_eq!((runs.len(), completed), (23, Some(24 * 60)), "the one at the very end is not created");
}

#[test]
fn long_jobs_delay_the_next_and_swallow_those_between() {
    let story = Story { lasts: vec![150], ..hourly() };
    let (runs, _) = drive(&story);
    assert_eq!(runs[..3], [(60, 60), (210, 180), (360, 360)]);
    let (runs, _) = drive(&Story { window: Some(10), ..story.clone() });
    assert_eq!(runs[..3], [(60, 60), (240, 240), (420, 420)], "30 minutes late is too late");
    let (runs, _) = drive(&Story { window: Some(61), ..story });
    assert_eq!(runs[1], (210, 180), "a window above the interval has no end");
}

#[test]
fn an_outage_costs_occurrences_and_leaves_one_late_run() {
    let down = Story { outages: vec![(200, 500)], ..hourly() };
    let (runs, _) = drive(&down);
    assert_eq!(runs[2..5], [(180, 180), (700, 660), (720, 720)]);
    let (runs, _) = drive(&Story { window: Some(30), ..down.clone() });
    assert_eq!(runs[2..4], [(180, 180), (720, 720)], "40 minutes late is too late");
    let (runs, _) = drive(&Story { window: Some(40), ..down });
    assert_eq!(runs[2..4], [(180, 180), (700, 660)]);
}

#[test]
fn a_single_job_is_the_only_one() {
    let (runs, completed) = drive(&Story { interval: None, ..hourly() });
    assert_eq!((runs, completed), (vec![(60, 60)], Some(70)));
    let missed = Story { interval: None, window: Some(5), outages: vec![(50, 30)], ..hourly() };
    assert_eq!(drive(&missed), (Vec::new(), Some(80)));
}

#[test]
fn what_is_ending_asks_for_it_until_it_has() {
    let timing = Story { ..hourly() }.timing();
    let life = ScheduleLife::new(&timing, at(0));
    let look = |life: &ScheduleLife, active, any| plan(life, &timing, Jobs { active, any }, at(1)).act;
    let ending = life.apply(&timing, ScheduleEvent::Terminate, at(1)).unwrap();
    assert_eq!(look(&ending, true, true), Some(Act::EndJob));
    assert_eq!(look(&ending, false, true), Some(Act::Complete));
    let going = ending.apply(&timing, ScheduleEvent::Delete, at(1)).unwrap();
    assert_eq!(look(&going, false, true), Some(Act::DeleteJobs));
    assert_eq!(look(&going, false, false), Some(Act::Remove));
    assert_eq!(ending.next_run_time(&timing, at(1)), None);
}

#[test]
fn the_next_run_is_told_as_it_will_be() {
    let timing = Story { window: Some(10), not_after: Some(200), ..hourly() }.timing();
    let life = ScheduleLife::new(&timing, at(0));
    let told = |now| life.next_run_time(&timing, at(now)).map(|next| next.as_micros() / MINUTE);
    assert_eq!([told(0), told(65), told(71), told(181), told(191)], [Some(60), Some(60), Some(120), Some(180), None]);
}
