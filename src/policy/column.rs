//! Folds over a column in eight lanes. A fold with one accumulator waits for each step's latency; floats may not be
//! reordered by the compiler, so the lanes are spelt out.

/// Accumulators, enough for two SIMD registers of any x86-64.
const LANES: usize = 8;

/// The least value; infinite when there is none. Passes over what is not a number.
#[inline(always)]
#[must_use]
pub fn least(column: &[f32]) -> f32 {
    fold(column, f32::INFINITY, |least, value| if value < least { value } else { least })
}

/// The least value of each block of `size`, in the widest lanes this CPU has; as many blocks as `least_of` has room for.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
pub fn least_of_blocks(column: &[f32], size: usize, least_of: &mut [f32]) {
    for (least_of, block) in least_of.iter_mut().zip(column.chunks(size.max(1))) {
        *least_of = least(block);
    }
}

/// The largest value, but no less than `floor`. Passes over what is not a number.
#[inline(always)]
#[must_use]
pub fn most(column: &[f32], floor: f32) -> f32 {
    fold(column, floor, |most, value| if value > most { value } else { most })
}

/// `step` over all values and `start`, in any order and with `start` more than once.
#[inline(always)]
fn fold(column: &[f32], start: f32, step: impl Fn(f32, f32) -> f32) -> f32 {
    let (chunks, rest) = column.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, *value);
        }
    }
    lanes.iter().chain(rest).fold(start, |folded, value| step(folded, *value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_agree_with_plain_ones_at_every_length() {
        let mut rng = fastrand::Rng::with_seed(4);
        for len in 0..70 {
            let mut column: Vec<f32> = (0..len).map(|_| f32::from(rng.i16(-99..99))).collect();
            if rng.bool() && len > 0 {
                column[rng.usize(..len)] = f32::NAN;
            }
            assert_eq!(least(&column).to_bits(), column.iter().copied().fold(f32::INFINITY, f32::min).to_bits());
            assert_eq!(most(&column, 3.0).to_bits(), column.iter().copied().fold(3.0, f32::max).to_bits());
        }
    }
}
