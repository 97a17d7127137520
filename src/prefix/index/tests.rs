//! The index against plain models: a map with exact LRU, and itself under threads.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::atomic::Ordering::Relaxed,
};

mod tiers;

use super::*;

const MEMORY: usize = 8 << 20;

/// A chain of `len` random hashes; chains from equal seeds share their prefixes.
fn chain(seed: u64, len: usize) -> Vec<BlockHash> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| BlockHash(random.u64(..))).collect()
}

const fn slot(number: u16) -> ReplicaSlot {
    ReplicaSlot(number)
}

fn depths(index: &PrefixIndex, chain: &[BlockHash]) -> WarmDepths {
    let mut depths = WarmDepths::new(ReplicaSlot::LIMIT);
    index.lookup(chain, &mut depths);
    depths
}

fn depth(index: &PrefixIndex, chain: &[BlockHash], replica: u16) -> u32 {
    depths(index, chain).get(slot(replica))
}

#[test]
fn every_depth_of_every_length_is_found() {
    for len in 1..70 {
        let index = PrefixIndex::new(1 << 20, 80).unwrap();
        let chain = chain(1, len);
        for held in 1..=len {
            index.record(slot(u16::try_from(held).unwrap()), &chain[..held]);
        }
        let found = depths(&index, &chain);
        assert_eq!(found.touched().len(), len);
        let exact = found.as_slice().iter().enumerate().take(len + 1).filter(|(held, depth)| *held == **depth as usize);
        // With a replica at every depth there are more intervals than are refined: the rest may only be understated.
        assert!(found.as_slice().iter().enumerate().all(|(held, depth)| *depth as usize <= held));
        assert!(exact.count() * 10 >= len * 9, "{len}");
        assert_eq!(found.get(slot(u16::try_from(len).unwrap())) as usize, len);
    }
}

#[test]
fn a_lone_holder_is_found_at_any_depth() {
    let chain = chain(2, 3000);
    for held in (1..3000).step_by(7) {
        let index = PrefixIndex::new(1 << 20, 4).unwrap();
        index.record(slot(3), &chain[..held]);
        assert_eq!(depth(&index, &chain, 3) as usize, held);
    }
}

#[test]
fn odd_arguments_do_nothing() {
    let index = PrefixIndex::new(MEMORY, 4).unwrap();
    let chain = chain(3, 10);
    index.record(slot(0), &[]);
    index.record(slot(4), &chain);
    index.record(slot(u16::MAX), &chain);
    index.forget(slot(u16::MAX));
    index.set_capacity(slot(4), 7);
    index.retract(slot(1), &chain, 0);
    index.retract(slot(1), &chain, 11);
    assert!(depths(&index, &chain).touched().is_empty());
    assert!(depths(&index, &[]).touched().is_empty());
    assert_eq!((index.resident_blocks(slot(4)), index.stats().entries), (0, 0));
    // A column that is too short for a replica leaves it out.
    index.record(slot(3), &chain);
    let mut short = WarmDepths::new(2);
    index.lookup(&chain, &mut short);
    assert!(short.touched().is_empty());
    assert!(PrefixIndex::new(1024, 4).is_err());
    assert!(PrefixIndex::new(MEMORY, 0).is_err());
    assert!(PrefixIndex::new(MEMORY, 4097).is_err());
    assert!(PrefixIndex::new(usize::MAX, 4).is_err());
}

/// Exact LRU of blocks for one replica.
#[derive(Default)]
struct ExactLru {
    capacity: usize,
    uses: u64,
    last_use: HashMap<u64, u64>,
    order: BTreeMap<u64, u64>,
}

impl ExactLru {
    fn record(&mut self, chain: &[BlockHash]) {
        for hash in chain.iter().rev() {
            self.uses += 1;
            if let Some(before) = self.last_use.insert(hash.0, self.uses) {
                self.order.remove(&before);
            }
            self.order.insert(self.uses, hash.0);
            if self.order.len() > self.capacity {
                let (_, oldest) = self.order.pop_first().unwrap();
                self.last_use.remove(&oldest);
            }
        }
    }

    fn depth(&self, chain: &[BlockHash]) -> usize {
        chain.iter().take_while(|hash| self.last_use.contains_key(&hash.0)).count()
    }
}

/// Sessions that grow turn by turn over a shared system prompt, some replayed, some new: what agents send.
fn session_chains(seed: u64, requests: usize) -> Vec<Vec<BlockHash>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let system = chain(seed, 20);
    let mut sessions: Vec<Vec<BlockHash>> = Vec::new();
    (0..requests)
        .map(|_| {
            if sessions.len() < 12 || random.u8(..) < 20 {
                sessions.push(system.clone());
                if sessions.len() > 40 {
                    sessions.swap_remove(random.usize(..40));
                }
            }
            let session = random.choice(&mut sessions).unwrap();
            session.extend((0..random.usize(1..12)).map(|_| BlockHash(random.u64(..))));
            session.clone()
        })
        .collect()
}

/// By LRU's inclusion property the index must lie between exact LRUs of somewhat less and somewhat more capacity.
#[test]
fn depths_follow_an_exact_lru() {
    for (seed, capacity) in [(1, 640), (2, 2000), (3, 6400), (4, 100_000)] {
        let index = PrefixIndex::new(32 << 20, 3).unwrap();
        index.set_capacity(slot(1), capacity as u64);
        let bound = |capacity| ExactLru { capacity, ..ExactLru::default() };
        let (mut less, mut exact, mut more) = (bound(capacity * 8 / 10), bound(capacity), bound(capacity * 11 / 10));
        let (mut within, mut lookups, mut found, mut truth) = (0, 0, 0, 0);
        for chain in session_chains(seed, 3000) {
            let depth = depth(&index, &chain, 1) as usize;
            lookups += 1;
            within += usize::from((less.depth(&chain)..=more.depth(&chain)).contains(&depth));
            found += depth;
            truth += exact.depth(&chain);
            index.record(slot(1), &chain);
            for lru in [&mut less, &mut exact, &mut more] {
                lru.record(&chain);
            }
        }
        assert!(within * 100 >= lookups * 98, "capacity {capacity}: {within} of {lookups} within bounds");
        let share = found as f64 / truth as f64;
        assert!((0.93..1.03).contains(&share), "capacity {capacity}: {found} blocks found, {truth} held");
        let resident = index.resident_blocks(slot(1));
        assert!(resident <= capacity as u64 * 11 / 10, "{resident}");
    }
}

#[test]
fn any_sequence_of_calls_agrees_with_a_map() {
    // Large capacity, small table load: nothing is evicted, so the model is a plain map of what was recorded.
    bolero::check!().with_type::<Vec<(u8, u8, u8, u8)>>().for_each(|calls| {
        let index = PrefixIndex::new(1 << 20, 16).unwrap();
        let mut held: HashSet<(u64, u16)> = HashSet::new();
        for (call, replica, seed, len) in calls.iter().take(64) {
            let (replica, chain) = (u16::from(replica % 16), chain(u64::from(seed % 8), usize::from(*len)));
            match call % 8 {
                0 => {
                    index.forget(slot(replica));
                    held.retain(|(_, holder)| *holder != replica);
                }
                1 => {
                    let whole = self::chain(u64::from(seed % 8), usize::from(u8::MAX));
                    index.retract(slot(replica), &whole, chain.len());
                    held.retain(|(hash, holder)| {
                        *holder != replica || !whole[chain.len()..].contains(&BlockHash(*hash))
                    });
                }
                _ => {
                    index.record(slot(replica), &chain);
                    held.extend(chain.iter().map(|hash| (hash.0, replica)));
                }
            }
            let found = depths(&index, &chain);
            for replica in 0..16 {
                let true_depth = chain.iter().take_while(|hash| held.contains(&(hash.0, replica))).count();
                let depth = found.get(slot(replica)) as usize;
                assert!(depth <= chain.len());
                assert_eq!(depth, true_depth, "replica {replica}");
            }
        }
    });
}

#[test]
fn tails_are_forgotten_first() {
    let index = PrefixIndex::new(MEMORY, 4).unwrap();
    index.set_capacity(slot(2), 640);
    let (old, new) = (chain(4, 640), chain(5, 320));
    index.record(slot(2), &old);
    assert_eq!(depth(&index, &old, 2), 640);
    index.record(slot(2), &new);
    assert_eq!(depth(&index, &new, 2), 320);
    let left = depth(&index, &old, 2);
    assert!((290..=330).contains(&left), "{left}");
    // Less capacity forgets at once, more brings nothing back.
    index.set_capacity(slot(2), 400);
    let less = depth(&index, &old, 2);
    assert!((50..=90).contains(&less), "{less}");
    index.set_capacity(slot(2), 100_000);
    assert_eq!(depth(&index, &old, 2), less);
}

#[test]
fn blocks_in_use_outlive_a_stream_of_others() {
    let index = PrefixIndex::new(MEMORY, 4).unwrap();
    index.set_capacity(slot(0), 1000);
    let system = chain(6, 100);
    for turn in 0..500 {
        index.record(slot(0), &system);
        index.record(slot(0), &chain(1000 + turn, 40));
        assert_eq!(depth(&index, &system, 0), 100, "turn {turn}");
    }
    let resident = index.resident_blocks(slot(0));
    assert!((850..=1030).contains(&resident), "{resident}");
    assert_eq!(depth(&index, &chain(1000, 40), 0), 0);
}

#[test]
fn a_restarted_replica_holds_nothing() {
    let index = PrefixIndex::new(MEMORY, 4).unwrap();
    let chain = chain(7, 200);
    index.record(slot(1), &chain);
    index.record(slot(2), &chain[..50]);
    index.forget(slot(1));
    assert_eq!((depth(&index, &chain, 1), depth(&index, &chain, 2)), (0, 50));
    assert_eq!((index.resident_blocks(slot(1)), index.resident_blocks(slot(2))), (0, 50));
    index.record(slot(1), &chain[..20]);
    assert_eq!((depth(&index, &chain, 1), index.resident_blocks(slot(1))), (20, 20));
    assert_eq!(index.stats().entries, 200);
}

#[test]
fn a_failed_request_leaves_no_trace() {
    let index = PrefixIndex::new(MEMORY, 20).unwrap();
    let chain = chain(8, 300);
    for replica in 0..12 {
        index.record(slot(replica), &chain[..120]);
        index.record(slot(replica), &chain);
        index.retract(slot(replica), &chain, 120);
    }
    let found = depths(&index, &chain);
    assert_eq!(found.touched().len(), 12);
    assert!(found.touched().iter().all(|replica| found.get(*replica) == 120));
    assert!((0..12).all(|replica| index.resident_blocks(slot(replica)) == 120));
}

#[test]
fn deep_blocks_without_their_head_do_not_win() {
    let index = PrefixIndex::new(MEMORY, 4).unwrap();
    let chain = chain(9, 400);
    index.record(slot(1), &chain);
    index.retract(slot(1), &chain[..150], 0);
    index.record(slot(2), &chain[..10]);
    let found = depths(&index, &chain);
    assert_eq!((found.get(slot(1)), found.get(slot(2))), (0, 10));
    assert_eq!(found.touched(), [slot(2)]);
    // Head and tail without the middle: cut back to the head.
    index.record(slot(3), &chain);
    index.retract(slot(3), &chain[20..380], 0);
    assert!((1..=20).contains(&depth(&index, &chain, 3)));
}

#[test]
fn holes_cost_little_depth() {
    let index = PrefixIndex::new(64 << 20, 8).unwrap();
    let mut random = fastrand::Rng::with_seed(10);
    let held: Vec<(u16, Vec<BlockHash>, usize)> = (0..400)
        .map(|i| {
            let chain = chain(100 + i, random.usize(200..2000));
            let depth = random.usize(1..=chain.len());
            (random.u16(..8), chain, depth)
        })
        .collect();
    held.iter().for_each(|(replica, chain, depth)| index.record(slot(*replica), &chain[..*depth]));
    for line in index.table.lines() {
        for first in [0, entry::WORDS] {
            if random.u32(..100) < 5 {
                line.0[first].store(0, Relaxed);
            }
        }
    }
    let truth: usize = held.iter().map(|(_, _, depth)| depth).sum();
    let found: usize = held.iter().map(|(replica, chain, _)| depth(&index, chain, *replica) as usize).sum();
    assert!(found * 100 >= truth * 99, "{found} of {truth}");
    assert!(held.iter().all(|(replica, chain, held)| depth(&index, chain, *replica) as usize <= *held));
}

#[test]
fn a_prompt_shared_by_all_replicas_is_known_for_all() {
    let index = PrefixIndex::new(64 << 20, 4096).unwrap();
    let system = chain(11, 40);
    for replica in 0..4096 {
        index.record(slot(replica), &system[..10 + usize::from(replica % 31)]);
    }
    let found = depths(&index, &system);
    assert_eq!(found.touched().len(), 4096);
    assert!(found.touched().iter().all(|replica| found.get(*replica) > 0));
    let full = (0..4096_u16).filter(|replica| replica % 31 == 30);
    assert!(full.clone().all(|replica| found.get(slot(replica)) == 40));
    assert!(full.clone().all(|replica| index.resident_blocks(slot(replica)) == 40));
    assert_eq!(index.stats().overflow_rows, 40);
    // In rows as inline, using a block again does not count it twice, forgetting is complete, retracting exact.
    index.record(slot(4091), &system);
    index.record(slot(4091), &system);
    assert_eq!(index.resident_blocks(slot(4091)), 40);
    index.forget(slot(4091));
    assert_eq!(depth(&index, &system, 4091), 0);
    index.retract(slot(4060), &system, 7);
    assert_eq!((depth(&index, &system, 4060), index.resident_blocks(slot(4060))), (7, 7));
}

#[test]
fn rows_are_bounded_and_go_to_the_blocks_in_use() {
    let index = PrefixIndex::new(2 << 20, 64).unwrap();
    let rows_max = index.stats().overflow_rows_max;
    let hot = chain(12, 50);
    for other in 0..40 {
        let cold = chain(200 + other, 100);
        for replica in 0..12 {
            index.record(slot(replica), &hot);
            index.record(slot(replica), &cold);
            index.forget(slot(12 + replica));
        }
        assert!(index.stats().overflow_rows <= rows_max);
    }
    assert_eq!(index.stats().overflow_rows, rows_max);
    let found = depths(&index, &hot);
    assert!((0..12).all(|replica| found.get(slot(replica)) == 50), "{:?}", &found.as_slice()[..12]);
}

#[test]
fn memory_is_fixed_and_all_of_it_serves() {
    let index = PrefixIndex::new(4 << 20, 4).unwrap();
    let before = index.stats();
    for request in 0..6000 {
        index.record(slot(request % 4), &chain(u64::from(request), 100));
    }
    let after = index.stats();
    assert_eq!((after.bytes, after.entries_max), (before.bytes, before.entries_max));
    assert!(after.entries <= after.entries_max);
    assert!(after.entries * 100 >= after.entries_max * 97, "{after:?}");
    assert_eq!(after.entries + after.evictions, 600_000);
    // What was used last is still there, but for a few holes.
    let recent: u32 = (5800..6000_u16).map(|request| depth(&index, &chain(u64::from(request), 100), request % 4)).sum();
    assert!(recent >= 200 * 97, "{recent}");
}

#[test]
fn clocks_may_wrap() {
    let index = PrefixIndex::new(MEMORY, 2).unwrap();
    index.set_capacity(slot(0), 8);
    for round in 0..30_000 {
        let chain = chain(round, 5);
        index.record(slot(0), &chain);
        assert_eq!(depth(&index, &chain, 0), 5, "round {round}");
        assert!(index.resident_blocks(slot(0)) <= 9);
    }
}

/// Calls at random, from one thread.
fn anything(index: &PrefixIndex, chains: &[Vec<BlockHash>], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut found = WarmDepths::new(64);
    for _ in 0..4000 {
        let (replica, chain) = (slot(random.u16(..64)), &chains[random.usize(..chains.len())]);
        match random.u32(..100) {
            0 => index.forget(replica),
            1 => index.set_capacity(replica, random.u64(50..5000)),
            2..10 => index.retract(replica, chain, random.usize(..100)),
            10..50 => {
                index.lookup(chain, &mut found);
                assert!(found.as_slice().iter().all(|depth| *depth <= 100));
            }
            _ => index.record(replica, &chain[..random.usize(1..=100)]),
        }
    }
}

#[test]
fn threads_may_do_anything_at_once() {
    let index = PrefixIndex::new(1 << 20, 64).unwrap();
    let chains: Vec<Vec<BlockHash>> = (0..60).map(|seed| chain(300 + seed, 100)).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (index, chains) = (&index, &chains);
            scope.spawn(move || anything(index, chains, thread));
        }
    });
    // Once it is quiet, the index is right again.
    for replica in 0..64 {
        index.forget(slot(replica));
        index.set_capacity(slot(replica), 5000);
    }
    assert!(chains.iter().all(|chain| depths(&index, chain).touched().is_empty()));
    for (replica, chain) in (0..60).zip(&chains) {
        index.record(slot(replica), chain);
        let found = depths(&index, chain);
        assert_eq!(found.touched(), [slot(replica)]);
        assert_eq!((found.get(slot(replica)), index.resident_blocks(slot(replica))), (100, 100));
    }
    assert!(index.stats().entries <= index.stats().entries_max);
}

/// Many cores may use the same blocks for the same replica: each is counted once.
#[test]
fn concurrent_uses_of_one_block_count_once() {
    let index = PrefixIndex::new(MEMORY, 64).unwrap();
    let chain = chain(13, 500);
    for replica in 0..40 {
        index.record(slot(replica), &chain);
    }
    use_at_once(&index, &chain);
    let found = depths(&index, &chain);
    for replica in 0..40 {
        assert_eq!(found.get(slot(replica)), 500);
        let resident = index.resident_blocks(slot(replica));
        assert!((450..=600).contains(&resident), "{resident}");
    }
}

/// Cores that note a block of one replica for the first time at the same moment may each count it, until it ages out:
/// never more often than there are cores, and it is found all the same.
#[test]
fn concurrent_first_uses_count_at_most_once_a_core() {
    let index = PrefixIndex::new(MEMORY, 64).unwrap();
    let chain = chain(13, 500);
    use_at_once(&index, &chain);
    let found = depths(&index, &chain);
    for replica in 0..40 {
        assert_eq!(found.get(slot(replica)), 500);
        let resident = index.resident_blocks(slot(replica));
        assert!((450..=4 * 500).contains(&resident), "{resident}");
    }
}

/// Four cores note the same chain of the same replicas.
fn use_at_once(index: &PrefixIndex, chain: &[BlockHash]) {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..200 {
                    index.record(slot(round % 40), chain);
                }
            });
        }
    });
}

#[test]
fn guesses_never_change_an_answer() {
    let mut random = fastrand::Rng::with_seed(11);
    let index = PrefixIndex::new(8 << 20, 8).unwrap();
    let head: Vec<BlockHash> = (0..40).map(|_| BlockHash(random.u64(..))).collect();
    // One scratch learns where prompts part and is wrong about the next; the other never guesses.
    let mut guessing = WarmDepths::new(8);
    for round in 0..200 {
        let shared = random.usize(3..40);
        let mut chain = head[..shared].to_vec();
        chain.extend((0..random.usize(1..300)).map(|_| BlockHash(random.u64(..))));
        for slot in 0..8 {
            let held = if slot < 5 { shared } else { random.usize(shared..=chain.len()) };
            index.record(ReplicaSlot(slot), &chain[..held]);
        }
        let mut fresh = WarmDepths::new(8);
        index.lookup(&chain, &mut guessing);
        index.lookup(&chain, &mut fresh);
        assert_eq!(guessing.as_slice(), fresh.as_slice(), "round {round}");
    }
}
