//! What answers say together: a fit of `seconds = base + prefill·tokens_ahead + decode·output_tokens`.
//!
//! Recursive least squares with clipped residuals and stabilised forgetting (Kulhavý & Zarrop, *On a general concept of
//! forgetting*, 1993): old evidence fades towards what was known at the start, not towards nothing. Traffic that never
//! varies teaches one number only; what it says nothing of then stays as it is, where plain forgetting would unlearn it
//! until noise decides.

use super::{Rates, SAMPLES_TO_TRUST, Sample, narrow};

/// Share of old evidence kept a sample: an effective memory of 100.
const FORGETTING: f64 = 0.99;
/// Tokens are fitted in these units, in which the prior may be off by about a second each: a second before anything
/// else, a millisecond for a prompt token, a tenth of one second for an output token.
const PROMPT_UNIT: f64 = 1000.0;
const OUTPUT_UNIT: f64 = 10.0;
/// Features above this are not believed: ten million prompt tokens, a hundred thousand output tokens.
const FEATURE_MAX: f64 = 1e4;
/// Nor are answers that took a day.
const SECONDS_MAX: f64 = 86_400.0;
/// What is known of each rate before the first sample and, at least, ever after: as much as one sample of size one says.
const CERTAINTY_LEAST: f64 = 1.0;

#[derive(Clone, Debug)]
pub(super) struct Fit {
    theta: Vector,
    /// What is known: the weighted sum of `x·xᵀ` over the samples. Symmetric, and never less than [`KNOWN_AT_FIRST`].
    known: Matrix,
    error: f64,
    samples: u32,
}

type Vector = [f64; 3];
type Matrix = [Vector; 3];

const KNOWN_AT_FIRST: Matrix = [[CERTAINTY_LEAST, 0.0, 0.0], [0.0, CERTAINTY_LEAST, 0.0], [0.0, 0.0, CERTAINTY_LEAST]];

impl Fit {
    /// A fit that knows nothing but `rates`.
    pub(super) const fn new(rates: Rates) -> Self {
        Self {
            theta: [
                rates.base_s as f64,
                rates.prefill_s_per_token as f64 * PROMPT_UNIT,
                rates.decode_s_per_token as f64 * OUTPUT_UNIT,
            ],
            known: KNOWN_AT_FIRST,
            error: 0.0,
            samples: 0,
        }
    }

    /// Samples behind it.
    pub(super) const fn samples(&self) -> u32 {
        self.samples
    }

    /// The rates it has come to.
    pub(super) fn rates(&self) -> Rates {
        let [base, prefill, decode] = self.theta;
        Rates {
            base_s: narrow(base.clamp(0.0, 10.0)),
            prefill_s_per_token: narrow((prefill / PROMPT_UNIT).clamp(1e-7, 0.1)),
            decode_s_per_token: narrow((decode / OUTPUT_UNIT).clamp(0.0, 5.0)),
        }
    }

    /// Learns from one answer.
    pub(super) fn learn(&mut self, sample: Sample) {
        let x = [1.0, sample.tokens_ahead / PROMPT_UNIT, sample.output_tokens / OUTPUT_UNIT];
        if !((0.0..SECONDS_MAX).contains(&sample.seconds) && x.iter().all(|v| (0.0..FEATURE_MAX).contains(v))) {
            return;
        }
        let known = std::array::from_fn(|row| {
            std::array::from_fn(|column| {
                let kept = FORGETTING * self.known[row][column] + (1.0 - FORGETTING) * KNOWN_AT_FIRST[row][column];
                kept + x[row] * x[column]
            })
        });
        let Some(gain) = solve(&known, x) else {
            // Only rounding can bring it here: what is known starts over, the rates stay.
            self.known = KNOWN_AT_FIRST;
            return;
        };
        let mut residual = sample.seconds - dot(self.theta, x);
        self.samples = self.samples.saturating_add(1);
        if self.samples > SAMPLES_TO_TRUST {
            let bound = 4.0 * self.error.max(1e-4);
            self.error += 0.05 * (residual.abs().min(2.0 * bound) - self.error);
            residual = residual.clamp(-bound, bound);
        } else {
            self.error += (residual.abs() - self.error) / f64::from(self.samples);
        }
        self.known = known;
        // None of the three can be negative: what noise makes so is taken back at once, before the others adapt to it.
        self.theta = std::array::from_fn(|row| (self.theta[row] + gain[row] * residual).max(0.0));
    }
}

/// `y` in `a·y = x` for a symmetric `a`, by Cholesky's factors; `None` when `a` is not positive-definite.
fn solve(a: &Matrix, x: Vector) -> Option<Vector> {
    let mut lower = [[0.0; 3]; 3];
    for row in 0..3 {
        for column in 0..=row {
            let rest = a[row][column] - dot(lower[row], lower[column]);
            lower[row][column] = match row == column {
                true if rest > 0.0 && rest.is_finite() => rest.sqrt(),
                true => return None,
                false => rest / lower[column][column],
            };
        }
    }
    let mut y = x;
    for row in 0..3 {
        y[row] = (y[row] - (0..row).map(|k| lower[row][k] * y[k]).sum::<f64>()) / lower[row][row];
    }
    for row in (0..3).rev() {
        y[row] = (y[row] - (row + 1..3).map(|k| lower[k][row] * y[k]).sum::<f64>()) / lower[row][row];
    }
    Some(y)
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(value: f32, wanted: f64) -> bool {
        (f64::from(value) / wanted - 1.0).abs() < 0.1
    }

    /// One replica that answers as `seconds` says.
    struct Engine {
        fit: Fit,
        rng: fastrand::Rng,
        seconds: Rates,
    }

    const PRIOR: Rates = Rates { base_s: 0.0, prefill_s_per_token: 1.25e-4, decode_s_per_token: 0.01 };

    impl Engine {
        fn new(seconds: Rates) -> Self {
            Self { fit: Fit::new(PRIOR), rng: fastrand::Rng::with_seed(11), seconds }
        }

        fn takes(rates: Rates, tokens_ahead: f64, output_tokens: f64) -> f64 {
            f64::from(rates.base_s)
                + f64::from(rates.prefill_s_per_token) * tokens_ahead
                + f64::from(rates.decode_s_per_token) * output_tokens
        }

        fn answers(&mut self, count: usize, mut request: impl FnMut(&mut fastrand::Rng) -> (f64, f64)) {
            for _ in 0..count {
                let (tokens_ahead, output_tokens) = request(&mut self.rng);
                let noise = 1.0 + 0.1 * (self.rng.f64() - 0.5);
                let seconds = Self::takes(self.seconds, tokens_ahead, output_tokens) * noise;
                self.fit.learn(Sample { tokens_ahead, output_tokens, seconds });
            }
        }

        fn learned(&self) -> Rates {
            self.fit.rates()
        }

        /// How far the expectation is off, as a ratio.
        fn off(&self, tokens_ahead: f64, output_tokens: f64) -> f64 {
            let learned = Self::takes(self.learned(), tokens_ahead, output_tokens);
            (learned / Self::takes(self.seconds, tokens_ahead, output_tokens) - 1.0).abs()
        }
    }

    const TRUE: Rates = Rates { base_s: 0.02, prefill_s_per_token: 5e-5, decode_s_per_token: 0.008 };

    fn sane(rates: Rates) -> bool {
        rates.base_s < 0.2
            && (1e-6..1e-3).contains(&rates.prefill_s_per_token)
            && (1e-4..0.05).contains(&rates.decode_s_per_token)
    }

    #[test]
    fn answers_of_one_token_leave_the_base_where_it_is() {
        let mut engine = Engine::new(TRUE);
        for answers in [1_500, 100_000] {
            engine.answers(answers, |rng| (rng.f64() * 2000.0, 1.0));
            assert!(sane(engine.learned()), "{answers}: {:?}", engine.learned());
            assert!(engine.off(1000.0, 1.0) < 0.1, "{answers}: {:?}", engine.learned());
            assert!(near(engine.learned().prefill_s_per_token, 5e-5), "{answers}: {:?}", engine.learned());
        }
    }

    #[test]
    fn identical_requests_are_priced_right_and_leave_the_rest_alone() {
        for request in [(40.0, 100.0), (8000.0, 1.0), (700.0, 20.0), (0.0, 1.0)] {
            let mut engine = Engine::new(TRUE);
            for answers in [3_000, 100_000] {
                engine.answers(answers, |_| request);
                assert!(sane(engine.learned()), "{request:?} {answers}: {:?}", engine.learned());
                assert!(engine.off(request.0, request.1) < 0.05, "{request:?} {answers}: {:?}", engine.learned());
            }
            engine.answers(400, |rng| (rng.f64() * 8000.0, 1.0 + rng.f64() * 200.0));
            assert!(near(engine.learned().prefill_s_per_token, 5e-5), "{request:?}: {:?}", engine.learned());
            assert!(near(engine.learned().decode_s_per_token, 0.008), "{request:?}: {:?}", engine.learned());
        }
    }

    #[test]
    fn a_replica_that_slows_down_is_known_within_two_hundred_answers() {
        let varied = |rng: &mut fastrand::Rng| (rng.f64() * 8000.0, 1.0 + rng.f64() * 200.0);
        let constant = |_: &mut fastrand::Rng| (2000.0, 50.0);
        for constantly in [false, true] {
            let mut engine = Engine::new(TRUE);
            let answer = |engine: &mut Engine, count| match constantly {
                true => engine.answers(count, constant),
                false => engine.answers(count, varied),
            };
            answer(&mut engine, 5_000);
            engine.seconds = Rates { base_s: 0.04, prefill_s_per_token: 1e-4, decode_s_per_token: 0.016 };
            answer(&mut engine, 200);
            assert!(engine.off(2000.0, 50.0) < 0.15, "{constantly}: {:?}", engine.learned());
            if !constantly {
                assert!((f64::from(engine.learned().prefill_s_per_token) / 1e-4 - 1.0).abs() < 0.2);
                assert!((f64::from(engine.learned().decode_s_per_token) / 0.016 - 1.0).abs() < 0.2);
            }
        }
    }

    #[test]
    fn answers_as_long_as_their_prompts_are_priced_right() {
        let mut engine = Engine::new(TRUE);
        let together = |rng: &mut fastrand::Rng| {
            let tokens = rng.f64() * 4000.0;
            (tokens, 1.0 + tokens * 0.05)
        };
        for answers in [500, 50_000] {
            engine.answers(answers, together);
            assert!(sane(engine.learned()), "{:?}", engine.learned());
            for tokens in [500.0, 2000.0, 4000.0] {
                assert!(engine.off(tokens, 1.0 + tokens * 0.05) < 0.1, "{tokens}: {:?}", engine.learned());
            }
        }
    }

    #[test]
    fn the_fit_stays_sound_whatever_it_is_told() {
        bolero::check!().with_type::<Vec<(f64, f64, f64)>>().for_each(|samples| {
            let mut fit = Fit::new(PRIOR);
            for &(tokens_ahead, output_tokens, seconds) in samples {
                fit.learn(Sample { tokens_ahead, output_tokens, seconds });
                fit.learn(Sample {
                    tokens_ahead: tokens_ahead % 1e7,
                    output_tokens: output_tokens % 1e5,
                    seconds: seconds % 1e3,
                });
                assert!(fit.theta.iter().all(|rate| rate.is_finite() && *rate >= 0.0), "{fit:?}");
                assert!(solve(&fit.known, [1.0, 1.0, 1.0]).is_some(), "{fit:?}");
            }
        });
    }
}
