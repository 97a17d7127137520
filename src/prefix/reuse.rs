//! How soon blocks are used again, learned: what giving one up costs depends on it.
//!
//! A cache that is full gives up what was used longest ago. Where that belongs to conversations that have ended it costs
//! nothing; where they only pause, all of it will have to be computed again. Which of the two it is, traffic says: of the
//! blocks that have been idle for so long, such a share is used again.
//!
//! A sample is enough. It is chosen by hash, so that of a block either every use is seen or none (Waldspurger et al.,
//! *Efficient MRC construction with SHARDS*, FAST 2015). [`SampledUses`] keeps when each sampled block was used last, and
//! [`ReuseAges`] counts, for one model, how long it was idle until it was used again. The counts fade with a half-life of
//! ten minutes. What was last used is remembered whatever replicas hold, so that a block which an engine gave up too soon
//! counts as one that was needed.

use crate::clock::Now;
use crate::id::BlockHash;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Blocks whose last use is kept. A power of two: 512 KiB.
const CELLS: usize = 1 << 16;
/// The sample is thin enough that a sampled block finds its cell taken seldom: cells for each block that is sampled of
/// what the index can hold.
const CELLS_A_BLOCK: u64 = 4;
/// One block in so many, at most and at least.
const SAMPLED_MAX: u64 = 16;
const SAMPLED_MIN: u64 = 1 << 16;

/// Ages are told apart by half octaves from a quarter of a second to more than an hour and a half.
const AGES: usize = 32;
const AGE_LEAST_MS: u32 = 250;
/// Counts are halved in so many seconds.
const HALF_LIFE_S: f32 = 600.0;
/// Uses that were never repeated, as if they had been seen before the first: what is not known is held to be free.
const UNKNOWN: f32 = 16.0;

/// When each block of a sample was used last.
#[derive(Debug)]
pub struct SampledUses {
    /// Half of the block's hash, and milliseconds.
    cells: Box<[AtomicU64]>,
    /// A block is sampled when these bits of its hash are zero.
    mask: u64,
}

impl SampledUses {
    /// Nothing seen yet; `blocks` is how many the index can hold.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        let one_in = (blocks * CELLS_A_BLOCK / CELLS as u64).next_power_of_two().clamp(SAMPLED_MAX, SAMPLED_MIN);
        Self { cells: (0..CELLS).map(|_| AtomicU64::new(0)).collect(), mask: one_in - 1 }
    }

    /// A prompt is used at `now` that was asked for at `asked`: before that it was idle, since then it has waited.
    pub fn note(&self, chain: &[BlockHash], asked: Now, now: Now, ages: &ReuseAges) {
        let mut seen = Seen::default();
        for block in chain.iter().filter(|block| block.0 & self.mask == 0) {
            seen.add(self.used(*block, millis(asked), millis(now)));
        }
        if seen.uses > 0 {
            ages.learn(&seen, now);
        }
    }

    /// Takes note of one use; milliseconds the block had been idle, if that is known.
    #[expect(clippy::cast_possible_truncation, reason = "takes the halves apart")]
    fn used(&self, block: BlockHash, asked_ms: u32, now_ms: u32) -> Option<u32> {
        let place = (block.0 >> self.mask.count_ones()) as usize % CELLS;
        // Never zero: that is a cell without a block.
        let mark = block.0 >> 32 | 1;
        let before = self.cells[place].swap(mark << 32 | u64::from(now_ms), Relaxed);
        let idle_ms = asked_ms.wrapping_sub(before as u32);
        let is_known = before >> 32 == mark;
        // What was used since it was asked for has not been idle.
        is_known.then_some(if idle_ms > u32::MAX / 2 { 0 } else { idle_ms })
    }
}

/// Uses of sampled blocks by one prompt.
#[derive(Debug, Default)]
struct Seen {
    uses: u32,
    again: [u32; AGES],
}

impl Seen {
    fn add(&mut self, idle_ms: Option<u32>) {
        self.uses += 1;
        if let Some(idle_ms) = idle_ms {
            self.again[age(idle_ms)] += 1;
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    uses: f32,
    again: [f32; AGES],
    faded_at: Now,
}

/// Of one model's blocks: which share of those that have been idle for so long is used again.
#[derive(Debug, Default)]
pub struct ReuseAges {
    counts: Mutex<Counts>,
    /// By age, as of its beginning (the bits of `f32`s).
    again: [AtomicU32; AGES],
}

impl ReuseAges {
    /// The share, 0 to 1, of the blocks idle for `idle_ms` that will be used again. Zero before anything is known.
    #[inline]
    #[must_use]
    pub fn again(&self, idle_ms: u32) -> f32 {
        f32::from_bits(self.again[age(idle_ms)].load(Relaxed))
    }

    /// The share by age, for people: milliseconds, and the share of what has been idle for so long.
    pub fn curve(&self) -> impl Iterator<Item = (u32, f32)> {
        (0..AGES).map(|age| (begins_ms(age), f32::from_bits(self.again[age].load(Relaxed))))
    }

    /// Another shard that is at it makes this one pass over what it has seen: there is more.
    fn learn(&self, seen: &Seen, now: Now) {
        let Some(mut counts) = self.counts.try_lock() else { return };
        let faded = (-now.since(counts.faded_at).as_secs_f32() / HALF_LIFE_S).exp2();
        counts.faded_at = now.max(counts.faded_at);
        counts.uses = counts.uses.mul_add(faded, lossy(seen.uses));
        for (count, seen) in counts.again.iter_mut().zip(seen.again) {
            *count = count.mul_add(faded, lossy(seen));
        }
        let mut later: f32 = counts.again.iter().sum();
        let mut idle = counts.uses + UNKNOWN;
        for (cell, count) in self.again.iter().zip(counts.again) {
            // As of the middle of the age: half of those used again at it have been.
            let (later_now, idle_now) = (later - count / 2.0, idle - count / 2.0);
            cell.store((later_now / idle_now.max(1.0)).clamp(0.0, 1.0).to_bits(), Relaxed);
            later = (later - count).max(0.0);
            idle -= count;
        }
    }
}

/// The half octave of an idle time.
#[inline]
const fn age(idle_ms: u32) -> usize {
    let scaled = idle_ms / (AGE_LEAST_MS / 2);
    if scaled < 2 {
        return 0;
    }
    let octave = scaled.ilog2() - 1;
    let half = scaled >> octave & 1;
    let age = (2 * octave + half) as usize;
    if age < AGES { age } else { AGES - 1 }
}

/// Where an age begins, milliseconds.
const fn begins_ms(age: usize) -> u32 {
    let (octave, half) = (age / 2, age % 2);
    (AGE_LEAST_MS << octave) + if half == 1 { AGE_LEAST_MS << octave >> 1 } else { 0 }
}

#[expect(clippy::cast_possible_truncation, reason = "differences are taken modulo 2³² milliseconds, 49 days")]
const fn millis(now: Now) -> u32 {
    (now.0 / 1_000_000) as u32
}

#[expect(clippy::cast_precision_loss, reason = "a prompt's blocks, far below 2^24")]
const fn lossy(count: u32) -> f32 {
    count as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn second(seconds: f64) -> Now {
        Now(1_000_000_000).plus(Duration::from_secs_f64(seconds))
    }

    /// Blocks of conversation `number`, all of which are sampled.
    fn chain(number: u64) -> Vec<BlockHash> {
        (0..4).map(|block| BlockHash((number * 4 + block).wrapping_mul(0x9e37_79b9_7f4a_7c15) << 4)).collect()
    }

    #[test]
    fn ages_are_half_octaves() {
        assert_eq!([0, 249, 250, 374, 375, 499, 500, 749, 750].map(age), [0, 0, 0, 0, 1, 1, 2, 2, 3]);
        for place in 0..AGES {
            assert_eq!(age(begins_ms(place)), place);
            assert_eq!(age(begins_ms(place) - 1), place.saturating_sub(1));
        }
        assert_eq!(age(u32::MAX), AGES - 1);
    }

    #[test]
    fn what_pauses_is_told_from_what_has_ended() {
        // Of four conversations three go on after 10 s, for ever; the fourth has ended. A new one comes each second.
        let (uses, ages) = (SampledUses::new(1000), ReuseAges::default());
        assert!((ages.again(0) - 0.0).abs() < f32::EPSILON);
        for step in 0_u64..3000 {
            #[expect(clippy::cast_precision_loss, reason = "few")]
            let now = second(step as f64);
            uses.note(&chain(step), now, now, &ages);
            if let Some(before) = step.checked_sub(10).filter(|before| before % 4 != 0) {
                uses.note(&chain(before), now, now, &ages);
            }
        }
        // Each of those three is used twice and is idle for good after the second: of 7 uses 3 are repeated.
        let close = |idle_ms: u32, wanted: f32| {
            let share = ages.again(idle_ms);
            assert!((share - wanted).abs() < 0.03, "{idle_ms} ms: {share}, not {wanted}");
        };
        close(1000, 3.0 / 7.0);
        close(7000, 3.0 / 7.0);
        close(14_000, 0.0);
        close(600_000, 0.0);
    }

    #[test]
    fn time_in_which_a_request_waits_is_not_idle() {
        let (uses, ages) = (SampledUses::new(1000), ReuseAges::default());
        for number in 0..200 {
            uses.note(&chain(number), second(0.0), second(0.0), &ages);
            uses.note(&chain(number), second(4.0), second(900.0), &ages);
        }
        assert!(ages.again(2000) > 0.3 && ages.again(8000) < 0.01, "{:?}", ages.curve().collect::<Vec<_>>());
    }

    #[test]
    fn what_was_long_ago_fades() {
        let (uses, ages) = (SampledUses::new(1000), ReuseAges::default());
        for number in 0..200 {
            uses.note(&chain(number), second(0.0), second(0.0), &ages);
            uses.note(&chain(number), second(5.0), second(5.0), &ages);
        }
        let before = ages.again(1000);
        for number in 1000..1400 {
            uses.note(&chain(number), second(6000.0), second(6000.0), &ages);
        }
        assert!(before > 0.45 && ages.again(1000) < 0.01, "{before} {}", ages.again(1000));
    }

    #[test]
    fn few_blocks_are_sampled_of_many() {
        let mut rng = fastrand::Rng::with_seed(4);
        let uses = SampledUses::new(20_000_000);
        let ages = ReuseAges::default();
        let chain: Vec<_> = (0..200_000).map(|_| BlockHash(rng.u64(..))).collect();
        uses.note(&chain, second(0.0), second(0.0), &ages);
        let kept = uses.cells.iter().filter(|cell| cell.load(Relaxed) != 0).count();
        assert!((50..200).contains(&kept), "{kept}");
        assert_eq!(SampledUses::new(0).mask, SAMPLED_MAX - 1);
        assert_eq!(SampledUses::new(u64::MAX / 8).mask, SAMPLED_MIN - 1);
    }

    #[test]
    fn shares_stay_shares_whatever_is_used_when() {
        bolero::check!().with_type::<Vec<(u8, u32, u32)>>().for_each(|uses_made| {
            let (uses, ages) = (SampledUses::new(1000), ReuseAges::default());
            for (number, asked_ms, now_ms) in uses_made {
                let at = |ms: u32| Now(u64::from(ms) * 1_000_000);
                uses.note(&chain(u64::from(*number)), at(*asked_ms), at(*now_ms), &ages);
                assert!(ages.curve().all(|(_, share)| (0.0..=1.0).contains(&share)));
            }
        });
    }
}
