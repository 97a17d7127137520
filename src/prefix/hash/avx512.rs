//! 512-bit kernel: the 256-bit one, twice as wide. The whole key (8 registers) stays in registers between blocks.
#![expect(unsafe_code, reason = "loads from memory, and a call that needs a CPU feature")]

use std::arch::x86_64::{
    __m512i, _mm_add_epi64, _mm_cvtsi128_si64, _mm_extract_epi64, _mm256_add_epi64, _mm256_castsi256_si128,
    _mm256_extracti128_si256, _mm512_add_epi32, _mm512_add_epi64, _mm512_castsi512_si256, _mm512_extracti64x4_epi64,
    _mm512_loadu_si512, _mm512_mul_epu32, _mm512_srli_epi64, _mm512_unpackhi_epi64, _mm512_unpacklo_epi64,
};

use super::{Block, Kernel, WORDS, key::Keys, link};
use crate::id::BlockHash;

/// Loads of 64 bytes in a block.
const LOADS: usize = WORDS / 16;

pub(super) fn chain(keys: &Keys, root: u64, blocks: &[Block], out: &mut [BlockHash]) {
    debug_assert!(Kernel::Avx512.is_available(), "the hasher picks kernels that the CPU has");
    // SAFETY: a hasher holds `Kernel::Avx512` only after `is_available` found AVX512F and BMI2.
    unsafe { chain_avx512(keys, root, blocks, out) }
}

#[target_feature(enable = "avx512f,bmi2")]
fn chain_avx512(keys: &Keys, root: u64, blocks: &[Block], out: &mut [BlockHash]) {
    let (first, second) = (load_words(&keys.first), load_words(&keys.second));
    let mut last = root;
    for (block, hash) in blocks.iter().zip(out) {
        let (a, b) = sums(block, &first, &second);
        last = link(keys, last, a, b);
        *hash = BlockHash(last);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_words(words: &[u32; WORDS]) -> [__m512i; LOADS] {
    let rows = words.as_chunks::<16>().0;
    // SAFETY: each row is 64 readable bytes; the load needs no alignment.
    std::array::from_fn(|i| unsafe { _mm512_loadu_si512(rows[i].as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(clippy::cast_sign_loss, reason = "the lanes are unsigned; the intrinsics' types are not")]
fn sums(block: &Block, first: &[__m512i; LOADS], second: &[__m512i; LOADS]) -> (u64, u64) {
    let rows = block.as_chunks::<64>().0;
    // SAFETY: each row is 64 readable bytes; the load needs no alignment.
    let words: [__m512i; LOADS] = std::array::from_fn(|i| unsafe { _mm512_loadu_si512(rows[i].as_ptr().cast()) });
    let pass = |key: &[__m512i; LOADS]| {
        let low = _mm512_add_epi64(products(words[0], key[0]), products(words[1], key[1]));
        let high = _mm512_add_epi64(products(words[2], key[2]), products(words[3], key[3]));
        _mm512_add_epi64(low, high)
    };
    let (a, b) = (pass(first), pass(second));
    // Both sums at once: [a, b, a, b, ..], then halve twice.
    let both = _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let both = _mm256_add_epi64(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64::<1>(both));
    let both = _mm_add_epi64(_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
    (_mm_cvtsi128_si64(both) as u64, _mm_extract_epi64::<1>(both) as u64)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn products(words: __m512i, key: __m512i) -> __m512i {
    let keyed = _mm512_add_epi32(words, key);
    _mm512_mul_epu32(keyed, _mm512_srli_epi64::<32>(keyed))
}
