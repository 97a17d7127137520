//! Plain Rust in the shape that vectorises: one loop a pass, of constant length and without branches. On x86-64 this
//! becomes SSE2, on AArch64 NEON; elsewhere 64-bit multiplies. Both passes in one loop, with sums kept by lane, came
//! out at half the speed: the compiler then shuffles words one by one.

use super::{Block, WORDS, key::Keys, link};
use crate::id::BlockHash;

pub(super) fn chain(keys: &Keys, root: u64, blocks: &[Block], out: &mut [BlockHash]) {
    let mut last = root;
    for (block, hash) in blocks.iter().zip(out) {
        last = link(keys, last, sum(block, &keys.first), sum(block, &keys.second));
        *hash = BlockHash(last);
    }
}

#[inline(always)]
fn sum(block: &Block, key: &[u32; WORDS]) -> u64 {
    let word = |i: usize| {
        let bytes = [block[4 * i], block[4 * i + 1], block[4 * i + 2], block[4 * i + 3]];
        u64::from(u32::from_le_bytes(bytes).wrapping_add(key[i]))
    };
    (0..WORDS / 2).fold(0, |sum: u64, i| sum.wrapping_add(word(2 * i) * word(2 * i + 1)))
}
