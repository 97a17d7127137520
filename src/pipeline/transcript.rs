//! Goes on hashing where a prompt ended, as an answer is generated: 256 bytes are kept, whatever the answer's length.

use crate::id::BlockHash;
use crate::prefix::BLOCK_BYTES;
use crate::prefix::hash::PrefixHasher;

/// The end of a conversation so far.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    /// Hash of the last full block, or the root.
    last: u64,
    /// What follows it: less than a block.
    rest: Vec<u8>,
    is_open: bool,
}

impl Transcript {
    /// Starts at the end of `prompt`, whose last full block has the hash `last` (or the root, without one).
    pub(super) fn open(&mut self, last: u64, prompt: &[u8]) {
        let (_, rest) = prompt.as_chunks::<BLOCK_BYTES>();
        self.last = last;
        self.rest.clear();
        self.rest.reserve(BLOCK_BYTES);
        self.rest.extend_from_slice(rest);
        self.is_open = true;
    }

    /// Nothing goes on from here.
    pub(super) const fn close(&mut self) {
        self.is_open = false;
    }

    /// True when something may go on from here.
    pub(super) const fn is_open(&self) -> bool {
        self.is_open
    }

    /// Goes on with `bytes`; adds each block that is full to `chain`.
    pub(super) fn write(&mut self, hasher: &PrefixHasher, mut bytes: &[u8], chain: &mut Vec<BlockHash>) {
        if !self.is_open {
            return;
        }
        while !bytes.is_empty() {
            let room = BLOCK_BYTES.saturating_sub(self.rest.len()).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.rest.extend_from_slice(now);
            bytes = later;
            if let Some(block) = self.rest.first_chunk() {
                let hash = hasher.next(self.last, block);
                chain.push(hash);
                self.last = hash.0;
                self.rest.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_hashed_as_if_it_had_been_there() {
        let hasher = PrefixHasher::from_seed(5);
        let mut random = fastrand::Rng::with_seed(5);
        let text: Vec<u8> = (0..5000).map(|_| random.u8(..)).collect();
        let mut whole = Vec::new();
        hasher.chain(77, &text, &mut whole);
        for at in [0, 1, 255, 256, 257, 1000, 4999] {
            for piece in [1, 7, 256, 300, 5000] {
                let mut chain = Vec::new();
                hasher.chain(77, &text[..at], &mut chain);
                let mut transcript = Transcript::default();
                transcript.write(&hasher, b"closed", &mut chain);
                transcript.open(chain.last().map_or(77, |last| last.0), &text[..at]);
                text[at..].chunks(piece).for_each(|piece| transcript.write(&hasher, piece, &mut chain));
                assert_eq!(chain, whole, "cut at {at}, by {piece}");
            }
        }
    }
}
