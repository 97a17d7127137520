//! The estimate against caches whose size is known: exact LRUs of tokens' blocks, larger and smaller than assumed.

use super::*;
use crate::id::BlockHash;
use crate::prefix::index::{PrefixIndex, Run, WarmDepths};
use std::collections::{BTreeMap, HashMap};

const SLOT: ReplicaSlot = ReplicaSlot(0);
/// Tokens to a block of the index.
const TOKENS: f32 = 64.0;

/// An engine that keeps blocks in an exact LRU, a prompt's tail given up before its head.
#[derive(Default)]
struct Engine {
    capacity: usize,
    uses: u64,
    last_use: HashMap<u64, u64>,
    order: BTreeMap<u64, u64>,
}

impl Engine {
    fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// Serves a prompt; returns how many of its blocks were there.
    fn serve(&mut self, chain: &[BlockHash]) -> usize {
        let found = chain.iter().take_while(|hash| self.last_use.contains_key(&hash.0)).count();
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
        found
    }
}

/// A gateway's view of one engine.
struct Gateway {
    index: PrefixIndex,
    memory: Memories,
    depths: WarmDepths,
    predicted: f64,
    cached: f64,
}

impl Gateway {
    fn new(assumed: f32) -> Self {
        let gateway = Self {
            index: PrefixIndex::new(16 << 20, 2).unwrap(),
            memory: Memories::new(2),
            depths: WarmDepths::new(2),
            predicted: 0.0,
            cached: 0.0,
        };
        let tiers = gateway.memory.assume(SLOT, said(assumed)).unwrap();
        gateway.index.set_tiers(SLOT, tiers.device, tiers.total);
        gateway
    }

    fn tell(&self, news: Option<Tiers>) {
        if let Some(tiers) = news {
            self.index.set_tiers(SLOT, tiers.device, tiers.total);
        }
    }

    /// One request: predicted, served by `engine` in blocks of `engine_block` tokens, learned from.
    fn request(&mut self, engine: &mut Engine, chain: &[BlockHash], engine_block: f32) {
        self.index.lookup(chain, &mut self.depths);
        let predicted_tokens = self.depths.get(SLOT) as f32 * TOKENS;
        let trail = self.index.record_with_trail(SLOT, chain, 0);
        let prompt_tokens = chain.len() as f32 * TOKENS + 20.0;
        let found = engine.serve(chain) as f32 * TOKENS;
        let cached_tokens = (found.min(prompt_tokens - 1.0) / engine_block).floor() * engine_block;
        let evidence = Evidence {
            trail: &trail,
            prompt_bytes: prompt_tokens * 4.0,
            prompt_tokens,
            cached_tokens,
            predicted_tokens,
            is_surprise: false,
        };
        self.tell(self.memory.learn(SLOT, &evidence));
        self.predicted += f64::from(predicted_tokens);
        self.cached += f64::from(cached_tokens);
    }

    /// Predicted over actual since the last call.
    fn ratio(&mut self) -> f64 {
        let ratio = self.predicted / self.cached;
        (self.predicted, self.cached) = (0.0, 0.0);
        ratio
    }
}

const fn said(blocks: f32) -> Assumed {
    Assumed { device_blocks: blocks, host_blocks: 0.0, is_said: true }
}

/// Sessions over a shared system prompt that grow turn by turn until they are full; drawn with a skew, so that blocks are
/// used again at all distances.
struct Sessions {
    random: fastrand::Rng,
    system: Vec<BlockHash>,
    live: Vec<Vec<BlockHash>>,
}

impl Sessions {
    fn new(seed: u64, sessions: usize, system: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let system: Vec<_> = (0..system).map(|_| BlockHash(random.u64(..))).collect();
        Self { live: vec![system.clone(); sessions], system, random }
    }

    fn next(&mut self) -> Vec<BlockHash> {
        let most = self.random.usize(..self.live.len());
        let skewed = self.random.usize(..=most);
        let session = &mut self.live[skewed];
        if session.len() > 150 {
            session.clone_from(&self.system);
        }
        let more = self.random.usize(3..20);
        session.extend((0..more).map(|_| BlockHash(self.random.u64(..))));
        session.clone()
    }
}

#[test]
fn what_is_predicted_comes_to_what_is_found() {
    for (seed, factor) in [(1, 2.0), (2, 0.5), (3, 1.0), (4, 3.5), (5, 0.3), (6, 2.0), (7, 0.5)] {
        for system in [0, 20] {
            for capacity in [1500, 4000] {
                let mut engine = Engine::new(capacity);
                let mut gateway = Gateway::new(capacity as f32 * factor);
                let mut sessions = Sessions::new(seed, capacity / 30, system);
                let mut request = |gateway: &mut Gateway| {
                    let chain = sessions.next();
                    gateway.request(&mut engine, &chain, 16.0);
                };
                (0..1500).for_each(|_| request(&mut gateway));
                gateway.ratio();
                (0..1500).for_each(|_| request(&mut gateway));
                let (ratio, learned) = (gateway.ratio(), gateway.memory.learned(SLOT));
                assert!(
                    (0.95..1.05).contains(&ratio),
                    "{seed}: {ratio} when assumed {factor} of {capacity}: {learned:?}"
                );
            }
        }
    }
}

const fn evicted(count: u64) -> Said {
    Said { evicted: Some(count), usage: Some(0.4), block_tokens: Some(16), blocks: Some(4_000) }
}

#[test]
fn an_engine_that_has_evicted_nothing_remembers_all_and_its_first_eviction_says_how_much() {
    let memories = Memories::new(2);
    assert_eq!(memories.assume(SLOT, said(1000.0)), Some(Tiers { device: 1000, total: 1000 }));
    assert_eq!(memories.hear(SLOT, evicted(0), || 10), Some(Tiers { device: 4000, total: 4000 }));
    assert!(memories.learned(SLOT).is_untouched);
    assert_eq!(memories.hear(SLOT, evicted(0), || 900), None);
    assert_eq!(memories.hear(SLOT, evicted(3), || 1300), Some(Tiers { device: 1000, total: 1300 }));
    assert_eq!(memories.hear(SLOT, evicted(900), || 700), None, "evictions go on: that says nothing new");
    assert_eq!(memories.block_tokens(SLOT), Some(16));
    memories.emptied(SLOT);
    assert!(memories.hear(SLOT, evicted(0), || 0).is_some());
    memories.reset(SLOT);
    assert_eq!(
        (memories.learned(SLOT), memories.block_tokens(SLOT)),
        (Learned { blocks: 1.0, factor: 1.0, ..Learned::default() }, None)
    );
}

/// An answer of 100 blocks, used `since` blocks ago, of which `cached` were found.
fn answer(memories: &Memories, since: u32, cached: f32) -> Option<Tiers> {
    let trail = Trail::of(&[Run { from: 0, to: 100, since }]);
    let tokens = 100.0 * TOKENS;
    let evidence = Evidence {
        trail: &trail,
        prompt_bytes: tokens * 4.0,
        prompt_tokens: tokens,
        cached_tokens: cached * TOKENS,
        predicted_tokens: if (since as f32) < memories.learned(SLOT).blocks { tokens } else { 0.0 },
        is_surprise: false,
    };
    memories.learn(SLOT, &evidence)
}

#[test]
fn a_counter_that_answers_contradict_is_not_believed() {
    let memories = Memories::new(2);
    let _told = memories.assume(SLOT, said(1000.0));
    let _told = memories.hear(SLOT, evicted(0), || 0);
    for _ in 0..3 {
        assert!(memories.learned(SLOT).is_untouched);
        let _told = answer(&memories, 2000, 0.0);
    }
    assert!(!memories.learned(SLOT).is_untouched);
    let _told = memories.hear(SLOT, evicted(0), || 0);
    assert!(!memories.learned(SLOT).is_untouched);
}

#[test]
fn what_is_lost_at_once_and_what_is_odd_says_nothing_of_the_size() {
    let memories = Memories::new(2);
    let _told = memories.assume(SLOT, said(1000.0));
    for (since, cached) in [(0, 0.0), (5, 10.0), (0, 50.0), (400, 100.0), (400, 95.0), (700, 88.0), (2000, 0.0)] {
        assert_eq!(answer(&memories, since, cached), None, "{since} {cached}");
        assert!((memories.learned(SLOT).factor - 1.0).abs() < 0.05);
    }
}

#[test]
fn more_than_the_device_holds_is_in_host_memory() {
    let memories = Memories::new(2);
    let assumed = Assumed { device_blocks: 1000.0, host_blocks: 5000.0, is_said: true };
    assert_eq!(memories.assume(SLOT, assumed), Some(Tiers { device: 1000, total: 6000 }));
    let _told = memories.assume(SLOT, said(1000.0));
    for _ in 0..100 {
        let _told = answer(&memories, 2900, 100.0);
    }
    let learned = memories.learned(SLOT);
    assert!((2.8..3.1).contains(&learned.factor), "{learned:?}");
    let last = memories.assume(SLOT, said(900.0)).unwrap();
    assert_eq!(last.device, 900);
    assert!(last.total > 2500);
    // A guess is no measure of the device.
    let guessed = memories.assume(SLOT, Assumed { is_said: false, ..said(900.0) }).unwrap();
    assert_eq!(guessed.device, guessed.total);
}

#[test]
fn engines_of_other_blocks_and_sizes_come_to_what_they_hold() {
    for (seed, block, capacity, assumed) in [(1, 1_u16, 800, 2000.0), (2, 32, 2500, 1000.0), (3, 128, 2500, 6000.0)] {
        let (mut engine, mut gateway) = (Engine::new(capacity), Gateway::new(assumed));
        let _told = gateway.memory.hear(SLOT, Said { block_tokens: Some(block.into()), ..Said::default() }, || 0);
        let mut sessions = Sessions::new(seed, capacity / 30, 20);
        for turn in 0..3000 {
            let chain = sessions.next();
            gateway.request(&mut engine, &chain, block.into());
            if turn == 1500 {
                gateway.ratio();
            }
        }
        let ratio = gateway.ratio();
        assert!((0.95..1.05).contains(&ratio), "blocks of {block}: {ratio}");
    }
}

#[test]
fn what_was_said_is_believed_again_once_more_is_found_than_was_believed() {
    let memories = Memories::new(1);
    let _news = memories.assume(SLOT, said(4000.0));
    // A run of misses that have another reason.
    for _ in 0..30 {
        let _news = answer(&memories, 500, 0.0);
    }
    let believed = memories.learned(SLOT).factor;
    assert!(believed < 0.7, "{believed}");
    for _ in 0..20 {
        let _news = answer(&memories, 3500, 100.0);
    }
    let believed = memories.learned(SLOT).factor;
    assert!((0.85..=1.0).contains(&believed), "{believed}");
    let kept = memories.learned(SLOT).factor;
    let _news = answer(&memories, 500, 0.0);
    assert!(memories.learned(SLOT).factor > kept - 0.03, "one answer weighs little");
}
