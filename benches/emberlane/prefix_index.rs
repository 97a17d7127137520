//! Rows of the prefix index: 10 million blocks in it, look-ups that come from memory and not from cache.

use emberlane::{
    id::{BlockHash, ReplicaSlot},
    prefix::index::{PrefixIndex, WarmDepths},
};

use crate::{
    measure,
    rival::LockedMap,
    row::{Goal, Options, Row},
};

/// Replicas in the fleet.
const REPLICAS: u16 = 256;
/// Blocks in the index.
const ENTRIES: usize = 10_000_000;
/// Blocks of a prompt: half a megabyte of text.
const CHAIN: usize = 2048;
/// Prompts begin with one of these.
const SYSTEM_PROMPTS: usize = 32;
/// Blocks of a system prompt.
const SYSTEM: usize = 24;

/// A prompt and who holds how much of it.
struct Prompt {
    chain: Vec<BlockHash>,
    held: Vec<(u16, usize)>,
}

/// Prompts with random hashes: each begins with a shared system prompt held by 12 to 100 replicas, is held to some
/// depth by one to four more, and in full by one time in four.
fn prompts(count: usize, random: &mut fastrand::Rng) -> Vec<Prompt> {
    let systems: Vec<Vec<BlockHash>> = (0..SYSTEM_PROMPTS).map(|_| hashes(SYSTEM, random)).collect();
    (0..count)
        .map(|i| {
            let mut chain = systems[i % SYSTEM_PROMPTS].clone();
            chain.extend(hashes(CHAIN - SYSTEM, random));
            let first = random.u16(0..REPLICAS);
            let depth = if random.u8(0..4) == 0 { CHAIN } else { random.usize(SYSTEM..CHAIN) };
            let mut held = vec![(first, depth)];
            for other in 1..random.u16(1..=4) {
                held.push(((first + 17 * other) % REPLICAS, random.usize(SYSTEM..=depth)));
            }
            Prompt { chain, held }
        })
        .collect()
}

fn hashes(count: usize, random: &mut fastrand::Rng) -> Vec<BlockHash> {
    (0..count).map(|_| BlockHash(random.u64(..))).collect()
}

pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let mut random = fastrand::Rng::with_seed(3);
    let entries = if options.quick { ENTRIES / 10 } else { ENTRIES };
    let prompts = prompts(entries / (CHAIN * 4 / 7), &mut random);
    let index = PrefixIndex::new(512 << 20, usize::from(REPLICAS)).unwrap();
    let rival = LockedMap::default();
    let mut records = Vec::new();
    for prompt in &prompts {
        for (replica, depth) in &prompt.held {
            let start = std::time::Instant::now();
            index.record(ReplicaSlot(*replica), &prompt.chain[..*depth]);
            records.push(start.elapsed().as_nanos() as f64 / *depth as f64);
            rival.record(*replica, prompt.chain[..*depth].iter().map(|hash| hash.0));
        }
    }
    assert!(options.quick || index.stats().entries >= ENTRIES as u64, "{:?}", index.stats());
    assert!(rival.len() as u64 >= index.stats().entries);
    assert_answers(&prompts, &index, &rival);
    let mut depths = WarmDepths::new(usize::from(REPLICAS));
    let mut column = vec![0; usize::from(REPLICAS)];
    // A stride that visits all prompts: a chain comes back only after thousands of others have taken the caches. The
    // chain itself is in cache, as the hash has just written it.
    let chain = std::cell::RefCell::new(Vec::with_capacity(CHAIN));
    let (ours, theirs) = measure::prepared(
        options.repeats(4000),
        1,
        |call| chain.borrow_mut().clone_from(&prompts[call * 997 % prompts.len()].chain),
        |_| index.lookup(&chain.borrow(), &mut depths),
        |_| rival.lookup(chain.borrow().iter().map(|hash| hash.0), &mut column),
    );
    let again = measure::alone(options.repeats(2000), 1, |call| {
        let prompt = &prompts[call * 997 % prompts.len()];
        index.record(ReplicaSlot(prompt.held[0].0), &prompt.chain);
    });
    records.sort_by(f64::total_cmp);
    vec![
        Row::new("index/lookup/2048", ours.p50() / 1e3, "µs")
            .against("rwlock-hashmap", theirs.p50() / 1e3)
            .goal(Goal::AtMost(2.5)),
        Row::ratio("index/lookup/2048/ratio", theirs.p50() / ours.p50(), "rwlock-hashmap").goal(Goal::AtLeast(15.0)),
        Row::new("index/lookup/2048/p99", ours.p99() / 1e3, "µs").against("rwlock-hashmap", theirs.p99() / 1e3),
        Row::new("index/record/new", records[records.len() / 2], "ns/block"),
        Row::new("index/record/again", again.p50() / CHAIN as f64, "ns/block"),
    ]
}

/// Both must know what was recorded; the index may lack a few blocks to its evictions.
fn assert_answers(prompts: &[Prompt], index: &PrefixIndex, rival: &LockedMap) {
    let mut depths = WarmDepths::new(usize::from(REPLICAS));
    let mut column = vec![0; usize::from(REPLICAS)];
    let (mut found, mut truth) = (0, 0);
    for prompt in prompts {
        index.lookup(&prompt.chain, &mut depths);
        rival.lookup(prompt.chain.iter().map(|hash| hash.0), &mut column);
        for (replica, held) in &prompt.held {
            assert_eq!(column[usize::from(*replica)] as usize, *held);
            let depth = depths.get(ReplicaSlot(*replica)) as usize;
            assert!(depth <= *held, "{depth} blocks claimed, {held} held");
            found += depth;
            truth += held;
        }
    }
    assert!(found * 1000 >= truth * 995, "{found} of {truth} blocks found");
}
