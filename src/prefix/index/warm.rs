//! The answer of a look-up: how much of this prompt each replica holds.

use crate::id::{BlockHash, ReplicaSlot};

/// Heads whose guess is kept. A power of two.
const GUESSES: usize = 512;

/// A column of depths, one for every slot, that is cleared only where it was written. Reuse one a shard.
#[derive(Clone, Debug)]
pub struct WarmDepths {
    depths: Box<[u32]>,
    /// Which probes of the first round found the replica; see `search`.
    pub(super) seen: Box<[u32]>,
    touched: Vec<ReplicaSlot>,
    /// Of those with a host tier: the deepest block found on the device so far, and once the look-up is over, how many
    /// are there. Holds nothing while `has_host` is false.
    device: Box<[u32]>,
    has_host: bool,
    /// Where most replicas ended last time, by the prompt's first blocks: half of their hash, and the depth.
    guesses: Box<[(u32, u32)]>,
}

impl WarmDepths {
    /// All zero, for slots below `replicas_max`.
    #[must_use]
    pub fn new(replicas_max: usize) -> Self {
        let len = replicas_max.min(ReplicaSlot::LIMIT);
        Self {
            depths: vec![0; len].into_boxed_slice(),
            seen: vec![0; len].into_boxed_slice(),
            touched: Vec::with_capacity(len),
            device: vec![0; len].into_boxed_slice(),
            has_host: false,
            guesses: vec![(0, 0); GUESSES].into_boxed_slice(),
        }
    }

    /// Blocks of the prompt that `slot` holds; zero for slots out of range.
    #[inline]
    #[must_use]
    pub fn get(&self, slot: ReplicaSlot) -> u32 {
        self.depths.get(slot.index()).copied().unwrap_or(0)
    }

    /// Of the blocks that `slot` holds, those on the device, from the first on; the others have to be restored from host
    /// memory.
    #[inline]
    #[must_use]
    pub fn on_device(&self, slot: ReplicaSlot) -> u32 {
        let held = self.get(slot);
        if self.has_host { self.device.get(slot.index()).map_or(held, |device| held.min(*device)) } else { held }
    }

    /// True when some replica may have to restore some of what it holds.
    #[inline]
    #[must_use]
    pub const fn has_host(&self) -> bool {
        self.has_host
    }

    /// The slots whose depth is not zero, in no particular order.
    #[must_use]
    pub fn touched(&self) -> &[ReplicaSlot] {
        &self.touched
    }

    /// Depths by slot.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        &self.depths
    }

    /// Sets all depths to zero.
    pub fn clear(&mut self) {
        for slot in self.touched.drain(..) {
            self.depths[slot.index()] = 0;
            self.seen[slot.index()] = 0;
            self.device[slot.index()] = 0;
        }
        self.has_host = false;
    }

    /// Sets what `slot` holds, and how much of it is on the device: for those who know it from elsewhere than a look-up,
    /// after [`Self::clear`].
    pub fn set(&mut self, slot: ReplicaSlot, held: u32, on_device: u32) {
        if held > 0 && self.raise(slot, held, 0) == 0 {
            self.device[slot.index()] = on_device.min(held);
            self.has_host |= on_device < held;
        }
    }

    /// The block at `depth` was found, on the device or not, at a replica with a host tier.
    #[cold]
    pub(super) fn found_in_tiers(&mut self, slot: ReplicaSlot, depth: u32, is_on_device: bool) {
        self.has_host = true;
        if is_on_device && let Some(device) = self.device.get_mut(slot.index()) {
            *device = depth.max(*device);
        }
    }

    /// Settles how much of what each replica holds is on the device: `refine` is given a slot, the depth up to which all is,
    /// and the depth up to which some may be.
    pub(super) fn settle_tiers(&mut self, refine: impl Fn(ReplicaSlot, u32, u32) -> u32) {
        for slot in &self.touched {
            let (held, device) = (self.depths[slot.index()], &mut self.device[slot.index()]);
            if *device < held {
                *device = refine(*slot, *device, held);
            }
        }
    }

    /// The depth kept for prompts that begin with `head`; zero for none.
    #[inline(always)]
    pub(super) fn guess(&self, head: BlockHash) -> u32 {
        let (mark, depth) = self.guesses[guess_place(head)];
        if mark == guess_mark(head) { depth } else { 0 }
    }

    /// Keeps `depth` for prompts that begin with `head`.
    pub(super) fn set_guess(&mut self, head: BlockHash, depth: u32) {
        self.guesses[guess_place(head)] = (guess_mark(head), depth);
    }

    /// Raises `slot` to `depth` and notes `seen` bits. Returns what the depth was.
    #[inline(always)]
    pub(super) fn raise(&mut self, slot: ReplicaSlot, depth: u32, seen: u32) -> u32 {
        let index = slot.index();
        let Some(held) = self.depths.get_mut(index) else { return u32::MAX };
        self.seen[index] |= seen;
        let before = *held;
        if before < depth {
            *held = depth;
            if before == 0 {
                self.touched.push(slot);
            }
        }
        before
    }

    /// Lowers every touched slot to what `judge` makes of its depth and seen bits; slots at zero are dropped.
    pub(super) fn settle(&mut self, judge: impl Fn(u32, u32) -> u32) {
        let (depths, seen, device) = (&mut self.depths, &mut self.seen, &mut self.device);
        self.touched.retain(|slot| {
            let index = slot.index();
            depths[index] = judge(depths[index], seen[index]);
            if depths[index] == 0 {
                seen[index] = 0;
                device[index] = 0;
            }
            depths[index] > 0
        });
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes the lower bits")]
const fn guess_place(head: BlockHash) -> usize {
    head.0 as usize % GUESSES
}

#[inline(always)]
const fn guess_mark(head: BlockHash) -> u32 {
    (head.0 >> 32) as u32
}
