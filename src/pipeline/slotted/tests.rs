//! What slots cost, and when a request is held back for one.

use crate::clock::Now;
use crate::fleet::{Discovered, Engine, Registry};
use crate::id::{DecisionId, ReplicaSlot};
use crate::learn::Rates;
use crate::parse::Api;
use crate::pipeline::{Decider, Hints, Hold, Placement, PoolTraits, Shared, SharedConfig, Snapshot, Underway, Wish};
use crate::policy::slo::Slo;
use crate::prefix::index::WarmDepths;
use crate::prefix::slots::{Found, Trust};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// A tenth of a millisecond a token: what the prompts here take 0.2 s for.
const PRIOR: Rates = Rates { base_s: 0.0, prefill_s_per_token: 1e-4, decode_s_per_token: 0.0 };
const PROMPT_BYTES: usize = 8000;

struct Bench {
    shared: Arc<Shared>,
    snapshot: Snapshot,
    decider: Decider,
    now: Now,
}

impl Bench {
    /// So many llama.cpp servers of one slot each.
    fn new(servers: usize) -> Self {
        let replicas: String = (0..servers).map(|n| format!("- {{id: r{n}, url: 'http://r{n}:1'}}\n")).collect();
        let config = crate::config::parse(&format!("replicas:\n{replicas}")).unwrap();
        let sizes = SharedConfig { slots_max: servers, index_bytes: 4 << 20, hash_key: [0; 32], prior: PRIOR };
        let shared = Shared::new(&sizes).unwrap();
        let said = Discovered {
            models: vec!["m".to_owned()],
            engine: Engine::LlamaCpp,
            slots: Some(1),
            kv_tokens: Some(4096),
            host_kv_tokens: None,
        };
        let known: HashMap<_, _> = (0..servers).map(|n| (format!("r{n}"), said.clone())).collect();
        let mut registry = Registry::new(servers);
        let (_, change) = registry.rebuild(&config.replicas, &[], &HashMap::new(), |_| true).unwrap();
        let (fleet, _) = registry.rebuild(&config.replicas, &[], &known, |_| true).unwrap();
        let decider = Decider::new(&config, servers, 0, 1, 7);
        let snapshot = Snapshot::new(config, fleet, &PoolTraits::default());
        shared.apply(&change, &snapshot, Now(0));
        Self { shared: Arc::new(shared), snapshot, decider, now: Now(1) }
    }

    /// An answer shows that the books are right.
    fn trust_the_books(&mut self) {
        let (placement, _) = self.run(99, b'~');
        let found = Found {
            id: placement.decision.id,
            prompt_bytes: placement.decision.prompt_bytes,
            prompt_tokens: 2000.0,
            cached_tokens: 0.0,
            indexed_tokens: 2000.0,
            output_tokens: 1.0,
        };
        self.shared.slots.judge(placement.decision.chosen.slot, &found);
        assert_eq!(self.shared.slots.trusted(ReplicaSlot(0)), Some(Trust::Book));
        self.wait(600.0);
    }

    fn wait(&mut self, seconds: f64) {
        self.now = self.now.plus(Duration::from_secs_f64(seconds));
    }

    /// Asks for turn `turn` of a conversation whose words are all `word`.
    fn ask(&mut self, turn: usize, word: u8, wish: Wish) -> Placement {
        let words = char::from(word).to_string().repeat(PROMPT_BYTES + 400 * turn);
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{words}"}}]}}"#);
        let hints = Hints { session: None, wish };
        let Self { shared, snapshot, decider, now } = self;
        decider.decide(shared, snapshot, Api::ChatCompletions, body.as_bytes(), hints, *now).unwrap()
    }

    fn send(&self, placement: &Placement) -> Underway {
        assert_eq!(placement.hold(), None);
        let mut underway = Underway::begin(&self.shared, &self.snapshot, placement, self.now);
        underway.sent(&self.shared, placement, self.now);
        underway
    }

    /// Asks, and is answered a second later.
    fn run(&mut self, turn: usize, word: u8) -> (Placement, ReplicaSlot) {
        let placement = self.ask(turn, word, Wish::default());
        let mut underway = self.send(&placement);
        self.wait(1.0);
        underway.ended(self.now);
        let slot = placement.decision.chosen.slot;
        (placement, slot)
    }

    fn look_again(&mut self, placement: &mut Placement) {
        let Self { shared, snapshot, decider, now } = self;
        decider.look_again(shared, snapshot, placement, *now).unwrap();
    }

    fn why(&self, placement: &Placement) -> String {
        let names = ["r0", "r1", "r2"];
        assert!(self.snapshot.fleet.replicas.len() <= names.len());
        placement.decision.explain(|slot| names[slot.index()])
    }
}

#[test]
fn a_cold_prompt_goes_where_the_conversation_is_over_and_says_what_is_lost() {
    let mut bench = Bench::new(2);
    let (_, first) = bench.run(0, b'a');
    bench.wait(600.0);
    let (_, second) = bench.run(0, b'b');
    assert_ne!(first, second, "an empty slot costs nothing");
    bench.wait(1.0);
    let placement = bench.ask(0, b'c', Wish::default());
    assert_eq!(placement.decision.chosen.slot, first);
    let chosen = placement.decision.chosen;
    assert!((1900.0..2100.0).contains(&chosen.evicted_tokens), "{chosen:?}");
    let next = placement.decision.runner_up.unwrap();
    assert!(next.eviction_s > 3.0 * chosen.eviction_s && chosen.eviction_s > 0.0, "{chosen:?} {next:?}");
    let said = format!("its slot's conversation of {:.0} tokens would be lost", chosen.evicted_tokens);
    assert!(bench.why(&placement).contains(&said), "{}", bench.why(&placement));
    // The next turn of a conversation loses nothing.
    let (placement, slot) = bench.run(1, b'b');
    assert_eq!((slot, placement.decision.chosen.evicted_tokens), (second, 0.0));
    assert!(placement.decision.chosen.warm_tokens > 1900.0);
}

#[test]
fn a_request_is_held_back_before_it_pushes_out_what_is_in_use() {
    let mut bench = Bench::new(1);
    bench.trust_the_books();
    bench.run(0, b'a');
    bench.wait(0.02);
    let mut held = bench.ask(0, b'b', Wish::default());
    let before = bench.now;
    assert!(matches!(held.hold(), Some(Hold::Slot { again }) if again > before));
    // It is not on record.
    let mut depths = WarmDepths::new(1);
    bench.shared.index.lookup(&held.chain, &mut depths);
    assert_eq!((depths.get(ReplicaSlot(0)), bench.shared.load.in_flight(ReplicaSlot(0))), (0, 0));
    // Whose own slot it is passes.
    let (passed, _) = bench.run(1, b'a');
    assert!(passed.decision.chosen.warm_tokens > 1900.0);
    let mut looks = 0;
    while let Some(Hold::Slot { again }) = held.hold() {
        bench.now = bench.now.max(again);
        bench.look_again(&mut held);
        looks += 1;
        assert!(looks < 100, "{:?}", bench.now);
    }
    let waited_s = bench.now.seconds_since(before);
    assert!(waited_s < 2.0, "{waited_s}");
    assert_eq!((held.attempts(), held.decision.reason), (1, super::super::Reason::Only));
    assert!(bench.why(&held).contains("ms at the gateway"), "{}", bench.why(&held));
    bench.shared.index.lookup(&held.chain, &mut depths);
    assert!(depths.get(ReplicaSlot(0)) > 30, "it is now");
}

#[test]
fn nobody_waits_who_has_an_objective_or_spares_nothing_by_it() {
    let mut bench = Bench::new(1);
    bench.run(0, b'a');
    assert_eq!(bench.ask(0, b'b', Wish::default()).hold(), None, "the books have shown nothing yet");
    bench.trust_the_books();
    bench.run(0, b'a');
    assert!(bench.ask(0, b'b', Wish::default()).hold().is_some());
    let wish = Wish { slo: Slo { ttft_s: Some(9.0), tpot_s: None }, priority: 0 };
    assert_eq!(bench.ask(0, b'c', wish).hold(), None);
    bench.wait(60.0);
    assert_eq!(bench.ask(0, b'd', Wish::default()).hold(), None, "idle for a minute: it will not be back soon");
}

#[test]
fn a_prompt_in_a_busy_slot_is_waited_for_there() {
    let mut bench = Bench::new(2);
    bench.trust_the_books();
    bench.run(0, b'a');
    let running = bench.ask(1, b'a', Wish::default());
    let mut underway = bench.send(&running);
    let next = bench.ask(2, b'a', Wish::default());
    assert_eq!(next.decision.chosen.slot, running.decision.chosen.slot);
    assert!(next.decision.chosen.prefix_wait_s > 0.0 && next.decision.chosen.warm_tokens > 1900.0);
    let mut waiting = Underway::begin(&bench.shared, &bench.snapshot, &next, bench.now);
    let awaited = waiting.take_awaited().unwrap();
    assert!(!awaited.ticket.is_over());
    underway.ended(bench.now);
    assert!(awaited.ticket.is_over());
    let id = next.decision.id;
    assert_ne!(id, DecisionId(0));
}
