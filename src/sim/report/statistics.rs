//! Means over seeds and how sure they are: Student's t at 95 %, and ratios of runs that shared a seed.
//!
//! Runs of two policies with one seed see the same arrivals, so most of what differs between seeds is common to both;
//! comparing them pair by pair leaves it out.

use statrs::distribution::{ContinuousCDF as _, StudentsT};

/// What share of intervals hold the true mean.
pub const CONFIDENCE: f64 = 0.95;

/// A mean and how far the true one may be from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean of what was measured, or the ratio of two means.
    pub mean: f64,
    /// Half the width of the interval of [`CONFIDENCE`] around it; `None` from a single seed.
    pub half: Option<f64>,
    /// Seeds.
    pub seeds: usize,
}

impl Estimate {
    /// The lower end of the interval; the mean where there is none.
    #[must_use]
    pub fn low(&self) -> f64 {
        self.mean - self.half.unwrap_or(0.0)
    }

    /// The upper end.
    #[must_use]
    pub fn high(&self) -> f64 {
        self.mean + self.half.unwrap_or(0.0)
    }

    /// Whether the interval is known and leaves `value` out.
    #[must_use]
    pub fn excludes(&self, value: f64) -> bool {
        self.half.is_some() && (self.low() > value || self.high() < value)
    }
}

/// The mean of `values`, one a seed. `None` when there are none.
#[must_use]
pub fn mean(values: &[f64]) -> Option<Estimate> {
    let seeds = values.len();
    if seeds == 0 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / seeds as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some(Estimate { mean, half: half_width(squares, seeds), seeds })
}

/// The mean of the first of each pair as a multiple of the mean of the second. `None` when there are no pairs or when
/// that mean is not above zero.
///
/// The interval is the delta method's for a ratio of means of pairs: with R the ratio, that of the mean of `x − R·y`,
/// divided by the mean of y (Cochran, Sampling Techniques, 3rd edition, section 6.3).
#[must_use]
pub fn ratio(pairs: &[(f64, f64)]) -> Option<Estimate> {
    let seeds = pairs.len();
    let (sum, sum_base) = pairs.iter().fold((0.0, 0.0), |(x, y), pair| (x + pair.0, y + pair.1));
    if seeds == 0 || sum_base.is_nan() || sum_base <= 0.0 {
        return None;
    }
    let ratio = sum / sum_base;
    // The residuals' mean is zero.
    let squares: f64 = pairs.iter().map(|(x, y)| (x - ratio * y).powi(2)).sum();
    let half = half_width(squares, seeds).map(|half| half / (sum_base / seeds as f64));
    Some(Estimate { mean: ratio, half, seeds })
}

/// Half the width of the interval around a mean, from the sum of squares of what the `count` values are off it.
fn half_width(squares: f64, count: usize) -> Option<f64> {
    let freedom = count.checked_sub(1).filter(|freedom| *freedom > 0)? as f64;
    Some(student_t(freedom) * (squares / freedom / count as f64).sqrt())
}

/// How many standard errors the interval of [`CONFIDENCE`] reaches on each side.
fn student_t(freedom: f64) -> f64 {
    // One degree of freedom at least: the distribution exists.
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::INFINITY, |t| t.inverse_cdf(0.5 + CONFIDENCE / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(value: f64, known: f64) {
        assert!((value - known).abs() < 5e-4 * known.abs().max(1.0), "{value} is not {known}");
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, known) in [(1.0, 12.706), (2.0, 4.303), (4.0, 2.776), (9.0, 2.262), (29.0, 2.045), (1e6, 1.960)] {
            near(student_t(freedom), known);
        }
    }

    #[test]
    fn means_have_the_intervals_of_the_textbook() {
        // t(0.975, 4) · sqrt(2.5 / 5) = 2.776 · 0.7071
        let five = mean(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        near(five.mean, 3.0);
        near(five.half.unwrap(), 1.9629);
        assert!(five.excludes(5.0) && !five.excludes(1.1));
        assert_eq!(mean(&[7.0]), Some(Estimate { mean: 7.0, half: None, seeds: 1 }));
        assert!(!mean(&[7.0]).unwrap().excludes(1.0));
        assert_eq!(mean(&[]), None);
    }

    #[test]
    fn pairs_leave_out_what_seeds_have_in_common() {
        // Seeds differ by 100 times what the policies do.
        let pairs: Vec<(f64, f64)> = (1..=10).map(|seed| (f64::from(seed) * 0.9, f64::from(seed))).collect();
        let paired = ratio(&pairs).unwrap();
        near(paired.mean, 0.9);
        assert!(paired.half.unwrap() < 1e-9 && paired.excludes(1.0), "{paired:?}");
    }

    #[test]
    fn ratios_have_the_intervals_of_the_delta_method() {
        // R = 1.25; residuals x − R·y: 0.5, −0.5, 0.25, −0.25, 0; squares 0.625.
        let pairs = [(3.0, 2.0), (4.5, 4.0), (4.0, 3.0), (6.0, 5.0), (7.5, 6.0)];
        let found = ratio(&pairs).unwrap();
        near(found.mean, 1.25);
        near(found.half.unwrap(), 2.776 * (0.625_f64 / 4.0 / 5.0).sqrt() / 4.0);
        assert_eq!(ratio(&[(1.0, 0.0)]), None);
        assert_eq!(ratio(&[]), None);
        assert_eq!(ratio(&[(1.0, 2.0)]).unwrap().half, None);
    }
}
