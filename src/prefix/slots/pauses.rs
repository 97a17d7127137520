//! How long conversations pause, learned, and so how likely it is that one that has been idle for so long goes on while
//! its slot would still be there.
//!
//! A pause ends when the conversation goes on, or is only known to have lasted so long when it is lost from sight. Both
//! count, as in Kaplan and Meier, *Nonparametric estimation from incomplete observations* (1958): in bins of half an
//! octave, of the pauses that came to a bin, which share ended in it. From these shares follows for each age the most
//! returns a second that waiting on can bring, over whatever time: hits for the time a slot is kept, the measure by which
//! a cache that knows no more than ages should evict (Gittins' index; for caches, Beckmann et al., *LHD: improving cache
//! hit rate by maximizing hit density*, 2018). Times the time for which slots are kept at present, that is how many
//! returns are to be expected, and with them the likelihood of one.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Half-octaves from 8.4 ms (2²³ ns) to 2.4 h.
const BINS: usize = 40;
const FIRST_LOG2: f32 = 23.0;
const BINS_PER_OCTAVE: f32 = 2.0;
/// Before any pause is known: half a pause in each bin, of which this share ended. A sixth a half-octave makes of pauses
/// what is seen of most: half of those that lasted so long last four times as long.
const PRIOR_PASSED: f32 = 0.5;
const PRIOR_ENDED: f32 = 0.08;
/// Pauses noted between two reckonings, and those of which half are forgotten.
const RECKON_EACH: u32 = 8;
const REMEMBERED: u32 = 4096;
/// How long slots are kept, as long as none was taken from a conversation, seconds; and the weight of each that is.
const KEPT_S_AT_FIRST: f32 = 60.0;
const KEPT_WEIGHT: f32 = 0.05;

/// The pauses of all conversations. All shards share it; what two write at once may be lost, which costs an average one
/// of thousands of samples.
#[derive(Debug)]
pub(super) struct Pauses {
    /// Pauses that came to each bin and were seen to pass or to end in it.
    passed: [AtomicU32; BINS],
    ended: [AtomicU32; BINS],
    /// Returns a second that waiting brings from each bin on (bits of an `f32`).
    rates: [AtomicU32; BINS],
    noted: AtomicU32,
    /// Mean seconds that a conversation had been idle for when its slot was taken (bits of an `f32`; zero: unknown).
    kept_s: AtomicU32,
}

impl Default for Pauses {
    fn default() -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU32::new(0));
        let pauses = Self {
            passed: zeros(),
            ended: zeros(),
            rates: zeros(),
            noted: AtomicU32::new(0),
            kept_s: AtomicU32::new(0),
        };
        pauses.reckon();
        pauses
    }
}

impl Pauses {
    /// A conversation went on after `pause`.
    pub(super) fn ended(&self, pause: Duration) {
        self.note(pause, true);
    }

    /// One was lost from sight, and had not gone on for as long as `pause`.
    pub(super) fn lost(&self, pause: Duration) {
        self.note(pause, false);
    }

    /// The slot of a conversation was taken that had been idle for so long.
    pub(super) fn taken(&self, idle: Duration) {
        let (before, new) = (f32::from_bits(self.kept_s.load(Relaxed)), idle.as_secs_f32());
        let kept_s = if before > 0.0 { before + (new - before) * KEPT_WEIGHT } else { new };
        self.kept_s.store(kept_s.to_bits(), Relaxed);
    }

    /// How likely a conversation that has been idle for so long goes on while its slot would be kept, 0 to 1.
    pub(super) fn likely(&self, idle: Duration) -> f32 {
        let kept_s = match f32::from_bits(self.kept_s.load(Relaxed)) {
            known if known > 0.0 => known,
            _unknown => KEPT_S_AT_FIRST,
        };
        1.0 - (-self.per_s(idle) * kept_s).exp()
    }

    /// The most returns a second that waiting on brings, after so long: between those of the two nearest bins.
    pub(super) fn per_s(&self, idle: Duration) -> f32 {
        let at = place(idle);
        let (bin, part) = (whole(at), at.fract());
        let rate = |bin: usize| f32::from_bits(self.rates[bin.min(BINS - 1)].load(Relaxed));
        rate(bin) + (rate(bin + 1) - rate(bin)) * part
    }

    fn note(&self, pause: Duration, has_ended: bool) {
        let bin = whole(place(pause)).min(BINS - 1);
        for passed in &self.passed[..bin] {
            passed.fetch_add(1, Relaxed);
        }
        if has_ended {
            self.passed[bin].fetch_add(1, Relaxed);
            self.ended[bin].fetch_add(1, Relaxed);
        }
        if self.noted.fetch_add(1, Relaxed).is_multiple_of(RECKON_EACH) {
            if self.passed[0].load(Relaxed) > REMEMBERED {
                for count in self.passed.iter().chain(&self.ended) {
                    count.store(count.load(Relaxed) / 2, Relaxed);
                }
            }
            self.reckon();
        }
    }

    /// Works the rates out anew.
    fn reckon(&self) {
        let ends: [f32; BINS] = std::array::from_fn(|bin| {
            let (passed, ended) = (self.passed[bin].load(Relaxed), self.ended[bin].load(Relaxed));
            (lossy(ended) + PRIOR_ENDED) / (lossy(passed.max(ended)) + PRIOR_PASSED)
        });
        for (bin, rate) in self.rates.iter().enumerate() {
            let (mut left, mut returns, mut seconds, mut most) = (1.0_f32, 0.0_f32, 0.0_f32, 0.0_f32);
            for (later, end) in ends.iter().enumerate().skip(bin) {
                // Who returns within a bin does so in its middle, on average.
                seconds += left * width_s(later) * (1.0 - end / 2.0);
                returns += left * end;
                left *= 1.0 - end;
                most = most.max(returns / seconds);
            }
            rate.store(most.to_bits(), Relaxed);
        }
    }
}

/// The bin of a pause, with how far into it.
fn place(pause: Duration) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
    let nanoseconds = pause.as_nanos().max(1) as f32;
    ((nanoseconds.log2() - FIRST_LOG2) * BINS_PER_OCTAVE).max(0.0)
}

/// Seconds between the ends of a bin.
fn width_s(bin: usize) -> f32 {
    let edge_s = |bin: f32| (FIRST_LOG2 + bin / BINS_PER_OCTAVE).exp2() * 1e-9;
    #[expect(clippy::cast_precision_loss, reason = "at most 40")]
    let bin = bin as f32;
    if bin > 0.0 { edge_s(bin + 1.0) - edge_s(bin) } else { edge_s(1.0) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative, and small")]
const fn whole(place: f32) -> usize {
    place as usize
}

#[expect(clippy::cast_precision_loss, reason = "counts below 2^24")]
const fn lossy(count: u32) -> f32 {
    count as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn before_anything_is_known_the_longer_idle_the_less_likely() {
        let pauses = Pauses::default();
        pauses.taken(s(5.0));
        let likely: Vec<f32> = [0.0, 0.1, 1.0, 3.0, 10.0, 100.0, 1e4, 1e6].map(|idle| pauses.likely(s(idle))).into();
        assert!(likely.windows(2).all(|two| two[0] >= two[1]), "{likely:?}");
        assert!(likely[0] > 0.99 && likely[5] < 0.05, "{likely:?}");
    }

    #[test]
    fn what_has_been_idle_for_far_longer_than_pauses_last_is_over() {
        let pauses = Pauses::default();
        let mut random = fastrand::Rng::with_seed(4);
        for _ in 0..300 {
            pauses.ended(s(2.0 + 6.0 * random.f64()));
        }
        for _ in 0..30 {
            pauses.lost(s(300.0 + 100.0 * random.f64()));
            pauses.taken(s(60.0));
        }
        let likely = |idle: f64| pauses.likely(s(idle));
        assert!(likely(1.0) > 0.99, "{}", likely(1.0));
        assert!(likely(20.0) < 0.5, "{}", likely(20.0));
        assert!(likely(250.0) < 0.2, "{}", likely(250.0));
    }

    #[test]
    fn slots_that_are_kept_for_less_time_are_worth_less() {
        let likely = |kept_s: f64| {
            let pauses = Pauses::default();
            pauses.taken(s(kept_s));
            pauses.likely(s(10.0))
        };
        assert!(likely(1.0) < likely(10.0) && likely(10.0) < likely(1000.0));
        assert!(likely(1.0) < 0.1 && likely(1000.0) > 0.9, "{} {}", likely(1.0), likely(1000.0));
    }

    #[test]
    fn pauses_of_long_ago_are_forgotten() {
        let pauses = Pauses::default();
        (0..20_000).for_each(|_| pauses.ended(s(1.0)));
        assert!(pauses.passed[0].load(Relaxed) <= REMEMBERED + RECKON_EACH);
        (0..20_000).for_each(|_| pauses.ended(s(500.0)));
        pauses.taken(s(100.0));
        let (early, late) = (pauses.likely(s(2.0)), pauses.likely(s(450.0)));
        assert!(late > early, "{early} {late}");
    }

    #[test]
    fn any_pause_has_its_place() {
        let pauses = Pauses::default();
        for pause in [Duration::ZERO, Duration::from_nanos(1), s(1e-3), s(1e5), Duration::MAX] {
            pauses.ended(pause);
            pauses.lost(pause);
            pauses.taken(pause);
            assert!((0.0..=1.0).contains(&pauses.likely(pause)), "{pause:?}");
        }
    }
}
