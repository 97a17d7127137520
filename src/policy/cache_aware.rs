//! Cache-aware routing as its two generations have it.
//!
//! `cache_aware` (SGLang's router, vllm-router): when `most − fewest > balance_abs_threshold` and
//! `most > balance_rel_threshold · fewest`, the fleet is out of balance and the fewest requests win. Else a prompt of which
//! more than `cache_threshold` is held somewhere goes to where most of it is, and all others to the emptiest cache.
//! Source: `sgl-router/src/policies/cache_aware.rs` of SGLang.
//! Known weakness: one overloaded replica takes the affinity of all prompts away.
//!
//! `spill_gate` (smg 1.13): the gate is on the replica that would be picked. It is passed over when it has more requests
//! than `ratio` · mean, and more than the mean + `min(margin_max, max(⌈2√mean⌉, margin_min))`. Among the replicas that
//! hold most of the prompt and pass, the one with the fewest requests wins; with none, the least expected wait among all
//! that pass, and as the prompt is then on record there, too, a hot prefix is replicated.
//! Prompts held nowhere go by the expected wait; every fourth goes to a replica with less than half the mean in its cache.
//!
//! ```text
//! wait = (tokens to prefill + requests · request_tokens) / tokens_per_s + kv_pressure · k / (1 − k), k = KV usage
//! ```
//! Source: `model_gateway/src/policies/cache_aware.rs` (`gate_selected_candidate`) and `least_load.rs` (the wait) of smg.
//! Known weakness: up to the gate, a warm replica is worth any wait, and what is waited for is a count of requests.

use super::{Policy, View, column, parameter};
use crate::config::{CacheAwareConfig, SpillGateConfig};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The longest prefix, unless the fleet is out of balance.
#[derive(Debug)]
pub struct CacheAware {
    cache_threshold: f32,
    balance_abs_threshold: f32,
    balance_rel_threshold: f32,
}

impl CacheAware {
    /// The policy with the parameters of `config`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^24")]
    pub const fn new(config: &CacheAwareConfig) -> Self {
        Self {
            cache_threshold: parameter(config.cache_threshold),
            balance_abs_threshold: config.balance_abs_threshold as f32,
            balance_rel_threshold: parameter(config.balance_rel_threshold),
        }
    }
}

impl Policy for CacheAware {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        let (fewest, most) = (column::least(&view.in_flight), column::most(&view.in_flight, 0.0));
        let is_out_of_balance =
            most - fewest > self.balance_abs_threshold && most > fewest * self.balance_rel_threshold;
        if is_out_of_balance {
            costs.copy_from_slice(&view.in_flight);
        } else if is_held(view, self.cache_threshold) {
            for (cost, warm) in costs.iter_mut().zip(&view.warm_tokens) {
                *cost = -warm;
            }
        } else {
            costs.copy_from_slice(&view.resident_blocks);
        }
    }
}

/// More than the share `threshold` of the prompt is held somewhere.
fn is_held(view: &View, threshold: f32) -> bool {
    column::most(&view.warm_tokens, 0.0) > threshold * view.prompt_tokens.max(1.0)
}

/// The longest prefix, unless the replica that has it is overloaded.
#[derive(Debug)]
pub struct SpillGate {
    cache_threshold: f32,
    ratio: f32,
    margin_min: f32,
    margin_max: f32,
    request_tokens: f32,
    tokens_per_s: f32,
    kv_pressure_s: f32,
    warm_up_every: u32,
    misses: AtomicU32,
}

impl SpillGate {
    /// The policy with the parameters of `config`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^24")]
    pub const fn new(config: &SpillGateConfig) -> Self {
        Self {
            cache_threshold: parameter(config.cache_threshold),
            ratio: parameter(config.ratio),
            margin_min: config.margin_min as f32,
            margin_max: config.margin_max as f32,
            request_tokens: parameter(config.request_tokens),
            tokens_per_s: parameter(config.tokens_per_s),
            kv_pressure_s: config.kv_pressure.as_secs_f32(),
            warm_up_every: config.warm_up_every,
            misses: AtomicU32::new(0),
        }
    }

    fn wait_s(&self, view: &View, place: usize) -> f32 {
        let tokens = view.prefill_tokens[place] + view.in_flight[place] * self.request_tokens;
        let usage = view.kv_usage[place].clamp(0.0, 0.999);
        tokens / self.tokens_per_s + self.kv_pressure_s * usage / (1.0 - usage)
    }

    /// The requests that a replica may have without being passed over.
    #[expect(clippy::cast_precision_loss, reason = "at most 4,096")]
    fn gate(&self, view: &View) -> f32 {
        let mean = view.in_flight.iter().sum::<f32>() / view.len().max(1) as f32;
        let margin = (2.0 * mean.sqrt()).ceil().max(self.margin_min).min(self.margin_max);
        (self.ratio * mean).max(mean + margin)
    }

    /// Costs by expected wait, of those that `may` take it.
    fn by_wait(&self, view: &View, costs: &mut [f32], may: impl Fn(usize) -> bool) {
        for (place, cost) in costs.iter_mut().enumerate() {
            *cost = if may(place) { self.wait_s(view, place) } else { f32::INFINITY };
        }
    }

    fn miss(&self, view: &View, costs: &mut [f32]) {
        let misses = self.misses.load(Relaxed).wrapping_add(1);
        let is_turn = self.warm_up_every > 0 && misses.is_multiple_of(self.warm_up_every);
        #[expect(clippy::cast_precision_loss, reason = "at most 4,096")]
        let mean = view.resident_blocks.iter().sum::<f32>() / view.len().max(1) as f32;
        let is_thin = |place: usize| view.resident_blocks[place] < mean / 2.0;
        let warms_up = is_turn && (0..view.len()).any(is_thin);
        self.by_wait(view, costs, |place| !warms_up || is_thin(place));
    }
}

impl Policy for SpillGate {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        if !is_held(view, self.cache_threshold) {
            self.miss(view, costs);
            return;
        }
        let gate = self.gate(view);
        let most = column::most(&view.warm_tokens, 0.0);
        let passes = |place: usize| view.in_flight[place] <= gate;
        let mut is_kept = false;
        for (place, cost) in costs.iter_mut().enumerate() {
            let is_holder = view.warm_tokens[place] >= most && passes(place);
            is_kept |= is_holder;
            *cost = if is_holder { view.in_flight[place] } else { f32::INFINITY };
        }
        if !is_kept {
            // The gate is at or above the mean: somebody passes.
            self.by_wait(view, costs, passes);
        }
    }

    fn placed(&self, view: &View, _place: usize) {
        if !is_held(view, self.cache_threshold) {
            self.misses.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{best, picked, place, view};
    use super::*;

    fn first() -> CacheAware {
        CacheAware::new(&CacheAwareConfig::default())
    }

    fn second() -> SpillGate {
        SpillGate::new(&SpillGateConfig::default())
    }

    #[test]
    fn the_longest_prefix_wins_and_what_is_cold_fills_the_emptiest() {
        assert_eq!(best(&first(), &view(&[60.0, 0.0, 0.0], &[500.0, 400.0, 0.0])), 0);
        let mut hardly = view(&[0.0; 3], &[300.0, 0.0, 0.0]);
        hardly.resident_blocks = vec![5.0, 2.0, 9.0];
        assert_eq!(best(&first(), &hardly), 1, "the threshold is to be passed");
    }

    #[test]
    fn its_weakness_one_overloaded_replica_takes_all_affinity_away() {
        assert_eq!(best(&first(), &view(&[2.0, 64.0, 1.0], &[900.0, 0.0, 0.0])), 0);
        assert_eq!(best(&first(), &view(&[2.0, 66.0, 1.0], &[900.0, 0.0, 0.0])), 2);
        assert_eq!(best(&first(), &view(&[140.0, 200.0, 135.0], &[900.0, 0.0, 0.0])), 0, "65 more, but not 1.5 times");
        assert_eq!(best(&second(), &view(&[2.0, 66.0, 1.0], &[900.0, 0.0, 0.0])), 0, "the gate is on the holder alone");
    }

    #[test]
    fn an_overloaded_holder_spills_to_where_the_wait_is_least() {
        // The mean is 3 and 4, the margin 4: 7 pass, and 8 at a mean of 4.
        assert_eq!(best(&second(), &view(&[7.0, 1.0, 2.0, 2.0], &[900.0, 0.0, 0.0, 0.0])), 0);
        assert_eq!(best(&second(), &view(&[10.0, 1.0, 2.0, 3.0], &[900.0, 0.0, 0.0, 0.0])), 1);
        // Its copy has the second holder take over; of holders the one with fewer requests.
        assert_eq!(best(&second(), &view(&[10.0, 3.0, 2.0, 1.0], &[900.0, 900.0, 0.0, 0.0])), 1);
        let mut full = view(&[10.0, 1.0, 1.0], &[900.0, 0.0, 0.0]);
        full.kv_usage = vec![0.0, 0.95, 0.5];
        assert_eq!(best(&second(), &full), 2);
    }

    #[test]
    fn the_margin_grows_with_the_root_of_the_mean_up_to_a_bound() {
        let gate = |load: f32| second().gate(&view(&[load; 4], &[0.0; 4]));
        let gates: Vec<f32> = [0.0, 4.0, 25.0, 100.0, 2000.0].map(gate).into();
        assert_eq!(gates, [4.0, 8.0, 37.5, 150.0, 3000.0]);
        let wide = SpillGateConfig { ratio: 1.0, ..SpillGateConfig::default() };
        assert!((SpillGate::new(&wide).gate(&view(&[2000.0; 4], &[0.0; 4])) - 2064.0).abs() < 0.5);
    }

    #[test]
    fn every_fourth_miss_goes_to_those_that_hold_little() {
        let policy = second();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut view = view(&[0.0, 0.0, 9.0], &[0.0; 3]);
        view.resident_blocks = vec![500.0, 500.0, 10.0];
        let places: Vec<_> = (0..12).map(|_| place(&policy, &view, &mut rng) == 2).collect();
        let turn = [false, false, false, true];
        assert_eq!(places, [turn, turn, turn].concat());
        view.resident_blocks[2] = 400.0;
        assert_eq!(picked(&policy, &view)[2], 0);
    }
}
