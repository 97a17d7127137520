//! 256-bit kernel. Eight loads a block; each serves both passes: add the key words, bring the odd words down, multiply
//! even by odd (`vpmuludq`), add up.
#![expect(unsafe_code, reason = "loads from memory, and a call that needs a CPU feature")]

use std::arch::x86_64::{
    __m256i, _mm_add_epi64, _mm_cvtsi128_si64, _mm_extract_epi64, _mm256_add_epi32, _mm256_add_epi64,
    _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_mul_epu32, _mm256_setzero_si256,
    _mm256_srli_epi64, _mm256_unpackhi_epi64, _mm256_unpacklo_epi64,
};

use super::{Block, Kernel, key::Keys, link};
use crate::id::BlockHash;

pub(super) fn chain(keys: &Keys, root: u64, blocks: &[Block], out: &mut [BlockHash]) {
    debug_assert!(Kernel::Avx2.is_available(), "the hasher picks kernels that the CPU has");
    // SAFETY: a hasher holds `Kernel::Avx2` only after `is_available` found AVX2 and BMI2.
    unsafe { chain_avx2(keys, root, blocks, out) }
}

#[target_feature(enable = "avx2,bmi2")]
fn chain_avx2(keys: &Keys, root: u64, blocks: &[Block], out: &mut [BlockHash]) {
    let mut last = root;
    for (block, hash) in blocks.iter().zip(out) {
        let (first, second) = sums(keys, block);
        last = link(keys, last, first, second);
        *hash = BlockHash(last);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
#[expect(clippy::cast_sign_loss, reason = "the lanes are unsigned; the intrinsics' types are not")]
fn sums(keys: &Keys, block: &Block) -> (u64, u64) {
    let (mut a, mut b) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    let rows = block.as_chunks::<32>().0.iter();
    let keys = keys.first.as_chunks::<8>().0.iter().zip(keys.second.as_chunks::<8>().0);
    for (row, (k1, k2)) in rows.zip(keys) {
        // SAFETY: `row` is 32 readable bytes; the load needs no alignment.
        let words = unsafe { _mm256_loadu_si256(row.as_ptr().cast()) };
        // SAFETY: `k1` is 32 readable bytes.
        let k1 = unsafe { _mm256_loadu_si256(k1.as_ptr().cast()) };
        // SAFETY: `k2` is 32 readable bytes.
        let k2 = unsafe { _mm256_loadu_si256(k2.as_ptr().cast()) };
        a = _mm256_add_epi64(a, products(words, k1));
        b = _mm256_add_epi64(b, products(words, k2));
    }
    // Both sums at once: [a, b, a, b], then the halves.
    let both = _mm256_add_epi64(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let both = _mm_add_epi64(_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
    (_mm_cvtsi128_si64(both) as u64, _mm_extract_epi64::<1>(both) as u64)
}

#[inline]
#[target_feature(enable = "avx2")]
fn products(words: __m256i, key: __m256i) -> __m256i {
    let keyed = _mm256_add_epi32(words, key);
    _mm256_mul_epu32(keyed, _mm256_srli_epi64::<32>(keyed))
}
