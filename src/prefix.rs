//! Which replica already holds how much of a prompt: the prompt's fingerprint ([`hash`]) and the table that remembers
//! who computed which prefix ([`index`]), and for engines that keep prompts in slots a book of each slot ([`slots`]). All are
//! pure state: no I/O, no clock, fixed memory.

pub mod hash;
pub mod index;
pub mod memory;
pub mod pending;
pub mod reuse;
pub mod slots;

/// Bytes of prompt covered by one [`BlockHash`](crate::id::BlockHash); about 64 tokens of English text.
///
/// Smaller blocks cost more hashing and more index entries a prompt; larger ones lose up to a block at the end of what
/// is shared.
pub const BLOCK_BYTES: usize = 256;
