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

/// How far a system prompt has spread.
#[derive(Clone, Copy, PartialEq)]
enum Spread {
    /// Each over 4 to 66 replicas, as routing by prefix leaves them.
    Some,
    /// Each over nearly all replicas.
    All,
}

/// Prompts with random hashes: each begins with a shared system prompt, is held to some depth by one to four replicas
/// of those that hold the system prompt, and in full by one time in four.
fn prompts(count: usize, spread: Spread, random: &mut fastrand::Rng) -> Vec<Prompt> {
    let systems: Vec<Vec<BlockHash>> = (0..SYSTEM_PROMPTS).map(|_| hashes(SYSTEM, random)).collect();
    (0..count)
        .map(|i| {
            let system = i % SYSTEM_PROMPTS;
            let mut chain = systems[system].clone();
            chain.extend(hashes(CHAIN - SYSTEM, random));
            let replicas = if spread == Spread::All { usize::from(REPLICAS) } else { 4 + 2 * system };
            let first = random.usize(0..replicas);
            let depth = if random.u8(0..4) == 0 { CHAIN } else { random.usize(SYSTEM..CHAIN) };
            let holder = |other: usize| u16::try_from((37 * system + (first + other) % replicas) % 256).unwrap();
            let mut held = vec![(holder(0), depth)];
            for other in 1..random.usize(1..=4) {
                held.push((holder(other), random.usize(SYSTEM..=depth)));
            }
            Prompt { chain, held }
        })
        .collect()
}

fn hashes(count: usize, random: &mut fastrand::Rng) -> Vec<BlockHash> {
    (0..count).map(|_| BlockHash(random.u64(..))).collect()
}

pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let mut rows = measure_mix(options, Spread::Some);
    rows.extend(measure_mix(options, Spread::All));
    rows
}

fn measure_mix(options: &Options, spread: Spread) -> Vec<Row> {
    let mut random = fastrand::Rng::with_seed(3);
    let entries = if options.quick { ENTRIES / 10 } else { ENTRIES };
    let prompts = prompts(entries / (CHAIN * 4 / 7), spread, &mut random);
    let index = PrefixIndex::new(512 << 20, usize::from(REPLICAS)).unwrap();
    let rival = LockedMap::default();
    let mut records = Vec::new();
    for prompt in &prompts {
        for (replica, depth) in &prompt.held {
            records.push(record(&index, prompt, (*replica, *depth)));
            rival.record(*replica, prompt.chain[..*depth].iter().map(|hash| hash.0));
        }
    }
    records.sort_by(f64::total_cmp);
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
        500,
        |call| chain.borrow_mut().clone_from(&prompts[call * 997 % prompts.len()].chain),
        |_| index.lookup(&chain.borrow(), &mut depths),
        |_| rival.lookup(chain.borrow().iter().map(|hash| hash.0), &mut column),
    );
    let mut again = Vec::new();
    for call in 0..options.repeats(2000) {
        let prompt = &prompts[call * 997 % prompts.len()];
        again.push(record(&index, prompt, prompt.held[0]));
    }
    again.sort_by(f64::total_cmp);
    let (ratio, rival) = (theirs.p50() / ours.p50(), "rwlock-hashmap");
    let lookup = |name: &str, ours: f64, theirs: f64| Row::new(name, ours / 1e3, "µs").against(rival, theirs / 1e3);
    if spread == Spread::All {
        let row = lookup("index/lookup/2048/shared-by-all", ours.p50(), theirs.p50());
        return vec![row, Row::ratio("index/lookup/2048/shared-by-all/ratio", ratio, rival)];
    }
    vec![
        lookup("index/lookup/2048", ours.p50(), theirs.p50()).goal(Goal::AtMost(2.5)),
        Row::ratio("index/lookup/2048/ratio", ratio, rival).goal(Goal::AtLeast(15.0)),
        lookup("index/lookup/2048/min", ours.min(), theirs.min()),
        lookup("index/lookup/2048/p99", ours.p99(), theirs.p99()),
        Row::new("index/record/new", records[records.len() / 2], "ns/block"),
        Row::new("index/record/again", again[again.len() / 2], "ns/block"),
    ]
}

/// Records a prompt for one replica. Returns nanoseconds a block.
fn record(index: &PrefixIndex, prompt: &Prompt, (replica, depth): (u16, usize)) -> f64 {
    let start = std::time::Instant::now();
    index.record(ReplicaSlot(replica), &prompt.chain[..depth]);
    start.elapsed().as_nanos() as f64 / depth as f64
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
