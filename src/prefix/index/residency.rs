//! What a replica's engine still holds, without a queue.
//!
//! Every replica has a clock of stamps. Using a block stamps it with the present one. A ring counts, for each recent
//! stamp, the blocks whose last use carries it. Going back from the present, the stamps whose counts still fit the
//! replica's capacity are its window; a block stamped before that has been evicted by the engine's LRU, so it is dead
//! here too, wherever it stands.
//!
//! The clock moves on after a 64th of the capacity in new blocks. Blocks used again count an eighth of a new one: they
//! take no room in the engine, but they must not pile up under one stamp either, for a stamp lives and dies whole. So a
//! stamp holds between a 64th and an eighth of the capacity, and the ring of 256 spans at least the capacity in new
//! blocks however much is used again, up to about 28 uses of old blocks for each new one; past that the coldest blocks
//! die early.
//!
//! A replica with a second tier (host memory) keeps in it what the device had to give up. It has two windows then: what
//! lies in the larger is held, and what lies in the larger alone has to be restored before it can be used.
//!
//! The counts of stamps that have left the window stay in the ring for a while. So it can be said of a block how many
//! others its replica has used since ([`Residency::since`]): the distance at which a replica is found to have forgotten
//! tells how much it really holds.
//!
//! Counts are approximate under races (a use may be counted at a neighbouring stamp); negative counts read as zero.

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::entry::Holder;
use crate::id::ReplicaSlot;

/// Stamps are numbers modulo this; ages past the ring are dead, but for a stamp that comes round again: a block unused
/// while its replica took in a thousand times its capacity (for overflow rows, which keep 16 bits).
pub(super) const STAMP_BITS: u32 = 20;
pub(super) const STAMP_MASK: u32 = (1 << STAMP_BITS) - 1;
/// What overflow rows keep of a stamp.
pub(super) const ROW_MASK: u32 = 0xffff;
/// Stamps counted.
const RING: u32 = 256;
/// Stamps that capacity in new blocks takes.
const STEPS: i64 = 64;
/// Progress of the clock for a new block; a block used again makes 1.
const NEW: i64 = 8;

/// A replica's clock and how many stamps before it are alive. Packed, so that it is read at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    clock: u32,
    span: u32,
    /// Of these, the ones whose blocks are on the device; no more than `span`.
    device: u32,
}

impl Window {
    #[expect(clippy::cast_possible_truncation, reason = "takes the parts apart")]
    const fn unpack(word: u64) -> Self {
        Self { clock: word as u32, span: (word >> 32) as u32 & 0xffff, device: (word >> 48) as u32 }
    }

    const fn pack(self) -> u64 {
        self.clock as u64 | (self.span as u64) << 32 | (self.device as u64) << 48
    }

    /// True when some of what is held may have to be restored.
    #[inline(always)]
    pub(super) const fn has_host(self) -> bool {
        self.device < self.span
    }

    /// Of a live stamp (of which only the lower 16 bits need be right): the block is on the device.
    #[inline(always)]
    pub(super) const fn is_on_device(self, stamp: u32) -> bool {
        self.clock.wrapping_sub(stamp) & 0xffff <= self.device
    }

    #[inline(always)]
    pub(super) const fn is_live(self, stamp: u32) -> bool {
        self.reaches(stamp, STAMP_MASK)
    }

    /// As [`Window::is_live`], for a stamp of which the bits of `mask` were kept.
    #[inline(always)]
    pub(super) const fn reaches(self, stamp: u32, mask: u32) -> bool {
        self.clock.wrapping_sub(stamp) & mask <= self.span
    }

    /// The next clock reading, which is never zero in its lower 16 bits: zero means "no stamp".
    const fn next_clock(self) -> u32 {
        let next = self.clock.wrapping_add(1);
        if next & 0xffff == 0 { next.wrapping_add(1) } else { next }
    }
}

#[derive(Debug)]
#[repr(align(64))]
struct Replica {
    capacity: AtomicU64,
    /// Of it, what is on the device.
    device: AtomicU64,
    /// The clock when all was forgotten last: stamps before it count nothing.
    forgotten_at: AtomicU32,
    /// Progress at which the clock moves on, in units of `NEW` a new block.
    stride: AtomicI64,
    progress: AtomicI64,
    /// Held while the clock is moved; nobody waits for it on the request path.
    moving: Mutex<()>,
    counts: [AtomicI32; RING as usize],
    /// When each stamp was the present one first, milliseconds.
    began_ms: [AtomicU32; RING as usize],
}

/// All replicas' clocks.
#[derive(Debug)]
pub(super) struct Residency {
    /// Apart from the rest and dense: look-ups read only these.
    windows: Box<[AtomicU64]>,
    replicas: Box<[Replica]>,
    capacity_max: u64,
    /// The time, as it was told last, milliseconds.
    now_ms: AtomicU32,
}

impl Residency {
    /// Memory for so many replicas, bytes.
    pub(super) const fn bytes(replicas_max: usize) -> usize {
        replicas_max * (size_of::<AtomicU64>() + size_of::<Replica>())
    }

    /// All replicas empty and with `capacity_max` blocks, which is also the most that counts.
    pub(super) fn new(replicas_max: usize, capacity_max: u64) -> Self {
        let capacity_max = capacity_max.clamp(1, i32::MAX as u64);
        let start = Window { clock: 1, span: 0, device: 0 };
        let replica = || Replica {
            capacity: AtomicU64::new(capacity_max),
            device: AtomicU64::new(capacity_max),
            forgotten_at: AtomicU32::new(start.clock),
            stride: AtomicI64::new(stride(capacity_max, capacity_max)),
            progress: AtomicI64::new(0),
            moving: Mutex::new(()),
            counts: [const { AtomicI32::new(0) }; RING as usize],
            began_ms: [const { AtomicU32::new(0) }; RING as usize],
        };
        Self {
            windows: (0..replicas_max).map(|_| AtomicU64::new(start.pack())).collect(),
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

    /// True when `holder` is somebody and the block is still in that replica's window.
    #[inline(always)]
    pub(super) fn is_live(&self, holder: Holder) -> bool {
        !holder.is_empty() && self.window(holder.slot()).is_some_and(|window| window.is_live(holder.stamp()))
    }

    /// How much of its replica's window lies after the holder's last use: 0 (just now) to 255; 256 when dead.
    pub(super) fn age(&self, holder: Holder) -> u32 {
        match self.window(holder.slot()) {
            Some(window) if self.is_live(holder) => {
                let age = window.clock.wrapping_sub(holder.stamp()) & STAMP_MASK;
                age * 256 / (window.span + 1)
            }
            _ => 256,
        }
    }

    /// Begins noting uses by `slot`. `None` for slots out of range.
    pub(super) fn touches(&self, slot: ReplicaSlot) -> Option<Touches<'_>> {
        let window = self.window(slot)?;
        let replica = self.replicas.get(slot.index())?;
        let mut touches = Touches {
            residency: self,
            replica,
            slot,
            window,
            reach: 0,
            used: 0,
            from: 0,
            from_count: 0,
            progress: 0,
            left: 0,
        };
        touches.reload();
        Some(touches)
    }

    /// A holder with `stamp` (of which only the lower 16 bits need be right) was taken out.
    pub(super) fn removed(&self, slot: ReplicaSlot, stamp: u32) {
        let Some((window, replica)) = self.window(slot).zip(self.replicas.get(slot.index())) else { return };
        if window.clock.wrapping_sub(stamp) & 0xffff <= window.span {
            replica.count(stamp).fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn forget(&self, slot: ReplicaSlot) {
        let Some((replica, word)) = self.replicas.get(slot.index()).zip(self.windows.get(slot.index())) else { return };
        let _moving = replica.moving.lock();
        replica.counts.iter().for_each(|count| count.store(0, Relaxed));
        replica.progress.store(0, Relaxed);
        let clock = Window::unpack(word.load(Relaxed)).next_clock();
        replica.forgotten_at.store(clock, Relaxed);
        word.store(Window { clock, span: 0, device: 0 }.pack(), Relaxed);
    }

    /// `blocks` are held in all, `device` of them on the device.
    pub(super) fn set_capacity(&self, slot: ReplicaSlot, device: u64, blocks: u64) {
        let Some((replica, word)) = self.replicas.get(slot.index()).zip(self.windows.get(slot.index())) else { return };
        let blocks = blocks.clamp(1, self.capacity_max);
        let device = device.clamp(1, blocks);
        if (replica.device.load(Relaxed), replica.capacity.load(Relaxed)) == (device, blocks) {
            return;
        }
        let _moving = replica.moving.lock();
        replica.capacity.store(blocks, Relaxed);
        replica.device.store(device, Relaxed);
        replica.stride.store(stride(device, blocks), Relaxed);
        let window = Window::unpack(word.load(Relaxed));
        word.store(replica.window(window.clock, window.span).pack(), Relaxed);
    }

    /// How many blocks `slot` has used since a time with the stamp `stamp` (of which only the lower 16 bits need be
    /// right), and how many were used last at that time. `None` when that is too long ago to be known.
    pub(super) fn since(&self, slot: ReplicaSlot, stamp: u32) -> Option<(u64, u64)> {
        let (window, replica) = self.window(slot).zip(self.replicas.get(slot.index()))?;
        let age = window.clock.wrapping_sub(stamp) & 0xffff;
        (age <= replica.reach(window.clock)).then(|| {
            let newer = (0..age).map(|age| replica.held(window.clock.wrapping_sub(age))).sum();
            (newer, replica.held(stamp))
        })
    }

    /// The clock of `slot`.
    pub(super) fn clock(&self, slot: ReplicaSlot) -> u32 {
        self.window(slot).map_or(0, |window| window.clock)
    }

    pub(super) fn resident_blocks(&self, slot: ReplicaSlot) -> u64 {
        let Some((window, replica)) = self.window(slot).zip(self.replicas.get(slot.index())) else { return 0 };
        (0..=window.span).map(|age| replica.held(window.clock.wrapping_sub(age))).sum()
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
        // Those used longest ago go first, each stamp's blocks at once; what there is room for pushes out nothing.
        let stamps = (0..=window.span).rev().map(|age| window.clock.wrapping_sub(age));
        let used = stamps.map(|stamp| {
            let idle_ms = now_ms.wrapping_sub(replica.began_ms(stamp).load(Relaxed));
            (lossy(replica.held(stamp)), again(idle_ms))
        });
        let mut going = std::iter::once((lossy(room), 0.0)).chain(used);
        let (mut gone, mut needed, mut left, mut share) = (0.0, 0.0, 0.0, 0.0);
        for (size, out) in sizes.iter().zip(&mut shares) {
            while gone + left < *size {
                (gone, needed) = (gone + left, needed + left * share);
                match going.next() {
                    Some(next) => (left, share) = next,
                    None => (left, share) = (f32::INFINITY, 0.0),
                }
            }
            *out = (needed + (*size - gone) * share) / size.max(1.0);
        }
        shares
    }

    /// Moves the clock of `slot` on, if it is due and nobody else is at it.
    #[cold]
    fn advance(&self, slot: ReplicaSlot, replica: &Replica) {
        let Some(_moving) = replica.moving.try_lock() else { return };
        let Some(word) = self.windows.get(slot.index()) else { return };
        if replica.progress.load(Relaxed) < replica.stride.load(Relaxed) {
            return;
        }
        replica.progress.store(0, Relaxed);
        let window = Window::unpack(word.load(Relaxed));
        let clock = window.next_clock();
        let step = clock.wrapping_sub(window.clock);
        for age in 0..step {
            replica.count(clock.wrapping_sub(age)).store(0, Relaxed);
            replica.began_ms(clock.wrapping_sub(age)).store(self.now_ms.load(Relaxed), Relaxed);
        }
        let span_max = (window.span + step).min(RING - 1);
        word.store(replica.window(clock, span_max).pack(), Relaxed);
    }
}

impl Replica {
    #[inline(always)]
    fn count(&self, stamp: u32) -> &AtomicI32 {
        &self.counts[(stamp % RING) as usize]
    }

    #[inline(always)]
    fn began_ms(&self, stamp: u32) -> &AtomicU32 {
        &self.began_ms[(stamp % RING) as usize]
    }

    fn held(&self, stamp: u32) -> u64 {
        u64::try_from(self.count(stamp).load(Relaxed)).unwrap_or(0)
    }

    /// How many stamps before `clock` are still counted.
    fn reach(&self, clock: u32) -> u32 {
        clock.wrapping_sub(self.forgotten_at.load(Relaxed)).min(RING - 1)
    }

    /// The window at `clock` of at most `span_max` stamps.
    fn window(&self, clock: u32, span_max: u32) -> Window {
        let (device, capacity) = (self.device.load(Relaxed), self.capacity.load(Relaxed));
        let span = self.span_within(clock, span_max, capacity);
        let device = if device < capacity { self.span_within(clock, span, device) } else { span };
        Window { clock, span, device }
    }

    /// The most stamps before `clock`, at most `span_max`, whose blocks fit `capacity` together with the present ones.
    fn span_within(&self, clock: u32, span_max: u32, capacity: u64) -> u32 {
        let mut sum = 0;
        for age in 0..=span_max {
            sum += self.held(clock.wrapping_sub(age));
            if sum > capacity {
                return age.saturating_sub(1);
            }
        }
        span_max
    }
}

#[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
const fn lossy(blocks: u64) -> f32 {
    blocks as f32
}

/// Progress a stamp takes for a replica of `capacity` blocks, `device` of them on the device: fine enough for the
/// device's window, as far as the ring still spans the capacity.
fn stride(device: u64, capacity: u64) -> i64 {
    let progress = |blocks: u64| i64::try_from(blocks).unwrap_or(i64::MAX / NEW).saturating_mul(NEW);
    (progress(device) / STEPS).max(progress(capacity) / (2 * STEPS)).max(NEW)
}

/// Uses of blocks by one replica, counted here and handed in now and then.
pub(super) struct Touches<'r> {
    residency: &'r Residency,
    replica: &'r Replica,
    slot: ReplicaSlot,
    window: Window,
    /// Ages up to this are counted.
    reach: u32,
    /// Blocks to add to the present stamp.
    used: i32,
    /// Blocks to take from the stamp `from`.
    from: u32,
    from_count: i32,
    progress: i64,
    /// Progress until the clock should move on.
    left: i64,
}

impl Touches<'_> {
    #[inline(always)]
    pub(super) const fn slot(&self) -> ReplicaSlot {
        self.slot
    }

    /// The stamp to write now.
    #[inline(always)]
    pub(super) const fn stamp(&self) -> u32 {
        self.window.clock & STAMP_MASK
    }

    /// The replica with the stamp to write now.
    #[inline(always)]
    pub(super) const fn holder(&self) -> Holder {
        Holder::new(self.slot, self.stamp())
    }

    /// The replica was added to a block.
    #[inline]
    pub(super) fn added(&mut self) {
        self.used += 1;
        self.step(NEW);
    }

    /// The replica's stamp on a block was `stamp` (of which only the lower 16 bits need be right).
    #[inline]
    pub(super) fn moved(&mut self, stamp: u32) {
        let age = self.window.clock.wrapping_sub(stamp) & 0xffff;
        if age > self.window.span {
            if age <= self.reach {
                self.replica.count(stamp).fetch_sub(1, Relaxed);
            }
            return self.added();
        }
        if age == 0 {
            return;
        }
        if stamp % RING != self.from {
            self.hand_in_moves();
            self.from = stamp % RING;
        }
        self.from_count += 1;
        self.used += 1;
        self.step(1);
    }

    #[inline]
    fn step(&mut self, progress: i64) {
        self.progress += progress;
        if self.progress >= self.left {
            self.flush();
        }
    }

    /// Hands in what is counted here.
    pub(super) fn flush(&mut self) {
        self.hand_in_moves();
        self.replica.count(self.window.clock).fetch_add(self.used, Relaxed);
        let progress = self.replica.progress.fetch_add(self.progress, Relaxed) + self.progress;
        (self.used, self.progress) = (0, 0);
        if progress >= self.replica.stride.load(Relaxed) {
            self.residency.advance(self.slot, self.replica);
        }
        self.reload();
    }

    fn hand_in_moves(&mut self) {
        if self.from_count > 0 {
            self.replica.count(self.from).fetch_sub(self.from_count, Relaxed);
            self.from_count = 0;
        }
    }

    fn reload(&mut self) {
        if let Some(window) = self.residency.window(self.slot) {
            self.window = window;
            self.reach = self.replica.reach(window.clock);
        }
        self.left = (self.replica.stride.load(Relaxed) - self.replica.progress.load(Relaxed)).max(1);
    }
}
