//! One entry: 32 bytes, four words. The first names the block; the other three hold six holders of 32 bits.
//!
//! header: tag 40 bits | overflow row 20 bits (0: none) | depth class 4 bits. Zero is a free entry, 1 one being written.
//! holder: replica slot 12 bits | stamp 20 bits. Zero is nobody: stamps are never zero.
//!
//! Writers claim an entry by setting its header to "being written". A writer that changes a holder checks the header
//! afterwards and takes its change back if the entry has meanwhile become another block's, so a replica is credited with
//! a foreign block for some nanoseconds at most.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use super::residency::{Residency, STAMP_BITS};
use crate::id::{BlockHash, ReplicaSlot};

/// Words in an entry.
pub(super) const WORDS: usize = 4;
/// Holders in an entry.
pub(super) const HOLDERS: usize = 6;

const TAG_SHIFT: u32 = 24;
const ROW_SHIFT: u32 = 4;
/// The highest row number an entry can name.
pub(super) const ROW_MAX: u32 = (1 << 20) - 1;
const BUSY: u64 = 1;

/// What an entry keeps of a block's hash. 40 bits beside the place: one look-up in 2³⁸ meets a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u64);

impl Key {
    /// The lower 40 bits; zero is kept for free entries.
    #[inline(always)]
    pub(super) const fn of(hash: BlockHash) -> Self {
        let tag = hash.0 & ((1 << (64 - TAG_SHIFT)) - 1);
        Self(if tag == 0 { 1 } else { tag })
    }

    #[inline(always)]
    pub(super) const fn tag(self) -> u64 {
        self.0
    }
}

/// An entry's first word, as read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header(u64);

impl Header {
    /// The header of a block at `depth` without a row.
    pub(super) fn new(key: Key, depth: usize) -> Self {
        let class = (usize::BITS - depth.leading_zeros()).min(15);
        Self(key.0 << TAG_SHIFT | u64::from(class))
    }

    pub(super) const fn is_free(self) -> bool {
        self.0 == 0
    }

    pub(super) const fn is_busy(self) -> bool {
        self.0 == BUSY
    }

    #[inline(always)]
    pub(super) const fn key(self) -> Key {
        Key(self.0 >> TAG_SHIFT)
    }

    /// The row's number; zero for none.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "masked to 20 bits")]
    pub(super) const fn row(self) -> u32 {
        (self.0 >> ROW_SHIFT) as u32 & ROW_MAX
    }

    /// Doubles of depth, 0 to 15.
    #[expect(clippy::cast_possible_truncation, reason = "masked to 4 bits")]
    pub(super) const fn depth_class(self) -> u32 {
        self.0 as u32 & 0xf
    }
}

/// A replica and when it last used the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder(u32);

impl Holder {
    #[inline(always)]
    pub(super) const fn new(slot: ReplicaSlot, stamp: u32) -> Self {
        Self((slot.0 as u32) << STAMP_BITS | stamp)
    }

    /// The holder as the only one of a word.
    pub(super) const fn word(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub(super) const fn slot(self) -> ReplicaSlot {
        ReplicaSlot((self.0 >> STAMP_BITS) as u16)
    }

    #[inline(always)]
    pub(super) const fn stamp(self) -> u32 {
        self.0 & ((1 << STAMP_BITS) - 1)
    }
}

/// A holder and where in the entry it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    word: usize,
    shift: u32,
    held: Holder,
}

impl Place {
    pub(super) const fn stamp(self) -> u32 {
        self.held.stamp()
    }
}

/// Whether an entry is the one looked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    Yes(Header),
    No,
}

/// View of one entry in the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'t>(&'t [AtomicU64; WORDS]);

impl<'t> Entry<'t> {
    #[inline(always)]
    pub(super) const fn new(words: &'t [AtomicU64; WORDS]) -> Self {
        Self(words)
    }

    #[inline(always)]
    pub(super) fn header(self) -> Header {
        Header(self.0[0].load(Acquire))
    }

    #[inline(always)]
    pub(super) fn find(self, key: Key) -> Found {
        let header = self.header();
        if header.key() == key { Found::Yes(header) } else { Found::No }
    }

    /// The six places.
    #[inline(always)]
    fn places(self) -> impl Iterator<Item = Place> {
        (1..WORDS).flat_map(move |word| {
            let both = self.0[word].load(Acquire);
            [0, 32].map(|shift| Place { word, shift, held: holder_at(both, shift) })
        })
    }

    /// Holders that are somebody, dead or alive.
    #[inline(always)]
    pub(super) fn holders(self) -> impl Iterator<Item = Holder> {
        self.places().map(|place| place.held).filter(|holder| !holder.is_empty())
    }

    /// Calls `visit` with every holder, dead or alive.
    #[inline(always)]
    pub(super) fn for_each(self, mut visit: impl FnMut(Holder)) {
        for word in &self.0[1..] {
            let mut both = word.load(Acquire);
            // Holders are added from the front, but taken out anywhere.
            while both != 0 {
                let holder = holder_at(both, 0);
                if !holder.is_empty() {
                    visit(holder);
                }
                both >>= 32;
            }
        }
    }

    /// Where `slot` stands in the entry.
    #[inline(always)]
    pub(super) fn holder_of(self, slot: ReplicaSlot) -> Option<Place> {
        // A loop by hand: compilers leave `find` over the places a call, in the path of every block.
        for word in 1..WORDS {
            let both = self.0[word].load(Acquire);
            for shift in [0, 32] {
                let held = holder_at(both, shift);
                if held.slot() == slot && !held.is_empty() {
                    return Some(Place { word, shift, held });
                }
            }
        }
        None
    }

    /// The place to give up first, and whether giving it up loses nothing.
    pub(super) fn weakest_holder(self, residency: &Residency) -> (Place, bool) {
        let mut weakest = (Place { word: 1, shift: 0, held: Holder(0) }, 0);
        for (i, place) in self.places().enumerate() {
            let age = if place.held.is_empty() { 512 } else { residency.age(place.held) };
            if i == 0 || age > weakest.1 {
                weakest = (place, age);
            }
        }
        (weakest.0, weakest.1 >= 256)
    }

    /// Age of the holder that used the block last; see [`Residency::age`].
    pub(super) fn age(self, residency: &Residency) -> u32 {
        self.holders().map(|holder| residency.age(holder)).min().unwrap_or(257)
    }

    /// True when none of its holders holds it any more.
    pub(super) fn is_dead(self, residency: &Residency) -> bool {
        !self.holders().any(|holder| residency.is_live(holder))
    }

    /// Puts `new` where `old` was read. False, with nothing changed, when either the place or the entry is not what it
    /// was any more.
    #[inline(always)]
    pub(super) fn set(self, old: Place, new: Holder, header: Header) -> bool {
        if !self.swap(old, new) {
            return false;
        }
        if self.header().key() == header.key() {
            return true;
        }
        self.swap(Place { held: new, ..old }, Holder(0));
        false
    }

    /// Removes `slot` and tells `removed` its stamps.
    pub(super) fn remove(self, slot: ReplicaSlot, mut removed: impl FnMut(u32)) {
        for place in self.places() {
            if place.held.slot() == slot && !place.held.is_empty() && self.swap(place, Holder(0)) {
                removed(place.held.stamp());
            }
        }
    }

    /// Names a row in the header. False when the header has changed.
    pub(super) fn set_row(self, header: Header, row: u32) -> bool {
        let with_row = header.0 & !(u64::from(ROW_MAX) << ROW_SHIFT) | u64::from(row) << ROW_SHIFT;
        self.0[0].compare_exchange(header.0, with_row, AcqRel, Relaxed).is_ok()
    }

    /// Writes a new block and its holders over `old`. False when another core was quicker.
    pub(super) fn replace(self, old: Header, new: Header, holders: [u64; WORDS - 1]) -> bool {
        if self.0[0].compare_exchange(old.0, BUSY, AcqRel, Relaxed).is_err() {
            return false;
        }
        for (word, holders) in self.0[1..].iter().zip(holders) {
            word.store(holders, Relaxed);
        }
        self.0[0].store(new.0, Release);
        true
    }

    /// The holders, to be copied.
    pub(super) fn words(self) -> [u64; WORDS - 1] {
        std::array::from_fn(|i| self.0[1 + i].load(Acquire))
    }

    /// Exchanges one holder, whatever happens to its neighbour.
    #[inline(always)]
    fn swap(self, old: Place, new: Holder) -> bool {
        let word = &self.0[old.word];
        let mut both = word.load(Relaxed);
        // Bounded: each failure means that another core succeeded on this word.
        for _ in 0..16 {
            if holder_at(both, old.shift) != old.held {
                return false;
            }
            let changed = both & !(u64::from(u32::MAX) << old.shift) | u64::from(new.0) << old.shift;
            match word.compare_exchange_weak(both, changed, AcqRel, Relaxed) {
                Ok(_) => return true,
                Err(now) => both = now,
            }
        }
        false
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes one half")]
const fn holder_at(word: u64, shift: u32) -> Holder {
    Holder((word >> shift) as u32)
}
