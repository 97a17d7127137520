//! What a prompt would push out of each candidate's cache, as columns: which share of it is expected to be used again.
//!
//! How much is pushed out, and how long it has been idle, depends on how much the prompt brings that is new. So there is a
//! column for each of a few sizes, a power of two apart, and a request reads the one that is nearest to its own.

/// Sizes there is a column for.
pub const SIZES: usize = 9;
/// The smallest, tokens.
const SIZE_LEAST: f32 = 1024.0;

/// One cell a candidate and size.
#[derive(Debug, Default)]
pub struct PushedOut {
    columns: [Vec<f32>; SIZES],
}

impl PushedOut {
    /// The sizes, tokens.
    #[must_use]
    pub fn sizes() -> [f32; SIZES] {
        let mut size = SIZE_LEAST / 2.0;
        std::array::from_fn(|_| {
            size *= 2.0;
            size
        })
    }

    /// Empties all columns, keeping their memory.
    pub fn clear(&mut self) {
        self.columns.iter_mut().for_each(Vec::clear);
    }

    /// Makes room for `len` candidates that push out nothing.
    pub fn reset(&mut self, len: usize) {
        self.clear();
        self.columns.iter_mut().for_each(|column| column.resize(len, 0.0));
    }

    /// Adds the candidate at `place` of `other`.
    pub fn push_from(&mut self, other: &Self, place: usize) {
        for (column, from) in self.columns.iter_mut().zip(&other.columns) {
            column.push(from[place]);
        }
    }

    /// Sets the shares of the candidate at `place`, one for each size.
    pub fn set(&mut self, place: usize, shares: &[f32; SIZES]) {
        for (column, share) in self.columns.iter_mut().zip(shares) {
            column[place] = *share;
        }
    }

    /// The column for prompts that bring `tokens` new ones.
    #[inline]
    #[must_use]
    pub fn column(&self, tokens: f32) -> &[f32] {
        &self.columns[size(tokens)]
    }

    /// Of as many tokens as are new, the share that is pushed out at `place` and expected to be used again, 0 to 1.
    #[inline]
    #[must_use]
    pub fn share(&self, place: usize, tokens: f32) -> f32 {
        self.columns[size(tokens)][place]
    }
}

/// The size nearest to `tokens`, by their ratio.
#[inline]
const fn size(tokens: f32) -> usize {
    // A float's exponent is its whole logarithm; times √2, so that it is rounded and not cut.
    let scaled = tokens * (std::f32::consts::SQRT_2 / SIZE_LEAST);
    if scaled < 1.0 || scaled.is_nan() {
        return 0;
    }
    let size = (scaled.to_bits() >> 23) as usize - 127;
    if size < SIZES { size } else { SIZES - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_size_is_read() {
        let sizes = PushedOut::sizes();
        assert!((sizes[0] - 1024.0).abs() < 1e-3 && (sizes[SIZES - 1] - 262_144.0).abs() < 1.0);
        for (place, tokens) in sizes.iter().enumerate() {
            assert_eq!([0.72, 1.0, 1.4].map(|times| size(tokens * times)), [place; 3], "{tokens}");
        }
        assert_eq!([0.0, -1.0, f32::NAN, 1e-9].map(size), [0; 4]);
        assert_eq!([1e9, f32::INFINITY].map(size), [SIZES - 1; 2]);
    }

    #[test]
    fn each_candidate_has_its_shares() {
        let mut all = PushedOut::default();
        all.reset(2);
        let shares = std::array::from_fn(|size| size as f32 / 10.0);
        all.set(1, &shares);
        let mut some = PushedOut::default();
        some.push_from(&all, 1);
        for (place, tokens) in PushedOut::sizes().into_iter().enumerate() {
            let found = [all.share(0, tokens), all.column(tokens)[1], some.share(0, tokens)];
            let wanted: [f32; 3] = [0.0, shares[place], shares[place]];
            assert_eq!(found.map(f32::to_bits), wanted.map(f32::to_bits));
        }
    }
}
