//! Which latencies a replica is expected to have: its pool's, until its own are clearly better; and how both learn.

use super::features::Features;
use super::latency::{Accuracy, Coefficients, Observed};
use super::{LearnedRates, SAMPLES_TO_DIFFER, SAMPLES_TO_TRUST, TAIL_MAX, TAIL_STEP, narrow};
use crate::clock::Now;
use crate::id::ReplicaSlot;
use crate::load::backlog::Step;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A replica is predicted by its own latencies once their errors are this share of its pool's errors, and again by its
/// pool's once they are not this much better.
const APART_BELOW: f32 = 0.8;
const TOGETHER_ABOVE: f32 = 0.95;
/// And only where that is worth it: where its pool's errors are larger by this much.
const APART_GAIN: f32 = 0.02;
/// A replica without answers stands apart no longer than this.
const APART_WITHOUT_ANSWERS: Duration = Duration::from_secs(60);
/// Share of a sample in the mean errors.
const ERROR_STEP: f32 = 0.06;
/// Output tokens from which on the time between them says something.
const OUTPUT_TOKENS_MIN: u64 = 8;

/// Expected times of one request at one replica, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// To the first token, median.
    pub ttft_p50_s: f32,
    /// To the first token, in nine of ten cases at most.
    pub ttft_p90_s: f32,
    /// Per output token after the first, median.
    pub tpot_p50_s: f32,
    /// Per output token, in nine of ten cases at most.
    pub tpot_p90_s: f32,
}

/// What a whole streamed answer took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// From the decision to its first token, seconds.
    pub first_token_s: f64,
    /// From the decision to its end, seconds.
    pub total_s: f64,
    /// Output tokens the engine counted.
    pub output_tokens: Option<u64>,
    /// Prompt tokens the engine counted, and those it found in its cache.
    pub prompt: Option<(u64, u64)>,
    /// Other requests came to the replica between it and its first token.
    pub is_followed: bool,
    /// When it ended.
    pub ended_at: Now,
}

impl LearnedRates {
    /// What predictions for `slot` are made from.
    #[inline]
    #[must_use]
    pub fn coefficients(&self, slot: ReplicaSlot) -> Coefficients {
        let own = self.replicas.get(slot.index());
        let pool = self.pool(slot);
        match (own, pool) {
            (Some(own), _) if own.is_apart.load(Relaxed) => own.latency.coefficients(),
            (_, Some(pool)) => pool.latency.coefficients(),
            (Some(own), None) => own.latency.coefficients(),
            (None, None) => Coefficients::default(),
        }
    }

    /// Who stands apart for being slow may get no requests, and would stay so for ever: `slot` has had no answer for a
    /// minute at `now`, and is taken to be like the others again. Answers show it if it is not.
    pub fn fade(&self, slot: ReplicaSlot, now: Now) {
        let Some(own) = self.replicas.get(slot.index()).filter(|own| own.is_apart.load(Relaxed)) else { return };
        if now.since(Now(own.learned_at.load(Relaxed))) > APART_WITHOUT_ANSWERS {
            own.is_apart.store(false, Relaxed);
            own.errors.iter().for_each(|error| error.store(0, Relaxed));
        }
    }

    /// True once predictions for `slot` rest on answers.
    #[must_use]
    pub fn is_predictable(&self, slot: ReplicaSlot) -> bool {
        self.pool(slot).is_some_and(|pool| pool.latency.samples() >= SAMPLES_TO_TRUST)
    }

    /// Learns from what a streamed answer took that was sent to `slot` when `features` was known and `predicted` was
    /// expected.
    pub fn learn_times(&self, slot: ReplicaSlot, features: &Features, predicted: &Prediction, timing: &Timing) {
        let was = timing.prompt.map_or(*features, |(prompt, cached)| features.corrected(prompt, cached));
        #[expect(clippy::cast_precision_loss, reason = "output tokens are far below 2^52")]
        let tpot_s = timing
            .output_tokens
            .filter(|tokens| *tokens >= OUTPUT_TOKENS_MIN)
            .map(|tokens| (timing.total_s - timing.first_token_s).max(0.0) / (tokens - 1) as f64);
        let Timing { first_token_s: ttft_s, is_followed, .. } = *timing;
        let observed = Observed { seen: *features, was, predicted: *predicted, ttft_s, tpot_s, is_followed };
        let (true, Some(own), Some(pool)) = (observed.is_sound(), self.replicas.get(slot.index()), self.pool(slot))
        else {
            return;
        };
        if let Some((_, cached)) = timing.prompt.filter(|_| features.tail_tokens > 0.0) {
            #[expect(clippy::cast_precision_loss, reason = "tokens of a prompt")]
            let tail = cached as f32 - (features.cached_tokens - features.tail_tokens);
            if (0.0..TAIL_MAX).contains(&tail) {
                super::follow(&pool.tail, f64::from(tail) + 1.0, TAIL_STEP);
            }
        }
        super::follow(&pool.answer_s, timing.total_s - timing.first_token_s, super::ANSWER_STEP);
        pool.latency.compare(predicted.ttft_p50_s, predicted.ttft_p90_s, narrow(observed.ttft_s));
        if own.latency.samples() == 0
            && pool.latency.samples() >= SAMPLES_TO_TRUST
            && let Some(warm) = pool.latency.copied()
        {
            own.latency.reset(warm);
        }
        own.learned_at.fetch_max(timing.ended_at.0, Relaxed);
        let is_apart = own.is_apart.load(Relaxed);
        let by_pool = if is_apart {
            pool.latency.expects(&observed)
        } else {
            // What a replica that stands apart takes says nothing of the others.
            pool.latency.learn(&observed, true).map(|(expected_s, _)| expected_s)
        };
        let by_own = own.latency.learn(&observed, is_apart);
        if by_own.is_some_and(|(_, has_changed)| has_changed) {
            pool.latency.note_drift();
        }
        if let (Some((by_own, _)), Some(by_pool)) = (by_own, by_pool) {
            own.note_errors([by_own, by_pool], observed.ttft_s);
        }
    }

    /// Learns from a step of `slot` that only decoded.
    pub fn learn_step(&self, slot: ReplicaSlot, step: &Step) {
        let Some(own) = self.replicas.get(slot.index()) else { return };
        let has_changed = own.latency.learn_step(step);
        if let Some(pool) = self.pool(slot) {
            if has_changed {
                pool.latency.note_drift();
            }
            if !own.is_apart.load(Relaxed) {
                pool.latency.learn_step(step);
            }
        }
    }

    /// How good predictions for the replicas of each pool were, by the pool's name.
    #[must_use]
    pub fn accuracy(&self) -> Vec<(String, Accuracy)> {
        let names = self.names.lock();
        let named = names.iter().zip(&self.pools).filter_map(|(name, cell)| Some((name.clone()?, cell)));
        named.map(|(name, cell)| (name, cell.latency.accuracy())).collect()
    }
}

impl super::Cell {
    /// Takes note of what its own latencies and its pool's expected of an answer, and decides which are to be believed.
    fn note_errors(&self, expected_s: [f64; 2], actual_s: f64) {
        let errors: [f32; 2] = std::array::from_fn(|place| {
            let error = narrow((expected_s[place] / actual_s.max(1e-3)).ln().abs().min(3.0));
            let before = f32::from_bits(self.errors[place].load(Relaxed));
            let after = before + ERROR_STEP * (error - before);
            self.errors[place].store(after.to_bits(), Relaxed);
            after
        });
        let limit = if self.is_apart.load(Relaxed) { TOGETHER_ABOVE } else { APART_BELOW };
        let is_better = errors[0] < errors[1] * limit && errors[1] - errors[0] > APART_GAIN;
        self.is_apart.store(is_better && self.latency.samples() >= SAMPLES_TO_DIFFER, Relaxed);
    }
}

#[cfg(test)]
mod tests;
