//! A least-squares fit that learns one sample at a time, forgets, and keeps every coefficient at zero or above.
//!
//! Times add up, so no coefficient can be negative. Clipping what recursive least squares says at zero is not enough: its
//! other coefficients were found together with the one that is clipped, and the clipped fit can be worse after a sample
//! than before, without end. So the sums of the normal equations are kept instead of an inverse, and a few rounds of
//! coordinate descent bring the coefficients to their least non-negative error (Zakharov, White & Liu, *Low-complexity
//! RLS algorithms using dichotomous coordinate descent iterations*, 2008; here with exact steps, for the fits are small).
//! Each step lowers the error of all that was seen: there is nothing that can run away.
//!
//! Forgetting is stabilised (Kulhavý & Zarrop, *On a general concept of forgetting*, 1993): old evidence fades towards
//! what was known at the start and not towards nothing. Traffic that never varies says nothing of most coefficients; they
//! then stay as they are. Residuals are clipped at a little more than what half of them are: of those that are far off,
//! it counts that they are, and not how far.

/// Coefficients or features.
pub(super) type Vector<const N: usize> = [f64; N];

/// Rounds of coordinate descent a sample; what is left is taken up with the next.
const ROUNDS: usize = 4;
/// Samples before residuals are clipped.
const SAMPLES_TO_CLIP: u32 = 8;
/// Residuals are clipped at this many times their median size.
const CLIP: f64 = 1.5;
/// By which share the median size moves with each residual.
const SIZE_STEP: f64 = 0.05;
/// What it stays within.
const SIZE: std::ops::RangeInclusive<f64> = 1e-6..=1e6;
/// No coefficient is larger.
const COEFFICIENT_MAX: f64 = 1e6;

/// A fit of `N` coefficients.
#[derive(Clone, Debug)]
pub(super) struct Recursive<const N: usize> {
    coefficients: Vector<N>,
    /// The weighted sum of `x·xᵀ`. Symmetric; its diagonal is never less than `least`.
    known: [Vector<N>; N],
    /// What the error would still gain by moving each coefficient.
    pull: Vector<N>,
    /// How much is known of each coefficient before the first sample and, at least, ever after.
    least: Vector<N>,
    /// Median size of a residual.
    size: f64,
    /// What sizes are taken to be at least.
    size_least: f64,
    samples: u32,
}

impl<const N: usize> Recursive<N> {
    /// A fit that knows nothing but `coefficients`, each as well as `least` says: as much as a sample whose feature has
    /// that square. `size_least` is the size of residuals that are nothing to look at.
    pub(super) fn new(coefficients: Vector<N>, least: Vector<N>, size_least: f64) -> Self {
        let known = std::array::from_fn(|row| std::array::from_fn(|column| diagonal(&least, row, column)));
        Self { coefficients, known, pull: [0.0; N], least, size: 0.0, size_least, samples: 0 }
    }

    /// The coefficients.
    pub(super) const fn coefficients(&self) -> Vector<N> {
        self.coefficients
    }

    /// Samples behind them.
    pub(super) const fn samples(&self) -> u32 {
        self.samples
    }

    /// What it expects of `x`.
    pub(super) fn expects(&self, x: &Vector<N>) -> f64 {
        dot(&self.coefficients, x)
    }

    /// Learns that `x` gave `y`; `kept` is the share of old evidence that stays. What is far off counts in full where
    /// `is_news`: something is known to have changed.
    pub(super) fn learn(&mut self, x: &Vector<N>, y: f64, kept: f64, is_news: bool) {
        if !(y.is_finite() && x.iter().all(|feature| feature.is_finite())) {
            return;
        }
        let residual = y - self.expects(x);
        let clipped = self.clipped(residual);
        let residual = if is_news { residual } else { clipped };
        for row in 0..N {
            for column in 0..N {
                let floor = diagonal(&self.least, row, column);
                let faded = kept * self.known[row][column] + (1.0 - kept) * floor;
                self.known[row][column] = faded + x[row] * x[column];
            }
            self.pull[row] = kept * self.pull[row] + x[row] * residual;
        }
        for _ in 0..ROUNDS {
            self.descend();
        }
    }

    /// Brings each coefficient in turn to where the error is least.
    fn descend(&mut self) {
        for place in 0..N {
            let before = self.coefficients[place];
            let after = (before + self.pull[place] / self.known[place][place]).clamp(0.0, COEFFICIENT_MAX);
            self.coefficients[place] = after;
            for (pull, known) in self.pull.iter_mut().zip(&self.known[place]) {
                *pull -= known * (after - before);
            }
        }
    }

    fn clipped(&mut self, residual: f64) -> f64 {
        self.samples = self.samples.saturating_add(1);
        if self.samples <= SAMPLES_TO_CLIP {
            self.size += (residual.abs() - self.size) / f64::from(self.samples);
            return residual;
        }
        let bound = CLIP * self.size.max(self.size_least);
        let up = if residual.abs() > self.size { SIZE_STEP } else { -SIZE_STEP };
        self.size = (self.size * up.exp()).clamp(*SIZE.start(), *SIZE.end());
        residual.clamp(-bound, bound)
    }
}

fn diagonal<const N: usize>(least: &Vector<N>, row: usize, column: usize) -> f64 {
    if row == column { least[row] } else { 0.0 }
}

fn dot<const N: usize>(a: &Vector<N>, b: &Vector<N>) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
