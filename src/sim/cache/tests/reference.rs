//! A plain cache of blocks, as vLLM's V1 has it, to hold the simulator's against: a table of blocks by hash, a queue of
//! the free ones from whose front new blocks are taken, and to whose end a request that is over gives its blocks back, the
//! last first (`vllm/v1/core/block_pool.py`, `kv_cache_manager.py`, `single_type_kv_cache_manager.py`).

use super::*;
use std::collections::{HashMap, VecDeque};

/// What a block holds: the id of its content and all before it.
type Hash = (u64, u32);

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    hash: Option<Hash>,
    uses: u32,
}

/// The cache. A prompt is given as the hashes of its whole blocks and the tokens after them.
#[derive(Debug)]
struct Plain {
    blocks: Vec<Block>,
    by_hash: HashMap<Hash, usize>,
    free: VecDeque<usize>,
    block_tokens: u32,
}

impl Plain {
    fn new(capacity: u64, block_tokens: u32) -> Self {
        let count = usize::try_from(capacity / u64::from(block_tokens)).unwrap();
        let free = (0..count).collect();
        Self { blocks: vec![Block::default(); count], by_hash: HashMap::new(), free, block_tokens }
    }

    /// The hashes of a prompt's whole blocks: which segment ends it or goes beyond, and where.
    fn hashes(&self, prompt: &[Segment]) -> Vec<Hash> {
        let (mut end, mut hashes) = (0, Vec::new());
        for segment in prompt {
            end += segment.tokens;
            while (u32::try_from(hashes.len()).unwrap() + 1) * self.block_tokens <= end {
                hashes.push((segment.id, u32::try_from(hashes.len()).unwrap()));
            }
        }
        hashes
    }

    /// Tokens found, and the blocks of the request from now on; `None` when there are too few.
    fn admit(&mut self, prompt: &[Segment]) -> Option<(u32, Vec<usize>)> {
        let tokens: u32 = prompt.iter().map(|segment| segment.tokens).sum();
        let hashes = self.hashes(prompt);
        // The last token is always computed.
        let most = ((tokens - 1) / self.block_tokens) as usize;
        let found: Vec<usize> = hashes.iter().take(most).map_while(|hash| self.by_hash.get(hash).copied()).collect();
        let needed = tokens.div_ceil(self.block_tokens) as usize - found.len();
        let idle = found.iter().filter(|block| self.blocks[**block].uses == 0).count();
        if self.free.len() - idle < needed {
            return None;
        }
        let mut own = found.clone();
        for block in &found {
            self.free.retain(|free| free != block);
            self.blocks[*block].uses += 1;
        }
        for place in found.len()..found.len() + needed {
            let block = self.free.pop_front().unwrap();
            if let Some(old) = self.blocks[block].hash.take()
                && self.by_hash.get(&old) == Some(&block)
            {
                self.by_hash.remove(&old);
            }
            let hash = hashes.get(place).copied();
            self.blocks[block] = Block { hash, uses: 1 };
            // A second block of the same content is not found, and not merged.
            if let Some(hash) = hash {
                self.by_hash.entry(hash).or_insert(block);
            }
            own.push(block);
        }
        Some((u32::try_from(found.len()).unwrap() * self.block_tokens, own))
    }

    fn release(&mut self, own: &[usize]) {
        for block in own.iter().rev() {
            self.blocks[*block].uses -= 1;
            if self.blocks[*block].uses == 0 {
                self.free.push_back(*block);
            }
        }
    }
}

/// A prompt that goes on, branches off or begins anew: a path in a tree, of segments of whole blocks or of any length.
fn prompt_of(random: &mut fastrand::Rng, unit: u32) -> Vec<Segment> {
    let mut id = random.u64(1..=6);
    let depth = random.usize(1..=5);
    let segment = |id: u64| Segment { id, tokens: unit * (3 + u32::try_from(mix(id) % 37).unwrap()) };
    let mut prompt = vec![segment(id)];
    for _ in 1..depth {
        id = id * 8 + random.u64(0..3);
        prompt.push(segment(id));
    }
    prompt
}

fn mix(id: u64) -> u64 {
    id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

#[test]
fn one_after_the_other_each_finds_what_it_finds_in_a_plain_cache() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let capacity = u64::from(random.u32(200..2_000)) * 16;
        let (mut cache, mut plain) = (KvCache::new(capacity, 0, 16), Plain::new(capacity, 16));
        let mut hits = 0;
        for number in 0..400 {
            let mut prompt = prompt_of(&mut random, 16);
            // A prompt that is held to its end is another matter: its last block is computed again, and held twice there.
            prompt.push(Segment { id: 1_000_000 + number, tokens: random.u32(1..40) * 16 });
            let (found, own) = plain.admit(&prompt).unwrap();
            plain.release(&own);
            let held = serve(&mut cache, &prompt);
            assert_eq!(held.device, found, "seed {seed}, request {number}: {prompt:?}");
            hits += found;
        }
        assert!(hits > 0, "seed {seed}");
    }
}

#[test]
fn side_by_side_and_of_any_length_the_hit_rates_are_alike() {
    for seed in 0..8 {
        let mut random = fastrand::Rng::with_seed(1000 + seed);
        // Room for a few requests at once, of a few hundred tokens each, out of a tree of some 200,000.
        let capacity = u64::from(random.u32(1_500..5_000)) * 16;
        let (mut cache, mut plain) = (KvCache::new(capacity, 0, 16), Plain::new(capacity, 16));
        let mut running: VecDeque<(Path, Vec<usize>)> = VecDeque::new();
        let (mut asked, mut found, mut held) = (0_u64, 0_u64, 0_u64);
        for _ in 0..2_000 {
            let prompt = prompt_of(&mut random, 15);
            let tokens: u32 = prompt.iter().map(|segment| segment.tokens).sum();
            let (plain_found, own) = plain.admit(&prompt).expect("room for a few");
            let here = cache.held(&prompt);
            let path = cache.acquire(&prompt);
            assert!(cache.reserve(u64::from(tokens - here.device)));
            cache.fill(&path, &prompt, here.device, tokens);
            asked += u64::from(tokens);
            found += u64::from(plain_found);
            held += u64::from(here.device);
            running.push_back((path, own));
            if running.len() > random.usize(1..8) {
                let (mut path, own) = running.swap_remove_back(random.usize(..running.len())).unwrap();
                cache.release(&mut path);
                plain.release(&own);
            }
        }
        let [found, held] = [found, held].map(|tokens| tokens as f64 / asked as f64);
        assert!((0.1..0.99).contains(&found), "seed {seed}: too easy, {found}");
        assert!((found - held).abs() < 0.02, "seed {seed}: {held} of prompts, {found} in a plain cache");
    }
}
