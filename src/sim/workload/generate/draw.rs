//! What generators draw: gaps between arrivals, lengths, choices. Distributions are `rand_distr`'s, over the project's one
//! random generator.

use std::convert::Infallible;
use std::ops::RangeInclusive;

use rand_core::TryRng;
use rand_distr::{Distribution, Exp1, Gamma, StandardNormal, Zipf};

use super::super::argument::{ArgumentFault, Arguments};
use super::super::trace::{CALLS_MAX, SEGMENTS_MAX};

/// The longest that is drawn, as a multiple of the mean.
const LENGTH_MAX: f64 = 16.0;

/// When scripts start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrivals {
    /// `rate`: scripts a second, of the whole fleet.
    pub rate_per_s: f64,
    /// `cv`: standard deviation of the gaps between them as a multiple of the mean; 1 is Poisson, more is bursty (gaps
    /// are Gamma-distributed).
    pub cv: f64,
    /// `duration`, seconds.
    pub duration_s: f64,
}

impl Arrivals {
    /// Reads them; `calls` and `segments` are what each brings on average.
    pub(super) fn read(self, arguments: &mut Arguments<'_>, calls: f64, segments: f64) -> Self {
        let read = Self {
            rate_per_s: arguments.number("rate", self.rate_per_s, &(0.001..=100_000.0)),
            cv: arguments.number("cv", self.cv, &(0.1..=10.0)),
            duration_s: arguments.number("duration", self.duration_s, &(0.1..=604_800.0)),
        };
        read.check(arguments, calls, segments);
        read
    }

    /// Records when more would be made than is kept.
    pub(super) fn check(self, arguments: &mut Arguments<'_>, calls: f64, segments: f64) {
        let scripts = self.rate_per_s * self.duration_s;
        let most = bound(CALLS_MAX).min(bound(SEGMENTS_MAX) * calls / segments);
        if scripts * calls > most {
            let most = usize::try_from(whole(most, &(1..=u32::MAX))).unwrap_or(CALLS_MAX);
            arguments.fail(ArgumentFault::Calls { asked: scripts * calls, most });
        }
    }

    /// The times, in order, from `from_s` to before `until_s`.
    pub(super) fn times_s(self, draw: &mut Draw, from_s: f64, until_s: f64) -> Vec<f64> {
        let shape = 1.0 / (self.cv * self.cv);
        let is_poisson = (self.cv - 1.0).abs() < 1e-9;
        let gamma = if is_poisson { None } else { Gamma::new(shape, 1.0 / shape).ok() };
        let mut times_s = Vec::new();
        let mut at_s = from_s;
        while times_s.len() < CALLS_MAX {
            let gap = match gamma {
                Some(gamma) => draw.of(gamma),
                None => draw.of(Exp1),
            };
            at_s += gap / self.rate_per_s;
            if at_s >= until_s || at_s.is_nan() {
                break;
            }
            times_s.push(at_s);
        }
        times_s
    }
}

#[expect(clippy::cast_precision_loss, reason = "bounds of a few million")]
const fn bound(most: usize) -> f64 {
    most as f64
}

/// A number rounded to a whole one within a range.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range first")]
pub(super) fn whole(value: f64, range: &RangeInclusive<u32>) -> u32 {
    value.round().clamp(f64::from(*range.start()), f64::from(*range.end())) as u32
}

/// Lengths or times with a heavy tail: log-normal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heavy {
    mean: f64,
    /// Of the logarithm.
    mu: f64,
    sigma: f64,
}

impl Heavy {
    /// With that mean (0: always 0) and coefficient of variation.
    pub(super) fn new(mean: f64, cv: f64) -> Self {
        let variance = cv.mul_add(cv, 1.0).ln();
        Self { mean, mu: mean.max(f64::MIN_POSITIVE).ln() - variance / 2.0, sigma: variance.sqrt() }
    }
}

/// How often each of a number of things is chosen: the k-th most popular in proportion to k^-exponent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Popularity {
    count: u32,
    zipf: Option<Zipf<f64>>,
}

impl Popularity {
    pub(super) fn new(count: u32, exponent: f64) -> Self {
        let zipf = if exponent > 0.0 { Zipf::new(f64::from(count), exponent).ok() } else { None };
        Self { count, zipf }
    }
}

/// Random choices; the same ones for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Draw(fastrand::Rng);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    fn of(&mut self, distribution: impl Distribution<f64>) -> f64 {
        distribution.sample(&mut Words(&mut self.0))
    }

    pub(super) fn is_chosen(&mut self, share: f64) -> bool {
        self.0.f64() < share
    }

    /// A length, tokens: at least one, at most 16 times the mean.
    pub(super) fn tokens(&mut self, heavy: Heavy) -> u32 {
        whole(self.amount(heavy), &(1..=super::super::trace::TOKENS_MAX))
    }

    /// A time, seconds, likewise bounded.
    #[expect(clippy::cast_possible_truncation, reason = "a few days at most; a part of a millisecond is lost")]
    pub(super) fn seconds(&mut self, heavy: Heavy) -> f32 {
        self.amount(heavy) as f32
    }

    fn amount(&mut self, heavy: Heavy) -> f64 {
        let normal = self.of(StandardNormal);
        heavy.sigma.mul_add(normal, heavy.mu).exp().min(heavy.mean * LENGTH_MAX)
    }

    /// A whole number, all orders of magnitude alike.
    pub(super) fn log_even(&mut self, range: &RangeInclusive<u32>) -> u32 {
        let (from, to) = (f64::from(*range.start()).ln(), f64::from(*range.end()).ln());
        whole((to - from).mul_add(self.0.f64(), from).exp(), range)
    }

    /// One of a range, evenly.
    pub(super) fn even(&mut self, range: RangeInclusive<u32>) -> u32 {
        self.0.u32(range)
    }

    /// How often something happens that ends after each time with a chance of 1 in `mean`, at most `most` times.
    pub(super) fn repeats(&mut self, mean: f64, most: u32) -> u32 {
        let mut repeats = 1;
        while repeats < most && self.is_chosen(1.0 - 1.0 / mean) {
            repeats += 1;
        }
        repeats
    }

    /// The place of what is chosen, the most popular first.
    pub(super) fn place(&mut self, popularity: &Popularity) -> usize {
        let last = popularity.count.saturating_sub(1);
        let place = match popularity.zipf {
            Some(zipf) => whole(self.of(zipf) - 1.0, &(0..=last)),
            None => self.0.u32(0..=last),
        };
        usize::try_from(place).unwrap_or_default()
    }
}

/// fastrand's words for `rand_distr`.
struct Words<'r>(&'r mut fastrand::Rng);

impl TryRng for Words<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.0.u32(..))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.u64(..))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_cv(values: &[f64]) -> (f64, f64) {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_rate_and_the_burstiness_asked_for() {
        for cv in [0.5, 1.0, 3.0] {
            let arrivals = Arrivals { rate_per_s: 50.0, cv, duration_s: 4000.0 };
            let times_s = arrivals.times_s(&mut Draw::new(1), 0.0, 4000.0);
            let gaps: Vec<f64> = times_s.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (mean, found) = mean_and_cv(&gaps);
            assert!((mean * 50.0 - 1.0).abs() < 0.03, "cv {cv}: mean gap {mean}");
            assert!((found / cv - 1.0).abs() < 0.03, "cv {cv}: {found}");
        }
    }

    #[test]
    fn lengths_have_the_mean_and_the_spread_asked_for() {
        let mut draw = Draw::new(2);
        let heavy = Heavy::new(200.0, 1.0);
        let lengths: Vec<f64> = (0..200_000).map(|_| f64::from(draw.tokens(heavy))).collect();
        let (mean, cv) = mean_and_cv(&lengths);
        assert!((mean / 200.0 - 1.0).abs() < 0.02, "{mean}");
        assert!((cv - 1.0).abs() < 0.05, "{cv}");
        assert!(lengths.iter().all(|length| (1.0..=3200.0).contains(length)));
        assert!(draw.seconds(Heavy::new(0.0, 1.0)).abs() < f32::EPSILON);
    }

    #[test]
    fn popularity_is_even_or_falls_as_zipf_says() {
        let mut draw = Draw::new(3);
        for (exponent, expected) in [(0.0, 1.0), (1.0, 4.0)] {
            let popularity = Popularity::new(10, exponent);
            let mut chosen = [0_u32; 10];
            (0..200_000).for_each(|_| chosen[draw.place(&popularity)] += 1);
            let ratio = f64::from(chosen[0]) / f64::from(chosen[3]);
            assert!((ratio / expected - 1.0).abs() < 0.05, "{exponent}: {chosen:?}");
        }
    }

    #[test]
    fn repeats_have_their_mean_and_their_bound() {
        let mut draw = Draw::new(4);
        let sum: u32 = (0..100_000).map(|_| draw.repeats(3.0, 100)).sum();
        assert!((f64::from(sum) / 300_000.0 - 1.0).abs() < 0.02, "{sum}");
        assert!((0..1000).all(|_| (1..=2).contains(&draw.repeats(50.0, 2))));
        assert_eq!(draw.repeats(1.0, 100), 1);
    }
}
