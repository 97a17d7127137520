//! The oracle: the hash as its definition reads, word by word in wide arithmetic, sharing nothing with the kernels but
//! the keys.

use super::{Block, WORDS, key::Keys};
use crate::id::BlockHash;

pub(super) fn chain(keys: &Keys, root: u64, blocks: &[Block], out: &mut [BlockHash]) {
    let mut last = root;
    for (block, hash) in blocks.iter().zip(out) {
        let (first, second) = (sum(block, &keys.first), sum(block, &keys.second));
        let folded = first.wrapping_mul(keys.fold[0]).wrapping_add(second.wrapping_mul(keys.fold[1]));
        let folded = folded.wrapping_add(keys.fold[2]) >> 64;
        let product = ((u128::from(last) ^ folded) ^ u128::from(keys.chain[0])) * u128::from(keys.chain[1]);
        last = low(product) ^ low(product >> 64);
        *hash = BlockHash(last);
    }
}

/// NH of one block: Σ (w₂ᵢ + k₂ᵢ)·(w₂ᵢ₊₁ + k₂ᵢ₊₁), the additions mod 2³², the sum mod 2⁶⁴.
fn sum(block: &Block, key: &[u32; WORDS]) -> u128 {
    let mut sum: u128 = 0;
    for i in (0..WORDS).step_by(2) {
        sum += keyed(block, key, i) * keyed(block, key, i + 1);
    }
    sum % (1 << 64)
}

fn keyed(block: &Block, key: &[u32; WORDS], i: usize) -> u128 {
    let word = (0..4).map(|byte| u128::from(block[4 * i + byte]) << (8 * byte)).sum::<u128>();
    (word + u128::from(key[i])) % (1 << 32)
}

#[expect(clippy::cast_possible_truncation, reason = "takes the lower half")]
const fn low(wide: u128) -> u64 {
    wide as u64
}
