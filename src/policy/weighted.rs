//! The weighted blend: llm-d's and the Gateway API inference extension's legacy default.
//!
//! ```text
//! score = prefix · held blocks / prompt's blocks + queue · (most − waiting) / (most − fewest) + kv · (1 − KV usage)
//!       + no_hit_lru · (1 − rank / (n − 1)), for requests that are cold everywhere
//! ```
//! Waiting are requests in the engine's own queue, as its metrics page has them: those beyond what it is known, or seen, to
//! run at once. As long as nobody's queue is known to hold any, this score is the same everywhere.
//!
//! Weights prefix : queue : kv are 3 : 2 : 2 by default; Google reports 3 : 5 : 2 to do better than 3 : 3 : 2 on chat. The
//! rank of `no_hit_lru` is the replica's place in the order in which they were last given a request that was cold
//! everywhere, those never given one first, so that caches grow alike; for all other requests it is ½ everywhere.
//!
//! Sources: in llm-d-router under `pkg/epp/framework/plugins/scheduling/scorer`, `nohitlru/no_hit_lru.go` (weight 2 in its
//! optimized baseline) and the queue (`WaitingQueueSize`), KV and prefix scorers of the gateway-api-inference-extension.
//!
//! Known weakness: the queue's score is relative. One request more than the others counts as much as a hundred, so with a
//! large weight affinity is lost for nothing, and with a small one a hot replica is never left. And before a queue forms,
//! load counts as KV usage only.

use super::{Policy, View, parameter};
use crate::config::Weights;
use crate::id::ReplicaSlot;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Weighted sum of scores between 0 and 1.
#[derive(Debug)]
pub struct Weighted {
    prefix: f32,
    queue: f32,
    kv: f32,
    cold: Option<ColdTurns>,
}

impl Weighted {
    /// The blend with `weights`.
    #[must_use]
    pub fn new(weights: &Weights) -> Self {
        Self {
            prefix: parameter(weights.prefix),
            queue: parameter(weights.queue),
            kv: parameter(weights.kv),
            cold: (weights.no_hit_lru > 0.0).then(|| ColdTurns::new(parameter(weights.no_hit_lru))),
        }
    }
}

impl Policy for Weighted {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        let waiting = |place: usize| (view.in_flight[place] - view.slots_limit[place]).max(0.0);
        let bounds = |(least, most): (f32, f32), waiting: f32| (least.min(waiting), most.max(waiting));
        let (least, most) = (0..view.len()).map(waiting).fold((f32::INFINITY, 0.0), bounds);
        for (place, cost) in costs.iter_mut().enumerate() {
            let queue = if most > least { (most - waiting(place)) / (most - least) } else { 1.0 };
            let kv = (1.0 - view.kv_usage[place]).clamp(0.0, 1.0);
            *cost = -(self.prefix * view.held_share(place) + self.queue * queue + self.kv * kv);
        }
        if let Some(cold) = &self.cold {
            cold.add(view, costs);
        }
    }

    fn placed(&self, view: &View, place: usize) {
        if let Some(cold) = &self.cold
            && view.is_cold()
        {
            cold.took(view.slots[place]);
        }
    }
}

/// The order in which replicas were last given a request that was cold everywhere.
struct ColdTurns {
    weight: f32,
    turns: AtomicU64,
    /// The last turn of each slot; zero: none yet.
    last: Box<[AtomicU64]>,
}

impl std::fmt::Debug for ColdTurns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ColdTurns").field("weight", &self.weight).field("turns", &self.turns).finish_non_exhaustive()
    }
}

impl ColdTurns {
    fn new(weight: f32) -> Self {
        let last = (0..ReplicaSlot::LIMIT).map(|_| AtomicU64::new(0)).collect();
        Self { weight, turns: AtomicU64::new(0), last }
    }

    fn took(&self, slot: ReplicaSlot) {
        let turn = self.turns.fetch_add(1, Relaxed) + 1;
        if let Some(last) = self.last.get(slot.index()) {
            last.store(turn, Relaxed);
        }
    }

    /// Takes the score off the costs.
    #[expect(clippy::cast_precision_loss, reason = "at most 4,096")]
    fn add(&self, view: &View, costs: &mut [f32]) {
        if !view.is_cold() {
            costs.iter_mut().for_each(|cost| *cost -= self.weight / 2.0);
            return;
        }
        // Turn and place in one number: sorted, the places stand in the order of their turns.
        const PLACE_BITS: u32 = 16;
        let mut keys = [0_u64; ReplicaSlot::LIMIT];
        let n = view.len().min(keys.len());
        for (place, (key, slot)) in (0..).zip(keys.iter_mut().zip(&view.slots)) {
            let last = self.last.get(slot.index()).map_or(0, |last| last.load(Relaxed));
            *key = last << PLACE_BITS | place;
        }
        keys[..n].sort_unstable();
        let last_rank = n.saturating_sub(1).max(1) as f32;
        for (rank, key) in keys[..n].iter().enumerate() {
            let place = (*key & ((1 << PLACE_BITS) - 1)) as usize;
            costs[place] -= self.weight * (1.0 - rank as f32 / last_rank);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{best, place, view};
    use super::*;

    fn blend(prefix: f64, queue: f64, kv: f64, no_hit_lru: f64) -> Weighted {
        Weighted::new(&Weights { prefix, queue, kv, no_hit_lru })
    }

    #[test]
    fn the_weights_say_whether_a_hot_replica_is_passed_over() {
        let hot = view(&[9.0, 3.0, 3.0], &[900.0, 0.0, 0.0]);
        assert_eq!(best(&blend(3.0, 2.0, 2.0, 0.0), &hot), 0);
        assert_ne!(super::super::sample::picked(&blend(3.0, 5.0, 2.0, 0.0), &hot)[0], 400);
        let mut full = view(&[1.0, 1.0], &[500.0, 0.0]);
        full.kv_usage = vec![1.0, 0.1];
        assert_eq!(best(&blend(3.0, 2.0, 2.0, 0.0), &full), 1, "1.5 for the prefix, 1.8 for the room");
    }

    #[test]
    fn only_who_waits_counts_as_queue() {
        let mut hot = view(&[9.0, 3.0, 3.0], &[900.0, 0.0, 0.0]);
        hot.slots_limit = vec![f32::INFINITY; 3];
        assert_eq!(best(&blend(3.0, 5.0, 2.0, 0.0), &hot), 0, "nobody waits");
        hot.slots_limit = vec![8.0, f32::INFINITY, f32::INFINITY];
        assert_ne!(super::super::sample::picked(&blend(3.0, 5.0, 2.0, 0.0), &hot)[0], 400);
    }

    #[test]
    fn its_weakness_one_request_more_is_as_bad_as_a_hundred() {
        assert_eq!(best(&blend(3.0, 5.0, 2.0, 0.0), &view(&[1.0, 0.0], &[1000.0, 0.0])), 1);
        assert_eq!(best(&blend(3.0, 2.0, 2.0, 0.0), &view(&[100.0, 0.0], &[1000.0, 0.0])), 0);
    }

    #[test]
    fn cold_requests_go_to_whom_they_have_not_been_given_for_longest() {
        let policy = blend(3.0, 2.0, 2.0, 2.0);
        let mut rng = fastrand::Rng::with_seed(1);
        let idle = view(&[0.0; 4], &[0.0; 4]);
        let order: Vec<_> = (0..8).map(|_| place(&policy, &idle, &mut rng)).collect();
        assert_eq!(order, [0, 1, 2, 3, 0, 1, 2, 3], "those never given one first, then in turn");
        let warm = view(&[0.0; 4], &[0.0, 0.0, 900.0, 0.0]);
        assert_eq!([place(&policy, &warm, &mut rng), place(&policy, &warm, &mut rng)], [2, 2]);
        assert_eq!(place(&policy, &idle, &mut rng), 0, "what is warm somewhere is no turn");
        let mut fewer = view(&[0.0; 2], &[0.0; 2]);
        fewer.slots = vec![ReplicaSlot(3), ReplicaSlot(1)];
        assert_eq!(best(&policy, &fewer), 1, "the order is the replicas', not the places'");
        assert_eq!(best(&policy, &view(&[0.0], &[0.0])), 0);
    }
}
