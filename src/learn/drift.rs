//! Noticing that a replica is no longer what was learned of it: a two-sided cumulative sum of standardised residuals
//! (Page, *Continuous inspection schemes*, 1954). Noise adds up to nothing, for each sample takes off what noise may be;
//! a change adds up, and a few samples later it is certain.

/// What a residual may be, in mean deviations, without anything having changed.
const ALLOWED: f64 = 1.0;
/// A residual counts for no more than this many mean deviations.
const RESIDUAL_MAX: f64 = 4.0;
/// Sum at which something has changed.
const CERTAIN: f64 = 12.0;
/// Mean deviation before the first residual, the share of each in it, and the most that one counts.
const SPREAD_AT_FIRST: f64 = 0.3;
const SPREAD_STEP: f64 = 0.02;
const DEVIATION_MAX: f64 = 1.0;
/// Least mean deviation: changes of a few percent are none.
const SPREAD_LEAST: f64 = 0.03;
/// Samples for which old evidence is then forgotten faster.
const HURRY: u32 = 80;

/// The two sums.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drift {
    above: f64,
    below: f64,
    hurry: u32,
    /// Mean deviation of residuals.
    spread: f64,
    samples: u32,
}

impl Default for Drift {
    fn default() -> Self {
        Self { above: 0.0, below: 0.0, hurry: 0, spread: SPREAD_AT_FIRST, samples: 0 }
    }
}

impl Drift {
    /// Learns one residual (the logarithm of actual by expected). True when that makes it certain that something has
    /// changed.
    pub(super) fn learn(&mut self, residual: f64) -> bool {
        self.hurry = self.hurry.saturating_sub(1);
        let size = residual / self.spread.max(SPREAD_LEAST);
        if residual.is_finite() {
            self.samples = self.samples.saturating_add(1);
            let share = SPREAD_STEP.max(1.0 / f64::from(self.samples));
            self.spread += share * (residual.abs().min(DEVIATION_MAX) - self.spread);
        }
        let size = if size.is_finite() { size.clamp(-RESIDUAL_MAX, RESIDUAL_MAX) } else { 0.0 };
        self.above = (self.above + size - ALLOWED).max(0.0);
        self.below = (self.below - size - ALLOWED).max(0.0);
        let is_certain = self.above.max(self.below) > CERTAIN;
        if is_certain {
            self.note();
        }
        is_certain
    }

    /// It is known that something has changed.
    pub(super) const fn note(&mut self) {
        (self.above, self.below, self.hurry) = (0.0, 0.0, HURRY);
    }

    /// Something has changed a few samples ago.
    pub(super) const fn is_recent(&self) -> bool {
        self.hurry > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(rng: &mut fastrand::Rng) -> f64 {
        0.2 * ((0..4).map(|_| rng.f64()).sum::<f64>() - 2.0)
    }

    #[test]
    fn noise_is_no_drift_and_a_change_is_seen_within_a_dozen_samples() {
        let mut rng = fastrand::Rng::with_seed(2);
        for change in [2.0_f64.ln(), -(2.0_f64.ln()), 1.4_f64.ln()] {
            let mut drift = Drift::default();
            assert!((0..20_000).all(|_| !drift.learn(noise(&mut rng))), "noise");
            let seen = (0..12).any(|_| drift.learn(change + noise(&mut rng)));
            assert!(seen && drift.is_recent(), "{change}");
            assert!((0..HURRY).all(|_| !drift.learn(noise(&mut rng))) && !drift.is_recent());
        }
    }
}
