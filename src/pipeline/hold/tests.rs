//! Who stands in line, where, and that a new snapshot changes nothing of that.

use super::*;
use crate::admission::LOOKING;
use crate::fleet::{Membership, Registry};
use crate::learn::Rates;
use crate::pipeline::{PoolTraits, SharedConfig, Underway};
use std::collections::HashMap;
use std::sync::Arc;

/// A prompt of two seconds.
const PROMPT_BYTES: usize = 80_000;
const STEP: Duration = Duration::from_millis(1);

struct Bench {
    yaml: String,
    shared: Arc<Shared>,
    snapshot: Snapshot,
    decider: Decider,
    now: Now,
    asked: u32,
}

impl Bench {
    /// Two replicas, and `more` of configuration.
    fn new(more: &str) -> Self {
        let yaml = format!(
            "replicas:\n- {{id: a, url: 'http://a:1', models: [m]}}\n- {{id: b, url: 'http://b:1', models: [m]}}\n{more}\n"
        );
        let (snapshot, change) = snapshot_of(&yaml);
        let prior = Rates { base_s: 0.0, prefill_s_per_token: 1e-4, decode_s_per_token: 0.0 };
        let sizes = SharedConfig { slots_max: 2, index_bytes: 4 << 20, hash_key: [0; 32], prior };
        let shared = Shared::new(&sizes).unwrap();
        let decider = Decider::new(&snapshot.config, 2, 0, 1, 7);
        shared.apply(&change, &snapshot, Now(1));
        Self { yaml, shared: Arc::new(shared), snapshot, decider, now: Now(1), asked: 0 }
    }

    fn body(number: u32) -> String {
        let text = format!("{number:08}").repeat(PROMPT_BYTES / 8);
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#)
    }

    /// One more prompt, unlike all before.
    fn ask(&mut self) -> Result<Placement, Reject> {
        self.asked += 1;
        self.now = self.now.plus(STEP);
        let Self { shared, snapshot, decider, now, asked, .. } = self;
        decider.decide(shared, snapshot, Api::ChatCompletions, Self::body(*asked).as_bytes(), Hints::default(), *now)
    }

    /// Has both replicas compute a prompt.
    fn keep_busy(&mut self) -> Vec<Underway> {
        let mut all = Vec::new();
        while all.len() < 2 {
            let placement = self.ask().unwrap();
            assert_eq!(placement.hold(), None);
            let mut underway = Underway::begin(&self.shared, &self.snapshot, &placement, self.now);
            underway.sent(&self.shared, &placement, self.now);
            all.push(underway);
        }
        all
    }
}

fn snapshot_of(yaml: &str) -> (Snapshot, Membership) {
    let config = crate::config::parse(yaml).unwrap();
    let (fleet, change) = Registry::new(2).rebuild(&config.replicas, &[], &HashMap::new(), |_| true).unwrap();
    (Snapshot::new(config, fleet, &PoolTraits::default()), change)
}

fn due_and_again(placement: &Placement) -> (Now, Option<Now>) {
    match placement.hold() {
        Some(Hold::Line { due, again }) => (due, again),
        other => panic!("it stands in no line: {other:?}"),
    }
}

#[test]
fn the_first_few_look_and_are_due_before_the_others() {
    let mut bench = Bench::new("");
    let _busy = bench.keep_busy();
    let line: Vec<Placement> = (0..LOOKING + 3).map(|_| bench.ask().unwrap()).collect();
    let (due, again): (Vec<Now>, Vec<Option<Now>>) = line.iter().map(due_and_again).unzip();
    assert!(due.is_sorted(), "{due:?}");
    assert_eq!(again.iter().filter(|again| again.is_some()).count(), LOOKING);
    let waits_s = due[0].seconds_since(line[0].decision.at);
    assert!((30.0..=90.0).contains(&waits_s), "thirty times two seconds, about: {waits_s}");
    let mut bench = Bench::new("timeouts: {wait: 8s}");
    let _busy = bench.keep_busy();
    let one = bench.ask().unwrap();
    assert!((due_and_again(&one).0.seconds_since(one.decision.at) - 6.0).abs() < 1e-6, "before it is refused");
}

#[test]
fn who_waits_keeps_the_place_in_line_by_a_new_snapshot() {
    let mut bench = Bench::new("limits: {waiting: 12}");
    let _busy = bench.keep_busy();
    let mut line: Vec<Placement> = (0..12).map(|_| bench.ask().unwrap()).collect();
    assert!(matches!(bench.ask(), Err(Reject::LineFull)));
    bench.snapshot = snapshot_of(&bench.yaml).0;
    bench.now = bench.now.plus(Duration::from_millis(100));
    for (number, former) in (3..).zip(&mut line) {
        let (place, at) = (former.place_in_line().unwrap(), former.decision.at);
        let body = Bench::body(number);
        let asked = Asked { api: Api::ChatCompletions, body: body.as_bytes(), hints: Hints::default() };
        let Bench { shared, snapshot, decider, now, .. } = &mut bench;
        *former = decider.decide_anew(shared, snapshot, asked, former, *now).unwrap();
        assert_eq!((former.place_in_line(), former.decision.at), (Some(place), at));
        let is_first = usize::try_from(number).unwrap() < 3 + LOOKING;
        assert_eq!(due_and_again(former).1.is_some(), is_first, "{number}");
    }
    assert_eq!(bench.shared.room.len(line[0].decision.pool), 12);
}
