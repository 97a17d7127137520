//! The beginning of a prompt, finer than blocks: a server gives a slot to who shares a tenth with it, and of a short prompt
//! a tenth is less than a block. Kept as keyed hashes, as all of a prompt is.

use crate::prefix::BLOCK_BYTES;
use crate::prefix::hash::PrefixHasher;

/// Bytes that one hash stands for, with all before them.
pub const PIECE_BYTES: usize = 16;
const PIECES: usize = BLOCK_BYTES / PIECE_BYTES;

/// Hashes of the first block's pieces, as far as there are any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pieces: [u32; PIECES],
    count: u8,
}

impl Head {
    /// That of `prompt`, whose chain starts at `root`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "half of a hash tells one of a few heads apart")]
    pub fn of(hasher: &PrefixHasher, root: u64, prompt: &[u8]) -> Self {
        let mut head = Self::default();
        let mut last = root;
        let (pieces, _) = prompt.as_chunks::<PIECE_BYTES>();
        for (kept, piece) in head.pieces.iter_mut().zip(pieces) {
            last = hasher.root(&[b"piece", &last.to_le_bytes(), piece]);
            *kept = last as u32;
            head.count += 1;
        }
        head
    }

    /// One of a prompt whose pieces are hashed already: each hash stands for all of the prompt until there.
    #[must_use]
    pub fn of_pieces(hashes: impl IntoIterator<Item = u32>) -> Self {
        let mut head = Self::default();
        for (kept, hash) in head.pieces.iter_mut().zip(hashes) {
            *kept = hash;
            head.count += 1;
        }
        head
    }

    /// Bytes that both begin with, in whole pieces.
    pub(super) fn common_bytes(&self, other: &Self) -> usize {
        let count = usize::from(self.count.min(other.count));
        let alike = self.pieces.iter().zip(&other.pieces).take(count).take_while(|(own, other)| own == other);
        alike.count() * PIECE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_prompts_begin_with_is_known_to_a_piece() {
        let hasher = PrefixHasher::from_seed(3);
        let mut random = fastrand::Rng::with_seed(3);
        let text: Vec<u8> = (0..600).map(|_| random.u8(..)).collect();
        let head = |text: &[u8]| Head::of(&hasher, 5, text);
        for (length, differs, common) in
            [(600, 600, 256), (256, 600, 256), (250, 600, 240), (600, 200, 192), (600, 3, 0), (15, 600, 0), (0, 600, 0)]
        {
            let mut other = text[..length].to_vec();
            if let Some(byte) = other.get_mut(differs) {
                *byte ^= 1;
            }
            assert_eq!(head(&text).common_bytes(&head(&other)), common, "{length} {differs}");
        }
        assert_eq!(head(&text).common_bytes(&Head::of(&hasher, 6, &text)), 0, "another model");
    }
}
