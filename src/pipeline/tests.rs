//! What is heard of replicas' load reaches the decision and its words.

use super::*;
use crate::fleet::Registry;
use crate::learn::Rates;
use crate::load::report::{LoadReport, LoadSource};
use crate::load::ring::{Publisher, rings};
use std::time::Duration;

const MS: u64 = 1_000_000;

struct Bench {
    shared: Shared,
    snapshot: Snapshot,
    decider: Decider,
    publisher: Publisher,
}

impl Bench {
    fn new() -> Self {
        let yaml = "replicas:\n- {id: a, url: 'http://a:1', models: [m]}\n- {id: b, url: 'http://b:1', models: [m]}\n";
        let config = crate::config::parse(yaml).unwrap();
        let prior = Rates { base_s: 0.0, prefill_s_per_token: 1e-4, decode_s_per_token: 0.0 };
        let sizes = SharedConfig { slots_max: 2, index_bytes: 4 << 20, hash_key: [0; 32], prior };
        let shared = Shared::new(&sizes).unwrap();
        let mut registry = Registry::new(2);
        let (fleet, change) = registry.rebuild(&config.replicas, &[], &Default::default(), |_| true).unwrap();
        let mut decider = Decider::new(&config, 2, 0, 1, 7);
        let (mut publishers, mut inboxes) = rings(1, 1, 64);
        decider.attach(inboxes.remove(0));
        let snapshot = Snapshot::new(config, fleet, &PoolTraits::default());
        shared.apply(&change, &snapshot, Now(1));
        Self { shared, snapshot, decider, publisher: publishers.remove(0) }
    }

    fn says(&mut self, slot: u16, at_ms: u64, running: u32) {
        self.publisher.publish(LoadReport {
            slot: ReplicaSlot(slot),
            source: LoadSource::Beacon,
            received: Now(at_ms * MS),
            period_us: 100_000,
            running,
            waiting: 0,
            own_in_flight: 0,
            prefill_tokens: None,
            own_prefill_tokens: 0,
            kv_usage: None,
        });
    }

    fn decision(&mut self, at_ms: u64) -> Decision {
        let body = br#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
        let Self { shared, snapshot, decider, .. } = self;
        let hints = Hints::default();
        decider.consider(shared, snapshot, Api::ChatCompletions, body, hints, Now(at_ms * MS)).unwrap().decision
    }

    fn why(&mut self, at_ms: u64) -> String {
        let decision = self.decision(at_ms);
        decision.explain(|slot| if slot.0 == 0 { "a" } else { "b" })
    }
}

#[test]
fn a_decision_says_which_load_it_rests_on() {
    let mut bench = Bench::new();
    assert_eq!(bench.decision(10).chosen.load, None);
    bench.says(0, 100, 3);
    bench.says(1, 100, 5);
    let decision = bench.decision(112);
    assert_eq!((decision.chosen.slot, decision.chosen.elsewhere), (ReplicaSlot(0), 3));
    assert_eq!(decision.chosen.load_age(), Some(Duration::from_millis(12)));
    let why = bench.why(112);
    assert!(why.contains("0 in flight and 3 of others (load 12 ms old by beacon)"), "{why}");
    let why = bench.why(550);
    assert!(why.contains("(load 450 ms old by beacon, late: believed by 50 %)"), "{why}");
    let why = bench.why(4100);
    assert!(why.contains("idle (no fresh word for 4 s: priced by own in-flight)"), "{why}");
    assert_eq!(bench.decision(4100).chosen.load_age(), None);
}

#[test]
fn an_idle_decider_hears_when_its_bell_rings() {
    let mut bench = Bench::new();
    (0..60).for_each(|round| bench.says(0, 100 + round, 9));
    assert!(bench.decider.bell().is_some());
    assert_eq!(bench.decider.hear(&bench.shared, Now(160 * MS)), 60);
    let heard = bench.decider.reports().heard(ReplicaSlot(0), Now(160 * MS)).unwrap();
    assert_eq!((heard.running, heard.word.age), (9, Duration::from_millis(1)));
}

#[test]
fn a_fleet_that_falls_silent_at_once_does_not_look_idle_between_two_decisions() {
    let mut bench = Bench::new();
    bench.says(0, 100, 100);
    bench.says(1, 100, 200);
    let mut last = u32::MAX;
    for at_ms in (100..=700).step_by(25) {
        let elsewhere = bench.decision(at_ms).chosen.elsewhere;
        assert!(elsewhere <= last && (last == u32::MAX || last - elsewhere <= 10), "{last} to {elsewhere} at {at_ms}");
        last = elsewhere;
    }
    assert_eq!(last, 0);
}

/// Counts what is placed at each place.
#[derive(Debug, Default)]
struct Counting(parking_lot::Mutex<Vec<(usize, Now)>>);

impl crate::policy::Policy for Arc<Counting> {
    fn cost(&self, view: &crate::policy::View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        costs.copy_from_slice(&view.in_flight);
    }

    fn placed(&self, view: &crate::policy::View, place: usize) {
        self.0.lock().push((view.slots[place].index(), view.now));
    }
}

#[test]
fn a_policy_hears_of_decisions_that_are_acted_upon_and_of_no_others() {
    let mut bench = Bench::new();
    let counting = Arc::new(Counting::default());
    bench.snapshot.policy = Box::new(Arc::clone(&counting));
    bench.decision(1);
    let body = br#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
    let Bench { shared, snapshot, decider, .. } = &mut bench;
    let mut placed =
        decider.decide(shared, snapshot, Api::ChatCompletions, body, Hints::default(), Now(2 * MS)).unwrap();
    let first = placed.decision.chosen.slot.index();
    decider.place_again(shared, snapshot, &mut placed, Now(3 * MS)).unwrap();
    // The second view has only the other replica in it: the places differ, and the slots are right.
    assert_eq!(*counting.0.lock(), [(first, Now(2 * MS)), (1 - first, Now(3 * MS))]);
}
