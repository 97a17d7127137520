//! Quantiles of how actual times relate to expected ones, followed sample by sample.
//!
//! A quantile moves up by a step times its share when a sample is above it, and down by a step times the rest when it is
//! not (stochastic gradient descent on the pinball loss). In the long run as many samples are below it as its share says,
//! whatever their distribution, and however that changes (Gibbs & Candès, *Adaptive conformal inference under
//! distribution shift*, 2021).

/// Bounds of a ratio.
const RATIO: std::ops::RangeInclusive<f64> = 0.05..=20.0;
/// The step is this many times the mean deviation of the ratio's logarithm.
const STEP_OF_SPREAD: f64 = 0.25;
const STEP: std::ops::RangeInclusive<f64> = 0.002..=0.2;
/// Share of a sample in the mean deviation.
const SPREAD_STEP: f64 = 0.02;
/// Mean deviation before the first sample.
const SPREAD_AT_FIRST: f64 = 0.3;
/// The ninetieth percentile before the first sample.
const P90_AT_FIRST: f64 = 2.0;

/// The median and the ninetieth percentile of a ratio.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quantiles {
    p50: f64,
    p90: f64,
    spread: f64,
    samples: u32,
}

impl Default for Quantiles {
    fn default() -> Self {
        Self { p50: 1.0, p90: P90_AT_FIRST, spread: SPREAD_AT_FIRST, samples: 0 }
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

    /// Mean deviation of the ratio's logarithm from its median.
    pub(super) const fn spread(&self) -> f64 {
        self.spread
    }

    /// Learns one ratio; `haste` above 1 takes larger steps. `was_above` says whether the time was above the ninetieth
    /// percentile that was predicted, where one was: what has been learned since then is not to help. The median is kept
    /// to what the fit says now, or it would swing with the time that answers take.
    pub(super) fn learn(&mut self, ratio: f64, was_above: Option<bool>, haste: f64) {
        if !ratio.is_finite() {
            return;
        }
        let ratio = ratio.clamp(*RATIO.start(), *RATIO.end());
        self.samples = self.samples.saturating_add(1);
        // The first ones are averaged, so that a guess at the start is not followed for long.
        let step = SPREAD_STEP.max(1.0 / f64::from(self.samples.saturating_add(2)));
        self.spread += (haste * step).min(0.5) * ((ratio / self.p50).ln().abs() - self.spread);
        let step = (haste * STEP_OF_SPREAD * self.spread).clamp(*STEP.start(), *STEP.end());
        let (above_p50, above_p90) = (ratio > self.p50, was_above.unwrap_or(ratio > self.p90));
        let follow = |quantile: f64, is_above: bool, share: f64| {
            let by = if is_above { share } else { share - 1.0 };
            (quantile * (step * by).exp()).clamp(*RATIO.start(), *RATIO.end())
        };
        (self.p50, self.p90) = (follow(self.p50, above_p50, 0.5), follow(self.p90, above_p90, 0.9));
    }
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
            assert!((0.47..0.53).contains(&p50) && (0.88..0.92).contains(&p90), "{kind}: {p50} {p90}");
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
                assert!(quantiles.spread().is_finite() && quantiles.spread() >= 0.0);
            }
        });
    }
}
