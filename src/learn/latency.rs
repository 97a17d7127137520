//! Times to first token and per output token of one replica or one pool: a fit, what surrounds it, and how good it is.
//!
//! The fit is of relative errors: a tenth of a short time counts as much as a tenth of a long one. It learns from what the
//! engine says it computed. Quantiles are of actual by expected time, where expected is by what was known at the decision;
//! so they take in what the gateway was wrong about, too. They are kept apart for requests with prefill ahead of them.

use super::drift::Drift;
use super::features::{CONTEXT, Features, PAIRS, REQUESTS, TOKENS, TPOT_TERMS, TTFT_TERMS};
use super::predicted::Prediction;
use super::quantile::Quantiles;
use super::recursive::{Recursive, Vector};
use super::{Rates, narrow};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Share of old evidence kept a sample: a memory of 300; and for a while after something has changed: of 25.
const KEPT: f64 = 0.9967;
const KEPT_IN_HURRY: f64 = 0.96;
/// How much faster quantiles move after something has changed.
const HASTE: f64 = 4.0;
/// What is known of each coefficient at the start.
const CERTAINTY_LEAST: f64 = 0.02;
/// Relative residuals that are nothing to look at.
const RESIDUAL_LEAST: f64 = 0.01;
/// Times are held to be at least this long, seconds, where errors are relative to them: network jitter is no error.
const TTFT_LEAST_S: f64 = 2e-3;
const TPOT_LEAST_S: f64 = 2e-4;
/// Nobody waits longer, seconds.
const TIME_MAX_S: f64 = 3600.0;
/// Coefficients before the first sample that rates say nothing of: by the published figures of an 8B model on an H100.
const PAIRS_AT_FIRST: f64 = 0.0;
const DECODING_AT_FIRST_S: f64 = 0.01;
const CONTEXT_AT_FIRST: f64 = 0.05;

/// One kind of time.
#[derive(Clone, Debug)]
struct Times<const N: usize> {
    fit: Recursive<N>,
    /// With nothing ahead, and with something.
    bands: [Quantiles; 2],
    drift: Drift,
    least_s: f64,
}

impl<const N: usize> Times<N> {
    fn new(coefficients: Vector<N>, least_s: f64) -> Self {
        let fit = Recursive::new(coefficients, [CERTAINTY_LEAST; N], RESIDUAL_LEAST);
        Self { fit, bands: [Quantiles::default(); 2], drift: Drift::default(), least_s }
    }

    fn median(&self, x: &Vector<N>, is_queued: bool) -> f64 {
        (self.fit.expects(x) * self.bands[usize::from(is_queued)].p50()).max(self.least_s)
    }

    /// Learns one time. True when that makes it certain that something has changed.
    fn learn(&mut self, one: &One<N>) -> bool {
        let One { seen, was, is_queued, seconds, was_above } = *one;
        let band = &mut self.bands[usize::from(is_queued)];
        let ratio = seconds / self.fit.expects(&seen).max(self.least_s);
        let has_changed = self.drift.learn((ratio / band.p50()).ln(), band.spread());
        let (kept, haste) = if self.drift.is_recent() { (KEPT_IN_HURRY, HASTE) } else { (KEPT, 1.0) };
        // A fit that is still finding its place says nothing of what surrounds it.
        if self.fit.samples() >= super::SAMPLES_TO_TRUST {
            band.learn(ratio, was_above, haste);
        }
        let scale = self.fit.expects(&was).clamp(seconds / 4.0, seconds * 4.0).max(self.least_s);
        self.fit.learn(&was.map(|feature| feature / scale), seconds / scale, kept);
        has_changed
    }
}

/// One time of one answer.
struct One<const N: usize> {
    /// What was known at the decision.
    seen: Vector<N>,
    /// What it turned out to be.
    was: Vector<N>,
    is_queued: bool,
    seconds: f64,
    was_above: Option<bool>,
}

/// What one answer took, beside what was known before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observed {
    pub(super) seen: Features,
    pub(super) was: Features,
    pub(super) predicted: Prediction,
    pub(super) ttft_s: f64,
    /// `None` where there are too few output tokens to say.
    pub(super) tpot_s: Option<f64>,
}

impl Observed {
    pub(super) fn is_sound(&self) -> bool {
        let is_time = |seconds: f64| (0.0..TIME_MAX_S).contains(&seconds);
        let is_count = |count: &f32| (0.0..1e9).contains(count);
        let sound = |features: &Features| {
            let Features { uncached_tokens, cached_tokens, requests, context_tokens, ahead_s, prefill_share, .. } =
                features;
            [uncached_tokens, cached_tokens, requests, context_tokens, ahead_s, prefill_share].into_iter().all(is_count)
        };
        is_time(self.ttft_s) && self.tpot_s.is_none_or(is_time) && sound(&self.seen) && sound(&self.was)
    }
}

/// Both kinds of time.
#[derive(Clone, Debug)]
pub(super) struct Latency {
    ttft: Times<TTFT_TERMS>,
    tpot: Times<TPOT_TERMS>,
}

impl Latency {
    /// One that knows nothing but `prior`.
    pub(super) fn new(prior: Rates) -> Self {
        let [base, prefill, decode] =
            [prior.base_s, prior.prefill_s_per_token, prior.decode_s_per_token].map(f64::from);
        let ttft = [base, prefill * TOKENS, PAIRS_AT_FIRST, 1.0, DECODING_AT_FIRST_S, CONTEXT_AT_FIRST];
        let tpot = [decode, 0.0, CONTEXT_AT_FIRST, 0.0];
        Self { ttft: Times::new(ttft, TTFT_LEAST_S), tpot: Times::new(tpot, TPOT_LEAST_S) }
    }

    pub(super) const fn samples(&self) -> u32 {
        self.ttft.fit.samples()
    }

    /// Expected median time to first token.
    pub(super) fn ttft_median_s(&self, features: &Features) -> f64 {
        self.ttft.median(&features.ttft(), features.is_queued)
    }

    /// Learns one answer; `has_predicted`: what was predicted was by this. True when it makes it certain that something has
    /// changed.
    pub(super) fn learn(&mut self, observed: &Observed, has_predicted: bool) -> bool {
        let Observed { seen, was, predicted, ttft_s, tpot_s } = observed;
        let is_queued = seen.is_queued;
        let above = |seconds: f64, p90_s: f32| has_predicted.then_some(seconds > f64::from(p90_s));
        let mut has_changed = self.ttft.learn(&One {
            seen: seen.ttft(),
            was: was.ttft(),
            is_queued,
            seconds: *ttft_s,
            was_above: above(*ttft_s, predicted.ttft_p90_s),
        });
        if let Some(seconds) = *tpot_s {
            has_changed |= self.tpot.learn(&One {
                seen: seen.tpot(),
                was: was.tpot(),
                is_queued,
                seconds,
                was_above: above(seconds, predicted.tpot_p90_s),
            });
        }
        has_changed
    }

    /// The coefficients, in the units that predictions use.
    pub(super) fn coefficients(&self) -> Coefficients {
        let [base, tokens, pairs, ahead, decoding, context] = self.ttft.fit.coefficients();
        let [step, requests, tpot_context, prefill] = self.tpot.fit.coefficients();
        let quantiles = |of: &[Quantiles; 2]| of.map(|band| [narrow(band.p50()), narrow(band.p90())]);
        Coefficients {
            base_s: narrow(base),
            token_s: narrow(tokens / TOKENS),
            pair_s: narrow(pairs / PAIRS),
            ahead: narrow(ahead),
            decoding_s: narrow(decoding),
            context_token_s: narrow(context / CONTEXT),
            ttft: quantiles(&self.ttft.bands),
            step_s: narrow(step),
            step_request_s: narrow(requests / REQUESTS),
            step_token_s: narrow(tpot_context / CONTEXT),
            step_prefill_s: narrow(prefill),
            tpot: quantiles(&self.tpot.bands),
        }
    }
}

/// What predictions are made from.
///
/// ```text
/// TTFT = p · (base + n·token + n·(c + n/2)·pair + ahead·(seconds of prefill ahead) + decoding? + context·context_token)
/// TPOT = p · (step + requests·step_request + (context + own)·step_token + prefill share·step_prefill)
/// ```
/// for `n` tokens to compute after `c` cached ones; `p` are quantiles of how actual times relate to that.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Coefficients {
    /// Seconds before anything else.
    pub base_s: f32,
    /// For each token to compute.
    pub token_s: f32,
    /// For each pair of a token to compute and one before it.
    pub pair_s: f32,
    /// For each second of prefill ahead.
    pub ahead: f32,
    /// While others are decoded.
    pub decoding_s: f32,
    /// For each prompt token of those there.
    pub context_token_s: f32,
    /// The median and the ninetieth percentile of actual by expected TTFT: with nothing ahead, and with something.
    pub ttft: [[f32; 2]; 2],
    /// Seconds of a decode step.
    pub step_s: f32,
    /// More of it for each request decoded.
    pub step_request_s: f32,
    /// For each prompt token of theirs.
    pub step_token_s: f32,
    /// For the share of its time that the replica computes prompts in.
    pub step_prefill_s: f32,
    /// As [`Self::ttft`], of TPOT.
    pub tpot: [[f32; 2]; 2],
}

/// Coefficients as atomics hold them.
const CELLS: usize = 18;

impl Coefficients {
    /// Expected seconds of a prompt's own prefill.
    #[must_use]
    pub fn prefill_s(&self, uncached_tokens: f32, cached_tokens: f32) -> f32 {
        uncached_tokens * (self.token_s + self.pair_s * (cached_tokens + 0.5 * uncached_tokens))
    }

    /// What they predict of a request.
    #[must_use]
    pub fn predict(&self, features: &Features) -> Prediction {
        let Features { uncached_tokens, cached_tokens, ahead_s, requests, context_tokens, prefill_share, .. } =
            *features;
        let band = usize::from(features.is_queued);
        let decoding_s = if features.is_decoding { self.decoding_s } else { 0.0 };
        let ttft_s = self.base_s
            + decoding_s
            + self.context_token_s * context_tokens
            + self.ahead * ahead_s
            + self.prefill_s(uncached_tokens, cached_tokens);
        let tpot_s = self.step_s
            + self.step_request_s * (requests + 1.0)
            + self.step_token_s * (context_tokens + uncached_tokens + cached_tokens)
            + self.step_prefill_s * prefill_share.min(1.0);
        let ([ttft_p50, ttft_p90], [tpot_p50, tpot_p90]) = (self.ttft[band], self.tpot[band]);
        Prediction {
            ttft_p50_s: ttft_p50 * ttft_s,
            ttft_p90_s: ttft_p90 * ttft_s,
            tpot_p50_s: tpot_p50 * tpot_s,
            tpot_p90_s: tpot_p90 * tpot_s,
        }
    }

    const fn cells(&self) -> [f32; CELLS] {
        let [[a, b], [c, d]] = self.ttft;
        let [[e, f], [g, h]] = self.tpot;
        [
            self.base_s,
            self.token_s,
            self.pair_s,
            self.ahead,
            self.decoding_s,
            self.context_token_s,
            a,
            b,
            c,
            d,
            self.step_s,
            self.step_request_s,
            self.step_token_s,
            self.step_prefill_s,
            e,
            f,
            g,
            h,
        ]
    }

    const fn from_cells(cells: [f32; CELLS]) -> Self {
        let [
            base_s,
            token_s,
            pair_s,
            ahead,
            decoding_s,
            context_token_s,
            a,
            b,
            c,
            d,
            step_s,
            step_request_s,
            step_token_s,
            step_prefill_s,
            e,
            f,
            g,
            h,
        ] = cells;
        Self {
            base_s,
            token_s,
            pair_s,
            ahead,
            decoding_s,
            context_token_s,
            ttft: [[a, b], [c, d]],
            step_s,
            step_request_s,
            step_token_s,
            step_prefill_s,
            tpot: [[e, f], [g, h]],
        }
    }
}

/// How good predictions were, as averages of the last hundred or so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Accuracy {
    /// Predictions compared.
    pub samples: u32,
    /// Mean of |predicted median − actual| by actual time to first token.
    pub ttft_mape: f32,
    /// Share of times to first token within the predicted ninetieth percentile.
    pub ttft_p90_covered: f32,
    /// Times that a replica was found to be no longer what was learned of it.
    pub drifts: u64,
}

/// Share of a sample in the averages.
const ACCURACY_STEP: f32 = 0.01;

/// The latencies of one replica or pool, shared by all shards. What is read is a copy that no lock guards; its numbers may
/// be of two neighbouring samples.
#[derive(Debug)]
pub(super) struct LatencyCell {
    latency: Mutex<Latency>,
    coefficients: [AtomicU32; CELLS],
    samples: AtomicU32,
    compared: AtomicU32,
    mape: AtomicU32,
    covered: AtomicU32,
    drifts: AtomicU64,
}

impl LatencyCell {
    pub(super) fn new(prior: Rates) -> Self {
        let cell = Self {
            latency: Mutex::new(Latency::new(prior)),
            coefficients: std::array::from_fn(|_| AtomicU32::new(0)),
            samples: AtomicU32::new(0),
            compared: AtomicU32::new(0),
            mape: AtomicU32::new(0),
            covered: AtomicU32::new(0),
            drifts: AtomicU64::new(0),
        };
        cell.publish(&cell.latency.lock());
        cell
    }

    fn publish(&self, latency: &Latency) {
        for (cell, value) in self.coefficients.iter().zip(latency.coefficients().cells()) {
            cell.store(value.to_bits(), Relaxed);
        }
        self.samples.store(latency.samples(), Relaxed);
    }

    pub(super) fn reset(&self, latency: Latency) {
        let mut kept = self.latency.lock();
        *kept = latency;
        self.publish(&kept);
        for cell in [&self.compared, &self.mape, &self.covered] {
            cell.store(0, Relaxed);
        }
    }

    /// What it has come to, for a newcomer to start from. `None` while another shard learns.
    pub(super) fn copied(&self) -> Option<Latency> {
        self.latency.try_lock().map(|latency| latency.clone())
    }

    pub(super) fn samples(&self) -> u32 {
        self.samples.load(Relaxed)
    }

    #[inline]
    pub(super) fn coefficients(&self) -> Coefficients {
        Coefficients::from_cells(std::array::from_fn(|place| f32::from_bits(self.coefficients[place].load(Relaxed))))
    }

    /// What it expects of the answer's time to first token. `None` while another shard learns.
    pub(super) fn expects(&self, observed: &Observed) -> Option<f64> {
        self.latency.try_lock().map(|latency| latency.ttft_median_s(&observed.seen))
    }

    /// Learns one answer, if no other shard is at it: there are more. Returns the time to first token it expected, and
    /// whether it is certain now that something has changed.
    pub(super) fn learn(&self, observed: &Observed, has_predicted: bool) -> Option<(f64, bool)> {
        let mut latency = self.latency.try_lock()?;
        let expected_s = latency.ttft_median_s(&observed.seen);
        let has_changed = latency.learn(observed, has_predicted);
        self.publish(&latency);
        Some((expected_s, has_changed))
    }

    /// One of its replicas is no longer what was learned of it.
    pub(super) fn note_drift(&self) {
        self.drifts.fetch_add(1, Relaxed);
    }

    /// Compares what was predicted with what it took. Two shards at once may lose one of two samples: it is an average.
    pub(super) fn compare(&self, p50_s: f32, p90_s: f32, actual_s: f32) {
        let samples = self.compared.fetch_add(1, Relaxed).saturating_add(1);
        #[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
        let step = ACCURACY_STEP.max(1.0 / samples as f32);
        let follow = |cell: &AtomicU32, value: f32| {
            let before = f32::from_bits(cell.load(Relaxed));
            cell.store((before + step * (value - before)).to_bits(), Relaxed);
        };
        let error = ((p50_s - actual_s).abs() / actual_s.max(narrow(TTFT_LEAST_S))).min(100.0);
        if error.is_finite() {
            follow(&self.mape, error);
            follow(&self.covered, if actual_s <= p90_s { 1.0 } else { 0.0 });
        }
    }

    pub(super) fn accuracy(&self) -> Accuracy {
        Accuracy {
            samples: self.compared.load(Relaxed),
            ttft_mape: f32::from_bits(self.mape.load(Relaxed)),
            ttft_p90_covered: f32::from_bits(self.covered.load(Relaxed)),
            drifts: self.drifts.load(Relaxed),
        }
    }
}
