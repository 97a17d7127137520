//! Costs that count tokens of prefill and of decoding: `dynamo` and `lmetric`.
//!
//! `dynamo` (NVIDIA Dynamo's KV router): `prefill_load_scale · max(0, waiting + prompt − overlap_score_credit · held) +
//! decoding`, where waiting is uncached tokens before their first byte and decoding the tokens that requests in flight hold
//! in the cache. Dynamo counts both in blocks of one size, which changes no order.
//! Source: `lib/kv-router/src/scheduling/selector/default.rs` (`worker_logit`), at a temperature of 0.
//! Blocks that requests in flight have in common are counted once there, and for each here.
//! Known weakness: a token held by somebody else's context costs as much as a token to compute, so long contexts push
//! their own sessions away.
//!
//! `lmetric` (Zhang and others, *LMetric: Simple is Better*, arXiv 2603.15202): `(waiting + prompt − held) · (requests + 1)`,
//! without parameters; the one more, as llm-d's `scorer/lmetric/lmetric.go` has it, is this request itself.
//! Known weakness: where all of a prompt is held and nothing waits, the product is 0 however many requests are there.

use super::{Policy, View, parameter};
use crate::config::DynamoConfig;

/// Prefill to do and context in use.
#[derive(Debug)]
pub struct Dynamo {
    overlap_score_credit: f32,
    prefill_load_scale: f32,
}

impl Dynamo {
    /// The policy with the parameters of `config`.
    #[must_use]
    pub const fn new(config: &DynamoConfig) -> Self {
        Self {
            overlap_score_credit: parameter(config.overlap_score_credit),
            prefill_load_scale: parameter(config.prefill_load_scale),
        }
    }
}

impl Policy for Dynamo {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        for (place, cost) in costs.iter_mut().enumerate() {
            let credit = self.overlap_score_credit * view.warm_tokens[place];
            let prefill = (view.prefill_tokens[place] + view.prompt_tokens - credit).max(0.0);
            *cost = self.prefill_load_scale * prefill + view.context_tokens[place];
        }
    }
}

/// Tokens to prefill times requests.
#[derive(Debug)]
pub struct LMetric;

impl Policy for LMetric {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        for (place, cost) in costs.iter_mut().enumerate() {
            *cost = (view.prefill_tokens[place] + view.uncached_tokens(place)) * (view.in_flight[place] + 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{best, view};
    use super::*;

    #[test]
    fn dynamo_weighs_what_is_held_against_what_waits_and_what_decodes() {
        let policy = Dynamo::new(&DynamoConfig::default());
        let mut view = view(&[1.0, 0.0], &[900.0, 0.0]);
        assert_eq!(best(&policy, &view), 0);
        view.prefill_tokens[0] = 901.0;
        assert_eq!(best(&policy, &view), 1);
        view.prefill_tokens[0] = 0.0;
        view.context_tokens[0] = 901.0;
        assert_eq!(best(&policy, &view), 1);
        let scaled = Dynamo::new(&DynamoConfig { prefill_load_scale: 2.0, ..DynamoConfig::default() });
        assert_eq!(best(&scaled, &view), 0);
        let blind = Dynamo::new(&DynamoConfig { overlap_score_credit: 0.0, ..DynamoConfig::default() });
        view.context_tokens[0] = 1.0;
        assert_eq!(best(&blind, &view), 1);
    }

    #[test]
    fn dynamos_weakness_a_long_context_in_use_pushes_its_own_session_away() {
        let mut view = view(&[1.0, 1.0], &[1000.0, 0.0]);
        view.context_tokens = vec![30_000.0, 0.0];
        assert_eq!(best(&Dynamo::new(&DynamoConfig::default()), &view), 1);
    }

    #[test]
    fn lmetric_multiplies_prefill_and_requests() {
        let mut view = view(&[3.0, 1.0], &[600.0, 0.0]);
        assert_eq!(best(&LMetric, &view), 0, "400 × 4 against 1000 × 2");
        view.in_flight[0] = 5.0;
        assert_eq!(best(&LMetric, &view), 1, "400 × 6 against 1000 × 2");
        view.in_flight[0] = 3.0;
        view.prefill_tokens[0] = 101.0;
        assert_eq!(best(&LMetric, &view), 1, "501 × 4 against 1000 × 2");
    }

    #[test]
    fn lmetrics_weakness_a_whole_prompt_held_is_worth_any_batch() {
        assert_eq!(best(&LMetric, &view(&[500.0, 0.0], &[1000.0, 0.0])), 0);
        assert_eq!(best(&LMetric, &view(&[500.0, 0.0], &[990.0, 0.0])), 1);
    }
}
