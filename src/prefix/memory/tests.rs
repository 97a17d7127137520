//! The estimate against caches whose size is known: exact LRUs of tokens' blocks, larger and smaller than assumed.

use super::*;
use crate::id::BlockHash;
use crate::prefix::index::{PrefixIndex, WarmDepths};
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
        let trail = self.index.record_with_trail(SLOT, chain);
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
        let skewed = self.random.f64() * self.random.f64() * self.live.len() as f64;
        let session = &mut self.live[skewed as usize];
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
                let before = gateway.ratio();
                (0..1500).for_each(|_| request(&mut gateway));
                let (ratio, learned) = (gateway.ratio(), gateway.memory.learned(SLOT));
                eprintln!("{seed} assumed {factor} of {capacity}, system {system}: first {before:.3} then {ratio:.3} {:.3}", learned.blocks / capacity as f32);
                assert!((0.95..1.05).contains(&ratio), "{seed}: {ratio} when assumed {factor} of {capacity}: {learned:?}");
            }
        }
    }
}
