//! One runner for all kernels against the oracle, and what the function itself promises.

use super::*;

const SEED: u64 = 7;

/// Bytes that differ at every position.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

fn chain(hasher: &PrefixHasher, root: u64, bytes: &[u8]) -> Vec<BlockHash> {
    let mut out = Vec::new();
    hasher.chain(root, bytes, &mut out);
    out
}

/// Calls `check` with the oracle's and every other available kernel's hasher.
#[expect(clippy::print_stdout, reason = "says what was not tested")]
fn for_each_kernel(seed: u64, mut check: impl FnMut(&PrefixHasher, &PrefixHasher)) {
    let oracle = PrefixHasher::with_kernel(seed, Kernel::Scalar).unwrap();
    for kernel in Kernel::ALL {
        let Some(hasher) = PrefixHasher::with_kernel(seed, kernel) else {
            println!("SKIP {}: this CPU lacks it", kernel.name());
            continue;
        };
        check(&oracle, &hasher);
    }
}

#[test]
fn every_kernel_equals_the_oracle_at_every_length_and_alignment() {
    let bytes = noise(2048 + 64, 1);
    for_each_kernel(SEED, |oracle, hasher| {
        for len in 0..=2048 {
            let start = len % 64;
            let span = &bytes[start..start + len];
            let hashes = chain(hasher, 99, span);
            assert_eq!(hashes.len(), len / BLOCK_BYTES);
            assert_eq!(hashes, chain(oracle, 99, span), "{} at {len}", hasher.kernel().name());
        }
    });
}

#[test]
fn every_kernel_equals_the_oracle_on_extreme_words() {
    for_each_kernel(SEED, |oracle, hasher| {
        for fill in [0x00, 0x7f, 0x80, 0xff] {
            let bytes = [fill; 5 * BLOCK_BYTES];
            assert_eq!(chain(hasher, u64::MAX, &bytes), chain(oracle, u64::MAX, &bytes));
        }
    });
}

#[test]
fn every_kernel_equals_the_oracle_on_any_input() {
    bolero::check!().with_type::<(u64, u64, Vec<u8>, u8)>().for_each(|(seed, root, bytes, repeat)| {
        let bytes = bytes.repeat(usize::from(*repeat) + 1);
        for_each_kernel(*seed, |oracle, hasher| {
            assert_eq!(chain(hasher, *root, &bytes), chain(oracle, *root, &bytes));
        });
    });
}

/// Gateways of different versions share an index only while these stay as they are.
#[test]
fn hashes_do_not_change_between_versions() {
    let bytes: Vec<u8> = (0..4 * BLOCK_BYTES).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let hasher = PrefixHasher::from_seed(1);
    let root = hasher.root(&[b"model", b"", b"salt"]);
    assert_eq!(root, 6_466_902_131_686_525_547);
    let hashes: Vec<u64> = chain(&hasher, root, &bytes).into_iter().map(|hash| hash.0).collect();
    let golden =
        [1_374_744_972_513_291_787, 6_856_843_785_826_937_528, 5_445_665_193_275_995_800, 16_965_654_148_443_950_152];
    assert_eq!(hashes, golden);
    assert_ne!(PrefixHasher::from_key([0; 32]).root(&[b"model"]), PrefixHasher::from_key([1; 32]).root(&[b"model"]));
}

#[test]
fn a_link_depends_on_all_before_it_and_nothing_after() {
    let hasher = PrefixHasher::from_seed(SEED);
    let bytes = noise(8 * BLOCK_BYTES, 2);
    let whole = chain(&hasher, 5, &bytes);
    assert_eq!(chain(&hasher, 5, &bytes[..5 * BLOCK_BYTES + 17]), whole[..5]);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let hashes = chain(&hasher, 5, &changed);
        let block = at / BLOCK_BYTES;
        assert_eq!(hashes[..block], whole[..block]);
        assert!(hashes[block..].iter().zip(&whole[block..]).all(|(a, b)| a != b), "byte {at}");
    }
    assert!(chain(&hasher, 6, &bytes).iter().zip(&whole).all(|(a, b)| a != b));
}

#[test]
fn swapped_and_repeated_blocks_differ() {
    let hasher = PrefixHasher::from_seed(SEED);
    let (a, b) = (noise(BLOCK_BYTES, 3), noise(BLOCK_BYTES, 4));
    let ends: Vec<BlockHash> = [[&a, &b, &a], [&a, &a, &b], [&b, &a, &a], [&a, &a, &a]]
        .iter()
        .map(|blocks| chain(&hasher, 1, &blocks.map(Vec::as_slice).concat())[2])
        .collect();
    assert!((1..4).all(|i| !ends[..i].contains(&ends[i])));
}

#[test]
fn the_key_changes_everything() {
    let bytes = noise(3 * BLOCK_BYTES, 5);
    let one = chain(&PrefixHasher::from_seed(1), 0, &bytes);
    let two = chain(&PrefixHasher::from_seed(2), 0, &bytes);
    assert!(one.iter().zip(&two).all(|(a, b)| a != b));
}

/// Any flipped bit of a block or of the root flips about half of the link's bits.
#[test]
fn bits_avalanche() {
    let hasher = PrefixHasher::from_seed(SEED);
    let mut bytes = noise(BLOCK_BYTES, 6);
    let before = chain(&hasher, 3, &bytes)[0].0;
    let mut flipped = 0;
    for bit in 0..8 * BLOCK_BYTES {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let change = (chain(&hasher, 3, &bytes)[0].0 ^ before).count_ones();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!((10..=54).contains(&change), "bit {bit} changes {change} bits");
        flipped += change;
    }
    let mean = f64::from(flipped) / (8.0 * 256.0);
    assert!((31.0..33.0).contains(&mean), "{mean}");
    for bit in 0..64 {
        let change = (chain(&hasher, 3 ^ 1 << bit, &bytes)[0].0 ^ before).count_ones();
        assert!((10..=54).contains(&change), "root bit {bit} changes {change} bits");
    }
}

#[test]
fn the_root_tells_parts_apart() {
    let hasher = PrefixHasher::from_seed(SEED);
    let long = noise(1000, 8);
    let lists: [&[&[u8]]; 10] = [
        &[],
        &[b""],
        &[b"", b""],
        &[b"a"],
        &[b"a", b""],
        &[b"", b"a"],
        &[b"ab", b"c"],
        &[b"a", b"bc"],
        &[b"abc\0"],
        &[&long],
    ];
    let roots: Vec<u64> = lists.iter().map(|parts| hasher.root(parts)).collect();
    for (i, root) in roots.iter().enumerate() {
        assert!(!roots[..i].contains(root), "{i}");
        assert_eq!(hasher.root(lists[i]), *root);
    }
}

#[test]
fn a_reused_vector_is_not_grown() {
    let hasher = PrefixHasher::from_seed(SEED);
    let bytes = noise(16 * BLOCK_BYTES, 9);
    let mut out = Vec::with_capacity(16);
    let place = out.as_ptr();
    for len in [16, 3, 0, 16] {
        hasher.chain(0, &bytes[..len * BLOCK_BYTES], &mut out);
        assert_eq!((out.len(), out.as_ptr(), out.capacity()), (len, place, 16));
    }
}
