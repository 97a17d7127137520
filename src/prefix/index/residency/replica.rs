//! One replica's counts, by stamp, and where a window of so many blocks ends.

use super::{ALL, End, NEW, RING, RING_WORDS, STEPS, STEPS_MIN, Window};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Replica {
    pub(super) capacity: AtomicU64,
    /// Of it, what is on the device.
    pub(super) device: AtomicU64,
    /// Uses so far.
    pub(super) uses: AtomicU32,
    /// The first stamp since all was forgotten last: those before it count nothing.
    pub(super) forgotten_at: AtomicU32,
    /// Progress at which the clock moves on, in units of `NEW` a new block.
    pub(super) stride: AtomicI64,
    pub(super) progress: AtomicI64,
    /// Held while the window is moved; nobody waits for it on the request path.
    pub(super) moving: Mutex<()>,
    pub(super) counts: [AtomicI32; RING as usize],
    /// The deepest block used with each stamp.
    pub(super) deepest: [AtomicU16; RING as usize],
    /// Requests under way that used their prompts with each stamp, and the stamps of which there are any, a bit each.
    pub(super) pins: [AtomicU16; RING as usize],
    pub(super) pinned: [AtomicU64; RING_WORDS],
    /// When each stamp was the present one first, milliseconds.
    pub(super) began_ms: [AtomicU32; RING as usize],
}

impl Replica {
    #[inline(always)]
    pub(super) fn count(&self, stamp: u32) -> &AtomicI32 {
        &self.counts[(stamp % RING) as usize]
    }

    #[inline(always)]
    pub(super) fn deepest(&self, stamp: u32) -> &AtomicU16 {
        &self.deepest[(stamp % RING) as usize]
    }

    #[inline(always)]
    pub(super) fn pins(&self, stamp: u32) -> &AtomicU16 {
        &self.pins[(stamp % RING) as usize]
    }

    #[inline(always)]
    pub(super) fn pinned(&self, stamp: u32) -> &AtomicU64 {
        &self.pinned[(stamp % RING / 64) as usize]
    }

    #[inline(always)]
    pub(super) fn began_ms(&self, stamp: u32) -> &AtomicU32 {
        &self.began_ms[(stamp % RING) as usize]
    }

    pub(super) fn is_pinned(&self, stamp: u32) -> bool {
        self.pinned(stamp).load(Relaxed) & bit(stamp) != 0
    }

    pub(super) fn held(&self, stamp: u32) -> u64 {
        u64::try_from(self.count(stamp).load(Relaxed)).unwrap_or(0)
    }

    /// Of those with `stamp`, the blocks that are in `window`, whose end may be among them.
    pub(super) fn held_within(&self, window: Window, stamp: u32) -> u64 {
        let held = self.held(stamp);
        if window.clock.wrapping_sub(stamp) < window.end.span || window.end.depth == ALL {
            return held;
        }
        let deepest = self.deepest(stamp).load(Relaxed);
        let tail = u64::from(u32::from(deepest).saturating_sub(window.end.depth));
        let deepest = u64::from(deepest.max(1));
        // As in [`tail`], the other way round.
        held.saturating_sub(if held > deepest { held * (tail * tail) / (deepest * deepest) } else { tail })
    }

    /// How many stamps before `clock` are still counted.
    pub(super) fn reach(&self, clock: u32) -> u32 {
        clock.wrapping_sub(self.forgotten_at.load(Relaxed)).min(RING - 1)
    }

    /// Has the clock go slower when the ring is about to end before the capacity does, and faster when there is no need
    /// to; `span` stamps are in the window.
    pub(super) fn pace(&self, span: u32) {
        let capacity = self.capacity.load(Relaxed);
        let stride_now = self.stride.load(Relaxed);
        let next = match span {
            span if span >= RING / 8 * 7 => (stride_now + stride_now / 4 + 1).min(stride(capacity, STEPS_MIN)),
            span if span < RING / 2 => {
                let least = stride(self.device.load(Relaxed), STEPS).max(stride(capacity, 2 * STEPS));
                (stride_now - stride_now / 8).max(least)
            }
            _ => stride_now,
        };
        self.stride.store(next, Relaxed);
    }

    /// What requests under way use of `capacity` blocks.
    pub(super) fn in_use(&self, clock: u32, capacity: u64) -> InUse {
        let mut in_use = InUse::default();
        if self.pinned.iter().all(|word| word.load(Relaxed) == 0) {
            return in_use;
        }
        let oldest_first = (0..=self.reach(clock)).rev().map(|age| clock.wrapping_sub(age));
        for stamp in oldest_first.filter(|stamp| self.is_pinned(*stamp)) {
            let held = self.held(stamp);
            in_use.all += held;
            in_use.some_wait |= in_use.all > capacity;
            in_use.with_room += if in_use.some_wait { 0 } else { held };
        }
        in_use
    }

    /// Where a window of `capacity` blocks ends at `clock` that is to end no earlier than `end`, where `in_use` of them
    /// are in use; and the blocks in it.
    pub(super) fn end_within(&self, clock: u32, end: End, capacity: u64, in_use: InUse) -> (End, u64) {
        let mut sum = in_use.with_room.min(capacity);
        for age in 0..=end.span {
            let stamp = clock.wrapping_sub(age);
            if in_use.all > 0 && self.is_pinned(stamp) {
                continue;
            }
            let held = self.held(stamp);
            if sum + held <= capacity {
                sum += held;
                continue;
            }
            let deepest = u32::from(self.deepest(stamp).load(Relaxed)).min(ALL - 1);
            let depth = deepest.saturating_sub(tail(deepest, held, sum + held - capacity));
            let at = if depth == 0 && age > 0 { End { span: age - 1, depth: ALL } } else { End { span: age, depth } };
            return (at.least(end), if depth == 0 { sum } else { capacity });
        }
        (end, sum)
    }
}

/// Of a stamp whose `held` blocks are no deeper than `deepest`, `over` are given up: so many of the deepest depths.
///
/// The tail of a use goes first. Where several share the stamp, of prompts of all lengths up to that, what is as deep as
/// `deepest - tail` or more is a part of all that grows with the square of `tail`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "no more than `deepest`")]
fn tail(deepest: u32, held: u64, over: u64) -> u32 {
    if held <= u64::from(deepest) {
        return u32::try_from(over).unwrap_or(u32::MAX);
    }
    let share = lossy(over) / lossy(held);
    (lossy(u64::from(deepest)) * share.sqrt()).ceil() as u32
}

/// Blocks of requests under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InUse {
    pub(super) all: u64,
    /// They get room in the order in which they came: of those that found some.
    with_room: u64,
    /// The others wait.
    pub(super) some_wait: bool,
}

#[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
pub(super) const fn lossy(blocks: u64) -> f32 {
    blocks as f32
}

/// A stamp's bit in its word.
pub(super) const fn bit(stamp: u32) -> u64 {
    1 << (stamp % 64)
}

/// Progress that `steps` stamps of a replica of `capacity` blocks take.
pub(super) fn stride(capacity: u64, steps: i64) -> i64 {
    (i64::try_from(capacity).unwrap_or(i64::MAX / NEW).saturating_mul(NEW) / steps).max(NEW)
}
