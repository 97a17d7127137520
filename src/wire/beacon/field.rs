//! Where everything stands in a beacon's bytes, and how numbers are read and written there.

/// Bytes of the head.
pub(super) const HEAD_BYTES: usize = 104;
/// Bytes of a TLV's type and length.
pub(super) const TLV_HEAD_BYTES: usize = 4;

/// The head's bytes.
pub(super) type HeadBytes = [u8; HEAD_BYTES];

/// The letters EMBL.
pub(super) const MAGIC: [u8; 4] = *b"EMBL";
/// The version that is written here.
pub(super) const VERSION: u8 = 1;

pub(super) const VERSION_AT: usize = 4;
pub(super) const MUST_UNDERSTAND: usize = 5;
pub(super) const LENGTH: usize = 6;
pub(super) const KEY_ID: usize = 8;
pub(super) const BITS: usize = 12;
pub(super) const SENDER: usize = 16;
pub(super) const INCARNATION: usize = 24;
pub(super) const SEQUENCE: usize = 32;
pub(super) const SENT: usize = 40;
pub(super) const PERIOD: usize = 48;
pub(super) const RUNNING: usize = 52;
pub(super) const WAITING: usize = 56;
pub(super) const KV_USAGE: usize = 60;
pub(super) const KV_BLOCKS: usize = 64;
pub(super) const KV_BLOCK_TOKENS: usize = 68;
pub(super) const PREFILL_TOKENS: usize = 72;
pub(super) const CACHE_RESETS: usize = 76;
pub(super) const BLOCKS_EVICTED: usize = 80;
pub(super) const PREFIX_TOKENS_QUERIED: usize = 88;
pub(super) const PREFIX_TOKENS_HIT: usize = 96;

/// The bits of the field at [`BITS`]: two states, then which of the fields are known.
pub(super) mod bit {
    pub(in super::super) const READY: u32 = 1;
    pub(in super::super) const DRAINING: u32 = 1 << 1;
    pub(in super::super) const KV_USAGE: u32 = 1 << 2;
    pub(in super::super) const KV_BLOCKS: u32 = 1 << 3;
    pub(in super::super) const KV_BLOCK_TOKENS: u32 = 1 << 4;
    pub(in super::super) const PREFILL_TOKENS: u32 = 1 << 5;
    pub(in super::super) const BLOCKS_EVICTED: u32 = 1 << 6;
    pub(in super::super) const PREFIX_TOKENS_QUERIED: u32 = 1 << 7;
    pub(in super::super) const PREFIX_TOKENS_HIT: u32 = 1 << 8;
}

/// The number of 2 bytes at `at`, which is one of the offsets above.
#[inline]
pub(super) const fn u16_at(head: &HeadBytes, at: usize) -> u16 {
    u16::from_le_bytes([head[at], head[at + 1]])
}

/// The number of 4 bytes at `at`, which is one of the offsets above.
#[inline]
pub(super) const fn u32_at(head: &HeadBytes, at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

/// The number of 8 bytes at `at`, which is one of the offsets above.
#[inline]
pub(super) const fn u64_at(head: &HeadBytes, at: usize) -> u64 {
    (u32_at(head, at) as u64) | (u32_at(head, at + 4) as u64) << 32
}

/// Writes `bytes` at `at`, which is one of the offsets above.
#[inline]
pub(super) fn put<const N: usize>(head: &mut HeadBytes, at: usize, bytes: [u8; N]) {
    head.iter_mut().skip(at).zip(bytes).for_each(|(place, byte)| *place = byte);
}
