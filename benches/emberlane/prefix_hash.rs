//! Rows of the prompt's fingerprint.

use emberlane::prefix::{
    BLOCK_BYTES,
    hash::{Kernel, PrefixHasher},
};

use crate::{
    measure,
    rival::xxh64_chain,
    row::{Goal, Options, Row},
};

/// Prompts that rotate: enough that their first bytes differ, few enough that 64 KB ones stay in the second-level cache.
const PROMPTS: usize = 8;

pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    let best = PrefixHasher::from_seed(1);
    for (label, len) in [("8K", 8 << 10), ("64K", 64 << 10), ("1M", 1 << 20)] {
        let (ours, theirs) = rates(options, &best, len);
        rows.push(Row::new(format!("hash/{label}"), ours, "GB/s").against("xxh64", theirs).goal(Goal::AtLeast(28.0)));
        rows.push(Row::ratio(format!("hash/{label}/ratio"), ours / theirs, "xxh64").goal(Goal::AtLeast(4.0)));
    }
    for kernel in Kernel::ALL {
        let Some(hasher) = PrefixHasher::with_kernel(1, kernel) else { continue };
        let (ours, theirs) = rates(options, &hasher, 64 << 10);
        let row = Row::new(format!("hash/64K/{}", kernel.name()), ours, "GB/s").against("xxh64", theirs);
        rows.push(if kernel == Kernel::Portable { row.goal(Goal::AtLeast(5.0)) } else { row });
    }
    rows
}

/// Median rates of `hasher` and of the rival over prompts of `len` bytes, GB/s.
fn rates(options: &Options, hasher: &PrefixHasher, len: usize) -> (f64, f64) {
    let mut random = fastrand::Rng::with_seed(len as u64);
    let prompts: Vec<Vec<u8>> = (0..PROMPTS).map(|_| (0..len).map(|_| random.u8(b' '..b'~')).collect()).collect();
    let oracle = PrefixHasher::with_kernel(1, Kernel::Scalar).unwrap();
    let (mut ours, mut truth, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for prompt in &prompts {
        hasher.chain(7, prompt, &mut ours);
        oracle.chain(7, prompt, &mut truth);
        assert_eq!(ours, truth, "{} differs from the oracle", hasher.kernel().name());
    }
    let batch = ((256 << 10) / len).max(1);
    let (ours, theirs) = measure::against(
        options.repeats(2000),
        batch,
        |call| hasher.chain(7, &prompts[call % PROMPTS], &mut ours),
        |call| xxh64_chain(7, &prompts[call % PROMPTS], BLOCK_BYTES, &mut theirs),
    );
    (len as f64 / ours.p50(), len as f64 / theirs.p50())
}
