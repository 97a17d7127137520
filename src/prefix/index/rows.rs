//! Overflow rows: for blocks that more replicas hold than an entry has room for. A row has one 16-bit stamp for every
//! slot, so a system prompt that 4,096 replicas hold is known for all of them.
//!
//! Rows are few and bounded. When all are taken, a clock hand passes over them: a row used since its last pass is spared,
//! the next is given to the new block; its old block keeps its six inline holders.
//!
//! A row's first line holds its owner: the block's hash with the lowest bit as the "used" mark. An entry names a row by
//! number, and whoever follows the number checks the owner, so a row that has changed hands reads as no row.

use std::{
    io,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use super::entry::{Header, Key, ROW_MAX};
use crate::{
    id::{BlockHash, ReplicaSlot},
    sync::huge::{HugeTable, LINE_BYTES, LINE_WORDS, Line},
};

/// Stamps in a word.
const LANES: usize = 4;
/// Stamps in a cache line.
const LINE_LANES: usize = LINE_WORDS * LANES;
/// Rows the hand looks at before it gives up.
const HAND_STEPS: u32 = 64;

const FREE: u64 = 0;
const BUSY: u64 = 1;
const USED: u64 = 1;

#[derive(Debug)]
pub(super) struct Rows {
    memory: HugeTable,
    row_lines: usize,
    rows_max: u32,
    /// Rows never taken yet start here.
    fresh: AtomicU32,
    hand: AtomicU32,
    used: AtomicU32,
}

impl Rows {
    /// As many rows for `replicas_max` slots as `bytes` hold.
    pub(super) fn new(bytes: usize, replicas_max: usize) -> io::Result<Self> {
        let row_lines = 1 + replicas_max.div_ceil(LINE_LANES);
        let rows_max = u32::try_from(bytes / (row_lines * LINE_BYTES)).unwrap_or(ROW_MAX).min(ROW_MAX);
        Ok(Self {
            memory: HugeTable::new(rows_max as usize * row_lines)?,
            row_lines,
            rows_max,
            fresh: AtomicU32::new(0),
            hand: AtomicU32::new(0),
            used: AtomicU32::new(0),
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    pub(super) fn rows_max(&self) -> u64 {
        u64::from(self.rows_max)
    }

    /// Rows that belong to a block.
    pub(super) fn used(&self) -> u64 {
        u64::from(self.used.load(Relaxed)).min(self.rows_max())
    }

    /// Row number `id`, if it belongs to the block `hash`.
    #[inline(always)]
    pub(super) fn get(&self, id: u32, hash: BlockHash) -> Option<Row<'_>> {
        if id == 0 {
            return None;
        }
        let row = self.row(id, owner(hash))?;
        (row.head().load(Acquire) & !USED == row.owner).then_some(row)
    }

    /// Takes a row for `hash`, empty, and hands its number to `publish`, which says whether it took.
    ///
    /// Returns `None` when there is no row to take or `publish` refuses.
    pub(super) fn allocate(&self, hash: BlockHash, publish: impl FnOnce(u32) -> bool) -> Option<Row<'_>> {
        let id = self.take()?;
        let row = self.row(id, owner(hash))?;
        row.words().for_each(|word| word.store(0, Relaxed));
        row.head().store(row.owner | USED, Release);
        if publish(id) {
            self.used.fetch_add(1, Relaxed);
            return Some(row);
        }
        row.head().store(FREE, Release);
        None
    }

    /// Gives back the row of an entry that has been replaced.
    pub(super) fn release(&self, id: u32, header: Header) {
        if let Some(row) = self.of_header(id, header) {
            let head = row.head().load(Acquire);
            let is_owner = Key::of(BlockHash(head & !USED)).tag() & !3 == header.key().tag() & !3;
            if is_owner && row.head().compare_exchange(head, FREE, AcqRel, Relaxed).is_ok() {
                self.used.fetch_sub(1, Relaxed);
            }
        }
    }

    /// True when the entry has a row that was used since the hand last came by.
    pub(super) fn is_hot(&self, id: u32, header: Header) -> bool {
        self.of_header(id, header).is_some_and(|row| row.head().load(Relaxed) & USED != 0)
    }

    /// The row an entry names, if its owner agrees in the bits that an entry keeps.
    fn of_header(&self, id: u32, header: Header) -> Option<Row<'_>> {
        if id == 0 {
            return None;
        }
        let row = self.row(id, 0)?;
        let head = row.head().load(Acquire);
        (Key::of(BlockHash(head)).tag() & !3 == header.key().tag() & !3 && head > BUSY).then_some(row)
    }

    fn row(&self, id: u32, owner: u64) -> Option<Row<'_>> {
        let start = (id as usize).checked_sub(1)? * self.row_lines;
        Some(Row { lines: self.memory.lines().get(start..start + self.row_lines)?, owner })
    }

    /// A row that is nobody's: its head says "being written".
    fn take(&self) -> Option<u32> {
        if self.fresh.load(Relaxed) < self.rows_max {
            let id = self.fresh.fetch_add(1, Relaxed) + 1;
            if id <= self.rows_max {
                self.row(id, 0)?.head().store(BUSY, Relaxed);
                return Some(id);
            }
        }
        for _ in 0..HAND_STEPS.min(2 * self.rows_max) {
            let id = self.hand.fetch_add(1, Relaxed) % self.rows_max + 1;
            let head = self.row(id, 0)?.head();
            let owner = head.load(Acquire);
            if owner == BUSY {
                continue;
            }
            if owner & USED != 0 {
                let _ = head.compare_exchange(owner, owner & !USED, Relaxed, Relaxed);
            } else if head.compare_exchange(owner, BUSY, AcqRel, Relaxed).is_ok() {
                if owner != FREE {
                    self.used.fetch_sub(1, Relaxed);
                }
                return Some(id);
            }
        }
        None
    }
}

/// A block's mark on its row: the hash without its lowest bit, and neither free nor busy.
#[inline(always)]
const fn owner(hash: BlockHash) -> u64 {
    (hash.0 | 2) & !USED
}

/// View of one row and whose it should be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'t> {
    lines: &'t [Line],
    owner: u64,
}

impl<'t> Row<'t> {
    fn head(self) -> &'t AtomicU64 {
        &self.lines[0].0[0]
    }

    fn words(self) -> impl Iterator<Item = &'t AtomicU64> {
        self.lines[1..].iter().flat_map(|line| &line.0)
    }

    fn word(self, slot: ReplicaSlot) -> Option<(&'t AtomicU64, u32)> {
        let word = slot.index() / LANES;
        let line = self.lines.get(1 + word / LINE_WORDS)?;
        Some((&line.0[word % LINE_WORDS], 16 * u32::from(slot.0 % 4)))
    }

    /// The slot's stamp, if it has one.
    pub(super) fn stamp(self, slot: ReplicaSlot) -> Option<u16> {
        let (word, shift) = self.word(slot)?;
        Some(stamp_at(word.load(Acquire), shift)).filter(|stamp| *stamp != 0)
    }

    /// Calls `visit` with every slot that has a stamp.
    #[inline(always)]
    pub(super) fn for_each(self, mut visit: impl FnMut(ReplicaSlot, u16)) {
        for (first, word) in (0..).step_by(LANES).zip(self.words()) {
            let mut stamps = word.load(Relaxed);
            let mut slot = first;
            while stamps != 0 {
                let stamp = stamp_at(stamps, 0);
                if stamp != 0 {
                    visit(ReplicaSlot(slot), stamp);
                }
                stamps >>= 16;
                slot += 1;
            }
        }
    }

    /// Writes the slot's stamp and marks the row as used. Returns the stamp before (zero: none), or `None`, with nothing
    /// changed, when the row has changed hands.
    #[expect(clippy::cast_possible_truncation, reason = "rows keep 16 bits of a stamp")]
    pub(super) fn set(self, slot: ReplicaSlot, stamp: u32) -> Option<u16> {
        let (word, shift) = self.word(slot)?;
        let before = write(word, shift, stamp as u16);
        let head = self.head().load(Acquire);
        if head & !USED != self.owner {
            write(word, shift, 0);
            return None;
        }
        if head & USED == 0 {
            let _ = self.head().compare_exchange(head, head | USED, Relaxed, Relaxed);
        }
        Some(before)
    }

    /// Takes the slot's stamp out.
    pub(super) fn remove(self, slot: ReplicaSlot) -> Option<u16> {
        let (word, shift) = self.word(slot)?;
        Some(write(word, shift, 0)).filter(|stamp| *stamp != 0)
    }
}

/// Sets one stamp of a word; returns what it was.
fn write(word: &AtomicU64, shift: u32, stamp: u16) -> u16 {
    let change = |stamps: u64| Some(stamps & !(0xffff << shift) | u64::from(stamp) << shift);
    let (Ok(before) | Err(before)) = word.fetch_update(AcqRel, Relaxed, change);
    stamp_at(before, shift)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes one of four")]
const fn stamp_at(stamps: u64, shift: u32) -> u16 {
    (stamps >> shift) as u16
}
