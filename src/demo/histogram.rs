//! Percentiles in fixed memory: buckets a thirty-second of an octave wide, so that an answer is at most 3 % off.

use std::time::Duration;

/// Buckets of one octave, as a power of two.
const OCTAVE_BITS: u32 = 5;
const OCTAVE: usize = 1 << OCTAVE_BITS;
/// Octaves of microseconds: the last one ends after 19 hours.
const OCTAVES: usize = 32;

/// Counts of durations.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    buckets: Box<[u32]>,
    count: u64,
}

impl Histogram {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { buckets: vec![0; OCTAVE * OCTAVES].into_boxed_slice(), count: 0 }
    }

    /// Counts one.
    pub(super) fn record(&mut self, value: Duration) {
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        let last = self.buckets.len() - 1;
        if let Some(bucket) = self.buckets.get_mut(bucket(us).min(last)) {
            *bucket = bucket.saturating_add(1);
            self.count += 1;
        }
    }

    /// The value below which the share `q` of all lies, 0 to 1. `None` when nothing was counted.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub(super) fn quantile(&self, q: f64) -> Option<Duration> {
        let rank = ((self.count as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        self.buckets.iter().enumerate().find_map(|(at, &count)| {
            seen += u64::from(count);
            (seen >= rank).then(|| Duration::from_micros(middle(at)))
        })
    }
}

/// Values below `OCTAVE` have a bucket each; above, each octave has `OCTAVE` of them.
fn bucket(us: u64) -> usize {
    let octave = (u64::BITS - (us | 1).leading_zeros()).saturating_sub(OCTAVE_BITS + 1);
    let within = usize::try_from(us >> octave).unwrap_or(usize::MAX);
    octave as usize * OCTAVE + within
}

/// The middle of a bucket.
fn middle(at: usize) -> u64 {
    let octave = (at / OCTAVE).saturating_sub(1);
    let from = ((at - octave * OCTAVE) as u64) << octave;
    from + (1_u64 << octave) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_three_percent_off_at_most() {
        bolero::check!().with_type::<Vec<u32>>().for_each(|values| {
            let mut histogram = Histogram::new();
            let mut sorted = values.clone();
            sorted.sort_unstable();
            for value in values {
                histogram.record(Duration::from_micros(u64::from(*value)));
            }
            for (q, rank) in [(0.5, sorted.len().div_ceil(2)), (1.0, sorted.len())] {
                let Some(&exact) = rank.checked_sub(1).and_then(|at| sorted.get(at)) else { continue };
                let got = histogram.quantile(q).unwrap().as_secs_f64() * 1e6;
                let exact = f64::from(exact);
                assert!((got - exact).abs() <= 0.032 * exact + 0.5, "{got} for {exact}");
            }
        });
        assert_eq!(Histogram::new().quantile(0.5), None);
    }

    #[test]
    fn the_longest_fits_the_last_bucket() {
        let mut histogram = Histogram::new();
        histogram.record(Duration::MAX);
        assert!(histogram.quantile(0.99).unwrap() > Duration::from_secs(3_600));
    }
}
