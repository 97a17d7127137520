//! Predicted times to first token and per output token of all candidates, as columns.
//!
//! What a prediction has that does not depend on the request is put together where something has changed
//! ([`LatencyColumns::settle`]): a time that stands, a price a token, a price a pair of tokens, and when those ahead will be
//! over. A request then costs one pass over nine columns in SIMD lanes; and only requests with an objective need it, for
//! the others are told of the few replicas that their decision names, and these are looked at anew.
//!
//! Seconds are held as `f32` from an epoch that moves on before they lose a tenth of a millisecond.

use crate::clock::Now;
use crate::learn::{Band, Coefficients, Features, Prediction};
use crate::load::backlog::{Backlog, CHUNK_TOKENS};
use std::time::Duration;

/// The epoch moves on after this time.
const EPOCH: Duration = Duration::from_secs(512);

/// The load of one candidate, as far as it makes requests wait.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// What the gateway has there, as a request meets it that is sent now.
    pub backlog: Backlog,
    /// Seconds of waiting beside that: for the prefill of others, or for a slot.
    pub others_s: f32,
    /// Requests there.
    pub requests: f32,
    /// Tokens of all there: their prompts, and what they have generated.
    pub context_tokens: f32,
}

impl Load {
    const fn is_queued(&self) -> bool {
        self.backlog.prefills > 0 || self.others_s > 0.0
    }

    const fn band(&self) -> Band {
        match self.backlog.step_s {
            _ if self.backlog.is_full => Band::Full,
            _ if self.is_queued() => Band::Queued,
            step_s if step_s > 0.0 => Band::Decoding,
            _ => Band::Idle,
        }
    }

    /// What a request of `prompt_tokens`, of which `warm_tokens` are there, meets.
    #[must_use]
    pub fn features(&self, prompt_tokens: f32, warm_tokens: f32) -> Features {
        Features {
            uncached_tokens: larger(prompt_tokens - warm_tokens, 0.0),
            cached_tokens: warm_tokens,
            tail_tokens: 0.0,
            held_s: 0.0,
            ahead_s: self.backlog.ahead_s + self.others_s,
            room_tokens: self.backlog.room_tokens,
            step_s: self.backlog.step_s,
            band: self.band(),
            requests: self.requests,
            context_tokens: self.context_tokens,
            prefill_share: self.backlog.prefill_share,
        }
    }
}

/// One cell a candidate.
#[derive(Debug, Default)]
pub struct LatencyColumns {
    coefficients: Vec<Coefficients>,
    loads: Vec<Load>,
    /// TTFT of a prompt without tokens, with no prefill ahead, as the fit expects it.
    standing_s: Vec<f32>,
    /// More of it for each token to compute: time of the engine.
    token_s: Vec<f32>,
    /// For each pair of a token to compute and one before it.
    pair_s: Vec<f32>,
    /// For each step more than one that its prefill takes.
    step_s: Vec<f32>,
    /// Prompt tokens for which the first has room.
    room_tokens: Vec<f32>,
    /// For each second until `begins_s`.
    ahead: Vec<f32>,
    /// When its prefill can begin, seconds from the epoch.
    begins_s: Vec<f32>,
    /// The median of TTFT by what is expected.
    p50_ratio: Vec<f32>,
    /// The ninetieth percentile by the median.
    p90_ratio: Vec<f32>,
    /// Time per output token after a prompt without tokens, whatever makes it uncertain.
    tpot_s: Vec<f32>,
    /// More of it for each token of the prompt.
    tpot_token_s: Vec<f32>,
    /// The ninetieth percentile of TPOT by what is expected.
    tpot_p90_ratio: Vec<f32>,
    epoch: Now,
    now_s: f32,
}

/// What times to first token are made of, as slices of one length.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'c> {
    standing_s: &'c [f32],
    token_s: &'c [f32],
    pair_s: &'c [f32],
    step_s: &'c [f32],
    room_tokens: &'c [f32],
    ahead: &'c [f32],
    begins_s: &'c [f32],
    p50_ratio: &'c [f32],
    now_s: f32,
}

/// Times of one prompt at one candidate.
#[derive(Clone, Copy, Debug)]
pub struct FirstToken {
    /// Its predicted time to first token, seconds: the median.
    pub median_s: f32,
    /// What its prefill takes of the engine's time, seconds.
    pub prefill_s: f32,
}

impl Terms<'_> {
    /// Those of a prompt of `prompt_tokens` at `place`, which holds `warm_tokens` of it. Without a branch, for loops in
    /// lanes.
    #[inline(always)]
    #[must_use]
    pub fn first_token(&self, place: usize, prompt_tokens: f32, warm_tokens: f32) -> FirstToken {
        let own = larger(prompt_tokens - warm_tokens, 0.0);
        let ahead_s = larger(self.begins_s[place] - self.now_s, 0.0);
        let prefill_s = own * (self.token_s[place] + self.pair_s[place] * (warm_tokens + 0.5 * own));
        let more_steps = (larger(own - self.room_tokens[place], 0.0) * (1.0 / CHUNK_TOKENS)).ceil();
        let expected_s =
            self.standing_s[place] + self.ahead[place] * ahead_s + prefill_s + more_steps * self.step_s[place];
        FirstToken { median_s: self.p50_ratio[place] * expected_s, prefill_s }
    }
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

    const fn columns(&self) -> [&Vec<f32>; 12] {
        [
            &self.standing_s,
            &self.token_s,
            &self.pair_s,
            &self.step_s,
            &self.room_tokens,
            &self.ahead,
            &self.begins_s,
            &self.p50_ratio,
            &self.p90_ratio,
            &self.tpot_s,
            &self.tpot_token_s,
            &self.tpot_p90_ratio,
        ]
    }

    const fn columns_mut(&mut self) -> [&mut Vec<f32>; 12] {
        [
            &mut self.standing_s,
            &mut self.token_s,
            &mut self.pair_s,
            &mut self.step_s,
            &mut self.room_tokens,
            &mut self.ahead,
            &mut self.begins_s,
            &mut self.p50_ratio,
            &mut self.p90_ratio,
            &mut self.tpot_s,
            &mut self.tpot_token_s,
            &mut self.tpot_p90_ratio,
        ]
    }

    /// From now on it is `now`.
    pub fn set_now(&mut self, now: Now) {
        if now.since(self.epoch) > EPOCH {
            let moved = now.since(self.epoch).as_secs_f32();
            self.epoch = now;
            // What is over by then stays over.
            self.begins_s.iter_mut().for_each(|begins_s| *begins_s = (*begins_s - moved).max(0.0));
        }
        self.now_s = now.since(self.epoch).as_secs_f32();
    }

    /// Takes up what was learned of the candidate at `place`; [`Self::settle`] it then.
    pub fn learn(&mut self, place: usize, coefficients: &Coefficients) {
        let Coefficients { token_s, pair_s, ahead, tpot_token_s, .. } = *coefficients;
        self.coefficients[place] = *coefficients;
        (self.token_s[place], self.pair_s[place], self.ahead[place]) = (token_s, pair_s, ahead);
        self.tpot_token_s[place] = tpot_token_s;
    }

    /// What was learned of the candidate at `place`.
    #[must_use]
    pub fn learned(&self, place: usize) -> &Coefficients {
        &self.coefficients[place]
    }

    /// Takes up the load of the candidate at `place`, as it is now.
    pub fn settle(&mut self, place: usize, load: &Load) {
        self.loads[place] = *load;
        let learned = &self.coefficients[place];
        let band = load.band();
        let ([p50, p90], [_, tpot_p90]) = (learned.ttft[band as usize], learned.tpot_band(band));
        let backlog = &load.backlog;
        let way_s = if backlog.step_s > 0.0 { learned.travel_s } else { learned.base_s };
        let mut standing_s = way_s + learned.ahead * load.others_s + learned.steps * backlog.step_s;
        self.begins_s[place] = 0.0;
        if backlog.prefills > 0 || backlog.is_full {
            self.begins_s[place] = self.now_s + backlog.ahead_s;
        } else {
            // Where in a step it will be there changes with each moment: half of one is left then.
            standing_s += learned.ahead * 0.5 * backlog.step_s;
        }
        self.standing_s[place] = standing_s;
        self.step_s[place] = learned.steps * backlog.step_s;
        self.room_tokens[place] = backlog.room_tokens;
        self.p50_ratio[place] = p50;
        self.p90_ratio[place] = if p50 > 0.0 { p90 / p50 } else { 1.0 };
        self.tpot_s[place] = learned.tpot_s(load.requests, load.context_tokens, backlog.prefill_share);
        self.tpot_p90_ratio[place] = tpot_p90;
    }

    /// What a request of `prompt_tokens`, of which `warm_tokens` are there, meets at `place`.
    #[must_use]
    pub fn features(&self, place: usize, prompt_tokens: f32, warm_tokens: f32) -> Features {
        let load = &self.loads[place];
        let backlog = &load.backlog;
        let ahead_s = match backlog.prefills {
            0 if !backlog.is_full => 0.5 * backlog.step_s,
            _ => larger(self.begins_s[place] - self.now_s, 0.0),
        };
        Features { ahead_s: ahead_s + load.others_s, ..load.features(prompt_tokens, warm_tokens) }
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

    /// What times to first token of the first `len` candidates are made of.
    #[inline(always)]
    #[must_use]
    pub fn terms(&self, len: usize) -> Terms<'_> {
        Terms {
            standing_s: &self.standing_s[..len],
            token_s: &self.token_s[..len],
            pair_s: &self.pair_s[..len],
            step_s: &self.step_s[..len],
            room_tokens: &self.room_tokens[..len],
            ahead: &self.ahead[..len],
            begins_s: &self.begins_s[..len],
            p50_ratio: &self.p50_ratio[..len],
            now_s: self.now_s,
        }
    }

    /// Seconds until a request that is sent to `place` now could begin its prefill.
    #[inline]
    #[must_use]
    pub fn ahead_s(&self, place: usize) -> f32 {
        larger(self.begins_s[place] - self.now_s, 0.0) + self.loads[place].others_s
    }

    /// Seconds that prefill of `uncached_tokens` after `warm_tokens` takes at `place`.
    #[inline]
    #[must_use]
    pub fn prefill_s(&self, place: usize, uncached_tokens: f32, warm_tokens: f32) -> f32 {
        let after = warm_tokens + 0.5 * uncached_tokens;
        uncached_tokens * (self.token_s[place] + self.pair_s[place] * after)
    }

    /// Expected seconds per output token.
    #[inline]
    #[must_use]
    pub fn tpot_column(&self) -> &[f32] {
        &self.tpot_s
    }

    /// Writes the ninetieth percentiles, seconds, of the predicted times per output token.
    pub fn predict_tpot_p90(&self, prompt_tokens: f32, p90_s: &mut [f32]) {
        let terms = self.tpot_s.iter().zip(&self.tpot_token_s).zip(&self.tpot_p90_ratio);
        for (out, ((tpot_s, token_s), ratio)) in p90_s.iter_mut().zip(terms) {
            *out = ratio * (tpot_s + prompt_tokens * token_s);
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
    let (terms, ratio) = (columns.terms(n), &columns.p90_ratio[..n]);
    for place in 0..n {
        let FirstToken { median_s, .. } = terms.first_token(place, prompt_tokens, warm_tokens[place]);
        p50_s[place] = median_s;
        p90_s[place] = median_s * ratio[place];
    }
}

/// The larger of two numbers; one instruction, as `f32::max` is not, for it cares about what is not a number.
#[inline(always)]
pub(super) const fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coefficients(rng: &mut fastrand::Rng) -> Coefficients {
        let band = |rng: &mut fastrand::Rng| [0.9 + 0.2 * rng.f32(), 1.2 + rng.f32()];
        Coefficients {
            base_s: 0.02 + 0.02 * rng.f32(),
            travel_s: 0.02 * rng.f32(),
            token_s: 1e-4 * rng.f32(),
            pair_s: 1e-9 * rng.f32(),
            ahead: 1.0 + rng.f32(),
            steps: 1.0 + rng.f32(),
            ttft: std::array::from_fn(|_| band(rng)),
            tpot_s: 0.01,
            tpot_request_s: 1e-4 * rng.f32(),
            tpot_token_s: 1e-7 * rng.f32(),
            tpot_prefill_s: 0.02 * rng.f32(),
            tpot: std::array::from_fn(|_| band(rng)),
            ..Coefficients::default()
        }
    }

    fn load(rng: &mut fastrand::Rng) -> Load {
        let backlog = Backlog {
            prefills: u32::from(rng.u8(..3)),
            ahead_s: 30.0 * rng.f32(),
            room_tokens: CHUNK_TOKENS * rng.f32(),
            step_s: if rng.bool() { 0.03 * rng.f32() } else { 0.0 },
            is_full: rng.u8(..8) == 0,
            decoding: 0,
            generated_tokens: 0.0,
            prefill_share: 2.0 * rng.f32(),
        };
        let others_s = if rng.bool() { rng.f32() } else { 0.0 };
        Load { backlog, others_s, requests: f32::from(rng.u8(..9)), context_tokens: 1e6 * rng.f32() }
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
                columns.learn(place, &coefficients(&mut rng));
                columns.settle(place, &load(&mut rng));
            }
            let warm: Vec<f32> = (0..len).map(|_| 40_000.0 * rng.f32()).collect();
            let [mut p50, mut p90, mut tpot] = [0, 1, 2].map(|_| vec![0.0; len]);
            for at in [0.0, 10.0, 511.0, 514.0] {
                columns.set_now(second(starts + at));
                columns.predict_ttft(30_000.0, &warm, &mut p50, &mut p90);
                columns.predict_tpot_p90(30_000.0, &mut tpot);
                for place in 0..len {
                    // All of a prompt counts as context, warm or not.
                    let one = columns.predict(place, 30_000.0, warm[place].min(30_000.0));
                    assert!(near(p50[place], one.ttft_p50_s) && near(p90[place], one.ttft_p90_s), "{place} at {at}");
                    assert!(near(tpot[place], one.tpot_p90_s), "{place} at {at}: {} {one:?}", tpot[place]);
                }
            }
        }
    }
}
