//! The block cache of one mock engine: what a paged KV cache with prefix reuse holds, without the tensors. Blocks are
//! named by a chained hash; those of running requests are pinned; of the rest the least recently used goes first, and
//! among blocks released together the deepest, so that a prefix never loses its head before its tail.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

/// Blocks held, and the order in which they would be given up.
#[derive(Debug)]
pub(super) struct BlockCache {
    capacity: usize,
    blocks: HashMap<u64, Block>,
    /// Unpinned blocks: (time of release, deepest first, hash).
    free: BTreeSet<(u64, Reverse<u32>, u64)>,
    releases: u64,
    generation: u64,
    evicted: u64,
}

#[derive(Debug)]
struct Block {
    pins: u32,
    depth: u32,
    released_at: u64,
}

/// A chain of blocks held for one request. Give it back with [`BlockCache::release`].
#[derive(Debug)]
pub(super) struct Pinned {
    chain: Vec<u64>,
    generation: u64,
}

impl Pinned {
    /// Blocks pinned.
    pub(super) const fn len(&self) -> usize {
        self.chain.len()
    }
}

impl BlockCache {
    /// An empty cache of `capacity` blocks.
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, blocks: HashMap::new(), free: BTreeSet::new(), releases: 0, generation: 0, evicted: 0 }
    }

    /// Blocks it can hold.
    pub(super) const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Blocks held now, pinned or not.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks pinned now.
    pub(super) fn pinned(&self) -> usize {
        self.blocks.len() - self.free.len()
    }

    /// Blocks given up for others since the start.
    pub(super) const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// How many leading blocks of `chain` are held.
    pub(super) fn matched(&self, chain: &[u64]) -> usize {
        chain.iter().take_while(|hash| self.blocks.contains_key(hash)).count()
    }

    /// Pins all of `chain`, making room as needed. `None` when pinned blocks of others leave too little room; nothing
    /// has changed then.
    pub(super) fn pin(&mut self, chain: Vec<u64>) -> Option<Pinned> {
        let (mut fresh, mut idle) = (0, 0);
        for hash in &chain {
            match self.blocks.get(hash) {
                None => fresh += 1,
                Some(block) if block.pins == 0 => idle += 1,
                Some(_) => {}
            }
        }
        if self.pinned() + idle + fresh > self.capacity {
            return None;
        }
        // First all that is there, so that making room for the rest never evicts it.
        let absent: Vec<(usize, u64)> =
            chain.iter().copied().enumerate().filter(|(_, hash)| !self.pin_held(*hash)).collect();
        for (depth, hash) in absent {
            self.insert_pinned(hash, depth);
        }
        Some(Pinned { chain, generation: self.generation })
    }

    /// Appends computed blocks to a pinned chain for as long as there is room.
    pub(super) fn extend(&mut self, pinned: &mut Pinned, hashes: &[u64]) {
        if pinned.generation != self.generation {
            return;
        }
        for &hash in hashes {
            if !self.pin_held(hash) {
                if self.pinned() >= self.capacity {
                    return;
                }
                self.insert_pinned(hash, pinned.chain.len());
            }
            pinned.chain.push(hash);
        }
    }

    /// Unpins a chain. Blocks from `computed` on were never filled and are dropped, unless others hold them.
    pub(super) fn release(&mut self, pinned: &Pinned, computed: usize) {
        if pinned.generation != self.generation {
            return;
        }
        self.releases += 1;
        for (at, hash) in pinned.chain.iter().enumerate() {
            let Some(block) = self.blocks.get_mut(hash) else { continue };
            block.pins = block.pins.saturating_sub(1);
            if block.pins > 0 {
                continue;
            }
            if at < computed {
                block.released_at = self.releases;
                self.free.insert((block.released_at, Reverse(block.depth), *hash));
            } else {
                self.blocks.remove(hash);
            }
        }
    }

    /// Forgets everything, as a restart does. Chains pinned before are void.
    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.free.clear();
        self.generation += 1;
    }

    fn pin_held(&mut self, hash: u64) -> bool {
        let Some(block) = self.blocks.get_mut(&hash) else { return false };
        if block.pins == 0 {
            self.free.remove(&(block.released_at, Reverse(block.depth), hash));
        }
        block.pins += 1;
        true
    }

    fn insert_pinned(&mut self, hash: u64, depth: usize) {
        if self.pin_held(hash) {
            return; // the same block twice in one chain
        }
        if self.blocks.len() >= self.capacity
            && let Some((_, _, victim)) = self.free.pop_first()
        {
            self.blocks.remove(&victim);
            self.evicted += 1;
        }
        let depth = u32::try_from(depth).unwrap_or(u32::MAX);
        self.blocks.insert(hash, Block { pins: 1, depth, released_at: 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn use_once(cache: &mut BlockCache, chain: &[u64]) {
        let pinned = cache.pin(chain.to_vec()).expect("room");
        cache.release(&pinned, usize::MAX);
    }

    #[test]
    fn tails_go_before_heads_and_old_before_new() {
        let mut cache = BlockCache::new(6);
        use_once(&mut cache, &[1, 2, 3]);
        use_once(&mut cache, &[11, 12, 13]);
        use_once(&mut cache, &[21]);
        assert_eq!((cache.matched(&[1, 2, 3]), cache.matched(&[11, 12, 13]), cache.matched(&[21])), (2, 3, 1));
        use_once(&mut cache, &[1, 2]); // now the most recent
        use_once(&mut cache, &[31]);
        assert_eq!((cache.matched(&[1, 2]), cache.matched(&[11, 12, 13])), (2, 2));
        assert_eq!(cache.evicted(), 2);
    }

    #[test]
    fn pinned_blocks_stay_and_leave_no_room() {
        let mut cache = BlockCache::new(4);
        let held = cache.pin(vec![1, 2, 3]).unwrap();
        assert!(cache.pin(vec![4, 5]).is_none());
        assert_eq!(cache.len(), 3);
        use_once(&mut cache, &[4]);
        use_once(&mut cache, &[5]);
        assert_eq!((cache.matched(&[4]), cache.matched(&[5])), (0, 1));
        cache.release(&held, usize::MAX);
        assert!(cache.pin(vec![7, 8, 9, 10]).is_some());
    }

    #[test]
    fn an_aborted_prefill_leaves_only_what_was_there() {
        let mut cache = BlockCache::new(8);
        use_once(&mut cache, &[1, 2]);
        let held = cache.pin(vec![1, 2, 3, 4]).unwrap();
        cache.release(&held, 2);
        assert_eq!((cache.matched(&[1, 2, 3]), cache.len(), cache.pinned()), (2, 2, 0));
    }

    #[test]
    fn clear_voids_older_pins() {
        let mut cache = BlockCache::new(4);
        let mut held = cache.pin(vec![1, 2]).unwrap();
        cache.clear();
        use_once(&mut cache, &[1]);
        cache.extend(&mut held, &[3]);
        cache.release(&held, usize::MAX);
        assert_eq!((cache.len(), cache.pinned()), (1, 0));
    }

    #[test]
    fn never_above_capacity_and_nothing_stays_pinned() {
        bolero::check!().with_type::<Vec<(u8, u8, u8)>>().for_each(|steps| {
            let mut cache = BlockCache::new(16);
            let mut held: Vec<Pinned> = Vec::new();
            for &(family, length, action) in steps {
                let chain: Vec<u64> = (0..u64::from(length % 12)).map(|at| u64::from(family % 4) * 100 + at).collect();
                match action % 3 {
                    0 => held.extend(cache.pin(chain)),
                    1 if !held.is_empty() => {
                        let pinned = held.swap_remove(usize::from(family) % held.len());
                        cache.release(&pinned, usize::from(length));
                    }
                    _ => held.iter_mut().next_back().into_iter().for_each(|last| {
                        cache.extend(last, &[u64::from(family) + 1_000]);
                    }),
                }
                assert!(cache.len() <= cache.capacity());
                assert_eq!(cache.blocks.values().filter(|block| block.pins == 0).count(), cache.free.len());
            }
            for pinned in &held {
                cache.release(pinned, usize::MAX);
            }
            assert_eq!(cache.pinned(), 0);
        });
    }
}
