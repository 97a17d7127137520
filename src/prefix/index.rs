//! Who holds which prefix: a fixed-size table from block hash to the replicas that computed that block.
//!
//! - **Memory** is fixed at start and on huge pages. A block's entry has two possible cache lines (two-choice hashing),
//!   each with two entries of 32 bytes; when both lines are full, the entry that matters least is replaced.
//! - **Holders** are a replica's slot and the stamp of its last use of the block. Six stand in the entry; blocks shared
//!   by more (system prompts) get a row with one stamp for every slot.
//! - **Residency** follows the engine's own LRU without queues: see [`residency`]. Nothing is swept: a holder whose stamp
//!   has left its replica's window is simply not there any more. How long that takes is corrected by what replicas turn
//!   out to have kept: see [`Trail`].
//! - **Look-up** does not walk the chain. It probes many depths at a time and closes over holes, because a block that was
//!   computed at depth k implies all before it: see [`search`].
//!
//! Reads and writes take no lock and may run on every core at once. Races lose or misplace a holder at worst; the index
//! is advice, so that costs a cache miss, never a wrong answer.

mod entry;
mod residency;
mod rows;
mod search;
#[cfg(test)]
mod tests;
mod trail;
mod warm;

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

pub use trail::{Run, Trail};
pub use warm::WarmDepths;

use crate::{
    clock::Now,
    id::{BlockHash, ReplicaSlot},
    sync::huge::{HugeTable, LINE_BYTES, Line, prefetch},
};
use entry::{Entry, Found, HOLDERS, Header, Key};
use residency::{Residency, Touches, Use};
use rows::{Row, Rows};

/// Least memory an index works with, bytes beside what replicas take.
const MEMORY_MIN: usize = 64 << 10;
/// Share of the memory for overflow rows: one in this many.
const ROWS_SHARE: usize = 8;
/// Entries in a cache line.
const LINE_ENTRIES: usize = 2;
/// Cache lines in a page of 4 KiB. Both lines of an entry lie in one: where a hypervisor splits huge pages, finding a
/// page costs more than reading it. A page's 128 entries are enough for loads to even out.
const PAGE_LINES: usize = 64;
/// How far ahead of the write cache lines are asked for, blocks.
const PREFETCH_AHEAD: usize = 12;
/// How far ahead of the write it is seen which blocks are new and have no free place: then the lines are asked for to
/// which other entries may have to be moved.
const MAKE_ROOM_AHEAD: usize = 4;
/// Attempts at one block before a race is given up as lost.
const ATTEMPTS: usize = 4;

/// The shared table. One a process, behind an `Arc`.
#[derive(Debug)]
pub struct PrefixIndex {
    table: HugeTable,
    rows: Rows,
    residency: Residency,
    entries: AtomicU64,
    evictions: AtomicU64,
}

/// How full the index is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Entries in use, those of forgotten blocks included: they are reused first.
    pub entries: u64,
    /// Entries there are.
    pub entries_max: u64,
    /// Entries replaced by other blocks since the start.
    pub evictions: u64,
    /// Rows in use, for blocks with more than six holders.
    pub overflow_rows: u64,
    /// Rows there are.
    pub overflow_rows_max: u64,
    /// All memory the index may take, bytes.
    pub bytes: u64,
}

impl PrefixIndex {
    /// An index that takes `memory_bytes` (its two parts rounded up to huge pages of 2 MiB) for replicas with slots below
    /// `replicas_max`.
    ///
    /// Until [`PrefixIndex::set_capacity`] is called for a replica, it is taken to hold as much as the index can.
    ///
    /// # Errors
    /// When there is too little memory for the replicas, `replicas_max` is zero or above [`ReplicaSlot::LIMIT`], or the
    /// kernel refuses the memory.
    pub fn new(memory_bytes: usize, replicas_max: usize) -> io::Result<Self> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        if replicas_max == 0 || replicas_max > ReplicaSlot::LIMIT {
            return Err(invalid("the prefix index is for 1 to 4096 replicas"));
        }
        let shared = memory_bytes.checked_sub(Residency::bytes(replicas_max)).filter(|bytes| *bytes >= MEMORY_MIN);
        let shared = shared.ok_or_else(|| invalid("too little memory for the prefix index"))?;
        let rows_bytes = if replicas_max > HOLDERS { shared / ROWS_SHARE } else { 0 };
        let lines = (shared - rows_bytes) / LINE_BYTES / PAGE_LINES * PAGE_LINES;
        let table = HugeTable::new(lines)?;
        let entries_max = table.lines().len() * LINE_ENTRIES;
        Ok(Self {
            rows: Rows::new(rows_bytes, replicas_max)?,
            residency: Residency::new(replicas_max, entries_max as u64),
            table,
            entries: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        })
    }

    /// Finds how many blocks of `chain`, counted from the first, each replica holds.
    ///
    /// `depths` is cleared first. Blocks missing in the middle are taken as held when deeper ones are; a replica whose
    /// first blocks are all gone holds nothing it could use, and counts as cold.
    pub fn lookup(&self, chain: &[BlockHash], depths: &mut WarmDepths) {
        search::search(self, chain, depths);
    }

    /// Notes that `slot` holds all of `chain` and has just used it.
    pub fn record(&self, slot: ReplicaSlot, chain: &[BlockHash]) {
        self.record_over(slot, chain, self.clock(slot));
    }

    /// As [`PrefixIndex::record`], for a request that is over and was recorded when [`PrefixIndex::clock`] was `began`: what
    /// others of its prompt still use, they still use.
    pub fn record_over(&self, slot: ReplicaSlot, chain: &[BlockHash], began: u32) {
        self.note(slot, (chain, 0), chain.len(), Use::Over(began), |_, _| {});
        self.residency.settle(slot);
    }

    /// As [`PrefixIndex::record`], for a request that is about to run and holds on to what it uses: call
    /// [`PrefixIndex::hold`] next. A look-up has found the first `held` blocks at `slot`. Returns what the replica had
    /// used of `chain` before, and how long ago.
    pub fn record_with_trail(&self, slot: ReplicaSlot, chain: &[BlockHash], held: usize) -> Trail {
        let mut trail = Trail::default();
        self.note(slot, (chain, 0), held, Use::Begins, |depth, stamp| trail.add(depth, stamp));
        trail.settle(chain.len(), |stamp| self.residency.since(slot, stamp));
        trail
    }

    /// Notes that `slot` holds `chain` too, whose first block follows `depth` others, and has just used it.
    pub fn extend(&self, slot: ReplicaSlot, chain: &[BlockHash], depth: usize) {
        self.note(slot, (chain, depth), 0, Use::Over(self.clock(slot)), |_, _| {});
        self.residency.settle(slot);
    }

    /// A request whose prompt was recorded when [`PrefixIndex::clock`] was `clock` is under way: until
    /// [`PrefixIndex::release`], none of it is given up for others.
    pub fn hold(&self, slot: ReplicaSlot, clock: u32) {
        self.residency.pin(slot, clock);
        self.residency.settle(slot);
    }

    /// The request is over.
    pub fn release(&self, slot: ReplicaSlot, clock: u32) {
        self.residency.unpin(slot, clock);
    }

    /// Notes a use of all of `chain`, of which `before` blocks were left out at the front, and the first `held` are
    /// likely on record; tells `seen` of the blocks that
    /// `slot` was known to have used: depth and stamp, of which the lower 16 bits are right.
    #[inline]
    fn note(
        &self,
        slot: ReplicaSlot,
        (chain, before): (&[BlockHash], usize),
        held: usize,
        what: Use,
        mut seen: impl FnMut(usize, u32),
    ) {
        let Some(mut touches) = self.residency.touches(slot, what) else { return };
        let ahead = |i: usize, by: usize, from: usize| i.checked_sub(by).filter(|i| *i >= from).map(|i| chain[i]);
        for hash in chain.iter().rev().take(PREFETCH_AHEAD) {
            self.prefetch(self.places(*hash));
        }
        let new = chain.get(held..).unwrap_or_default();
        new.iter().rev().take(MAKE_ROOM_AHEAD).for_each(|hash| self.prefetch_room(*hash));
        let (mut inserted, mut replaced) = (0, 0);
        // Deepest first, so that heads carry the latest stamps and tails are forgotten first.
        for (i, hash) in chain.iter().enumerate().rev() {
            if let Some(hash) = ahead(i, PREFETCH_AHEAD, 0) {
                self.prefetch(self.places(hash));
            }
            if let Some(hash) = ahead(i, MAKE_ROOM_AHEAD, held) {
                self.prefetch_room(hash);
            }
            match self.touch(&mut touches, *hash, before + i + 1) {
                Touched::Known(stamp) => seen(before + i + 1, stamp),
                Touched::Joined => {}
                Touched::Inserted => inserted += 1,
                Touched::Replaced => replaced += 1,
            }
        }
        touches.finish();
        if inserted > 0 {
            self.entries.fetch_add(inserted, Relaxed);
        }
        if replaced > 0 {
            self.evictions.fetch_add(replaced, Relaxed);
        }
    }

    /// Takes back what [`PrefixIndex::record`] noted too early: `slot` does not hold the blocks of `chain` at index
    /// `from` and after, because the request failed. Blocks it held before should lie before `from`.
    pub fn retract(&self, slot: ReplicaSlot, chain: &[BlockHash], from: usize) {
        for hash in chain.iter().skip(from) {
            let key = Key::of(*hash);
            for entry in self.candidates(self.places(*hash)) {
                let Found::Yes(header) = entry.find(key) else { continue };
                entry.remove(slot, |stamp| self.residency.removed(slot, stamp));
                if let Some(row) = self.rows.get(header.row(), *hash)
                    && let Some(stamp) = row.remove(slot)
                {
                    self.residency.removed(slot, u32::from(stamp));
                }
            }
        }
        self.residency.settle(slot);
    }

    /// Forgets all that `slot` held: it restarted or left. Takes the time of a few hundred memory accesses, whatever it
    /// held; the slot may serve another replica at once.
    pub fn forget(&self, slot: ReplicaSlot) {
        self.residency.forget(slot);
    }

    /// Sets how many blocks `slot` can hold. Less than before forgets the least recently used at once; more than before
    /// brings nothing back.
    pub fn set_capacity(&self, slot: ReplicaSlot, blocks: u64) {
        self.residency.set_capacity(slot, blocks, blocks);
    }

    /// As [`PrefixIndex::set_capacity`], for a replica that holds only `device` of its `blocks` where they are used; the
    /// others have to be restored first.
    pub fn set_tiers(&self, slot: ReplicaSlot, device: u64, blocks: u64) {
        self.residency.set_capacity(slot, device, blocks);
    }

    /// A time of `slot`'s own, by which [`PrefixIndex::hold`] knows what was recorded last.
    #[must_use]
    pub fn clock(&self, slot: ReplicaSlot) -> u32 {
        self.residency.clock(slot)
    }

    /// What is recorded from now on is recorded at `now`.
    #[expect(clippy::cast_possible_truncation, reason = "differences are taken modulo 2³² milliseconds, 49 days")]
    pub fn set_now(&self, now: Now) {
        self.residency.set_now((now.0 / 1_000_000) as u32);
    }

    /// What new blocks would push out of the cache of `slot`: for each number of them in `sizes`, ascending, the share of as
    /// many blocks that is pushed out and will be used again, 0 to 1. Of blocks idle for so many milliseconds, `again` says
    /// what share is.
    #[must_use]
    pub fn pushed_out<const N: usize>(
        &self,
        slot: ReplicaSlot,
        sizes: &[f32; N],
        again: impl Fn(u32) -> f32,
    ) -> [f32; N] {
        self.residency.pushed_out(slot, sizes, again)
    }

    /// How often anything was recorded for `slot`.
    #[must_use]
    pub fn uses(&self, slot: ReplicaSlot) -> u32 {
        self.residency.uses(slot)
    }

    /// Blocks that `slot` is believed to hold.
    /// A block that several cores note for one replica for the first time at the same moment counts once for each, until
    /// it ages out.
    #[must_use]
    pub fn resident_blocks(&self, slot: ReplicaSlot) -> u64 {
        self.residency.resident_blocks(slot)
    }

    /// Touches all its memory, so that no request pays for the first touch of a page. For a thread of its own.
    pub fn populate(&self) {
        self.table.populate();
    }

    /// How full the index is.
    #[must_use]
    pub fn stats(&self) -> IndexStats {
        let bytes = self.table.bytes() + self.rows.bytes() + Residency::bytes(self.residency.replicas_max());
        IndexStats {
            entries: self.entries.load(Relaxed),
            entries_max: (self.table.lines().len() * LINE_ENTRIES) as u64,
            evictions: self.evictions.load(Relaxed),
            overflow_rows: self.rows.used(),
            overflow_rows_max: self.rows.rows_max(),
            bytes: bytes as u64,
        }
    }

    /// The two lines a block's entry may stand in.
    #[inline(always)]
    fn places(&self, hash: BlockHash) -> [usize; 2] {
        let place = fast_range(hash.0, self.table.lines().len());
        [place, self.other_place(place, Key::of(hash))]
    }

    /// The other line of an entry that stands in `place`: in the same small page, and found from what the entry keeps of
    /// its hash, so that entries can be moved. Its own inverse.
    #[inline(always)]
    const fn other_place(&self, place: usize, key: Key) -> usize {
        let sum = (key.tag().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        place & !(PAGE_LINES - 1) | sum.wrapping_sub(place) & (PAGE_LINES - 1)
    }

    #[inline(always)]
    fn prefetch(&self, places: [usize; 2]) {
        let lines = self.table.lines();
        prefetch(&lines[places[0]]);
        prefetch(&lines[places[1]]);
    }

    /// Asks for the lines that [`Self::make_room`] looks at, if `hash` has no entry and no free place.
    #[inline]
    fn prefetch_room(&self, hash: BlockHash) {
        let (key, places) = (Key::of(hash), self.places(hash));
        let is_placed = |header: Header| header.is_free() || header.key() == key;
        if !self.candidates(places).any(|entry| is_placed(entry.header())) {
            self.others(places).iter().flatten().for_each(|other| prefetch(&self.table.lines()[*other]));
        }
    }

    /// For both entries in each of `places`, the line where it could stand as well.
    #[inline(always)]
    fn others(&self, places: [usize; 2]) -> [[usize; LINE_ENTRIES]; 2] {
        places.map(|place| {
            let line = self.table.lines()[place].0.as_chunks::<{ entry::WORDS }>().0;
            [0, 1].map(|i| self.other_place(place, Entry::new(&line[i]).header().key()))
        })
    }

    #[inline(always)]
    fn candidates(&self, places: [usize; 2]) -> impl Iterator<Item = Entry<'_>> {
        places.into_iter().flat_map(|place| entries_of(&self.table.lines()[place]))
    }

    /// The stamp of the last use of a block by `slot`, of which the lower 16 bits are right.
    fn stamp_of(&self, slot: ReplicaSlot, hash: BlockHash) -> Option<u32> {
        let key = Key::of(hash);
        self.candidates(self.places(hash)).find_map(|entry| {
            let Found::Yes(header) = entry.find(key) else { return None };
            let own = entry.holder_of(slot).map(|own| own.stamp());
            own.or_else(|| self.rows.get(header.row(), hash)?.stamp(slot).map(u32::from))
        })
    }

    /// Notes one use of one block. `depth` counts it and all before it.
    #[inline]
    fn touch(&self, touches: &mut Touches<'_>, hash: BlockHash, depth: usize) -> Touched {
        let (key, places) = (Key::of(hash), self.places(hash));
        let at = u32::try_from(depth).unwrap_or(u32::MAX);
        for _ in 0..ATTEMPTS {
            let found = self.candidates(places).find_map(|entry| match entry.find(key) {
                Found::Yes(header) => Some((entry, header)),
                Found::No => None,
            });
            let Some((entry, header)) = found else {
                if let Some(touched) = self.insert(touches, key, places, depth) {
                    return touched;
                }
                continue;
            };
            if let Some(touched) = self.touch_entry(touches, entry, header, (hash, at)) {
                return touched;
            }
        }
        Touched::Joined
    }

    /// Sets the replica's stamp in an entry. `None` when a race was lost and the block should be looked for again.
    #[inline]
    fn touch_entry(
        &self,
        touches: &mut Touches<'_>,
        entry: Entry<'_>,
        header: Header,
        (hash, depth): (BlockHash, u32),
    ) -> Option<Touched> {
        if let Some(own) = entry.holder_of(touches.slot()) {
            if own.stamp() != touches.stamp() && !touches.leaves(own.stamp()) {
                if !entry.set(own, touches.holder(), header) {
                    return None;
                }
                touches.moved(own.stamp(), depth);
            }
            return Some(Touched::Known(own.stamp()));
        }
        self.join_entry(touches, entry, header, (hash, depth))
    }

    /// Adds a replica to an entry that does not name it inline: to its row if it is there, else to a free place, else
    /// to the row, else over the holder that used the block longest ago.
    #[cold]
    fn join_entry(
        &self,
        touches: &mut Touches<'_>,
        entry: Entry<'_>,
        header: Header,
        (hash, depth): (BlockHash, u32),
    ) -> Option<Touched> {
        let row = self.rows.get(header.row(), hash);
        if let Some(row) = row
            && row.stamp(touches.slot()).is_some()
        {
            return touch_row(touches, row, depth);
        }
        let (place, is_free) = entry.weakest_holder(&self.residency);
        if !is_free && let Some(row) = row.or_else(|| self.rows.allocate(hash, |id| entry.set_row(header, id))) {
            return touch_row(touches, row, depth);
        }
        if !entry.set(place, touches.holder(), header) {
            return None;
        }
        touches.added(depth);
        Some(Touched::Joined)
    }

    /// Writes a new entry over a free one, over one that is dead or can be moved, or over the one that matters least.
    /// `None` when another core was quicker.
    #[cold]
    fn insert(&self, touches: &mut Touches<'_>, key: Key, places: [usize; 2], depth: usize) -> Option<Touched> {
        let free =
            |place: usize| entries_of(&self.table.lines()[place]).filter(|entry| entry.header().is_free()).count();
        let order = if free(places[1]) > free(places[0]) { [places[1], places[0]] } else { places };
        let mut victim: Option<Victim<'_>> = None;
        for place in order {
            for entry in entries_of(&self.table.lines()[place]) {
                let header = entry.header();
                let weakness = self.weakness(entry, header)?;
                if victim.as_ref().is_none_or(|weakest| weakness > weakest.weakness) {
                    victim = Some(Victim { entry, header, weakness });
                }
            }
        }
        let mut victim = victim?;
        if victim.weakness < DEAD
            && let Some(moved) = self.make_room(places)
        {
            victim = moved;
        }
        if !victim.entry.replace(victim.header, Header::new(key, depth), [touches.holder().word(), 0, 0]) {
            return None;
        }
        touches.added(u32::try_from(depth).unwrap_or(u32::MAX));
        if victim.weakness == FREE {
            return Some(Touched::Inserted);
        }
        if victim.weakness != MOVED_OVER_DEAD {
            self.rows.release(victim.header.row(), victim.header);
        }
        Some(Touched::Replaced)
    }

    /// Copies one of the live entries in `places` to its other line, where that has a free or dead entry. The entry it
    /// returns may be overwritten; its weakness is that of the entry that was written over.
    fn make_room(&self, places: [usize; 2]) -> Option<Victim<'_>> {
        let lines = self.table.lines();
        let others = self.others(places);
        others.iter().flatten().for_each(|other| prefetch(&lines[*other]));
        let candidates = self.candidates(places).zip(others.into_iter().flatten());
        for (entry, other) in candidates {
            let header = entry.header();
            if header.is_free() || header.is_busy() {
                continue;
            }
            for target in entries_of(&lines[other]) {
                if let Some(weakness) = self.copy_over(entry, header, target) {
                    return Some(Victim { entry, header, weakness });
                }
            }
        }
        None
    }

    /// Copies a live entry over a free or dead one. Returns the weakness its old place then has; `None` when `target`
    /// is alive or another core was quicker.
    fn copy_over(&self, entry: Entry<'_>, header: Header, target: Entry<'_>) -> Option<u32> {
        let there = target.header();
        let may_go = there.is_free()
            || !there.is_busy() && !self.rows.is_hot(there.row(), there) && target.is_dead(&self.residency);
        if !may_go || !target.replace(there, header, entry.words()) {
            return None;
        }
        if there.is_free() {
            return Some(FREE);
        }
        self.rows.release(there.row(), there);
        Some(MOVED_OVER_DEAD)
    }

    /// How little an entry matters: above all when it was last used, relative to what its replicas can still hold;
    /// among equals the deeper one matters less. `None` while another core writes it.
    fn weakness(&self, entry: Entry<'_>, header: Header) -> Option<u32> {
        if header.is_busy() {
            return None;
        }
        if header.is_free() {
            return Some(FREE);
        }
        let age = if self.rows.is_hot(header.row(), header) { 0 } else { entry.age(&self.residency) };
        Some(age << 4 | header.depth_class())
    }
}

/// Weakness from which on nobody alive holds the block.
const DEAD: u32 = 256 << 4;
/// Weakness of a dead entry over which a live one has been moved away.
const MOVED_OVER_DEAD: u32 = u32::MAX - 1;
/// Weakness of a free entry.
const FREE: u32 = u32::MAX;

/// An entry to write over.
struct Victim<'t> {
    entry: Entry<'t>,
    header: Header,
    weakness: u32,
}

/// What noting a block did to the table.
enum Touched {
    /// The replica had used it, at the time of this stamp.
    Known(u32),
    /// Only others had.
    Joined,
    Inserted,
    Replaced,
}

/// Sets the replica's stamp in a row. `None` when the row has changed hands.
fn touch_row(touches: &mut Touches<'_>, row: Row<'_>, depth: u32) -> Option<Touched> {
    if let Some(stamp) = row.stamp(touches.slot()).map(u32::from)
        && touches.leaves(stamp)
    {
        return Some(Touched::Known(stamp));
    }
    match row.set(touches.slot(), touches.stamp())? {
        0 => {
            touches.added(depth);
            Some(Touched::Joined)
        }
        before => {
            touches.moved(u32::from(before), depth);
            Some(Touched::Known(u32::from(before)))
        }
    }
}

/// The two entries of a cache line.
#[inline(always)]
fn entries_of(line: &Line) -> impl Iterator<Item = Entry<'_>> {
    line.0.as_chunks::<{ entry::WORDS }>().0.iter().map(Entry::new)
}

/// Maps a hash to `0..len` by its upper bits, for any `len`.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the result is below len, a usize")]
const fn fast_range(hash: u64, len: usize) -> usize {
    ((hash as u128 * len as u128) >> 64) as usize
}
