//! What a replica's engine still holds, without a queue.
//!
//! Every replica has a clock of stamps. Using a prompt stamps all its blocks with one reading, and the clock moves on
//! before the next use, unless that is tiny (see below). A ring counts, for each recent stamp, the blocks
//! whose last use carries it. Going back from the present, the stamps whose counts still fit the replica's capacity are
//! its window; a block stamped before that has been evicted by the engine's LRU, so it is dead here too, wherever it
//! stands.
//!
//! Engines give up a prompt's tail before its head. So where the window ends within a use, it ends at a depth: of the
//! oldest use, blocks up to that depth are held and deeper ones are not. With that the window is as exact as if all
//! blocks stood in one queue, and a look-up compares two numbers.
//!
//! Small uses share a stamp, until together they make a 128th of the capacity in new blocks; blocks used again count an
//! eighth of a new one, for they take no room in the engine. When so much is used again and so little is new that the
//! ring would end before the capacity does, more uses share a stamp, up to a sixteenth of the capacity.
//!
//! Engines give up nothing of what a request uses that runs. So requests that begin and those that are over have stamps of
//! their own, two at each time, and those of requests under way are pinned: their blocks count first, whatever their age,
//! and what is left of the capacity is for the others. More may be placed at a replica than it has room for: then the
//! youngest wait for room, and nothing is given up for them before they have it.
//!
//! A replica with a second tier (host memory) keeps in it what the device had to give up. It has two windows then: what
//! lies in the larger is held, and what lies in the larger alone has to be restored before it can be used.
//!
//! The counts of stamps that have left the window stay in the ring for a while. So it can be said of a block how many
//! others its replica has used since ([`Residency::since`]): the distance at which a replica is found to have forgotten
//! tells how much it really holds.
//!
//! Counts are approximate under races (a use may be counted at a neighbouring stamp); negative counts read as zero.

mod replica;
mod touches;

pub(super) use self::touches::Touches;

use self::replica::{Replica, bit, lossy, stride};
use super::entry::Holder;
use crate::id::ReplicaSlot;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Stamps are numbers modulo this; ages past the ring are dead, but for a stamp that comes round again: a block unused
/// while its replica took in a thousand times its capacity (for overflow rows, which keep 16 bits: sixty times).
pub(super) const STAMP_BITS: u32 = 20;
pub(super) const STAMP_MASK: u32 = (1 << STAMP_BITS) - 1;
/// What overflow rows keep of a stamp.
pub(super) const ROW_MASK: u32 = 0xffff;
/// Stamps counted.
const RING: u32 = 512;
const RING_WORDS: usize = RING as usize / 64;
/// Uses share a stamp until they make this part of the capacity, in new blocks; at most so much in any case.
const STEPS: i64 = 128;
const STEPS_MIN: i64 = 16;
/// Progress of the clock for a new block; a block used again makes 1.
const NEW: i64 = 8;
/// A depth that no limit is.
const ALL: u32 = 0xffff;

/// What uses a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A request that begins.
    Begins,
    /// One that is over, and when it began.
    Over(u32),
}

/// Where one of a replica's windows ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// Age of the oldest stamp in it.
    span: u32,
    /// Blocks with that stamp are held up to this depth.
    depth: u32,
}

impl End {
    /// Nothing older than the present, with its two stamps, is held.
    const PRESENT: Self = Self { span: 1, depth: ALL };

    #[inline(always)]
    const fn holds(self, age: u32, depth: u32) -> bool {
        age < self.span || (age == self.span && (depth <= self.depth || self.depth == ALL))
    }

    const fn unpack(word: u32) -> Self {
        Self { span: word & 0x7fff, depth: word >> 16 }
    }

    const fn pack(self) -> u32 {
        self.span | self.depth << 16
    }

    /// The one that holds less.
    const fn least(self, other: Self) -> Self {
        let is_less = other.span < self.span || (other.span == self.span && other.depth < self.depth);
        if is_less { other } else { self }
    }
}

/// A replica's clock and how far back what it holds was used. Packed, so that it is read at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    clock: u32,
    end: End,
    has_host: bool,
}

/// In a packed [`Window`]: some of what is held may have to be restored.
const HOST: u64 = 1 << 47;

impl Window {
    #[expect(clippy::cast_possible_truncation, reason = "takes the parts apart")]
    const fn unpack(word: u64) -> Self {
        Self { clock: word as u32, end: End::unpack((word >> 32) as u32), has_host: word & HOST != 0 }
    }

    const fn pack(self) -> u64 {
        self.clock as u64 | (self.end.pack() as u64) << 32 | if self.has_host { HOST } else { 0 }
    }

    /// True when some of what is held may have to be restored.
    #[inline(always)]
    pub(super) const fn has_host(self) -> bool {
        self.has_host
    }

    /// Of a stamp of which the bits of `mask` were kept: the block with it, at `depth` of its prompt, is held.
    #[inline(always)]
    pub(super) const fn reaches(self, stamp: u32, depth: u32, mask: u32) -> bool {
        self.end.holds(self.clock.wrapping_sub(stamp) & mask, depth)
    }

    /// The next clock reading: an odd number, for those that begin. The one before it, for those that are over, is never
    /// zero in its lower 16 bits: zero means "no stamp".
    const fn next_clock(self) -> u32 {
        let next = self.clock.wrapping_add(2);
        if next & 0xffff == 1 { next.wrapping_add(2) } else { next }
    }
}

/// All replicas' clocks.
#[derive(Debug)]
pub(super) struct Residency {
    /// Apart from the rest and dense: look-ups read only these.
    windows: Box<[AtomicU64]>,
    /// Where what is on the device ends, for those that have more.
    devices: Box<[AtomicU32]>,
    /// Blocks in each window; dense too, for all of them are looked at in turn.
    residents: Box<[AtomicU64]>,
    replicas: Box<[Replica]>,
    capacity_max: u64,
    /// The time, as it was told last, milliseconds.
    now_ms: AtomicU32,
}

impl Residency {
    /// Memory for so many replicas, bytes.
    pub(super) const fn bytes(replicas_max: usize) -> usize {
        replicas_max * (2 * size_of::<AtomicU64>() + size_of::<AtomicU32>() + size_of::<Replica>())
    }

    /// All replicas empty and with `capacity_max` blocks, which is also the most that counts.
    pub(super) fn new(replicas_max: usize, capacity_max: u64) -> Self {
        let capacity_max = capacity_max.clamp(1, i32::MAX as u64);
        let start = Window { clock: 3, end: End::PRESENT, has_host: false };
        let replica = || Replica {
            capacity: AtomicU64::new(capacity_max),
            device: AtomicU64::new(capacity_max),
            uses: AtomicU32::new(0),
            forgotten_at: AtomicU32::new(start.clock - 1),
            stride: AtomicI64::new(stride(capacity_max, STEPS)),
            progress: AtomicI64::new(0),
            moving: Mutex::new(()),
            counts: [const { AtomicI32::new(0) }; RING as usize],
            deepest: [const { AtomicU16::new(0) }; RING as usize],
            pins: [const { AtomicU16::new(0) }; RING as usize],
            pinned: [const { AtomicU64::new(0) }; RING_WORDS],
            began_ms: [const { AtomicU32::new(0) }; RING as usize],
        };
        Self {
            windows: (0..replicas_max).map(|_| AtomicU64::new(start.pack())).collect(),
            devices: (0..replicas_max).map(|_| AtomicU32::new(End::PRESENT.pack())).collect(),
            residents: (0..replicas_max).map(|_| AtomicU64::new(0)).collect(),
            replicas: (0..replicas_max).map(|_| replica()).collect(),
            capacity_max,
            now_ms: AtomicU32::new(0),
        }
    }

    /// It is `now_ms` milliseconds after some time that is always the same.
    pub(super) fn set_now(&self, now_ms: u32) {
        self.now_ms.store(now_ms, Relaxed);
    }

    pub(super) fn replicas_max(&self) -> usize {
        self.windows.len()
    }

    #[inline(always)]
    pub(super) fn window(&self, slot: ReplicaSlot) -> Option<Window> {
        self.windows.get(slot.index()).map(|word| Window::unpack(word.load(Relaxed)))
    }

    /// True when `holder` is somebody and its stamp is still in that replica's window.
    #[inline(always)]
    pub(super) fn is_live(&self, holder: Holder) -> bool {
        let is_held = |window: Window| window.reaches(holder.stamp(), 0, STAMP_MASK);
        !holder.is_empty() && self.window(holder.slot()).is_some_and(is_held)
    }

    /// Of a block with a live stamp (of which only the lower 16 bits need be right) that `slot` holds at `depth`: it is
    /// on the device.
    #[inline]
    pub(super) fn is_on_device(&self, slot: ReplicaSlot, stamp: u32, depth: u32) -> bool {
        let Some((window, device)) = self.window(slot).zip(self.devices.get(slot.index())) else { return false };
        !window.has_host || End::unpack(device.load(Relaxed)).holds(window.clock.wrapping_sub(stamp) & ROW_MASK, depth)
    }

    /// How much of its replica's window lies after the holder's last use: 0 (just now) to 255; 256 when dead.
    pub(super) fn age(&self, holder: Holder) -> u32 {
        match self.window(holder.slot()) {
            Some(window) if !holder.is_empty() && window.reaches(holder.stamp(), 0, STAMP_MASK) => {
                let age = window.clock.wrapping_sub(holder.stamp()) & STAMP_MASK;
                age * 256 / (window.end.span + 1)
            }
            _ => 256,
        }
    }

    /// Begins noting a use by `slot`. `None` for slots out of range.
    pub(super) fn touches(&self, slot: ReplicaSlot, what: Use) -> Option<Touches<'_>> {
        let replica = self.replicas.get(slot.index())?;
        replica.uses.fetch_add(1, Relaxed);
        if replica.progress.load(Relaxed) >= replica.stride.load(Relaxed) {
            self.advance(slot, replica);
        }
        let window = self.window(slot)?;
        Some(Touches {
            replica,
            slot,
            window,
            now: window.clock.wrapping_sub(u32::from(what != Use::Begins)),
            began: if let Use::Over(began) = what { Some(began & ROW_MASK) } else { None },
            reach: replica.reach(window.clock),
            used: 0,
            deepest: 0,
            from: 0,
            from_count: 0,
            progress: 0,
        })
    }

    /// A holder with `stamp` (of which only the lower 16 bits need be right) was taken out. [`Self::settle`] then.
    pub(super) fn removed(&self, slot: ReplicaSlot, stamp: u32) {
        let Some((window, replica)) = self.window(slot).zip(self.replicas.get(slot.index())) else { return };
        if window.clock.wrapping_sub(stamp) & ROW_MASK <= replica.reach(window.clock) {
            replica.count(stamp).fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn forget(&self, slot: ReplicaSlot) {
        let Some((replica, word)) = self.replicas.get(slot.index()).zip(self.windows.get(slot.index())) else { return };
        let _moving = replica.moving.lock();
        replica.counts.iter().for_each(|count| count.store(0, Relaxed));
        replica.progress.store(0, Relaxed);
        self.set_resident(slot, 0);
        let clock = Window::unpack(word.load(Relaxed)).next_clock();
        replica.deepest.iter().for_each(|deepest| deepest.store(0, Relaxed));
        replica.pins.iter().for_each(|pins| pins.store(0, Relaxed));
        replica.pinned.iter().for_each(|word| word.store(0, Relaxed));
        replica.forgotten_at.store(clock.wrapping_sub(1), Relaxed);
        self.publish(slot, Window { clock, end: End::PRESENT, has_host: false }, End::PRESENT);
    }

    /// `blocks` are held in all, `device` of them on the device.
    pub(super) fn set_capacity(&self, slot: ReplicaSlot, device: u64, blocks: u64) {
        let Some(replica) = self.replicas.get(slot.index()) else { return };
        let blocks = blocks.clamp(1, self.capacity_max);
        let device = device.clamp(1, blocks);
        if (replica.device.load(Relaxed), replica.capacity.load(Relaxed)) == (device, blocks) {
            return;
        }
        let _moving = replica.moving.lock();
        replica.capacity.store(blocks, Relaxed);
        replica.device.store(device, Relaxed);
        replica.stride.store(stride(device, STEPS).max(stride(blocks, 2 * STEPS)), Relaxed);
        self.move_window(slot, replica);
    }

    /// How many blocks a cache must have room for that is to hold what `slot` used last at a time with the stamp `stamp`
    /// (of which only the lower 16 bits need be right): those used since, and those in use. And how many were used last at
    /// that time. `None` when that is too long ago to be known, or when requests wait for room: what is given up for them
    /// until this one has its turn is not known.
    pub(super) fn since(&self, slot: ReplicaSlot, stamp: u32) -> Option<(u64, u64)> {
        let (window, replica) = self.window(slot).zip(self.replicas.get(slot.index()))?;
        let age = window.clock.wrapping_sub(stamp) & ROW_MASK;
        let in_use = replica.in_use(window.clock, replica.device.load(Relaxed));
        (age <= replica.reach(window.clock) && !in_use.some_wait).then(|| {
            let newer = (0..age).map(|age| window.clock.wrapping_sub(age)).filter(|stamp| !replica.is_pinned(*stamp));
            let newer = newer.map(|stamp| replica.held(stamp)).sum::<u64>();
            (in_use.all + newer, replica.held(stamp))
        })
    }

    /// The stamp of what begins at `slot` now.
    pub(super) fn clock(&self, slot: ReplicaSlot) -> u32 {
        self.window(slot).map_or(0, |window| window.clock)
    }

    /// Uses of `slot` so far.
    pub(super) fn uses(&self, slot: ReplicaSlot) -> u32 {
        self.replicas.get(slot.index()).map_or(0, |replica| replica.uses.load(Relaxed))
    }

    pub(super) fn resident_blocks(&self, slot: ReplicaSlot) -> u64 {
        self.residents.get(slot.index()).map_or(0, |resident| resident.load(Relaxed))
    }

    /// What was used with `stamp` stays in use, for one request more.
    pub(super) fn pin(&self, slot: ReplicaSlot, stamp: u32) {
        if let Some(replica) = self.replicas.get(slot.index())
            && self.is_counted(slot, replica, stamp)
        {
            replica.pins(stamp).fetch_add(1, Relaxed);
            replica.pinned(stamp).fetch_or(bit(stamp), Relaxed);
        }
    }

    /// A request that [`Self::pin`] was called for is over.
    pub(super) fn unpin(&self, slot: ReplicaSlot, stamp: u32) {
        if let Some(replica) = self.replicas.get(slot.index())
            && self.is_counted(slot, replica, stamp)
            && replica.pins(stamp).fetch_update(Relaxed, Relaxed, |pins| pins.checked_sub(1)) == Ok(1)
        {
            replica.pinned(stamp).fetch_and(!bit(stamp), Relaxed);
            // Another request may have come to be pinned in between.
            if replica.pins(stamp).load(Relaxed) > 0 {
                replica.pinned(stamp).fetch_or(bit(stamp), Relaxed);
            }
        }
    }

    fn is_counted(&self, slot: ReplicaSlot, replica: &Replica, stamp: u32) -> bool {
        self.window(slot).is_some_and(|window| window.clock.wrapping_sub(stamp) <= replica.reach(window.clock))
    }

    /// Takes up what has been counted: the window of `slot` ends where its capacity does. Whoever finds another at it
    /// leaves it to the next use.
    pub(super) fn settle(&self, slot: ReplicaSlot) {
        let Some(replica) = self.replicas.get(slot.index()) else { return };
        if let Some(_moving) = replica.moving.try_lock() {
            self.move_window(slot, replica);
        }
    }

    /// Ends the windows of `slot` anew. The caller holds `moving`.
    fn move_window(&self, slot: ReplicaSlot, replica: &Replica) {
        let Some(word) = self.windows.get(slot.index()) else { return };
        let before = Window::unpack(word.load(Relaxed));
        let (device, capacity) = (replica.device.load(Relaxed), replica.capacity.load(Relaxed));
        let in_use = replica.in_use(before.clock, device);
        let (end, resident) = replica.end_within(before.clock, before.end, capacity, in_use);
        self.set_resident(slot, resident);
        let on_device = if device < capacity { replica.end_within(before.clock, end, device, in_use).0 } else { end };
        self.publish(slot, Window { end, has_host: on_device != end, ..before }, on_device);
    }

    fn set_resident(&self, slot: ReplicaSlot, blocks: u64) {
        if let Some(resident) = self.residents.get(slot.index()) {
            resident.store(blocks, Relaxed);
        }
    }

    fn publish(&self, slot: ReplicaSlot, window: Window, device: End) {
        if let Some((word, on_device)) = self.windows.get(slot.index()).zip(self.devices.get(slot.index())) {
            on_device.store(device.pack(), Relaxed);
            word.store(window.pack(), Relaxed);
        }
    }

    /// What new blocks would push out of `slot`: for each number of them in `sizes`, ascending, the share of as many blocks
    /// that is pushed out and will be used again, where of blocks idle for so many milliseconds `again` are.
    pub(super) fn pushed_out<const N: usize>(
        &self,
        slot: ReplicaSlot,
        sizes: &[f32; N],
        again: impl Fn(u32) -> f32,
    ) -> [f32; N] {
        let mut shares = [0.0; N];
        let Some((window, replica)) = self.window(slot).zip(self.replicas.get(slot.index())) else { return shares };
        let now_ms = self.now_ms.load(Relaxed);
        let room = replica.capacity.load(Relaxed).saturating_sub(self.resident_blocks(slot));
        if sizes.last().is_none_or(|most| lossy(room) >= *most) {
            return shares;
        }
        let (mut gone, mut needed, mut at) = (0.0, 0.0, 0);
        // So many blocks go next, of which such a share will be used again. True when no size is left that takes more.
        let mut go = |blocks: f32, share: f32| {
            while let (Some(size), Some(out)) = (sizes.get(at), shares.get_mut(at)) {
                if gone + blocks < *size {
                    break;
                }
                *out = (needed + (*size - gone) * share) / size.max(1.0);
                at += 1;
            }
            (gone, needed) = (gone + blocks, needed + blocks * share);
            at == N
        };
        // Those used longest ago go first, each stamp's blocks at once; what there is room for pushes out nothing, and what
        // requests use that run is not pushed out.
        let mut is_done = go(lossy(room), 0.0);
        for age in (0..=window.end.span).rev() {
            let stamp = window.clock.wrapping_sub(age);
            if is_done {
                break;
            }
            // Many stamps have no blocks any more.
            if replica.held(stamp) == 0 || replica.is_pinned(stamp) {
                continue;
            }
            let idle_ms = now_ms.wrapping_sub(replica.began_ms(stamp).load(Relaxed));
            is_done = go(lossy(replica.held_within(window, stamp)), again(idle_ms));
        }
        go(f32::INFINITY, 0.0);
        shares
    }

    /// Moves the clock of `slot` on, if it is due and nobody else is at it.
    #[cold]
    fn advance(&self, slot: ReplicaSlot, replica: &Replica) {
        let Some(_moving) = replica.moving.try_lock() else { return };
        let Some(word) = self.windows.get(slot.index()) else { return };
        let before = Window::unpack(word.load(Relaxed));
        if replica.progress.load(Relaxed) < replica.stride.load(Relaxed) {
            return;
        }
        replica.progress.store(0, Relaxed);
        let clock = before.next_clock();
        let step = clock.wrapping_sub(before.clock);
        // The last stamps' places in the ring are the next one's.
        for age in 0..step {
            replica.count(clock.wrapping_sub(age)).store(0, Relaxed);
            replica.deepest(clock.wrapping_sub(age)).store(0, Relaxed);
            replica.pins(clock.wrapping_sub(age)).store(0, Relaxed);
            replica.pinned(clock.wrapping_sub(age)).fetch_and(!bit(clock.wrapping_sub(age)), Relaxed);
            replica.began_ms(clock.wrapping_sub(age)).store(self.now_ms.load(Relaxed), Relaxed);
        }
        let span = before.end.span + step;
        replica.pace(span);
        let end = if span < RING { End { span, ..before.end } } else { End { span: RING - 1, depth: ALL } };
        word.store(Window { clock, end, ..before }.pack(), Relaxed);
        self.move_window(slot, replica);
    }
}
