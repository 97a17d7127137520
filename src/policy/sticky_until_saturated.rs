//! Sticky until saturated: llm-d's default since August 2026.
//!
//! Candidates are the replicas that hold at least `affinity` of the prompt, if there are any, and all others too once the
//! best of them is expected to be slower than the best of the others by more than `break_after`. What is expected is
//! uncached tokens in flight ÷ a fixed peak rate of prefill. Of the candidates, the one with the least uncached work, this
//! prompt's own included, is picked. Work counts until the first streamed byte.
//!
//! Sources, in llm-d-router under `pkg/epp/framework/plugins/scheduling`: `filter/prefixcacheaffinity/plugin.go`
//! (threshold 0.80, 18,000 ms, 15,928 tokens a second, calibrated for Qwen 32B on two H100) and
//! `scorer/tokenload/token_load.go` (tokens in flight and of the request).
//!
//! Known weakness: up to 18 s of queue are waited for although a cold replica is idle, and neither the decoding load nor a
//! replica's real speed counts.

use super::{Policy, View, parameter};
use crate::config::StickyUntilSaturatedConfig;

/// The least uncached work among warm replicas, until they are slower by far.
#[derive(Debug)]
pub struct StickyUntilSaturated {
    affinity: f32,
    /// Infinite: never left.
    break_after_s: f32,
    prefill_tokens_per_s: f32,
}

impl StickyUntilSaturated {
    /// The policy with the parameters of `config`.
    #[must_use]
    pub const fn new(config: &StickyUntilSaturatedConfig) -> Self {
        let break_after_s = config.break_after.as_secs_f32();
        Self {
            affinity: parameter(config.affinity),
            break_after_s: if break_after_s > 0.0 { break_after_s } else { f32::INFINITY },
            prefill_tokens_per_s: parameter(config.prefill_tokens_per_s),
        }
    }

    fn is_warm(&self, view: &View, place: usize) -> bool {
        self.affinity > 0.0 && view.held_share(place) >= self.affinity
    }
}

impl Policy for StickyUntilSaturated {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        let (mut warm, mut others) = (f32::INFINITY, f32::INFINITY);
        for (place, tokens) in view.prefill_tokens.iter().enumerate() {
            let least = if self.is_warm(view, place) { &mut warm } else { &mut others };
            *least = least.min(*tokens);
        }
        let penalty_s = (warm - others) / self.prefill_tokens_per_s;
        let is_sticky = warm.is_finite() && (!others.is_finite() || penalty_s <= self.break_after_s);
        for (place, cost) in costs.iter_mut().enumerate() {
            *cost = if is_sticky && !self.is_warm(view, place) {
                f32::INFINITY
            } else {
                view.prefill_tokens[place] + view.uncached_tokens(place)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{best, picked, view};
    use super::*;
    use std::time::Duration;

    fn policy() -> StickyUntilSaturated {
        StickyUntilSaturated::new(&StickyUntilSaturatedConfig::default())
    }

    #[test]
    fn the_warm_one_is_kept_for_eighteen_seconds_of_queue() {
        let mut view = view(&[20.0, 0.0], &[800.0, 0.0]);
        view.prefill_tokens = vec![18.0 * 15_928.0 - 1.0, 0.0];
        assert_eq!(best(&policy(), &view), 0);
        view.prefill_tokens[0] += 100.0;
        assert_eq!(best(&policy(), &view), 1);
        let never = StickyUntilSaturatedConfig { break_after: Duration::ZERO, ..Default::default() };
        view.prefill_tokens[0] = 1e9;
        assert_eq!(best(&StickyUntilSaturated::new(&never), &view), 0);
    }

    #[test]
    fn among_equals_the_least_uncached_work_wins() {
        let mut both_warm = view(&[0.0; 3], &[900.0, 1000.0, 0.0]);
        both_warm.prefill_tokens = vec![150.0, 0.0, 0.0];
        assert_eq!(best(&policy(), &both_warm), 1);
        both_warm.prefill_tokens[1] = 300.0;
        assert_eq!(best(&policy(), &both_warm), 0);
        let mut hardly_warm = view(&[0.0; 2], &[700.0, 0.0]);
        assert_eq!(best(&policy(), &hardly_warm), 0, "below the threshold all are candidates");
        hardly_warm.prefill_tokens = vec![701.0, 0.0];
        assert_eq!(best(&policy(), &hardly_warm), 1);
    }

    #[test]
    fn its_weakness_decoding_is_not_seen() {
        assert_eq!(
            picked(&policy(), &view(&[500.0, 0.0], &[0.0; 2]))[1],
            picked(&policy(), &view(&[0.0; 2], &[0.0; 2]))[1]
        );
    }
}
