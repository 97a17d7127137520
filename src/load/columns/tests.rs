//! Folding, ageing and tenure, each beside a plain way to say what should be so.

use super::*;

const SLOT: ReplicaSlot = ReplicaSlot(3);
const MS: u64 = 1_000_000;

fn at(ms: u64) -> Now {
    Now(ms * MS)
}

fn report(ms: u64, running: u32, waiting: u32, own: u32) -> LoadReport {
    LoadReport {
        slot: SLOT,
        source: LoadSource::Beacon,
        received: at(ms),
        period_us: 10_000,
        running,
        waiting,
        own_in_flight: own,
        prefill_tokens: Some(500),
        own_prefill_tokens: 200,
        kv_usage: Some(0.5),
    }
}

struct Bench {
    load: LoadColumns,
    columns: ReportColumns,
}

impl Bench {
    fn new() -> Self {
        Self { load: LoadColumns::new(200), columns: ReportColumns::new(200) }
    }

    fn fold(&mut self, report: LoadReport) {
        self.columns.fold(&report, &self.load);
    }

    fn requests(&mut self, ms: u64) -> f32 {
        self.columns.advance(at(ms));
        self.columns.elsewhere(SLOT).requests
    }
}

fn near(value: f32, wanted: f32) -> bool {
    (value - wanted).abs() < 1e-3
}

#[test]
fn the_load_of_others_is_what_was_heard_less_our_own_then() {
    let mut bench = Bench::new();
    assert_eq!(bench.columns.elsewhere(SLOT), Elsewhere::UNKNOWN);
    (0..3).for_each(|_| bench.fold(report(1, 6, 2, 3)));
    let seen = bench.columns.elsewhere(SLOT);
    assert_eq!((seen.requests, seen.prefill_tokens, seen.slots), (5.0, 300.0, 6.0));
    assert_eq!((seen.kv_usage, seen.weight), (Some(0.5), 1.0));
    bench.fold(report(2, 6, 0, 9));
    let seen = bench.columns.elsewhere(SLOT);
    assert_eq!((seen.requests, seen.slots), (0.0, f32::INFINITY), "never below zero; no queue, no limit");
    bench.fold(LoadReport { prefill_tokens: None, kv_usage: Some(f32::NAN), ..report(3, u32::MAX, u32::MAX, 0) });
    let seen = bench.columns.elsewhere(SLOT);
    assert_eq!((seen.prefill_tokens, seen.kv_usage), (0.0, None));
    assert!(seen.requests > 4e9);
    bench.fold(LoadReport { slot: ReplicaSlot(4000), ..report(3, 1, 0, 0) });
    assert_eq!(bench.columns.word(ReplicaSlot(4000), at(4)), None);
}

#[test]
fn a_report_is_believed_for_three_periods_and_then_less_and_less_for_three_more() {
    let mut bench = Bench::new();
    bench.fold(report(100, 8, 0, 0));
    let seen = [100, 115, 130, 140, 145, 150, 160, 500].map(|ms| bench.requests(ms));
    for (seen, wanted) in seen.into_iter().zip([8.0, 8.0, 8.0, 5.3333, 4.0, 2.6667, 0.0, 0.0]) {
        assert!(near(seen, wanted), "{seen} is not {wanted}");
    }
    let word = |ms| bench.columns.word(SLOT, at(ms)).unwrap();
    assert_eq!([110, 135, 160].map(|ms| word(ms).freshness()), [Freshness::Fresh, Freshness::Fading, Freshness::Stale]);
    assert_eq!((word(117).age, word(117).source), (Duration::from_millis(17), LoadSource::Beacon));
    assert_eq!(bench.columns.elsewhere(SLOT), Elsewhere::UNKNOWN, "nothing of it is left");
    bench.fold(report(600, 2, 0, 0));
    assert!(near(bench.requests(600), 2.0), "and it is believed again at the first word");
}

#[test]
fn a_limit_that_is_believed_less_is_less_of_a_limit() {
    let mut bench = Bench::new();
    (0..3).for_each(|_| bench.fold(report(0, 4, 1, 0)));
    bench.columns.advance(at(45));
    let seen = bench.columns.elsewhere(SLOT);
    assert!(near(seen.requests, 2.5) && near(seen.slots, 8.0) && near(seen.weight, 0.5), "{seen:?}");
}

#[test]
fn an_engine_whose_queue_goes_on_is_at_no_limit() {
    let mut bench = Bench::new();
    let mut slots = |ms, running, waiting| {
        bench.fold(report(ms, running, waiting, 0));
        bench.columns.elsewhere(SLOT).slots.to_bits()
    };
    let [any, some, fewer] = [f32::INFINITY, 23.0, 22.0].map(f32::to_bits);
    // Some wait in each report, but for the next step: more and more run.
    for (ms, running) in (1..20).zip(5..) {
        assert_eq!(slots(ms, running, 3), any);
    }
    // It runs no more, and some wait.
    assert_eq!([20, 21].map(|ms| slots(ms, 23, 3)), [any, some]);
    assert_eq!(slots(22, 22, 1), fewer);
    assert_eq!([slots(23, 22, 0), slots(24, 22, 4)], [any; 2]);
}

#[test]
fn the_newest_wins_in_whatever_order_reports_come() {
    let mut bench = Bench::new();
    bench.fold(report(20, 7, 0, 0));
    bench.fold(report(10, 1, 0, 0));
    assert_eq!((bench.requests(20), bench.columns.outdated()), (7.0, 1));
    bench.fold(LoadReport { source: LoadSource::Scrape, ..report(20, 3, 0, 0) });
    assert!(near(bench.requests(20), 3.0), "of equals, the later one");
    assert_eq!(bench.columns.word(SLOT, at(20)).map(|word| word.source), Some(LoadSource::Scrape));
}

#[test]
fn who_takes_over_a_slot_inherits_nothing_and_hears_nothing_of_the_one_before() {
    let mut bench = Bench::new();
    bench.fold(report(10, 9, 9, 0));
    bench.load.take_up(SLOT, at(20));
    bench.columns.forget_former(&bench.load);
    assert_eq!((bench.columns.word(SLOT, at(20)), bench.requests(20)), (None, 0.0));
    bench.fold(report(19, 9, 9, 0));
    assert_eq!((bench.columns.word(SLOT, at(21)), bench.columns.outdated()), (None, 1));
    bench.fold(report(22, 2, 0, 0));
    bench.columns.forget_former(&bench.load);
    assert!(near(bench.requests(22), 2.0));
}

#[test]
fn periods_are_taken_within_reason() {
    let mut bench = Bench::new();
    bench.fold(LoadReport { period_us: 0, ..report(100, 8, 0, 0) });
    assert_eq!((bench.requests(103), bench.requests(106)), (8.0, 0.0), "a millisecond at least");
    bench.fold(LoadReport { period_us: u32::MAX, ..report(200, 8, 0, 0) });
    assert!(near(bench.requests(200 + 361_000), 0.0), "a minute at most");
}

#[test]
fn whoever_follows_the_log_knows_all_that_is_known() {
    bolero::check!().with_type::<Vec<(u8, u8, u16)>>().for_each(|steps| {
        let mut bench = Bench::new();
        let mut view = vec![Elsewhere::UNKNOWN; 200];
        let (mut seen, mut now) = (0, 0);
        for (kind, slot, count) in steps {
            let slot = ReplicaSlot(u16::from(*slot) % 200);
            now += u64::from(count % 7);
            match kind % 8 {
                0 => bench.columns.advance(at(now)),
                1 => bench.columns.advance(at(now + u64::from(*count))),
                2 => {
                    bench.load.take_up(slot, at(now));
                    bench.columns.forget_former(&bench.load);
                }
                3 => {
                    for other in 0..200 {
                        bench.fold(LoadReport { slot: ReplicaSlot(other), ..report(now, 1, 0, 0) });
                    }
                }
                4 => {
                    match bench.columns.changed_since(seen) {
                        Some(slots) => {
                            slots.for_each(|slot| view[slot.index()] = bench.columns.elsewhere(slot));
                        }
                        None => {
                            let all = (0..200).filter_map(ReplicaSlot::from_index);
                            view = all.map(|slot| bench.columns.elsewhere(slot)).collect();
                        }
                    }
                    seen = bench.columns.changes();
                    let all = (0..200).filter_map(ReplicaSlot::from_index);
                    assert!(all.zip(&view).all(|(slot, cell)| bench.columns.elsewhere(slot) == *cell));
                }
                _ => bench.fold(LoadReport { slot, ..report(now, u32::from(*count), 0, 1) }),
            }
        }
    });
}
