//! Times to first token and per output token of one replica or one pool: a fit, what surrounds it, and how good it is.
//!
//! The fit is of relative errors: a tenth of a short time counts as much as a tenth of a long one. It learns from what the
//! engine says it computed. Quantiles are of actual by expected time, where expected is by what was known at the decision;
//! so they take in what the gateway was wrong about, too. They are kept apart by [`Band`].
//!
//! Who comes after a request and before its first token may share a step with it, and make that longer; that says nothing
//! of what the request itself costs. So the fit learns from requests that nobody followed, as long as there are such.
//!
//! How long a request is on its way matters beside what it adds: by that it is known which step it finds. A request that
//! nobody followed, and that found nothing but answers under way, tells when the step began in which it was computed: it was
//! there by then, and not yet a step before. So each says that the way took no longer than so much, and no less than a step
//! less; and whichever bound is broken, by that the way moves a little ([`Latency::follow_travel`]).

use super::drift::Drift;
use super::features::{Band, CONTEXT, Features, PAIRS, REQUESTS, STEP_TERMS, TOKENS, TPOT_TERMS, TTFT_TERMS, steps};
use super::predicted::Prediction;
use super::quantile::Quantiles;
use super::recursive::{Recursive, Vector};
use super::{Rates, narrow};
use crate::load::backlog::{Pace, Step};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Share of old evidence kept a sample: a memory of 500; and for a while after something has changed: of 25.
const KEPT: f64 = 0.998;
const KEPT_IN_HURRY: f64 = 0.96;
/// Samples until a fit has found its place.
const SAMPLES_TO_SETTLE: u32 = 16;
/// How much faster quantiles move after something has changed.
const HASTE: f64 = 4.0;
/// What is known of each coefficient at the start; and of those that say that a second ahead is a second.
const CERTAINTY_LEAST: f64 = 0.02;
/// And that what comes before the first prompt token takes a few hundredths of a second: where the first prompts are all
/// long, it is their tokens that take so long.
const CERTAINTY_OF_BASE: f64 = 30.0;
const CERTAINTY_OF_SECONDS: f64 = 1e3;
/// Relative residuals that are nothing to look at.
const RESIDUAL_LEAST: f64 = 0.01;
/// Times are held to be at least this long, seconds, where errors are relative to them: network jitter is no error.
const TTFT_LEAST_S: f64 = 2e-3;
const TPOT_LEAST_S: f64 = 2e-4;
/// Nobody waits longer, seconds.
const TIME_MAX_S: f64 = 3600.0;
/// Requests in a row that were followed by others, until one of them counts as if it had not been.
const FOLLOWED_MAX: u32 = 20;
/// How far the way moves when a bound is broken, in steps of the engine: at least, and at most.
const TRAVEL_STEP: f64 = 0.02;
const TRAVEL_STEP_MAX: f64 = 0.5;
/// And when it is broken by more than so many steps: this share of what it is more.
const TRAVEL_FAR_STEPS: f64 = 4.0;
const TRAVEL_FOLLOWS: f64 = 0.1;
/// Of prefills that take longer than so many steps, it is not known that exactly what they took.
const TRAVEL_PREFILL_STEPS: f64 = 4.0;
/// Coefficients before the first sample that rates say nothing of: by the published figures of an 8B model on an H100.
const PAIRS_AT_FIRST: f64 = 0.0;
const CONTEXT_AT_FIRST: f64 = 0.05;
/// Bands of times per output token: with nothing ahead, and with something.
const TPOT_BANDS: usize = 2;

/// One kind of time.
#[derive(Clone, Debug)]
struct Times<const N: usize, const B: usize> {
    fit: Recursive<N>,
    bands: [Quantiles; B],
    drift: Drift,
    least_s: f64,
    /// Since the last sample that the fit has learned from.
    passed_over: u32,
}

impl<const N: usize, const B: usize> Times<N, B> {
    fn new(coefficients: Vector<N>, certainty: Vector<N>, least_s: f64) -> Self {
        let fit = Recursive::new(coefficients, certainty, RESIDUAL_LEAST);
        Self { fit, bands: [Quantiles::default(); B], drift: Drift::default(), least_s, passed_over: 0 }
    }

    /// Learns one time. True when that makes it certain that something has changed.
    fn learn(&mut self, one: &One<N>) -> bool {
        let One { seen, was, band, offset_s, seconds, was_above, is_plain, is_fitted } = *one;
        let Some(band) = self.bands.get_mut(band) else { return false };
        let ratio = seconds / (self.fit.expects(&seen) + offset_s).max(self.least_s);
        let is_plain = is_fitted && (is_plain || self.passed_over >= FOLLOWED_MAX);
        self.passed_over = if is_plain { 0 } else { self.passed_over.saturating_add(u32::from(is_fitted)) };
        let has_changed = is_plain && self.drift.learn((ratio / band.p50()).ln());
        let (kept, haste) = if self.drift.is_recent() { (KEPT_IN_HURRY, HASTE) } else { (KEPT, 1.0) };
        // A fit that is still finding its place says nothing of what surrounds it.
        if self.fit.samples() >= SAMPLES_TO_SETTLE {
            band.learn(ratio, was_above, haste);
        }
        if is_plain {
            let expected = self.fit.expects(&was) + offset_s;
            let scale = expected.clamp(seconds / 4.0, seconds * 4.0).max(self.least_s);
            let is_news = self.drift.is_recent();
            self.fit.learn(&was.map(|feature| feature / scale), (seconds - offset_s) / scale, kept, is_news);
        }
        has_changed
    }
}

/// One time of one answer.
struct One<const N: usize> {
    /// What was known at the decision.
    seen: Vector<N>,
    /// What it turned out to be.
    was: Vector<N>,
    band: usize,
    /// To be added to what the fit expects.
    offset_s: f64,
    seconds: f64,
    was_above: Option<bool>,
    /// Nobody came in between.
    is_plain: bool,
    /// It is of a kind that the fit learns from.
    is_fitted: bool,
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
    /// Others came between it and its first token.
    pub(super) is_followed: bool,
}

impl Observed {
    pub(super) fn is_sound(&self) -> bool {
        let is_time = |seconds: f64| (0.0..TIME_MAX_S).contains(&seconds);
        let is_count = |count: &f32| (0.0..1e9).contains(count);
        let sound = |features: &Features| {
            let Features { uncached_tokens, cached_tokens, held_s, ahead_s, room_tokens, step_s, .. } = features;
            let Features { requests, context_tokens, prefill_share, .. } = features;
            let counts = [uncached_tokens, cached_tokens, held_s, ahead_s, room_tokens, step_s];
            counts.into_iter().chain([requests, context_tokens, prefill_share]).all(is_count)
        };
        is_time(self.ttft_s) && self.tpot_s.is_none_or(is_time) && sound(&self.seen) && sound(&self.was)
    }
}

/// Both kinds of time.
#[derive(Clone, Debug)]
pub(super) struct Latency {
    ttft: Times<TTFT_TERMS, { Band::COUNT }>,
    tpot: Times<TPOT_TERMS, TPOT_BANDS>,
    /// The way to a replica and back, seconds; and what it was learned from. Before there is any, it is all of what the fit
    /// has for an idle one.
    travel_s: f64,
    travels: u32,
    step: Recursive<STEP_TERMS>,
    step_drift: Drift,
}

impl Latency {
    /// One that knows nothing but `prior`.
    pub(super) fn new(prior: Rates) -> Self {
        let [base, prefill, decode] =
            [prior.base_s, prior.prefill_s_per_token, prior.decode_s_per_token].map(f64::from);
        let ttft = [base, prefill * TOKENS, PAIRS_AT_FIRST, 1.0, 1.0];
        let tpot = [decode, 0.0, CONTEXT_AT_FIRST, 0.0];
        let [some, firm] = [CERTAINTY_LEAST, CERTAINTY_OF_SECONDS];
        Self {
            ttft: Times::new(ttft, [CERTAINTY_OF_BASE, some, some, firm, firm], TTFT_LEAST_S),
            tpot: Times::new(tpot, [some; TPOT_TERMS], TPOT_LEAST_S),
            travel_s: 0.0,
            travels: 0,
            step: Recursive::new([decode, 0.0, CONTEXT_AT_FIRST], [some; STEP_TERMS], RESIDUAL_LEAST),
            step_drift: Drift::default(),
        }
    }

    pub(super) const fn samples(&self) -> u32 {
        self.ttft.fit.samples()
    }

    /// Expected median time to first token.
    pub(super) fn ttft_median_s(&self, features: &Features) -> f64 {
        let median = self.ttft.bands.get(features.band as usize).map_or(1.0, Quantiles::p50);
        let expected_s = self.ttft.fit.expects(&features.ttft()) + self.offset_s(features);
        (median * expected_s).max(TTFT_LEAST_S)
    }

    /// What comes to a time to first token beside what is fitted.
    fn offset_s(&self, features: &Features) -> f64 {
        f64::from(features.held_s) + if features.step_s > 0.0 { self.travel_s() } else { 0.0 }
    }

    /// Learns one answer; `has_predicted`: what was predicted was by this. True when it makes it certain that something has
    /// changed.
    pub(super) fn learn(&mut self, observed: &Observed, has_predicted: bool) -> bool {
        let Observed { seen, was, predicted, ttft_s, tpot_s, is_followed } = observed;
        let above = |seconds: f64, p90_s: f32| has_predicted.then_some(seconds > f64::from(p90_s));
        // When an engine becomes slower or faster, the way to it does not.
        if seen.band == Band::Decoding && !is_followed && !self.ttft.drift.is_recent() {
            self.follow_travel(was, *ttft_s);
        }
        let mut has_changed = self.ttft.learn(&One {
            seen: seen.ttft(),
            was: was.ttft(),
            band: seen.band as usize,
            offset_s: self.offset_s(seen),
            seconds: *ttft_s,
            was_above: above(*ttft_s, predicted.ttft_p90_s),
            is_plain: !is_followed,
            is_fitted: !matches!(seen.band, Band::Held | Band::Full),
        });
        if let Some(seconds) = *tpot_s {
            has_changed |= self.tpot.learn(&One {
                seen: seen.tpot(),
                was: was.tpot(),
                band: usize::from(is_behind(seen.band)),
                offset_s: 0.0,
                seconds,
                was_above: above(seconds, predicted.tpot_p90_s),
                is_plain: true,
                is_fitted: true,
            });
        }
        has_changed
    }

    fn travel_s(&self) -> f64 {
        let [base_s, ..] = self.ttft.fit.coefficients();
        if self.travels == 0 { base_s } else { self.travel_s }
    }

    /// Learns from a request that found answers under way, and whose first token came after `ttft_s`, how long the way is.
    fn follow_travel(&mut self, was: &Features, ttft_s: f64) {
        let step_s = f64::from(was.step_s);
        let [_, new, pairs, ..] = was.ttft();
        let [_, token, pair, ..] = self.ttft.fit.coefficients();
        let prefill_s = new * token + pairs * pair;
        // From the decision until the step began.
        let until_s = ttft_s - prefill_s - f64::from(was.steps_s());
        if prefill_s > TRAVEL_PREFILL_STEPS * step_s || self.ttft.fit.samples() < super::SAMPLES_TO_TRUST {
            return;
        }
        let travel_s = self.travel_s();
        let least = step_s * (TRAVEL_STEP_MAX / f64::from(self.travels + 1)).max(TRAVEL_STEP);
        let by = |broken_by_s: f64| least.max(TRAVEL_FOLLOWS * (broken_by_s - TRAVEL_FAR_STEPS * step_s));
        self.travels = self.travels.saturating_add(1);
        let (most_s, least_s) = (until_s, until_s - step_s);
        self.travel_s = match travel_s {
            travel_s if travel_s > most_s => (travel_s - by(travel_s - most_s)).max(0.0),
            travel_s if travel_s <= least_s => travel_s + by(least_s - travel_s),
            travel_s => travel_s,
        };
    }

    /// Learns what a step takes. Steps vary less than anything else: where they are not what they were, the engine is not,
    /// and all that is known of it is to be learned anew. True when that is certain now.
    pub(super) fn learn_step(&mut self, step: &Step) -> bool {
        let seconds = f64::from(step.seconds).max(TPOT_LEAST_S);
        let x = [1.0, f64::from(step.answers) / REQUESTS, f64::from(step.tokens) / CONTEXT];
        let is_settled = self.step.samples() >= SAMPLES_TO_SETTLE;
        let residual = (seconds / self.step.expects(&x).max(TPOT_LEAST_S)).ln();
        let has_changed = is_settled && self.step_drift.learn(residual);
        if has_changed {
            self.ttft.drift.note();
            self.tpot.drift.note();
        }
        let is_news = self.step_drift.is_recent();
        let kept = if is_news { KEPT_IN_HURRY } else { KEPT };
        self.step.learn(&x.map(|feature| feature / seconds), 1.0, kept, is_news);
        has_changed
    }

    /// The coefficients, in the units that predictions use.
    pub(super) fn coefficients(&self) -> Coefficients {
        let [base, tokens, pairs, ahead, steps] = self.ttft.fit.coefficients();
        let [tpot, tpot_request, tpot_context, tpot_prefill] = self.tpot.fit.coefficients();
        let [step, step_request, step_context] = self.step.coefficients();
        let quantiles = |band: Quantiles| [narrow(band.p50()), narrow(band.p90())];
        Coefficients {
            base_s: narrow(base),
            travel_s: narrow(self.travel_s()),
            token_s: narrow(tokens / TOKENS),
            pair_s: narrow(pairs / PAIRS),
            ahead: narrow(ahead),
            steps: narrow(steps),
            ttft: self.ttft.bands.map(quantiles),
            step_s: narrow(step),
            step_request_s: narrow(step_request / REQUESTS),
            step_token_s: narrow(step_context / CONTEXT),
            tpot_s: narrow(tpot),
            tpot_request_s: narrow(tpot_request / REQUESTS),
            tpot_token_s: narrow(tpot_context / CONTEXT),
            tpot_prefill_s: narrow(tpot_prefill),
            tpot: self.tpot.bands.map(quantiles),
        }
    }
}

/// Whether others' prefill comes before its own.
const fn is_behind(band: Band) -> bool {
    matches!(band, Band::Queued | Band::Held | Band::Full)
}

/// What predictions are made from.
///
/// ```text
/// TTFT = p · (held + way + n·token + n·(c + n/2)·pair + ahead·(seconds ahead) + steps·(seconds of decoding))
/// TPOT = p · (base + requests·request + (context + own)·token + prefill share·prefill)
/// ```
/// for `n` tokens to compute after `c` cached ones; the way is `base` where nothing is decoded, else `travel`; `p` are
/// quantiles of how actual times relate to that.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Coefficients {
    /// Seconds before anything else, at an idle engine.
    pub base_s: f32,
    /// The same where answers are under way: the way there and back.
    pub travel_s: f32,
    /// For each token to compute.
    pub token_s: f32,
    /// For each pair of a token to compute and one before it.
    pub pair_s: f32,
    /// For each second until its prefill begins.
    pub ahead: f32,
    /// For each second that the steps with its prefill spend on answers under way.
    pub steps: f32,
    /// The median and the ninetieth percentile of actual by expected TTFT, by [`Band`].
    pub ttft: [[f32; 2]; Band::COUNT],
    /// Seconds of a step that only decodes.
    pub step_s: f32,
    /// More of it for each answer.
    pub step_request_s: f32,
    /// For each token of their prompts and of themselves.
    pub step_token_s: f32,
    /// Seconds of an output token.
    pub tpot_s: f32,
    /// More of it for each request there.
    pub tpot_request_s: f32,
    /// For each token of their contexts.
    pub tpot_token_s: f32,
    /// For the share of its time that the replica computes prompts in.
    pub tpot_prefill_s: f32,
    /// As [`Self::ttft`], of TPOT: with nothing ahead, and with something.
    pub tpot: [[f32; 2]; TPOT_BANDS],
}

/// Coefficients as atomics hold them.
const PLAIN_CELLS: usize = 13;
const CELLS: usize = PLAIN_CELLS + 2 * (Band::COUNT + TPOT_BANDS);

impl Coefficients {
    /// Expected seconds of a prompt's own prefill.
    #[must_use]
    pub fn prefill_s(&self, uncached_tokens: f32, cached_tokens: f32) -> f32 {
        uncached_tokens * (self.token_s + self.pair_s * (cached_tokens + 0.5 * uncached_tokens))
    }

    /// How fast the replica goes through prompts and answers.
    #[must_use]
    pub fn pace(&self) -> Pace {
        let Self { travel_s, token_s, pair_s, step_s, step_request_s, step_token_s, .. } = *self;
        Pace { travel_s, token_s, pair_s, step_s, step_request_s, step_token_s }
    }

    /// The median and the ninetieth percentile of actual by expected TPOT.
    #[must_use]
    pub const fn tpot_band(&self, band: Band) -> [f32; 2] {
        let [free, behind] = self.tpot;
        if is_behind(band) { behind } else { free }
    }

    /// Expected seconds per output token, beside so many requests with so much context, of a prompt without tokens.
    #[must_use]
    pub fn tpot_s(&self, requests: f32, context_tokens: f32, prefill_share: f32) -> f32 {
        self.tpot_s
            + self.tpot_request_s * (requests + 1.0)
            + self.tpot_token_s * context_tokens
            + self.tpot_prefill_s * prefill_share.min(1.0)
    }

    /// What they predict of a request.
    #[must_use]
    pub fn predict(&self, features: &Features) -> Prediction {
        let Features { uncached_tokens, cached_tokens, held_s, ahead_s, step_s, room_tokens, .. } = *features;
        let Features { requests, context_tokens, prefill_share, band, .. } = *features;
        let way_s = if step_s > 0.0 { self.travel_s } else { self.base_s };
        let ttft_s = held_s
            + way_s
            + self.ahead * ahead_s
            + self.steps * step_s * steps(uncached_tokens, room_tokens)
            + self.prefill_s(uncached_tokens, cached_tokens);
        let tpot_s = self.tpot_s(requests, context_tokens, prefill_share)
            + self.tpot_token_s * (uncached_tokens + cached_tokens);
        let [ttft_p50, ttft_p90] = self.ttft.get(band as usize).copied().unwrap_or([1.0; 2]);
        let [tpot_p50, tpot_p90] = self.tpot_band(band);
        Prediction {
            ttft_p50_s: ttft_p50 * ttft_s,
            ttft_p90_s: ttft_p90 * ttft_s,
            tpot_p50_s: tpot_p50 * tpot_s,
            tpot_p90_s: tpot_p90 * tpot_s,
        }
    }

    const fn plain(&self) -> [f32; PLAIN_CELLS] {
        let Self { base_s, travel_s, token_s, pair_s, ahead, steps, .. } = *self;
        let Self { step_s, step_request_s, step_token_s, .. } = *self;
        let Self { tpot_s, tpot_request_s, tpot_token_s, tpot_prefill_s, .. } = *self;
        [
            base_s,
            travel_s,
            token_s,
            pair_s,
            ahead,
            steps,
            step_s,
            step_request_s,
            step_token_s,
            tpot_s,
            tpot_request_s,
            tpot_token_s,
            tpot_prefill_s,
        ]
    }

    fn cells(&self) -> [f32; CELLS] {
        let mut cells = [0.0; CELLS];
        let bands = self.ttft.iter().chain(&self.tpot).flatten();
        for (cell, value) in cells.iter_mut().zip(self.plain().iter().chain(bands)) {
            *cell = *value;
        }
        cells
    }

    fn from_cells(cells: [f32; CELLS]) -> Self {
        let [base_s, travel_s, token_s, pair_s, ahead, steps, step_s, step_request_s, step_token_s, ..] = cells;
        let [.., tpot_s, tpot_request_s, tpot_token_s, tpot_prefill_s] =
            *cells.first_chunk::<PLAIN_CELLS>().unwrap_or(&[0.0; PLAIN_CELLS]);
        let band = |number: usize| [cells[PLAIN_CELLS + 2 * number], cells[PLAIN_CELLS + 1 + 2 * number]];
        Self {
            base_s,
            travel_s,
            token_s,
            pair_s,
            ahead,
            steps,
            ttft: std::array::from_fn(band),
            step_s,
            step_request_s,
            step_token_s,
            tpot_s,
            tpot_request_s,
            tpot_token_s,
            tpot_prefill_s,
            tpot: std::array::from_fn(|number| band(Band::COUNT + number)),
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

    /// Learns what a step takes, if no other shard is at it. True when it makes it certain that something has changed.
    pub(super) fn learn_step(&self, step: &Step) -> bool {
        let Some(mut latency) = self.latency.try_lock() else { return false };
        let has_changed = latency.learn_step(step);
        self.publish(&latency);
        has_changed
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
