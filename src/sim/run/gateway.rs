//! The gateway in a run: the production pipeline, told what the edge would tell it.

mod exact;

use self::exact::Exact;
use super::super::engine::SimEngine;
use super::super::model::{EngineModel, Kind};
use super::super::workload::Segment;
use super::clients::mix;
use super::{Ablation, Beacons, Chooser, Live, Plan, Said};
use crate::clock::Now;
use crate::config::{Config, ReplicaConfig};
use crate::fleet::{Discovered, Engine, Registry};
use crate::id::{BlockHash, PoolId, ReplicaSlot};
use crate::learn::Rates;
use crate::load::report::{LoadReport, LoadSource};
use crate::load::ring::{Publisher, rings};
use crate::parse::Api;
use crate::parse::usage::Usage;
use crate::pipeline::{Answered, Decider, Placement, PoolTraits, Prompt, Shared, SharedConfig, Snapshot, Underway};
use crate::prefix::BLOCK_BYTES;
use crate::prefix::memory::Said as CacheSaid;
use crate::prefix::pending::Awaited;
use crate::prefix::slots::{Head, PIECE_BYTES};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// What all replicas serve, whatever they compute it with.
const MODEL: &str = "m";
/// Prompt bytes of a token: what the gateway takes for the truth before it learns, and is the truth here.
const BYTES_PER_TOKEN: usize = 4;
/// Tokens of a block of the fingerprint.
#[expect(clippy::cast_possible_truncation, reason = "64")]
const BLOCK_TOKENS: u32 = (BLOCK_BYTES / BYTES_PER_TOKEN) as u32;
/// And of a piece of its head.
#[expect(clippy::cast_possible_truncation, reason = "four")]
const PIECE_TOKENS: u32 = (PIECE_BYTES / BYTES_PER_TOKEN) as u32;
/// Memory of the prefix index for each block that the fleet can hold, bytes, with room to spare.
const INDEX_BYTES_PER_BLOCK: u64 = 128;
const INDEX_BYTES_MIN: u64 = 8 << 20;
/// Reports that wait for a decision.
const REPORTS_MAX: usize = 4096;

/// A request that the gateway has placed.
#[derive(Debug)]
pub(super) struct Placed {
    placement: Placement,
    underway: Underway,
    sent_at: Now,
    tokens_ahead: u64,
    first_at: Option<Now>,
}

/// Whether the gateway holds a request back for a prefix that is being computed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held {
    No,
    Until(Now),
}

/// What the gateway has decided.
#[derive(Debug)]
pub(super) enum Placing {
    /// It goes there, perhaps not at once.
    Placed { slot: ReplicaSlot, placed: Box<Placed>, held: Held },
    /// It is not placed yet.
    Waits(Box<Placement>),
    /// It is refused.
    Refused,
}

/// The production gateway.
pub(super) struct Gateway {
    shared: Arc<Shared>,
    snapshot: Snapshot,
    decider: Decider,
    publisher: Publisher,
    chain: Vec<BlockHash>,
    held: Vec<(u32, Awaited)>,
    /// Of the requests that have no first token yet, what is known exactly; only kept when all is.
    exact: Option<Exact>,
    /// Of each engine's cache: tokens to a block, and blocks.
    blocks: Vec<Option<(u32, u32)>>,
    /// How reports come.
    beacons: Beacons,
    /// Reports since the decider was last made to hear them.
    unheard: usize,
    ablation: Ablation,
}

impl Gateway {
    /// The gateway of `plan`, cold.
    pub(super) fn new(plan: &Plan<'_>) -> Self {
        let replicas = plan.engines.iter().enumerate().filter_map(|(number, engine)| {
            let url = format!("http://10.{}.{}.{}:8000", number >> 16 & 255, number >> 8 & 255, number & 255);
            let known = |tokens: u64| Some(tokens).filter(|_| engine.is_configured);
            Some(ReplicaConfig {
                models: vec![MODEL.to_owned()],
                kv_tokens: known(engine.kv_tokens),
                host_kv_tokens: known(engine.host_tokens).filter(|tokens| *tokens > 0),
                ..ReplicaConfig::new(format!("r{number}"), url.parse().ok()?)
            })
        });
        let mut config = Config { replicas: replicas.collect(), warm_up: None, ..Config::default() };
        if let Chooser::Policy(policy) = &plan.chooser {
            config.policy = policy.clone();
        }
        let slots = plan.engines.len();
        let kv_tokens: u64 = plan.engines.iter().map(|engine| engine.kv_tokens + engine.host_tokens).sum();
        let index_bytes = (kv_tokens / u64::from(BLOCK_TOKENS) * INDEX_BYTES_PER_BLOCK).max(INDEX_BYTES_MIN);
        let prior = Rates::prior(&config.policy);
        let sizes = SharedConfig {
            slots_max: slots,
            index_bytes: usize::try_from(index_bytes).unwrap_or(usize::MAX),
            hash_key: [7; 32],
            prior,
        };
        #[expect(clippy::expect_used, reason = "without memory there is nothing to simulate")]
        let shared = Shared::new(&sizes).expect("memory for the index");
        // They join first, and are asked then.
        let mut registry = Registry::new(slots);
        let mut join = |known: &HashMap<_, _>| registry.rebuild(&config.replicas, &[], known, |_| true);
        #[expect(clippy::expect_used, reason = "the fleet was made to fit")]
        let (_, change) = join(&HashMap::new()).expect("a small fleet");
        #[expect(clippy::expect_used, reason = "the fleet was made to fit")]
        let (fleet, _) = join(&said(&plan.engines)).expect("a small fleet");
        let mut decider = Decider::new(&config, slots, 0, 1, plan.seed);
        let (mut publishers, inboxes) = rings(1, 1, REPORTS_MAX);
        inboxes.into_iter().for_each(|inbox| decider.attach(inbox));
        let snapshot = Snapshot::new(config, fleet, &PoolTraits::default());
        shared.apply(&change, &snapshot, Now(0));
        // Engines with blocks say on their metrics page how large these are.
        for (number, engine) in plan.engines.iter().enumerate().filter(|(_, engine)| engine.kind == Kind::Blocks) {
            let said = CacheSaid { block_tokens: Some(engine.block_tokens), ..CacheSaid::default() };
            if let Some(slot) = ReplicaSlot::from_index(number) {
                shared.hear_cache(slot, said, Now(0));
            }
        }
        Self {
            shared: Arc::new(shared),
            snapshot,
            decider,
            publisher: publishers.remove(0),
            chain: Vec::new(),
            held: Vec::new(),
            exact: (plan.ablation == Ablation::Precise).then(Exact::default),
            blocks: plan.engines.iter().map(blocks).collect(),
            beacons: plan.beacons,
            unheard: 0,
            ablation: plan.ablation,
        }
    }

    /// Places a request, or has it wait.
    pub(super) fn place(&mut self, request: u32, live: &Live, engines: &[SimEngine], now: Now) -> Placing {
        let Self { chain, shared, snapshot, .. } = self;
        chain.clear();
        fingerprint(&live.prompt, 0, chain);
        let first = chain.first().map_or(live.asked.key, |block| block.0);
        if self.ablation == Ablation::IndexOff {
            chain.clear();
        }
        let prompt = Prompt {
            api: Api::ChatCompletions,
            pool: PoolId(0),
            chain,
            head: head(&live.prompt),
            bytes: live.prompt_tokens as usize * BYTES_PER_TOKEN,
            affinity_key: live.asked.session.unwrap_or(first),
            output_tokens_max: None,
        };
        if let Some(exact) = &self.exact {
            exact.tell(&live.prompt, engines, self.decider.tell_depths());
        }
        match self.decider.decide_prompt(shared, snapshot, prompt, now) {
            Ok(placement) => self.decided(request, placement, live, now),
            Err(_refused) => Placing::Refused,
        }
    }

    /// A request that waits looks again.
    pub(super) fn look_again(
        &mut self,
        request: u32,
        mut placement: Placement,
        live: &Live,
        engines: &[SimEngine],
        now: Now,
    ) -> Placing {
        if let Some(exact) = &self.exact {
            exact.tell(&live.prompt, engines, self.decider.tell_depths());
        }
        match self.decider.look_again(&self.shared, &self.snapshot, &mut placement, now) {
            Ok(()) => self.decided(request, placement, live, now),
            Err(_refused) => self.give_up(placement),
        }
    }

    /// A request has waited for too long.
    pub(super) fn give_up(&mut self, placement: Placement) -> Placing {
        self.decider.recycle(placement);
        Placing::Refused
    }

    /// How long a request waits at most.
    pub(super) const fn wait_max(&self) -> Duration {
        self.snapshot.config.timeouts.wait
    }

    fn decided(&mut self, request: u32, placement: Placement, live: &Live, now: Now) -> Placing {
        if placement.hold().is_some() {
            return Placing::Waits(Box::new(placement));
        }
        let slot = placement.decision.chosen.slot;
        if let Some(exact) = &mut self.exact {
            exact.sent(slot, live);
        }
        let mut underway = Underway::begin(&self.shared, &self.snapshot, &placement, now);
        let awaited = underway.take_awaited();
        let placed = Placed { placement, underway, sent_at: now, tokens_ahead: 0, first_at: None };
        let held = match awaited {
            Some(awaited) => {
                let until = awaited.until;
                self.held.push((request, awaited));
                Held::Until(until)
            }
            None => Held::No,
        };
        Placing::Placed { slot, placed: Box::new(placed), held }
    }

    /// The request has been held for long enough; itself, unless it was let go before.
    pub(super) fn let_go(&mut self, request: u32) -> Option<u32> {
        let place = self.held.iter().position(|(held, _)| *held == request)?;
        Some(self.held.remove(place).0)
    }

    /// Those whose prefix has been computed.
    pub(super) fn released(&mut self, _now: Now) -> Vec<u32> {
        let mut released = Vec::new();
        self.held.retain(|(request, awaited)| {
            let is_over = awaited.ticket.is_over();
            if is_over {
                released.push(*request);
            }
            !is_over
        });
        released
    }

    /// The engine holds the request's prompt, or never will.
    pub(super) fn prefilled(&mut self, live: &Live) {
        if let Some(exact) = &mut self.exact {
            exact.prefilled(live);
        }
    }

    /// A step of an engine was seen to end at `at`, as its tokens came; it took `step_s`, and so did others before it:
    /// `times` in all.
    pub(super) fn see_steps(&self, engine: usize, at: Now, step_s: f64, times: u32) {
        if let Some(slot) = ReplicaSlot::from_index(engine) {
            self.shared.backlogs.step_ended(slot, at);
            #[expect(clippy::cast_possible_truncation, reason = "seconds of a step")]
            let told = self.shared.backlogs.steps_seen(slot, step_s as f32, times, at);
            if let Some(step) = told.filter(|_| self.ablation != Ablation::LearningOff) {
                self.shared.rates.learn_step(slot, &step);
            }
        }
    }

    /// The request is forwarded.
    pub(super) fn sent(&self, placed: &mut Placed, slot: ReplicaSlot, now: Now) {
        placed.sent_at = now;
        placed.underway.sent(&self.shared, &placed.placement, now);
        placed.tokens_ahead = self.shared.load.prefill_tokens(slot);
    }

    /// Its first token has come. Returns the predicted time to it, its predicted p90 if
    /// any, and the real time.
    pub(super) fn first(&self, placed: &mut Placed, now: Now) -> (f64, Option<f64>, f64) {
        placed.underway.prefilled(now);
        placed.first_at = Some(now);
        let predicted = &placed.placement.decision.chosen.predicted;
        let real_s = now.seconds_since(placed.placement.placed_at());
        (f64::from(predicted.ttft_p50_s), Some(f64::from(predicted.ttft_p90_s)), real_s)
    }

    /// It is over.
    pub(super) fn finished(&mut self, mut placed: Placed, live: &Live, is_answered: bool, now: Now) {
        let is_followed = placed.underway.is_followed();
        placed.underway.ended(now);
        let Placed { mut placement, underway, sent_at, tokens_ahead, first_at } = placed;
        drop(underway);
        if !is_answered {
            self.shared.retract(&placement);
            return self.decider.recycle(placement);
        }
        if self.ablation != Ablation::IndexOff {
            let (chain, prompt_blocks) = (&mut self.chain, live.prompt_tokens / BLOCK_TOKENS);
            let id = if live.asked.output == 0 { mix(live.asked.key) } else { live.asked.output };
            let said = Segment { id, tokens: live.asked.output_tokens };
            chain.clear();
            fingerprint(live.prompt.iter().chain([&said]), prompt_blocks, chain);
            self.shared.record_more(&mut placement, chain);
        }
        self.shared.confirm(&placement);
        let answer = Answered {
            tokens_ahead,
            held_s: sent_at.seconds_since(placement.placed_at()),
            first_token_s: first_at.map(|first| first.seconds_since(sent_at)),
            total_s: now.seconds_since(sent_at),
            usage: Usage {
                prompt_tokens: Some(u64::from(live.prompt_tokens)),
                cached_tokens: live.first.map(|(_, cached)| u64::from(cached)),
                output_tokens: Some(u64::from(live.asked.output_tokens)),
            },
            is_followed,
        };
        if self.ablation != Ablation::LearningOff {
            self.shared.learn(&self.snapshot, &placement, &answer, true);
        }
        self.decider.recycle(placement);
    }

    /// A replica's report comes in.
    pub(super) fn hear(&mut self, engine: u32, said: Said, now: Now) {
        let Some(slot) = ReplicaSlot::from_index(engine as usize) else { return };
        #[expect(clippy::cast_precision_loss, reason = "a share in millionths")]
        let kv_usage = said.kv_usage_ppm as f32 / 1e6;
        let (block_tokens, blocks) = self.blocks.get(slot.index()).copied().flatten().unzip();
        let (evicted, usage) = (Some(said.blocks_evicted), Some(kv_usage));
        self.shared.hear_cache(slot, CacheSaid { evicted, usage, block_tokens, blocks }, now);
        let made = now.minus(super::seconds(self.beacons.delay_s + self.beacons.period_s));
        let own = self.shared.load.most_since(slot, made, now);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a period in microseconds")]
        let period_us = (self.beacons.period_s * 1e6) as u32;
        self.publisher.publish(LoadReport {
            slot,
            source: LoadSource::Beacon,
            received: now,
            period_us,
            running: said.running,
            waiting: said.waiting,
            own_in_flight: own.requests,
            prefill_tokens: Some(said.prefill_tokens),
            own_prefill_tokens: own.prefill_tokens,
            kv_usage: Some(kv_usage),
        });
        self.unheard += 1;
        if self.unheard >= REPORTS_MAX / 4 {
            self.unheard = 0;
            self.decider.hear(&self.shared, now);
        }
    }
}

/// What engines say of themselves when they are asked, by the replica's name: llama.cpp that it is, its slots and context.
fn said(engines: &[EngineModel]) -> HashMap<String, Discovered> {
    let mut said = HashMap::new();
    for (number, engine) in engines.iter().enumerate().filter(|(_, engine)| engine.kind == Kind::Slots) {
        let discovered = Discovered {
            models: vec![MODEL.to_owned()],
            engine: Engine::LlamaCpp,
            slots: u32::try_from(engine.sequences_max).ok(),
            kv_tokens: Some(engine.kv_tokens),
            host_kv_tokens: None,
        };
        said.insert(format!("r{number}"), discovered);
    }
    said
}

/// Of an engine's cache: tokens to a block, and blocks, if it has such.
fn blocks(engine: &EngineModel) -> Option<(u32, u32)> {
    let blocks = engine.kv_tokens / u64::from(engine.block_tokens.max(1));
    (engine.kind == Kind::Blocks).then(|| (engine.block_tokens, u32::try_from(blocks).unwrap_or(u32::MAX)))
}

/// How a prompt begins.
#[expect(clippy::cast_possible_truncation, reason = "half of a hash tells one of a few heads apart")]
fn head(prompt: &[Segment]) -> Head {
    let mut end = 0;
    let ends = prompt.iter().map(|segment| {
        end += segment.tokens;
        (segment.id, end)
    });
    let mut ends = ends.peekable();
    let mut piece = 0;
    let pieces = std::iter::from_fn(|| {
        piece += 1;
        while ends.next_if(|(_, end)| *end < piece * PIECE_TOKENS).is_some() {}
        ends.peek().map(|(id, _)| mix(id ^ mix(u64::from(piece))) as u32)
    });
    Head::of_pieces(pieces)
}

/// The fingerprint of a prompt from `block` on: a hash for each whole block, which stands for all before it, as segments do.
fn fingerprint<'s>(prompt: impl IntoIterator<Item = &'s Segment>, mut block: u32, chain: &mut Vec<BlockHash>) {
    let mut end = 0_u32;
    for segment in prompt {
        end += segment.tokens;
        while (block + 1) * BLOCK_TOKENS <= end {
            chain.push(BlockHash(mix(segment.id ^ mix(u64::from(block) + 1))));
            block += 1;
        }
    }
}
