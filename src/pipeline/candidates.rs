//! The view that a policy prices: who may take the request, and what is known of each.
//!
//! What changes with every request (requests in flight, prefill ahead, how much of this prompt is held) is read anew for
//! each decision. What changes slowly (learned rates, cache use, limits) is at most [`SWEEP`] old: reading it takes fifty
//! times as long, so each decision reads a share of the replicas, as large as the time since the last one. The cost is
//! then the same every second however many requests come, and no request pays for all.

use super::{Placement, Shared, Snapshot};
use crate::clock::Now;
use crate::fleet::Pool;
use crate::id::{BlockHash, PoolId, ReplicaSlot};
use crate::policy::View;
use crate::prefix::BLOCK_BYTES;
use crate::prefix::index::WarmDepths;
use std::time::Duration;

/// The time in which the slow columns of all replicas are read once.
const SWEEP: Duration = Duration::from_millis(50);
/// Pools whose columns are kept; more share the places.
const POOLS: usize = 16;

/// A busy slot is waited for as long as that takes less than this many times what computing the prefix again would: work
/// done twice also keeps others waiting.
const BUSY_SLOT_PATIENCE: f32 = 2.0;

/// One shard's views.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pools: [PoolView; POOLS],
    /// The candidates, when some members of the pool are none.
    admitted: View,
}

/// All members of a pool.
#[derive(Debug, Default)]
struct PoolView {
    /// Of which snapshot and pool.
    of: Option<(u64, PoolId)>,
    /// Where the sweep goes on.
    next: usize,
    /// Up to when it has come; `None` before it has read them all once.
    swept: Option<Now>,
    view: View,
    /// Places in `view` by slot; of the pool's members alone are they right.
    places: Vec<u16>,
    /// Places whose `warm_tokens` or `prefix_wait_s` may not be zero.
    warm: Vec<u16>,
}

impl Candidates {
    /// The members of `pool` that may take the request now; `prompt` is its chain and what was found of it.
    pub(super) fn view(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        pool: &Pool,
        prompt: (&[BlockHash], &WarmDepths),
        placement: &Placement,
        now: Now,
    ) -> &View {
        let Self { pools, admitted } = self;
        let kept = &mut pools[usize::from(pool.id.0) % POOLS];
        let of = Some((snapshot.generation(), pool.id));
        if kept.of != of {
            kept.reset(pool);
            kept.of = of;
        }
        kept.sweep(shared, snapshot, now);
        kept.view.prompt_tokens = placement.decision.prompt_tokens;
        kept.view.affinity_key = placement.affinity_key;
        kept.read_load(shared);
        kept.read_warm(prompt.1, snapshot.ratios.tokens(pool.id, BLOCK_BYTES));
        if snapshot.policy.is_priced() {
            kept.price_busy_slots(shared, snapshot, prompt);
        }
        let (view, tried) = (&kept.view, placement.tried());
        if tried.is_empty() && shared.health.all_healthy(&view.slots) {
            return view;
        }
        admitted.clear();
        admitted.is_retry = !tried.is_empty();
        (admitted.prompt_tokens, admitted.affinity_key) = (view.prompt_tokens, view.affinity_key);
        for (place, slot) in view.slots.iter().enumerate() {
            let in_flight = shared.load.in_flight(*slot);
            if !tried.contains(slot) && shared.health.admits(*slot, in_flight, now) {
                admitted.push_from(view, place);
            }
        }
        if admitted.is_empty() {
            // Those that have given no sign yet, good or bad: better than nobody.
            for (place, slot) in view.slots.iter().enumerate() {
                if !tried.contains(slot) && shared.health.may_try(*slot) {
                    admitted.push_from(view, place);
                }
            }
        }
        admitted
    }

    /// The replica at `slot` is to compute `blocks` more: its cache is fuller from now on, not from the next sweep, or all
    /// that comes until then would go where it was emptiest before.
    pub(super) fn placed(&mut self, snapshot: &Snapshot, pool: PoolId, slot: ReplicaSlot, blocks: u16) {
        let PoolView { view, places, .. } = &mut self.pools[usize::from(pool.0) % POOLS];
        if let Some(place) = places.get(slot.index()).map(|place| usize::from(*place))
            && view.slots.get(place) == Some(&slot)
        {
            let resident = view.resident_blocks[place] + f32::from(blocks);
            view.resident_blocks[place] = resident;
            view.kv_usage[place] = (resident / snapshot.limits(slot).kv_blocks).min(1.0);
        }
    }
}

impl PoolView {
    /// Starts over with the members of `pool`.
    fn reset(&mut self, pool: &Pool) {
        (self.next, self.swept) = (0, None);
        self.view.reset(&pool.members);
        self.warm.clear();
        for (place, slot) in (0..).zip(&pool.members) {
            if self.places.len() <= slot.index() {
                self.places.resize(slot.index() + 1, 0);
            }
            self.places[slot.index()] = place;
        }
    }

    /// Reads what is in flight.
    fn read_load(&mut self, shared: &Shared) {
        let View { slots, in_flight, prefill_tokens, .. } = &mut self.view;
        let cells = in_flight.iter_mut().zip(prefill_tokens);
        for ((in_flight, prefill_tokens), (requests, tokens)) in cells.zip(shared.load.read(slots)) {
            *in_flight = lossy(requests);
            *prefill_tokens = tokens.cast_signed() as f32;
        }
    }

    /// Turns depths into tokens, for the replicas that hold anything.
    fn read_warm(&mut self, depths: &WarmDepths, tokens_per_block: f32) {
        let Self { view, places, warm, .. } = self;
        for place in warm.drain(..) {
            view.warm_tokens[usize::from(place)] = 0.0;
            view.prefix_wait_s[usize::from(place)] = 0.0;
        }
        for &slot in depths.touched() {
            let Some(&place) = places.get(slot.index()) else { continue };
            // Replicas of other pools may hold the prompt too: pools can be names of one model.
            if view.slots.get(usize::from(place)) == Some(&slot) {
                view.warm_tokens[usize::from(place)] =
                    view.prompt_tokens.min(lossy(depths.get(slot)) * tokens_per_block);
                warm.push(place);
            }
        }
    }

    /// Where the prompt stands in a slot that others will use first, that is worth waiting for, or the replica is as good
    /// as cold.
    #[expect(clippy::cast_precision_loss, reason = "at most 64")]
    fn price_busy_slots(&mut self, shared: &Shared, snapshot: &Snapshot, (chain, depths): (&[BlockHash], &WarmDepths)) {
        let Self { view, warm, .. } = self;
        for place in warm.iter().map(|place| usize::from(*place)) {
            let slot = view.slots[place];
            if !snapshot.limits(slot).is_slotted {
                continue;
            }
            let ahead = shared.pending.ahead(slot, chain, depths.get(slot) as usize);
            let saved = view.warm_tokens[place] * view.prefill_s_per_token[place];
            let service = view.service_s[place];
            let wait = ahead as f32 * if service > 0.0 { service } else { view.base_s[place] + saved };
            if wait < saved * BUSY_SLOT_PATIENCE {
                view.prefix_wait_s[place] = wait;
            } else {
                view.warm_tokens[place] = 0.0;
            }
        }
    }

    /// Reads the slow columns of the replicas that are due.
    fn sweep(&mut self, shared: &Shared, snapshot: &Snapshot, now: Now) {
        let members = self.view.len();
        let mut due = members;
        match self.swept.filter(|swept| now.since(*swept) < SWEEP) {
            Some(swept) => {
                let each = SWEEP / u32::try_from(members).unwrap_or(u32::MAX).max(1);
                let count = u32::try_from(now.since(swept).as_nanos() / each.as_nanos().max(1)).unwrap_or(u32::MAX);
                due = members.min(count as usize);
                self.swept = Some(swept.plus(each * count));
            }
            None => self.swept = Some(now),
        }
        for _ in 0..due {
            read_slow(&mut self.view, self.next, shared, snapshot);
            self.next = if self.next + 1 < members { self.next + 1 } else { 0 };
        }
    }
}

/// Reads what changes slowly about the candidate at `place`.
fn read_slow(view: &mut View, place: usize, shared: &Shared, snapshot: &Snapshot) {
    let slot = view.slots[place];
    let rates = shared.rates.rates(slot);
    let limits = snapshot.limits(slot);
    let resident = shared.index.resident_blocks(slot) as f32;
    view.slots_limit[place] = limits.slots;
    view.service_s[place] = shared.rates.service_s(slot);
    view.base_s[place] = rates.base_s;
    view.prefill_s_per_token[place] = rates.prefill_s_per_token;
    view.resident_blocks[place] = resident;
    view.kv_usage[place] = (resident / limits.kv_blocks).min(1.0);
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^24, or good to 7 digits")]
const fn lossy(count: u32) -> f32 {
    count as f32
}

#[cfg(test)]
mod tests {
    use super::super::{Decision, SharedConfig, TokenRatios};
    use super::*;
    use crate::config::{Config, EjectionConfig, ReplicaConfig};
    use crate::fleet::Registry;
    use crate::id::{DecisionId, ReplicaSlot};
    use crate::learn::{Member, Rates, Sample};
    use crate::load::Flight;

    const PRIOR: Rates = Rates { base_s: 0.0, prefill_s_per_token: 1e-4, decode_s_per_token: 0.0 };

    struct Bench {
        shared: Shared,
        registry: Registry,
        candidates: Candidates,
        chain: Vec<BlockHash>,
        depths: WarmDepths,
        placement: Placement,
    }

    impl Bench {
        fn new() -> Self {
            let sizes = SharedConfig { slots_max: 64, index_bytes: 4 << 20, hash_key: [1; 32], prior: PRIOR };
            let decision = Decision::new(DecisionId(0), None, PoolId(0), Now(0), 4096, 1024.0);
            Self {
                shared: Shared::new(&sizes).unwrap(),
                registry: Registry::new(64),
                candidates: Candidates::default(),
                chain: Vec::new(),
                depths: WarmDepths::new(64),
                placement: Placement::new(decision, 7),
            }
        }

        /// A fleet of replicas that each serve the model of the same place.
        fn snapshot(&mut self, models: &[&str]) -> Snapshot {
            let replica = |(place, model): (usize, &&str)| ReplicaConfig {
                models: vec![(*model).to_owned()],
                ..ReplicaConfig::new(format!("r{place}"), format!("http://r{place}:8000").parse().unwrap())
            };
            let replicas = models.iter().enumerate().map(replica).collect();
            let config = Config { replicas, ..Config::default() };
            let (fleet, _) = self.registry.rebuild(&config.replicas, &[], &Default::default(), |_| true).unwrap();
            Snapshot::new(config, fleet, &TokenRatios::default())
        }

        fn view(&mut self, snapshot: &Snapshot, pool: usize, at_ms: u64) -> &View {
            let (pool, now) = (&snapshot.fleet.pools[pool], Now(at_ms * 1_000_000));
            self.candidates.view(&self.shared, snapshot, pool, (&self.chain, &self.depths), &self.placement, now)
        }

        fn slots(&mut self, snapshot: &Snapshot, pool: usize, at_ms: u64) -> Vec<u16> {
            self.view(snapshot, pool, at_ms).slots.iter().map(|slot| slot.0).collect()
        }

        /// The slots whose learned prefill rate differs from the prior.
        fn learned(&mut self, snapshot: &Snapshot, at_ms: u64) -> usize {
            let rates = &self.view(snapshot, 0, at_ms).prefill_s_per_token;
            rates.iter().filter(|rate| (**rate - PRIOR.prefill_s_per_token).abs() > 1e-6).count()
        }
    }

    #[test]
    fn load_and_warmth_are_as_of_now() {
        let mut bench = Bench::new();
        let snapshot = bench.snapshot(&["m"; 3]);
        let chain: Vec<_> = (1..9).map(BlockHash).collect();
        bench.shared.index.record(ReplicaSlot(1), &chain);
        bench.shared.index.lookup(&chain, &mut bench.depths);
        let flight = Flight::start(&bench.shared.load, ReplicaSlot(2), 50);
        let view = bench.view(&snapshot, 0, 1);
        assert_eq!((view.in_flight.as_slice(), view.prefill_tokens[2]), ([0.0, 0.0, 1.0].as_slice(), 50.0));
        assert_eq!(view.warm_tokens, [0.0, 512.0, 0.0]);
        drop(flight);
        bench.shared.index.lookup(&[BlockHash(99)], &mut bench.depths);
        let view = bench.view(&snapshot, 0, 1);
        assert_eq!((view.in_flight.as_slice(), view.prefill_tokens[2]), ([0.0; 3].as_slice(), 0.0));
        assert_eq!(view.warm_tokens, [0.0; 3]);
    }

    #[test]
    fn ejected_and_tried_replicas_are_no_candidates_and_come_back() {
        let mut bench = Bench::new();
        let snapshot = bench.snapshot(&["m"; 4]);
        let rules = EjectionConfig { consecutive_failures: 1, ..EjectionConfig::default() };
        bench.shared.health.failed(ReplicaSlot(2), &snapshot.fleet.pools[0].members, &rules, Now(0));
        assert_eq!(bench.slots(&snapshot, 0, 1), [0, 1, 3]);
        (bench.placement.tried[0], bench.placement.attempts) = (ReplicaSlot(0), 1);
        assert_eq!(bench.slots(&snapshot, 0, 1), [1, 3]);
        bench.placement.attempts = 0;
        assert_eq!(bench.slots(&snapshot, 0, 2001), [0, 1, 2, 3], "on probation");
        bench.shared.health.succeeded(ReplicaSlot(2));
        assert_eq!(bench.slots(&snapshot, 0, 2001), [0, 1, 2, 3]);
    }

    #[test]
    fn what_changes_slowly_is_read_once_a_sweep() {
        let mut bench = Bench::new();
        let snapshot = bench.snapshot(&["m"; 10]);
        assert_eq!(bench.learned(&snapshot, 1000), 0);
        for _ in 0..200 {
            let sample = Sample { tokens_ahead: 1000.0, output_tokens: 1.0, seconds: 0.4 };
            bench.shared.rates.learn(ReplicaSlot(0), sample);
        }
        let seen = [1000, 1004, 1005, 1014, 1015, 1049, 1050].map(|at_ms| bench.learned(&snapshot, at_ms));
        assert_eq!(seen, [0, 0, 1, 2, 3, 9, 10], "five milliseconds each");
        let configured = Member { slot: ReplicaSlot(0), pool: "m", prefill_tokens_per_s: Some(10.0) };
        bench.shared.rates.assign(&[configured]);
        let rate = bench.view(&snapshot, 0, 9000).prefill_s_per_token[0];
        assert!((rate - 0.1).abs() < 1e-6, "all at once after a pause");
    }

    #[test]
    fn pools_and_snapshots_do_not_mix() {
        let mut bench = Bench::new();
        let models: Vec<String> = (0..POOLS + 2).map(|number| format!("m{number:02}")).collect();
        let models: Vec<&str> = models.iter().map(String::as_str).collect();
        let many = bench.snapshot(&models);
        for _ in 0..2 {
            assert_eq!(bench.slots(&many, 0, 1), [0]);
            assert_eq!(bench.slots(&many, POOLS, 1), [16], "shares its place with the first");
        }
        let fewer = bench.snapshot(&["m00"; 2]);
        assert_eq!(bench.slots(&fewer, 0, 1), [0, 1]);
        assert_eq!(bench.slots(&many, 0, 1), [0]);
    }
}
