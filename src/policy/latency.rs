//! Predicted times to first token and per output token of all candidates, as columns.
//!
//! What a prediction has that does not depend on the request is put together where something has changed
//! ([`LatencyColumns::settle`]): a time that stands, a price a token, a price a pair of tokens, and when the prefill ahead
//! will be over. A request then costs one pass over six columns in SIMD lanes; and only requests with an objective need
//! it, for the others are told of the few replicas that their decision names.
//!
//! Seconds are held as `f32` from an epoch that moves on before they lose a tenth of a millisecond.

use crate::clock::Now;
use crate::learn::{Coefficients, Features, Prediction};
use std::time::Duration;

/// The epoch moves on after this time.
const EPOCH: Duration = Duration::from_secs(512);

/// The load of one candidate, as far as it makes requests wait.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// When the prefill that the gateway has standing there is over; `None` when there is none.
    pub prefilled_by: Option<Now>,
    /// Seconds of waiting beside that: for the prefill of others, or for a slot.
    pub others_s: f32,
    /// Some have their first token already.
    pub is_decoding: bool,
    /// Requests there.
    pub requests: f32,
    /// Prompt tokens of all there.
    pub context_tokens: f32,
    /// Share of its time that it computes prompts in.
    pub prefill_share: f32,
}

/// One cell a candidate.
#[derive(Debug, Default)]
pub struct LatencyColumns {
    coefficients: Vec<Coefficients>,
    loads: Vec<Load>,
    /// TTFT of a prompt without tokens, with no prefill ahead.
    standing_s: Vec<f32>,
    /// More of it for each token to compute.
    token_s: Vec<f32>,
    /// For each pair of a token to compute and one before it.
    pair_s: Vec<f32>,
    /// For each second until `prefilled_by_s`.
    ahead: Vec<f32>,
    /// Seconds from the epoch.
    prefilled_by_s: Vec<f32>,
    /// The ninetieth percentile of TTFT by the median.
    p90_ratio: Vec<f32>,
    /// TPOT of a prompt without tokens, at the ninetieth percentile.
    tpot_p90_s: Vec<f32>,
    /// More of it for each token of the prompt.
    tpot_p90_token_s: Vec<f32>,
    epoch: Now,
    now_s: f32,
}

impl LatencyColumns {
    /// Empties all columns, keeping their memory.
    pub fn clear(&mut self) {
        self.coefficients.clear();
        self.loads.clear();
        self.columns_mut().into_iter().for_each(Vec::clear);
    }

    /// Makes room for `len` candidates of which nothing is known.
    pub fn reset(&mut self, len: usize) {
        self.clear();
        self.coefficients.resize(len, Coefficients::default());
        self.loads.resize(len, Load::default());
        self.columns_mut().into_iter().for_each(|column| column.resize(len, 0.0));
    }

    /// Adds the candidate at `place` of `other`.
    pub fn push_from(&mut self, other: &Self, place: usize) {
        (self.epoch, self.now_s) = (other.epoch, other.now_s);
        self.coefficients.push(other.coefficients[place]);
        self.loads.push(other.loads[place]);
        for (column, from) in self.columns_mut().into_iter().zip(other.columns()) {
            column.push(from[place]);
        }
    }

    const fn columns(&self) -> [&Vec<f32>; 8] {
        let Self {
            standing_s, token_s, pair_s, ahead, prefilled_by_s, p90_ratio, tpot_p90_s, tpot_p90_token_s, ..
        } = self;
        [standing_s, token_s, pair_s, ahead, prefilled_by_s, p90_ratio, tpot_p90_s, tpot_p90_token_s]
    }

    const fn columns_mut(&mut self) -> [&mut Vec<f32>; 8] {
        let Self {
            standing_s, token_s, pair_s, ahead, prefilled_by_s, p90_ratio, tpot_p90_s, tpot_p90_token_s, ..
        } = self;
        [standing_s, token_s, pair_s, ahead, prefilled_by_s, p90_ratio, tpot_p90_s, tpot_p90_token_s]
    }

    /// From now on it is `now`.
    pub fn set_now(&mut self, now: Now) {
        if now.since(self.epoch) > EPOCH {
            let moved = now.since(self.epoch).as_secs_f32();
            self.epoch = now;
            // What is over by then stays over.
            self.prefilled_by_s.iter_mut().for_each(|by_s| *by_s = (*by_s - moved).max(0.0));
        }
        self.now_s = now.since(self.epoch).as_secs_f32();
    }

    /// Takes up what was learned of the candidate at `place`; [`Self::settle`] it then.
    pub fn learn(&mut self, place: usize, coefficients: &Coefficients) {
        self.coefficients[place] = *coefficients;
    }

    /// Takes up the load of the candidate at `place`.
    pub fn settle(&mut self, place: usize, load: &Load) {
        self.loads[place] = *load;
        let learned = &self.coefficients[place];
        let is_queued = load.prefilled_by.is_some() || load.others_s > 0.0;
        let ([p50, p90], [_, tpot_p90]) = (learned.ttft[usize::from(is_queued)], learned.tpot[usize::from(is_queued)]);
        let decoding_s = if load.is_decoding { learned.decoding_s } else { 0.0 };
        let standing_s =
            learned.base_s + decoding_s + learned.context_token_s * load.context_tokens + learned.ahead * load.others_s;
        self.standing_s[place] = p50 * standing_s;
        self.token_s[place] = p50 * learned.token_s;
        self.pair_s[place] = p50 * learned.pair_s;
        self.ahead[place] = p50 * learned.ahead;
        self.prefilled_by_s[place] = load.prefilled_by.map_or(0.0, |by| by.since(self.epoch).as_secs_f32());
        self.p90_ratio[place] = if p50 > 0.0 { p90 / p50 } else { 1.0 };
        let step_s = learned.step_s
            + learned.step_request_s * (load.requests + 1.0)
            + learned.step_token_s * load.context_tokens
            + learned.step_prefill_s * load.prefill_share.min(1.0);
        self.tpot_p90_s[place] = tpot_p90 * step_s;
        self.tpot_p90_token_s[place] = tpot_p90 * learned.step_token_s;
    }

    /// What a request of `prompt_tokens`, of which `warm_tokens` are there, meets at `place`.
    #[must_use]
    pub fn features(&self, place: usize, prompt_tokens: f32, warm_tokens: f32) -> Features {
        let load = &self.loads[place];
        Features {
            uncached_tokens: larger(prompt_tokens - warm_tokens, 0.0),
            cached_tokens: warm_tokens,
            ahead_s: larger(self.prefilled_by_s[place] - self.now_s, 0.0) + load.others_s,
            // The prefill that should be over may not be: what then happens is as uncertain.
            is_queued: load.prefilled_by.is_some() || load.others_s > 0.0,
            is_decoding: load.is_decoding,
            requests: load.requests,
            context_tokens: load.context_tokens,
            prefill_share: load.prefill_share,
        }
    }

    /// What is predicted of it there.
    #[must_use]
    pub fn predict(&self, place: usize, prompt_tokens: f32, warm_tokens: f32) -> Prediction {
        self.coefficients[place].predict(&self.features(place, prompt_tokens, warm_tokens))
    }

    /// Writes the predicted times to first token, seconds, of all candidates for a prompt of `prompt_tokens` of which they
    /// hold `warm_tokens`: the median and the ninetieth percentile. All slices are as long as there are candidates.
    pub fn predict_ttft(&self, prompt_tokens: f32, warm_tokens: &[f32], p50_s: &mut [f32], p90_s: &mut [f32]) {
        predict_ttft(self, prompt_tokens, warm_tokens, p50_s, p90_s);
    }

    /// As [`Self::predict_ttft`], the median alone.
    pub fn predict_ttft_p50(&self, prompt_tokens: f32, warm_tokens: &[f32], p50_s: &mut [f32]) {
        predict_ttft_p50(self, prompt_tokens, warm_tokens, p50_s);
    }

    /// Seconds until a request that is sent to `place` now could begin its prefill.
    #[inline]
    #[must_use]
    pub fn ahead_s(&self, place: usize) -> f32 {
        larger(self.prefilled_by_s[place] - self.now_s, 0.0) + self.loads[place].others_s
    }

    /// Seconds that prefill of `uncached_tokens` after `warm_tokens` takes at `place`.
    #[inline]
    #[must_use]
    pub fn prefill_s(&self, place: usize, uncached_tokens: f32, warm_tokens: f32) -> f32 {
        uncached_tokens * (self.token_s[place] + self.pair_s[place] * (warm_tokens + 0.5 * uncached_tokens))
    }

    /// Seconds of prefill for each token, and for each pair of a token and one before it.
    #[inline]
    #[must_use]
    pub fn prefill_columns(&self) -> (&[f32], &[f32]) {
        (&self.token_s, &self.pair_s)
    }

    /// Writes the ninetieth percentiles, seconds, of the predicted times per output token.
    pub fn predict_tpot_p90(&self, prompt_tokens: f32, p90_s: &mut [f32]) {
        for ((out, standing_s), token_s) in p90_s.iter_mut().zip(&self.tpot_p90_s).zip(&self.tpot_p90_token_s) {
            *out = standing_s + prompt_tokens * token_s;
        }
    }
}

/// All candidates, in the widest lanes this CPU has. Columns of one known length: the loop has no bounds to check.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn predict_ttft(
    columns: &LatencyColumns,
    prompt_tokens: f32,
    warm_tokens: &[f32],
    p50_s: &mut [f32],
    p90_s: &mut [f32],
) {
    let n = p50_s.len();
    let (warm_tokens, p90_s) = (&warm_tokens[..n], &mut p90_s[..n]);
    let (standing_s, token_s, pair_s) = (&columns.standing_s[..n], &columns.token_s[..n], &columns.pair_s[..n]);
    let (ahead, by_s, ratio) = (&columns.ahead[..n], &columns.prefilled_by_s[..n], &columns.p90_ratio[..n]);
    let now_s = columns.now_s;
    for place in 0..n {
        let warm = warm_tokens[place];
        let own = larger(prompt_tokens - warm, 0.0);
        let ahead_s = larger(by_s[place] - now_s, 0.0);
        let prefill_s = own * (token_s[place] + pair_s[place] * (warm + 0.5 * own));
        let median_s = standing_s[place] + ahead[place] * ahead_s + prefill_s;
        p50_s[place] = median_s;
        p90_s[place] = median_s * ratio[place];
    }
}

/// The medians alone.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn predict_ttft_p50(columns: &LatencyColumns, prompt_tokens: f32, warm_tokens: &[f32], p50_s: &mut [f32]) {
    let n = p50_s.len();
    let warm_tokens = &warm_tokens[..n];
    let (standing_s, token_s, pair_s) = (&columns.standing_s[..n], &columns.token_s[..n], &columns.pair_s[..n]);
    let (ahead, by_s) = (&columns.ahead[..n], &columns.prefilled_by_s[..n]);
    let now_s = columns.now_s;
    for place in 0..n {
        let warm = warm_tokens[place];
        let own = larger(prompt_tokens - warm, 0.0);
        let ahead_s = larger(by_s[place] - now_s, 0.0);
        let prefill_s = own * (token_s[place] + pair_s[place] * (warm + 0.5 * own));
        p50_s[place] = standing_s[place] + ahead[place] * ahead_s + prefill_s;
    }
}

/// The larger of two numbers; one instruction, as `f32::max` is not, for it cares about what is not a number.
#[inline(always)]
const fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coefficients(rng: &mut fastrand::Rng) -> Coefficients {
        Coefficients {
            base_s: 0.02 * rng.f32(),
            token_s: 1e-4 * rng.f32(),
            pair_s: 1e-9 * rng.f32(),
            ahead: 1.0 + rng.f32(),
            decoding_s: 0.01 * rng.f32(),
            context_token_s: 1e-7 * rng.f32(),
            ttft: [[1.0, 1.2], [0.9, 1.8]],
            step_s: 0.01,
            step_request_s: 1e-4 * rng.f32(),
            step_token_s: 1e-7 * rng.f32(),
            step_prefill_s: 0.02 * rng.f32(),
            tpot: [[1.0, 1.1], [1.1, 1.5]],
        }
    }

    fn near(a: f32, b: f32) -> bool {
        (a - b).abs() <= 1e-4 + 1e-3 * b.abs()
    }

    #[test]
    fn lanes_predict_what_one_by_one_is_predicted_and_time_goes_on() {
        let mut rng = fastrand::Rng::with_seed(3);
        let second = |seconds: f64| Now(0).plus(Duration::from_secs_f64(seconds));
        for (len, starts) in [(0, 0.0), (1, 5.0), (37, 500.0), (256, 70_000.0)] {
            let mut columns = LatencyColumns::default();
            columns.reset(len);
            columns.set_now(second(starts));
            for place in 0..len {
                let load = Load {
                    prefilled_by: rng.bool().then(|| second(starts + 30.0 * rng.f64())),
                    others_s: if rng.bool() { rng.f32() } else { 0.0 },
                    is_decoding: rng.bool(),
                    requests: f32::from(rng.u8(..9)),
                    context_tokens: 1e6 * rng.f32(),
                    prefill_share: 2.0 * rng.f32(),
                };
                columns.learn(place, &coefficients(&mut rng));
                columns.settle(place, &load);
            }
            let warm: Vec<f32> = (0..len).map(|_| 9000.0 * rng.f32()).collect();
            let [mut p50, mut p90, mut tpot] = [0, 1, 2].map(|_| vec![0.0; len]);
            for at in [0.0, 10.0, 511.0, 514.0] {
                columns.set_now(second(starts + at));
                columns.predict_ttft(8000.0, &warm, &mut p50, &mut p90);
                columns.predict_tpot_p90(8000.0, &mut tpot);
                for place in 0..len {
                    // All of a prompt counts as context, warm or not.
                    let one = columns.predict(place, 8000.0, warm[place].min(8000.0));
                    assert!(near(p50[place], one.ttft_p50_s) && near(p90[place], one.ttft_p90_s), "{place} at {at}");
                    assert!(near(tpot[place], one.tpot_p90_s), "{place} at {at}: {} {one:?}", tpot[place]);
                }
            }
        }
    }
}
