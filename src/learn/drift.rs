//! Noticing that a replica is no longer what was learned of it: a two-sided cumulative sum of standardised residuals
//! (Page, *Continuous inspection schemes*, 1954). Noise adds up to nothing, for each sample takes off what noise may be;
//! a change adds up, and a few samples later it is certain.

/// What a residual may be, in mean deviations, without anything having changed.
const ALLOWED: f64 = 1.0;
/// A residual counts for no more than this many mean deviations.
const RESIDUAL_MAX: f64 = 4.0;
/// Sum at which something has changed.
const CERTAIN: f64 = 12.0;
/// Least mean deviation: changes of a few percent are none.
const SPREAD_LEAST: f64 = 0.03;
/// Samples for which old evidence is then forgotten faster.
const HURRY: u32 = 80;

/// The two sums.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drift {
    above: f64,
    below: f64,
    hurry: u32,
}

impl Drift {
    /// Learns one residual (the logarithm of actual by expected) where they deviate by `spread` on average. True when that
    /// makes it certain that something has changed.
    pub(super) fn learn(&mut self, residual: f64, spread: f64) -> bool {
        self.hurry = self.hurry.saturating_sub(1);
        let size = residual / spread.max(SPREAD_LEAST);
        let size = if size.is_finite() { size.clamp(-RESIDUAL_MAX, RESIDUAL_MAX) } else { 0.0 };
        self.above = (self.above + size - ALLOWED).max(0.0);
        self.below = (self.below - size - ALLOWED).max(0.0);
        let is_certain = self.above.max(self.below) > CERTAIN;
        if is_certain {
            *self = Self { hurry: HURRY, ..Self::default() };
        }
        is_certain
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
            assert!((0..20_000).all(|_| !drift.learn(noise(&mut rng), 0.09)), "noise");
            let seen = (0..12).any(|_| drift.learn(change + noise(&mut rng), 0.09));
            assert!(seen && drift.is_recent(), "{change}");
            assert!((0..HURRY).all(|_| !drift.learn(noise(&mut rng), 0.09)) && !drift.is_recent());
        }
    }
}
