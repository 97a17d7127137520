//! Quantiles of how actual times relate to expected ones, followed sample by sample.
//!
//! The ninetieth percentile moves up by a step times its share when a sample is above it, and down by a step times the rest
//! when it is not (stochastic gradient descent on the pinball loss). In the long run nine in ten samples are below it,
//! whatever their distribution, and however that changes (Gibbs & Candès, *Adaptive conformal inference under distribution
//! shift*, 2021). It begins where that of the first samples is.
//!
//! The median begins and moves likewise. But most times are as expected and some are far off, for somebody else came in
//! between. So its steps are in proportion to the median deviation, or it would never rest where most of them are; and a
//! sample that is farther from it than [`FAR`] moves it less: where there are two groups, it is the median of the larger.

/// Bounds of a ratio.
const RATIO: std::ops::RangeInclusive<f64> = 0.05..=20.0;
/// The step is this many times the mean deviation of the ratio's logarithm.
const STEP_OF_SPREAD: f64 = 0.25;
const STEP: std::ops::RangeInclusive<f64> = 0.0005..=0.2;
/// Share of a sample in the mean deviation.
const SPREAD_STEP: f64 = 0.02;
/// Mean deviation before the first sample.
const SPREAD_AT_FIRST: f64 = 0.3;
/// The ninetieth percentile before the first sample.
const P90_AT_FIRST: f64 = 2.0;
/// The step of the median deviation, and its bounds.
const MIDDLE_STEP: f64 = 0.05;
const MIDDLE: std::ops::RangeInclusive<f64> = 1e-4..=2.0;
/// Samples whose logarithm is farther from the median are of another group, and count for so much.
const FAR: f64 = 0.2;
const FAR_WEIGHT: f64 = 0.25;
/// Samples of which the quantiles are taken until they move by steps: the last so many of twice as many; below so few they
/// say nothing of the median, and the largest is no bound.
const KEPT: usize = 32;
const FEW: usize = 10;

/// The median and the ninetieth percentile of a ratio.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quantiles {
    p50: f64,
    p90: f64,
    /// Mean and median deviation of the ratio's logarithm from its median.
    spread: f64,
    middle: f64,
    last: [f32; KEPT],
    samples: usize,
}

impl Default for Quantiles {
    fn default() -> Self {
        let (spread, middle) = (SPREAD_AT_FIRST, SPREAD_AT_FIRST);
        Self { p50: 1.0, p90: P90_AT_FIRST, spread, middle, last: [1.0; KEPT], samples: 0 }
    }
}

impl Quantiles {
    /// The median.
    pub(super) const fn p50(&self) -> f64 {
        self.p50
    }

    /// The ninetieth percentile; never below the median.
    pub(super) const fn p90(&self) -> f64 {
        self.p90.max(self.p50)
    }

    /// Learns one ratio; `haste` above 1 takes larger steps. `was_above` says whether the time was above the ninetieth
    /// percentile that was predicted, where one was: what has been learned since then is not to help.
    pub(super) fn learn(&mut self, ratio: f64, was_above: Option<bool>, haste: f64) {
        if !ratio.is_finite() {
            return;
        }
        let ratio = ratio.clamp(*RATIO.start(), *RATIO.end());
        let deviation = (ratio / self.p50).ln().abs();
        // The first ones are averaged, so that a guess at the start is not followed for long.
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let share = SPREAD_STEP.max(1.0 / (self.samples as f64 + 2.0));
        self.spread += (haste * share).min(0.5) * (deviation - self.spread);
        let place = self.samples;
        self.samples = self.samples.saturating_add(1);
        if place < 2 * KEPT {
            return self.settle_first(place, ratio);
        }
        let up = if deviation > self.middle { MIDDLE_STEP } else { -MIDDLE_STEP };
        self.middle = (self.middle * (haste * up).exp()).clamp(*MIDDLE.start(), *MIDDLE.end());
        let follow = |quantile: f64, deviation: f64, is_above: bool, share: f64| {
            let step = (haste * STEP_OF_SPREAD * deviation).clamp(*STEP.start(), *STEP.end());
            let by = if is_above { share } else { share - 1.0 };
            (quantile * (step * by).exp()).clamp(*RATIO.start(), *RATIO.end())
        };
        let weight = if deviation > FAR { FAR_WEIGHT } else { 1.0 };
        self.p50 = follow(self.p50, weight * self.middle, ratio > self.p50, 0.5);
        self.p90 = follow(self.p90, self.spread, was_above.unwrap_or(ratio > self.p90), 0.9);
    }

    /// The quantiles of the first samples; this one, `ratio`, has `place` others before it.
    fn settle_first(&mut self, place: usize, ratio: f64) {
        if let Some(cell) = self.last.get_mut(place % KEPT) {
            *cell = super::narrow(ratio);
        }
        let count = (place + 1).min(KEPT);
        let sorted_of = |mut all: [f32; KEPT]| {
            all.get_mut(..count).unwrap_or_default().sort_unstable_by(f32::total_cmp);
            move |place: usize| all.get(place.min(count - 1)).map_or(1.0, |ratio| f64::from(*ratio))
        };
        let at = sorted_of(self.last);
        self.p50 = if count < FEW { 1.0 } else { first_p50(count, &at) };
        self.p90 = first_p90(count, at);
        let deviation = |ratio: f32| super::narrow((f64::from(ratio) / self.p50).ln().abs());
        self.middle = sorted_of(self.last.map(deviation))(count / 2).clamp(*MIDDLE.start(), *MIDDLE.end());
    }
}

/// The median of the first `count` samples: of those that are about as expected, if these are most.
fn first_p50(count: usize, at: &impl Fn(usize) -> f64) -> f64 {
    let first = (0..count).find(|place| at(*place).ln() > -FAR).unwrap_or(0);
    let near = (first..count).take_while(|place| at(*place).ln() < FAR).count();
    if 2 * near > count { at(first + near / 2) } else { at(count / 2) }
}

/// The ninetieth percentile of the first `count` samples, of which `at` gives the one that is larger than so many others.
fn first_p90(count: usize, at: impl Fn(usize) -> f64) -> f64 {
    if count >= FEW {
        return at((9 * (count + 1)).div_ceil(10) - 1);
    }
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let doubt = 1.0 - count as f64 / FEW as f64;
    (at(count - 1) * P90_AT_FIRST.powf(doubt)).min(*RATIO.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_below_as_their_share_says_whatever_the_distribution() {
        let kinds: [fn(&mut fastrand::Rng) -> f64; 3] = [
            |rng| 1.0 + 0.1 * (rng.f64() - 0.5),
            |rng| 0.5 - rng.f64().max(1e-6).ln(),
            |rng| if rng.f64() < 0.15 { 3.0 + rng.f64() } else { 1.0 + 0.02 * rng.f64() },
        ];
        for (kind, draw) in kinds.iter().enumerate() {
            let (mut quantiles, mut rng) = (Quantiles::default(), fastrand::Rng::with_seed(6));
            let (mut below_p50, mut below_p90) = (0_u32, 0_u32);
            for sample in 0..6000 {
                let ratio = draw(&mut rng);
                if sample >= 1000 {
                    below_p50 += u32::from(ratio <= quantiles.p50());
                    below_p90 += u32::from(ratio <= quantiles.p90());
                }
                quantiles.learn(ratio, None, 1.0);
            }
            let [p50, p90] = [below_p50, below_p90].map(|count| f64::from(count) / 5000.0);
            // Of two groups, it is the median of the larger: of 85 in 100.
            let half = if kind == 2 { 0.41..0.51 } else { 0.47..0.53 };
            assert!(half.contains(&p50) && (0.88..0.92).contains(&p90), "{kind}: {p50} {p90}");
        }
    }

    #[test]
    fn quantiles_stay_sound_whatever_they_are_told() {
        bolero::check!().with_type::<Vec<(f64, f64)>>().for_each(|ratios| {
            let mut quantiles = Quantiles::default();
            for (ratio, haste) in ratios {
                quantiles.learn(*ratio, Some(*ratio > 2.0), if haste.is_finite() { haste.abs() } else { 1.0 });
                quantiles.learn(ratio.abs(), None, 1.0);
                assert!(RATIO.contains(&quantiles.p50()) && RATIO.contains(&quantiles.p90()));
                assert!(quantiles.spread.is_finite() && quantiles.spread >= 0.0);
            }
        });
    }
}
