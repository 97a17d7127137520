//! One use of blocks by one replica, while it is noted.

use super::replica::Replica;
use super::{NEW, RING, ROW_MASK, STAMP_MASK, Window};
use crate::id::ReplicaSlot;
use crate::prefix::index::entry::Holder;
use std::sync::atomic::Ordering::Relaxed;

/// One use of blocks by one replica, counted here and handed in at its end.
pub(in super::super) struct Touches<'r> {
    pub(super) replica: &'r Replica,
    pub(super) slot: ReplicaSlot,
    pub(super) window: Window,
    /// The stamp of this use.
    pub(super) now: u32,
    /// Where a request is over: the lower 16 bits of the stamp with which it began.
    pub(super) began: Option<u32>,
    /// Ages up to this are counted.
    pub(super) reach: u32,
    /// Blocks to add to the present stamp, and the deepest of them.
    pub(super) used: i32,
    pub(super) deepest: u32,
    /// Blocks to take from the stamp `from`.
    pub(super) from: u32,
    pub(super) from_count: i32,
    pub(super) progress: i64,
}

impl Touches<'_> {
    #[inline(always)]
    pub(in super::super) const fn slot(&self) -> ReplicaSlot {
        self.slot
    }

    /// The stamp to write now.
    #[inline(always)]
    pub(in super::super) const fn stamp(&self) -> u32 {
        self.now & STAMP_MASK
    }

    /// The replica with the stamp to write now.
    #[inline(always)]
    pub(in super::super) const fn holder(&self) -> Holder {
        Holder::new(self.slot, self.stamp())
    }

    /// A block with `stamp` (of which only the lower 16 bits need be right) is left as it is: it is still in use by others
    /// than the request that is over.
    #[inline]
    pub(in super::super) fn leaves(&self, stamp: u32) -> bool {
        let is_others = self.began.is_some_and(|began| began != stamp & ROW_MASK);
        is_others && self.window.clock.wrapping_sub(stamp) & ROW_MASK <= self.reach && self.replica.is_pinned(stamp)
    }

    /// The replica was added to the block at `depth`.
    #[inline]
    pub(in super::super) fn added(&mut self, depth: u32) {
        self.used += 1;
        self.deepest = self.deepest.max(depth);
        self.progress += NEW;
    }

    /// The replica's stamp on the block at `depth` was `stamp` (of which only the lower 16 bits need be right).
    #[inline]
    pub(in super::super) fn moved(&mut self, stamp: u32, depth: u32) {
        let age = self.window.clock.wrapping_sub(stamp) & ROW_MASK;
        if self.now.wrapping_sub(stamp) & ROW_MASK == 0 {
            return;
        }
        if age <= self.reach {
            if stamp % RING != self.from {
                self.hand_in_moves();
                self.from = stamp % RING;
            }
            self.from_count += 1;
        }
        self.used += 1;
        self.deepest = self.deepest.max(depth);
        self.progress += if self.window.end.holds(age, depth) { 1 } else { NEW };
    }

    /// Hands in what is counted here. [`Residency::settle`] it then.
    pub(in super::super) fn finish(mut self) {
        self.hand_in_moves();
        self.replica.count(self.now).fetch_add(self.used, Relaxed);
        let deepest = u16::try_from(self.deepest).unwrap_or(u16::MAX);
        self.replica.deepest(self.now).fetch_max(deepest, Relaxed);
        self.replica.progress.fetch_add(self.progress, Relaxed);
    }

    fn hand_in_moves(&mut self) {
        if self.from_count > 0 {
            self.replica.count(self.from).fetch_sub(self.from_count, Relaxed);
            self.from_count = 0;
        }
    }
}
