//! What all shards share ([`Shared`]: columns with one cell a replica, the prefix index), and what they read but never
//! change ([`Snapshot`]: one configuration with its fleet and policy, swapped whole at a reload).

use super::traits::{PoolTraits, PromptTraits};
use super::{Placement, slotted};
use crate::admission::WaitingRoom;
use crate::clock::Now;
use crate::config::Config;
use crate::fleet::{Engine, Fleet, Membership, Replica};
use crate::health::{DrainCause, HealthColumns};
use crate::id::{BlockHash, ReplicaSlot};
use crate::learn::{LearnedRates, Member, Rates, Sample, Timing};
use crate::load::LoadColumns;
use crate::load::backlog::Backlogs;
use crate::parse::usage::Usage;
use crate::policy::{self, Policy};
use crate::prefix::BLOCK_BYTES;
use crate::prefix::hash::PrefixHasher;
use crate::prefix::index::PrefixIndex;
use crate::prefix::memory::{Assumed, Evidence, Memories, Said, Tiers};
use crate::prefix::pending::PendingPrefills;
use crate::prefix::reuse::SampledUses;
use crate::prefix::slots::{Found, SlotBooks};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Sizes that are fixed for the life of the process.
#[derive(Clone, Copy, Debug)]
pub struct SharedConfig {
    /// Cells in every column.
    pub slots_max: usize,
    /// Memory of the prefix index, bytes.
    pub index_bytes: usize,
    /// Key of the prefix hash. Random in production, so that no tenant can craft collisions; fixed in tests.
    pub hash_key: [u8; 32],
    /// Rates before anything is learned.
    pub prior: Rates,
}

/// State that all shards read and write without locks.
#[derive(Debug)]
pub struct Shared {
    /// Which replica holds which prefix.
    pub index: PrefixIndex,
    /// The keyed hash.
    pub hasher: PrefixHasher,
    /// When blocks were used last.
    pub uses: SampledUses,
    /// Prefills under way, to wait for.
    pub pending: Arc<PendingPrefills>,
    /// Who waits for a replica.
    pub room: Arc<WaitingRoom>,
    /// What replicas that keep prompts in slots hold.
    pub slots: Arc<SlotBooks>,
    /// What is in flight where.
    pub load: Arc<LoadColumns>,
    /// What prefill is ahead where.
    pub backlogs: Arc<Backlogs>,
    /// Who is ejected.
    pub health: HealthColumns,
    /// What a token costs where.
    pub rates: LearnedRates,
    retractions: Box<[AtomicU32]>,
    surprises: Box<[AtomicU32]>,
    /// How much each replica remembers.
    pub memory: Memories,
}

/// What an answer took and told: all that is to be learned from it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answered {
    /// Uncached prompt tokens ahead of its first output token when it was sent: its own and those already waiting there.
    pub tokens_ahead: u64,
    /// Seconds between its placement and its being forwarded: it waited for a prefix under way.
    pub held_s: f64,
    /// Seconds from its being forwarded to its first token, for streams.
    pub first_token_s: Option<f64>,
    /// Seconds to its end.
    pub total_s: f64,
    /// What the engine counted.
    pub usage: Usage,
    /// Others came to its replica between it and its first token.
    pub is_followed: bool,
}

/// What was learned from an answer that others should know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lesson {
    /// The replica holds nothing, several times in a row, of what it should: all it held is forgotten.
    pub is_cache_lost: bool,
}

/// Tokens a replica should hold before it is a surprise that it holds none.
const SURPRISE_TOKENS_MIN: f32 = 256.0;
/// Blocks last used so much of the cache's size ago may be gone for want of room.
const EVICTABLE: f32 = 0.5;
/// Surprises in a row that mean an empty cache.
const SURPRISES_MAX: u32 = 3;

impl Shared {
    /// Allocates everything.
    ///
    /// # Errors
    /// When the index's memory cannot be had.
    pub fn new(config: &SharedConfig) -> std::io::Result<Self> {
        let slots = config.slots_max;
        let index = PrefixIndex::new(config.index_bytes, slots)?;
        Ok(Self {
            uses: SampledUses::new(index.stats().entries_max),
            index,
            hasher: PrefixHasher::from_key(config.hash_key),
            pending: Arc::new(PendingPrefills::new(slots)),
            room: Arc::default(),
            slots: Arc::new(SlotBooks::new(slots)),
            load: Arc::new(LoadColumns::new(slots)),
            backlogs: Arc::new(Backlogs::new(slots)),
            health: HealthColumns::new(slots),
            rates: LearnedRates::new(slots, config.prior),
            retractions: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            surprises: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            memory: Memories::new(slots),
        })
    }

    /// Forgets what was known of the slots that changed hands, and takes up what `snapshot` says of all others. Load
    /// reports received before `now` are not believed of those slots: by then, nobody may look up the replicas that left
    /// under them any more.
    pub fn apply(&self, change: &Membership, snapshot: &Snapshot, now: Now) {
        for &slot in change.joined.iter().chain(&change.left) {
            self.index.forget(slot);
            self.load.take_up(slot, now);
            self.health.reset(slot);
            self.rates.reset(slot);
            self.memory.reset(slot);
            self.slots.reset(slot);
            self.backlogs.reset(slot);
        }
        for replica in &snapshot.fleet.replicas {
            self.health.set_drain(replica.slot, DrainCause::File, replica.config.drain);
        }
        let likes = models_in_common(&snapshot.fleet);
        let members: Vec<_> = snapshot.fleet.replicas.iter().map(|replica| member(replica, &likes)).collect();
        self.rates.assign(&members);
        for replica in &snapshot.fleet.replicas {
            self.hold(replica.slot, self.memory.assume(replica.slot, snapshot.assumed(replica.slot)));
            self.slots.assume(replica.slot, slotted::slots_of(snapshot, replica.slot));
        }
    }

    /// Tells the index how much `slot` holds, if that is news.
    fn hold(&self, slot: ReplicaSlot, news: Option<Tiers>) {
        if let Some(Tiers { device, total }) = news {
            self.index.set_tiers(slot, device, total);
        }
    }

    /// Takes up what the engine at `slot` says of its cache at `now`.
    pub fn hear_cache(&self, slot: ReplicaSlot, said: Said, now: Now) {
        if let Some(tokens) = said.used_tokens() {
            self.backlogs.used(slot, tokens, now);
        }
        self.hold(slot, self.memory.hear(slot, said, || self.index.resident_blocks(slot)));
    }

    /// The cache of the engine at `slot` is empty: what it held is forgotten.
    pub fn emptied(&self, slot: ReplicaSlot) {
        self.forget(slot);
        self.memory.emptied(slot);
    }

    /// What the engine at `slot` held is not to be counted upon: it is down.
    pub fn forget(&self, slot: ReplicaSlot) {
        self.index.forget(slot);
        self.slots.forget(slot);
    }

    /// Puts the prompt on record where it was placed.
    pub(super) fn record(&self, snapshot: &Snapshot, placement: &mut Placement, now: Now) {
        let slot = placement.decision.chosen.slot;
        placement.retractions_before = self.retractions(slot);
        self.health.placed(slot, now);
        self.index.set_now(now);
        if placement.attempts == 1
            && let Some(traits) = snapshot.traits.get(placement.decision.pool)
        {
            self.uses.note(&placement.chain, placement.decision.at, now, &traits.reuse);
        }
        placement.trail = self.index.record_with_trail(slot, &placement.chain, placement.held_blocks);
        placement.clock = self.index.clock(slot);
        placement.uses = self.index.uses(slot);
    }

    /// The replica computed the prompt, and generated what the placement was told since: that is put on record, too.
    ///
    /// What another request's failure took back meanwhile is put on record again; and all of it where something else was
    /// used in the meantime, for engines give a prompt's blocks free when its answer is over, the end first.
    pub fn confirm(&self, placement: &Placement) {
        let slot = placement.decision.chosen.slot;
        let is_last = self.index.uses(slot) == placement.uses;
        if self.retractions(slot) != placement.retractions_before || !is_last {
            self.index.record_over(slot, &placement.chain, placement.clock);
        } else if let Some(said @ [_, ..]) = placement.chain.get(placement.prompt_blocks..) {
            self.index.extend(slot, said, placement.prompt_blocks);
        }
        if placement.chain.len() > placement.prompt_blocks {
            let Placement { decision, chain, prompt_blocks, .. } = placement;
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let more = chain.len() as f32 / (*prompt_blocks).max(1) as f32;
            self.slots.extend(slot, decision.id, chain, decision.prompt_tokens * more);
        }
    }

    /// The replica has generated blocks that follow the prompt: for those who know them by their hashes.
    pub fn record_more(&self, placement: &mut Placement, more: &[BlockHash]) {
        self.index.extend(placement.decision.chosen.slot, more, placement.chain.len());
        placement.chain.extend_from_slice(more);
    }

    /// The request failed where it was placed: what it put on record there is taken back.
    pub fn retract(&self, placement: &Placement) {
        let (slot, held) = (placement.decision.chosen.slot, placement.held_blocks);
        if held < placement.chain.len() {
            self.index.retract(slot, &placement.chain, held);
            if let Some(cell) = self.retractions.get(slot.index()) {
                cell.fetch_add(1, Relaxed);
            }
        }
    }

    fn retractions(&self, slot: ReplicaSlot) -> u32 {
        self.retractions.get(slot.index()).map_or(0, |cell| cell.load(Relaxed))
    }

    /// Learns all that a whole answer teaches. `leaves_cache`: it was a request for which engines compute a prompt.
    pub fn learn(&self, snapshot: &Snapshot, placement: &Placement, answer: &Answered, leaves_cache: bool) -> Lesson {
        self.rates.learn_service(placement.decision.chosen.slot, answer.total_s);
        if let Some(first_s) = answer.first_token_s {
            self.learn_time(placement, answer.tokens_ahead, 1, first_s);
        }
        let mut lesson = Lesson::default();
        let Usage { prompt_tokens, cached_tokens, output_tokens } = answer.usage;
        if !leaves_cache {
            return lesson;
        }
        if let Some(first_s) = answer.first_token_s {
            let timing = Timing {
                first_token_s: answer.held_s + first_s,
                total_s: answer.held_s + answer.total_s,
                output_tokens,
                prompt: prompt_tokens.zip(cached_tokens),
                is_followed: answer.is_followed,
                ended_at: placement
                    .placed_at
                    .plus(Duration::from_secs_f64((answer.held_s + answer.total_s).clamp(0.0, 1e6))),
            };
            let chosen = &placement.decision.chosen;
            self.rates.learn_times(chosen.slot, &placement.features, &chosen.predicted, &timing);
        }
        if let Some(tokens) = output_tokens {
            if let Some(traits) = snapshot.traits.get(placement.decision.pool) {
                traits.learn_answer(tokens);
            }
            self.learn_time(placement, answer.tokens_ahead, tokens.max(1), answer.total_s);
        }
        if let Some((prompt_tokens, cached_tokens)) = prompt_tokens.zip(cached_tokens) {
            self.slots
                .judge(placement.decision.chosen.slot, &found(placement, prompt_tokens, cached_tokens, output_tokens));
        }
        if let Some(tokens) = prompt_tokens {
            self.learn_tokens(snapshot, placement, tokens);
            lesson.is_cache_lost = cached_tokens.is_some_and(|cached| self.learn_cached(placement, cached, tokens));
        }
        lesson
    }

    /// Learns from how long an answer took; `tokens_ahead` as in [`Sample`].
    fn learn_time(&self, placement: &Placement, tokens_ahead: u64, output_tokens: u64, seconds: f64) {
        #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^52")]
        let (tokens_ahead, output_tokens) = (tokens_ahead as f64, output_tokens as f64);
        self.rates.learn(placement.decision.chosen.slot, Sample { tokens_ahead, output_tokens, seconds });
    }

    /// Learns from how much of a prompt the engine says it reused. A replica that holds nothing, several times in a row,
    /// of what it should hold much of has lost its cache (it restarted, or somebody emptied it): all is forgotten.
    /// Returns true when that is so.
    ///
    /// All else says how much the replica holds.
    #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^24, or good to 7 digits")]
    fn learn_cached(&self, placement: &Placement, cached_tokens: u64, prompt_tokens: u64) -> bool {
        let chosen = &placement.decision.chosen;
        let Some(surprises) = self.surprises.get(chosen.slot.index()) else { return false };
        let is_expected = chosen.warm_tokens >= SURPRISE_TOKENS_MIN;
        let is_surprise = is_expected && cached_tokens == 0 && !self.may_be_evicted(placement);
        let evidence = Evidence {
            trail: &placement.trail,
            prompt_bytes: placement.decision.prompt_bytes as f32,
            prompt_tokens: prompt_tokens as f32,
            cached_tokens: cached_tokens as f32,
            predicted_tokens: chosen.warm_tokens,
            is_surprise,
        };
        self.hold(chosen.slot, self.memory.learn(chosen.slot, &evidence));
        if is_expected && cached_tokens > 0 {
            surprises.store(0, Relaxed);
        }
        if !is_surprise {
            return false;
        }
        let is_lost = surprises.fetch_add(1, Relaxed) + 1 >= SURPRISES_MAX;
        if is_lost {
            surprises.store(0, Relaxed);
            self.emptied(chosen.slot);
        }
        is_lost
    }

    /// The replica has used so much since it last used the prompt's first blocks that it may have evicted them: that they
    /// are gone is no surprise.
    fn may_be_evicted(&self, placement: &Placement) -> bool {
        let blocks = self.memory.blocks(placement.decision.chosen.slot);
        #[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
        placement.trail.runs().next().is_some_and(|run| run.since as f32 > blocks * EVICTABLE)
    }

    /// Learns from the engine's own count of prompt tokens.
    fn learn_tokens(&self, snapshot: &Snapshot, placement: &Placement, prompt_tokens: u64) {
        let pool = placement.decision.pool;
        if let Some(PromptTraits { ratio, .. }) = snapshot.traits.get(pool) {
            ratio.learn(u64::from(placement.decision.prompt_bytes), prompt_tokens);
            let slot = placement.decision.chosen.slot;
            self.hold(slot, self.memory.assume(slot, snapshot.assumed_at(slot, ratio.bytes_per_token())));
        }
    }
}

/// What an answer found, for its slot's book.
#[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^24, or good to 7 digits")]
fn found(placement: &Placement, prompt_tokens: u64, cached_tokens: u64, output_tokens: Option<u64>) -> Found {
    Found {
        id: placement.decision.id,
        prompt_bytes: placement.decision.prompt_bytes,
        prompt_tokens: prompt_tokens as f32,
        cached_tokens: cached_tokens as f32,
        indexed_tokens: placement.indexed_tokens,
        output_tokens: output_tokens.unwrap_or(0) as f32,
    }
}

/// How many replicas say they serve each model.
fn models_in_common(fleet: &Fleet) -> HashMap<&str, usize> {
    let mut likes = HashMap::new();
    for model in fleet.replicas.iter().filter_map(|replica| replica.models.as_ref()).flatten() {
        *likes.entry(model.as_str()).or_default() += 1;
    }
    likes
}

/// A replica is priced like those that serve the model that it has in common with most: of a model and its adapters,
/// the model. Those that have not said what they serve are priced like each other.
fn member<'m>(replica: &'m Replica, likes: &HashMap<&str, usize>) -> Member<'m> {
    let models = replica.models.iter().flatten().map(String::as_str);
    let common = models.max_by_key(|model| (likes.get(model), std::cmp::Reverse(*model)));
    Member {
        slot: replica.slot,
        pool: common.unwrap_or_default(),
        prefill_tokens_per_s: replica.config.prefill_tokens_per_s,
    }
}

/// Seconds to restore a token where nothing is configured: 26 ms a GB (measured on PCIe 5), times 131 kB a token (bfloat16
/// keys and values of 32 layers with 8 heads of 128, as a model of 8 billion parameters has).
const RESTORE_S_PER_TOKEN: f32 = 26e-3 * 131_072e-9;

/// Limits of one replica in the units that prices use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Requests it runs at once; infinite when unknown.
    pub slots: f32,
    /// Prefix blocks its cache holds.
    pub kv_blocks: f32,
    /// Tokens its cache holds.
    pub kv_tokens: f32,
    /// Somebody has said so.
    pub is_kv_said: bool,
    /// Tokens to a block of its cache, where configured.
    pub kv_block_tokens: Option<u32>,
    /// Seconds to restore a token from host memory.
    pub restore_s_per_token: f32,
    /// A prefix in use by one request is of no use to another.
    pub is_slotted: bool,
}

/// Snapshots made so far.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// One configuration, resolved and at work. Never changes; a reload makes a new one.
#[derive(Debug)]
pub struct Snapshot {
    /// What was configured.
    pub config: Config,
    /// Replicas and pools.
    pub fleet: Fleet,
    /// The policy.
    pub policy: Box<dyn Policy>,
    /// What was learned of prompts, by pool.
    pub traits: PoolTraits,
    limits: Vec<Limits>,
    is_slotted: bool,
    generation: u64,
}

impl Snapshot {
    /// Puts `config` and `fleet` to work; `traits` are those of the snapshot before, or empty.
    #[must_use]
    pub fn new(config: Config, fleet: Fleet, traits: &PoolTraits) -> Self {
        let traits = traits.rebuilt(&fleet);
        let policy = policy::build(&config.policy);
        let generation = GENERATION.fetch_add(1, Relaxed);
        let is_slotted = fleet.replicas.iter().any(|replica| replica.engine == Engine::LlamaCpp);
        let mut snapshot = Self { config, fleet, policy, traits, limits: Vec::new(), is_slotted, generation };
        let last = snapshot.fleet.replicas.iter().map(|replica| replica.slot.index() + 1).max().unwrap_or(0);
        snapshot.limits = (0..last).filter_map(ReplicaSlot::from_index).map(|slot| snapshot.limits_of(slot)).collect();
        snapshot
    }

    /// A number that no other snapshot of this process has: what was derived from one is known by it.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// True when any replica keeps prompts in slots.
    #[must_use]
    pub const fn is_slotted(&self) -> bool {
        self.is_slotted
    }

    /// Limits of `slot`.
    #[inline]
    #[must_use]
    pub fn limits(&self, slot: ReplicaSlot) -> Limits {
        self.limits.get(slot.index()).copied().unwrap_or(Limits {
            slots: f32::INFINITY,
            kv_blocks: 1.0,
            kv_tokens: f32::INFINITY,
            is_kv_said: false,
            kv_block_tokens: None,
            restore_s_per_token: RESTORE_S_PER_TOKEN,
            is_slotted: false,
        })
    }

    /// Tokens the KV cache of `slot` holds, configured, discovered or assumed.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn kv_tokens(&self, slot: ReplicaSlot) -> f64 {
        let known = self.fleet.replica(slot).and_then(|replica| replica.kv_tokens);
        known.unwrap_or(self.config.index.kv_tokens_default) as f64
    }

    /// What is configured, discovered or guessed of the cache of `slot`.
    fn assumed(&self, slot: ReplicaSlot) -> Assumed {
        let pool = self.fleet.pools.iter().find(|pool| pool.members.contains(&slot)).map(|pool| pool.id);
        let ratio = pool.and_then(|pool| self.traits.get(pool)).map_or(4.0, |traits| traits.ratio.bytes_per_token());
        self.assumed_at(slot, ratio)
    }

    /// The same, where a token takes so many bytes.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "estimates of 7 digits")]
    fn assumed_at(&self, slot: ReplicaSlot, bytes_per_token: f64) -> Assumed {
        let replica = self.fleet.replica(slot);
        let blocks = |tokens: f64| (tokens * bytes_per_token / BLOCK_BYTES as f64) as f32;
        let host_tokens = replica.and_then(|replica| replica.host_kv_tokens).unwrap_or(0);
        Assumed {
            device_blocks: blocks(self.kv_tokens(slot)).max(1.0),
            host_blocks: blocks(host_tokens as f64),
            is_said: replica.is_some_and(|replica| replica.kv_tokens.is_some()),
        }
    }

    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "estimates of 7 digits")]
    fn limits_of(&self, slot: ReplicaSlot) -> Limits {
        let replica = self.fleet.replica(slot);
        let slots = replica.and_then(|replica| replica.slots);
        Limits {
            slots: slots.map_or(f32::INFINITY, |n| n as f32),
            kv_blocks: self.assumed(slot).device_blocks,
            kv_tokens: self.kv_tokens(slot) as f32,
            is_kv_said: replica.is_some_and(|replica| replica.kv_tokens.is_some()),
            kv_block_tokens: replica.and_then(|replica| replica.config.kv_block_tokens),
            restore_s_per_token: replica
                .and_then(|replica| replica.config.restore_tokens_per_s)
                .map_or(RESTORE_S_PER_TOKEN, |rate| rate.recip() as f32),
            is_slotted: replica.is_some_and(|replica| replica.engine == Engine::LlamaCpp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Registry;

    const PRIOR: Rates = Rates { base_s: 0.0, prefill_s_per_token: 1e-4, decode_s_per_token: 0.01 };

    fn shared() -> Shared {
        Shared::new(&SharedConfig { slots_max: 4, index_bytes: 4 << 20, hash_key: [7; 32], prior: PRIOR }).unwrap()
    }

    fn snapshot(registry: &mut Registry, yaml: &str) -> (Membership, Snapshot) {
        let config = crate::config::parse(yaml).unwrap();
        let (fleet, change) = registry.rebuild(&config.replicas, &config.models, &HashMap::new(), |_| true).unwrap();
        (change, Snapshot::new(config, fleet, &PoolTraits::default()))
    }

    #[test]
    fn a_changed_rate_of_a_replica_that_stays_takes_effect() {
        let (shared, mut registry) = (shared(), Registry::new(4));
        let slot = ReplicaSlot(0);
        for (rate, wanted) in [(1000, 1e-3), (4000, 2.5e-4)] {
            let yaml = format!("replicas: [{{id: a, url: 'http://a:1', models: [m], prefill_tokens_per_s: {rate}}}]");
            let (change, snapshot) = snapshot(&mut registry, &yaml);
            shared.apply(&change, &snapshot, Now(0));
            assert!((f64::from(shared.rates.rates(slot).prefill_s_per_token) / wanted - 1.0).abs() < 1e-3, "{rate}");
        }
    }

    #[test]
    fn a_model_and_its_adapters_are_priced_as_one() {
        let mut registry = Registry::new(4);
        let yaml = "replicas:\n\
            - {id: a, url: 'http://a:1', models: [adapter, m]}\n\
            - {id: b, url: 'http://b:1', models: [m]}\n\
            - {id: c, url: 'http://c:1', models: [large]}\n\
            - {id: d, url: 'http://d:1'}\n";
        let (_, snapshot) = snapshot(&mut registry, yaml);
        let likes = models_in_common(&snapshot.fleet);
        let pools: Vec<_> = snapshot.fleet.replicas.iter().map(|replica| member(replica, &likes).pool).collect();
        assert_eq!(pools, ["m", "m", "large", ""]);
    }
}
