//! How the same is done elsewhere, written plainly and without handicap.

use std::collections::HashMap;

use parking_lot::RwLock;
use xxhash_rust::xxh64::Xxh64;

/// A chain as llm-d's endpoint picker builds it: each block's bytes, then the previous hash, through `xxh64`.
pub(crate) fn xxh64_chain(root: u64, bytes: &[u8], block_bytes: usize, out: &mut Vec<u64>) {
    out.clear();
    let mut last = root;
    let mut state = Xxh64::new(0);
    for block in bytes.chunks_exact(block_bytes) {
        state.reset(0);
        state.update(block);
        state.update(&last.to_le_bytes());
        last = state.digest();
        out.push(last);
    }
}

/// Who holds which block, as gateways commonly keep it: a map behind a lock, walked block by block.
#[derive(Default)]
pub(crate) struct LockedMap(RwLock<HashMap<u64, Vec<u16>>>);

impl LockedMap {
    /// Notes that `replica` holds all of `chain`.
    pub(crate) fn record(&self, replica: u16, chain: impl Iterator<Item = u64>) {
        let mut map = self.0.write();
        for hash in chain {
            let holders = map.entry(hash).or_default();
            if !holders.contains(&replica) {
                holders.push(replica);
            }
        }
    }

    /// Every replica's depth: walks from the first block until nobody holds one.
    pub(crate) fn lookup(&self, chain: impl Iterator<Item = u64>, depths: &mut [u32]) {
        depths.fill(0);
        let map = self.0.read();
        for (depth, hash) in (0..).zip(chain) {
            let Some(holders) = map.get(&hash) else { break };
            let mut is_held = false;
            for holder in holders {
                let held = &mut depths[usize::from(*holder)];
                if *held == depth {
                    *held += 1;
                    is_held = true;
                }
            }
            if !is_held {
                break;
            }
        }
    }

    /// Blocks known.
    pub(crate) fn len(&self) -> usize {
        self.0.read().len()
    }
}
