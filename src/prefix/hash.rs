//! The fingerprint of a prompt: a keyed hash chain with one link per 256 bytes.
//!
//! Equal links mean equal prefixes, so a prompt's chain names every prefix of it that a replica may hold. The key keeps
//! a tenant from crafting two prompts that collide and so steering another tenant's traffic.
//!
//! One function, several kernels:
//!
//! 1. Each block alone, in SIMD lanes: NH (as in UMAC, RFC 4418). The block is 64 little-endian words of 32 bits; pairs
//!    are added to key words mod 2³², multiplied 32×32→64, and the products summed mod 2⁶⁴. NH is 2⁻³² almost universal,
//!    so two passes with independent keys are 2⁻⁶⁴.
//! 2. The two sums are folded to 64 bits by multiply-shift with 128-bit keys (strongly universal, so a zero sum is
//!    nothing special).
//! 3. The chain: `h = mum(h ^ x ^ c0, c1)`, where `mum` is a 64×64→128 product with its halves xored. This is the only
//!    serial step, and its few cycles hide behind the next block's NH.
//!
//! Multiplying 32-bit words is what every SIMD unit has (SSE2, AVX2, AVX-512, NEON), so all CPUs compute the same
//! function and gateways that share a key agree. The carry-less variant (CLNH) needs fewer instructions where
//! `VPCLMULQDQ` exists, but has no fast portable form.
//!
//! Hashes must not leave the process in the clear: whoever sees many of them learns about the key.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod key;
mod portable;
mod scalar;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::{id::BlockHash, prefix::BLOCK_BYTES};
use key::Keys;

/// One bytes-to-sums implementation. All give the same hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Word by word; the oracle for the others, and slow.
    Scalar,
    /// Plain Rust that compilers turn into whatever SIMD the target always has.
    Portable,
    /// 256-bit integer SIMD of x86-64.
    Avx2,
    /// 512-bit integer SIMD of x86-64.
    Avx512,
}

impl Kernel {
    /// Every kernel, slowest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Portable, Self::Avx2, Self::Avx512];

    /// True when this CPU can run the kernel.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("bmi2"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// Stable name for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    fn best() -> Self {
        Self::ALL.into_iter().rev().find(|kernel| kernel.is_available()).unwrap_or(Self::Portable)
    }
}

/// The keyed hash: about 600 bytes of key material and the kernel chosen for this CPU. Share it by `Arc`.
pub struct PrefixHasher {
    keys: Keys,
    kernel: Kernel,
}

impl PrefixHasher {
    /// A hasher whose key is expanded from a number. For tests, simulations and fleets that configure a seed; use
    /// [`PrefixHasher::from_key`] where an attacker could guess it.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self { keys: Keys::from_seed(seed), kernel: Kernel::best() }
    }

    /// A hasher whose key material is the `ChaCha20` key stream of `key`.
    #[must_use]
    pub fn from_key(key: [u8; 32]) -> Self {
        Self { keys: Keys::expand(&key), kernel: Kernel::best() }
    }

    /// A hasher that runs on `kernel`, for tests and benches.
    ///
    /// Returns `None` when this CPU cannot run it.
    #[must_use]
    pub fn with_kernel(seed: u64, kernel: Kernel) -> Option<Self> {
        kernel.is_available().then(|| Self { keys: Keys::from_seed(seed), kernel })
    }

    /// The kernel in use.
    #[must_use]
    pub const fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The chain's start: what separates caches that may not be shared (model, adapter, cache salt, tenant).
    ///
    /// Parts are delimited by their lengths, so `["ab", "c"]` and `["a", "bc"]` differ; order and number matter.
    /// SipHash-2-4, keyed.
    #[must_use]
    pub fn root(&self, parts: &[&[u8]]) -> u64 {
        let mut sip = key::SipHash::new(self.keys.root);
        sip.word(parts.len() as u64);
        for part in parts {
            sip.bytes(part);
        }
        sip.finish()
    }

    /// Fills `out` with one hash for each full [`BLOCK_BYTES`] of `bytes`; a partial block at the end has none.
    ///
    /// `out[i]` covers `root` and `bytes[..(i + 1) * BLOCK_BYTES]`. What `out` held is dropped; nothing is allocated
    /// once it has the capacity.
    pub fn chain(&self, root: u64, bytes: &[u8], out: &mut Vec<BlockHash>) {
        let (blocks, _) = bytes.as_chunks::<BLOCK_BYTES>();
        out.clear();
        out.resize(blocks.len(), BlockHash(0));
        self.link(root, blocks, out);
    }

    /// The hash of the block that follows those whose last is `last` (or a root, where it is the first): as
    /// [`PrefixHasher::chain`] has it.
    #[must_use]
    pub fn next(&self, last: u64, block: &[u8; BLOCK_BYTES]) -> BlockHash {
        let mut next = [BlockHash(0)];
        self.link(last, std::slice::from_ref(block), &mut next);
        next[0]
    }

    fn link(&self, root: u64, blocks: &[Block], out: &mut [BlockHash]) {
        match self.kernel {
            Kernel::Scalar => scalar::chain(&self.keys, root, blocks, out),
            Kernel::Portable => portable::chain(&self.keys, root, blocks, out),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => avx2::chain(&self.keys, root, blocks, out),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => avx512::chain(&self.keys, root, blocks, out),
            #[cfg(not(target_arch = "x86_64"))]
            Kernel::Avx2 | Kernel::Avx512 => portable::chain(&self.keys, root, blocks, out),
        }
    }
}

impl fmt::Debug for PrefixHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrefixHasher").field("kernel", &self.kernel).finish_non_exhaustive()
    }
}

/// One block's bytes.
type Block = [u8; BLOCK_BYTES];
/// 32-bit words in a block.
const WORDS: usize = BLOCK_BYTES / 4;

/// The product of `a` and `b`, its halves xored.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes the halves apart")]
const fn mum(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

/// Steps 2 and 3 of the function: the next link from the last one and a block's two NH sums.
#[inline(always)]
const fn link(keys: &Keys, last: u64, first: u64, second: u64) -> u64 {
    let sum = (first as u128)
        .wrapping_mul(keys.fold[0])
        .wrapping_add((second as u128).wrapping_mul(keys.fold[1]))
        .wrapping_add(keys.fold[2]);
    mum(last ^ (sum >> 64) as u64 ^ keys.chain[0], keys.chain[1])
}
