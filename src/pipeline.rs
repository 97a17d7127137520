//! The request path, in the order it runs. Read this first.
//!
//! ```text
//! parse → fingerprint → price → pick → (forward, stream: edge) → learn
//! ```
//!
//! [`Decider::decide`] is one synchronous call of a few microseconds: no I/O, no clock, no waiting for a lock, and in
//! steady state no allocation. Each step takes what the step before produced: a body becomes a [`Request`], that a
//! fingerprint, that a view of the pool's replicas with their warm depth, that a [`Placement`]. The edge forwards it
//! ([`Underway`] counts it while it is at its replica) and calls back: [`Decider::place_again`] to try elsewhere,
//! [`Placement::go_on`] with what the answer says, [`Shared::confirm`] or [`Shared::retract`] once the outcome is known,
//! and [`Shared::learn`] with what the answer taught.

mod candidates;
mod choice;
mod hold;
mod objective;
mod shared;
mod slotted;
mod traits;
mod transcript;
mod underway;
mod warming;

use candidates::{Candidates, Known};
pub use choice::{Choice, Decision, PASSTHROUGH, Reason};
pub use hold::{Asked, Hold};
pub use objective::{Bound, Wish};
pub use shared::{Answered, Lesson, Limits, Shared, SharedConfig, Snapshot};
pub use traits::{PoolTraits, PromptTraits};
use transcript::Transcript;
pub use underway::Underway;

use crate::admission::Ticket;
use crate::clock::Now;
use crate::config::Config;
use crate::fleet::{NoPool, Pool};
use crate::id::{BlockHash, DecisionId, PoolId, ReplicaSlot};
use crate::learn::Features;
use crate::load::columns::ReportColumns;
use crate::load::ring::{Bell, Inbox};
use crate::parse::{Api, ParseLimits, Parser, Request};
use crate::policy::{pick, slo};
use crate::prefix::BLOCK_BYTES;
use crate::prefix::index::{Trail, WarmDepths};
use crate::prefix::slots::Head;
use crate::reject::{BodyFault, Reject};
use std::ops::Range;
use std::sync::Arc;

/// Most attempts at one request, and so the most replicas it remembers to avoid.
pub const ATTEMPTS_MAX: usize = 10;
/// Chains kept for reuse by one shard.
const SPARE_CHAINS: usize = 1024;
/// A chain with room for more blocks than this is not kept (it came from a prompt of over 4 MiB).
const SPARE_CHAIN_BLOCKS: usize = 16 * 1024;

/// Blocks of an answer that are put on record, at most: 512 KiB of text.
const OUTPUT_BLOCKS_MAX: usize = 2048;

/// Reports that one decision takes up, at most: what the largest fleet sends in a millisecond. The rest rings the bell.
const HEARD_BY_A_DECISION: usize = 512;
/// Reports that one call of [`Decider::hear`] takes up, at most.
const HEARD_AT_ONCE: usize = 16 * 1024;

/// What headers say of a request, as far as placing it goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints<'h> {
    /// Conversation the request belongs to.
    pub session: Option<&'h str>,
    /// What it asks of its times, and how much it matters.
    pub wish: Wish,
}

/// A prompt that is fingerprinted already: what the simulator's requests are made of.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'p> {
    /// What it speaks.
    pub api: Api,
    /// Whose replicas may take it.
    pub pool: PoolId,
    /// Its fingerprint.
    pub chain: &'p [BlockHash],
    /// How it begins, where any replica keeps prompts in slots.
    pub head: Head,
    /// Its length.
    pub bytes: usize,
    /// Equal for requests that should stay together.
    pub affinity_key: u64,
    /// Most output tokens wanted.
    pub output_tokens_max: Option<u32>,
}

/// What keeps a request together with others, and what it asks.
#[derive(Clone, Copy, Debug)]
struct Key {
    affinity_key: u64,
    session: Option<u64>,
    head: Head,
    wish: Wish,
}

/// Where a request goes, and all that must be remembered until it ends.
#[derive(Debug)]
pub struct Placement {
    /// Where, and why.
    pub decision: Decision,
    /// The client wants server-sent events.
    pub stream: bool,
    /// Most output tokens the client wants.
    pub output_tokens_max: Option<u32>,
    /// Where the model's name stands in the body; empty when it has none.
    pub model_span: Range<u32>,
    /// The prompt's blocks, and behind them those of what the answer said.
    chain: Vec<BlockHash>,
    /// How many of these are the prompt's.
    prompt_blocks: usize,
    transcript: Transcript,
    tried: [ReplicaSlot; ATTEMPTS_MAX],
    attempts: usize,
    affinity_key: u64,
    wish: Wish,
    /// When it was placed where it is, and what was known of that.
    placed_at: Now,
    features: Features,
    /// Its conversation, where the request says which.
    session: Option<u64>,
    /// How the prompt begins, where any replica keeps prompts in slots.
    head: Head,
    /// It is to be held back, and was not placed.
    hold: Option<Hold>,
    /// Its place in line, as long as it has one.
    ticket: Option<Ticket>,
    /// Blocks the chosen replica held before.
    held_blocks: usize,
    /// Of these, the ones that count as warm there; and the tokens that the index holds warm.
    warm_blocks: usize,
    indexed_tokens: f32,
    retractions_before: u32,
    /// What the chosen replica had used of it before, and when.
    trail: Trail,
    /// The replica's clock in the index when it was placed, and how often it had been used.
    clock: u32,
    uses: u32,
}

impl Placement {
    fn new(decision: Decision, affinity_key: u64) -> Self {
        Self {
            decision,
            stream: false,
            output_tokens_max: None,
            model_span: 0..0,
            chain: Vec::new(),
            prompt_blocks: 0,
            transcript: Transcript::default(),
            tried: [ReplicaSlot(0); ATTEMPTS_MAX],
            attempts: 0,
            affinity_key,
            wish: Wish::default(),
            placed_at: decision.at,
            features: Features::default(),
            session: None,
            head: Head::default(),
            hold: None,
            ticket: None,
            held_blocks: 0,
            warm_blocks: 0,
            indexed_tokens: 0.0,
            retractions_before: 0,
            trail: Trail::default(),
            clock: 0,
            uses: 0,
        }
    }

    /// Attempts so far, this one among them.
    #[must_use]
    pub const fn attempts(&self) -> usize {
        self.attempts
    }

    /// When it was placed where it is.
    #[must_use]
    pub const fn placed_at(&self) -> Now {
        self.placed_at
    }

    /// It is not placed yet, and why. [`Decider::look_again`] places it.
    #[must_use]
    pub const fn hold(&self) -> Option<Hold> {
        self.hold
    }

    /// Resolves when it is called from its place in line; never, when it has none.
    pub async fn called(&self) {
        match &self.ticket {
            Some(ticket) => ticket.called().await,
            None => std::future::pending().await,
        }
    }

    /// True when what the answer says is to be told to [`Self::go_on`].
    #[must_use]
    pub const fn goes_on(&self) -> bool {
        self.transcript.is_open()
    }

    /// The conversation goes on with `bytes`, as its next prompt will have them: more blocks that the replica holds once
    /// it has generated them.
    pub fn go_on(&mut self, shared: &Shared, bytes: &[u8]) {
        if self.chain.len() - self.prompt_blocks < OUTPUT_BLOCKS_MAX {
            self.transcript.write(&shared.hasher, bytes, &mut self.chain);
        }
    }

    fn tried(&self) -> &[ReplicaSlot] {
        self.tried.get(..self.attempts).unwrap_or_default()
    }
}

/// One shard's decision maker: scratch memory and a random generator. Not shared.
#[derive(Debug)]
pub struct Decider {
    parser: Parser,
    depths: WarmDepths,
    /// The next decision takes `depths` as they are.
    is_told: bool,
    candidates: Candidates,
    inbox: Option<Inbox>,
    reports: ReportColumns,
    /// The snapshot that the reports were last held against.
    generation: Option<u64>,
    costs: Vec<f32>,
    predicted: slo::Predicted,
    /// The place picked last, in the view shown last.
    picked: usize,
    chain: Vec<BlockHash>,
    transcript: Transcript,
    spare: Vec<(Vec<BlockHash>, Transcript)>,
    rng: fastrand::Rng,
    next_id: u64,
    id_step: u64,
}

impl Decider {
    /// The decision maker of shard `shard` of `shards`; `seed` makes its choices repeatable.
    #[must_use]
    pub fn new(config: &Config, slots_max: usize, shard: u64, shards: u64, seed: u64) -> Self {
        let limits = ParseLimits { depth: config.limits.json_depth, elements: config.limits.json_values };
        Self {
            parser: Parser::new(limits),
            depths: WarmDepths::new(slots_max),
            is_told: false,
            candidates: Candidates::default(),
            inbox: None,
            reports: ReportColumns::new(slots_max),
            generation: None,
            costs: Vec::new(),
            predicted: slo::Predicted::default(),
            picked: 0,
            chain: Vec::new(),
            transcript: Transcript::default(),
            spare: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
            next_id: shard,
            id_step: shards.max(1),
        }
    }

    /// From now on it hears what replicas say of their load. Each decision takes up what is there; the task that owns
    /// the decider waits for [`Self::bell`] and calls [`Self::hear`], so that an idle one hears it too.
    pub fn attach(&mut self, inbox: Inbox) {
        self.inbox = Some(inbox);
    }

    /// What rings when reports wait to be heard; `None` before [`Self::attach`].
    #[must_use]
    pub fn bell(&self) -> Option<Arc<Bell>> {
        self.inbox.as_ref().map(|inbox| Arc::clone(inbox.bell()))
    }

    /// Takes up what replicas have said. Returns how many reports there were.
    pub fn hear(&mut self, shared: &Shared, now: Now) -> usize {
        self.reports.forget_former(&shared.load);
        self.listen(shared, HEARD_AT_ONCE, now)
    }

    /// What was heard, for those who show it; as of the last decision or [`Self::hear`].
    #[must_use]
    pub const fn reports(&self) -> &ReportColumns {
        &self.reports
    }

    fn listen(&mut self, shared: &Shared, most: usize, now: Now) -> usize {
        let Self { inbox, reports, .. } = self;
        let heard = inbox.as_mut().map_or(0, |inbox| inbox.drain(most, |report| reports.fold(&report, &shared.load)));
        reports.advance(now);
        heard
    }

    /// How much of the next prompt each replica holds is known, and written here: that decision asks no index. For
    /// comparisons with what a gateway could know at best; all depths are zero at first.
    pub fn tell_depths(&mut self) -> &mut WarmDepths {
        self.is_told = true;
        self.depths.clear();
        &mut self.depths
    }

    /// Decides where `body` runs: parse → fingerprint → price → pick. The placement is on record at once, so that a
    /// second request with the same cold prefix, a microsecond later, already finds it warm; unless it is to be held back
    /// ([`Placement::hold`]).
    ///
    /// # Errors
    /// [`Reject`]: a bad body, an unknown model, or no replica that can take it.
    pub fn decide(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        api: Api,
        body: &[u8],
        hints: Hints<'_>,
        now: Now,
    ) -> Result<Placement, Reject> {
        let mut placement = self.consider(shared, snapshot, api, body, hints, now)?;
        self.settle(shared, snapshot, &mut placement, now)?;
        Ok(placement)
    }

    /// As [`Self::decide`], for a prompt that is fingerprinted already.
    ///
    /// # Errors
    /// [`Reject::NoReplica`].
    pub fn decide_prompt(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        prompt: Prompt<'_>,
        now: Now,
    ) -> Result<Placement, Reject> {
        let Prompt { api, pool, chain, head, bytes, affinity_key, output_tokens_max } = prompt;
        self.chain.clear();
        self.chain.extend_from_slice(chain);
        self.transcript.close();
        let key = Key { affinity_key, session: None, head, wish: Wish::default() };
        let mut placement = self.place(shared, snapshot, Some(api), pool, key, bytes, now)?;
        placement.stream = true;
        placement.output_tokens_max = output_tokens_max;
        self.settle(shared, snapshot, &mut placement, now)?;
        Ok(placement)
    }

    /// As [`Self::decide`], but puts nothing on record: for `explain`. (It takes a turn of `round_robin`, as any look at
    /// its next choice must.)
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub fn consider(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        api: Api,
        body: &[u8],
        hints: Hints<'_>,
        now: Now,
    ) -> Result<Placement, Reject> {
        let request = self.parser.parse(api, body)?;
        let pool = pool_of(snapshot, &request)?;
        self.transcript.close();
        let open = snapshot.config.index.outputs.then_some(&mut self.transcript);
        let Fingerprint { root, affinity_key, session } =
            fingerprint(shared, pool, &request, hints, &mut self.chain, open);
        let head = if snapshot.is_slotted() {
            Head::of(&shared.hasher, root, request.prompt.bytes())
        } else {
            Head::default()
        };
        let prompt_bytes = request.prompt.bytes().len();
        let (stream, output_tokens_max, model_span) =
            (request.stream, request.output_tokens_max, request.model_span.clone());
        let pool = pool.id;
        let key = Key { affinity_key, session, head, wish: hints.wish };
        let mut placement = self.place(shared, snapshot, Some(api), pool, key, prompt_bytes, now)?;
        placement.stream = stream;
        placement.output_tokens_max = output_tokens_max;
        placement.model_span = model_span;
        Ok(placement)
    }

    /// Prices and picks for the prompt whose chain is in `self.chain`.
    #[expect(clippy::too_many_arguments, reason = "one caller a kind of request; a struct would only rename them")]
    fn place(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        api: Option<Api>,
        pool: PoolId,
        Key { affinity_key, session, head, wish }: Key,
        prompt_bytes: usize,
        now: Now,
    ) -> Result<Placement, Reject> {
        let id = DecisionId(self.next_id);
        self.next_id = self.next_id.wrapping_add(self.id_step);
        let prompt_tokens =
            if api.is_some_and(Api::leaves_cache) { snapshot.traits.tokens(pool, prompt_bytes) } else { 0.0 };
        let decision = Decision::new(id, api, pool, now, prompt_bytes, prompt_tokens);
        let mut placement = Placement::new(decision, affinity_key);
        if api.is_some_and(Api::leaves_cache) {
            placement.wish = wish;
        }
        (placement.session, placement.head) = (session, head);
        let chain = std::mem::take(&mut self.chain);
        let picked = self.price_and_pick(shared, snapshot, &chain, &mut placement, now);
        if let Err(reject) = picked {
            self.chain = chain;
            return Err(reject);
        }
        let (spare_chain, spare_transcript) = self.spare.pop().unwrap_or_default();
        self.chain = spare_chain;
        placement.transcript = std::mem::replace(&mut self.transcript, spare_transcript);
        placement.prompt_blocks = chain.len();
        placement.chain = chain;
        Ok(placement)
    }

    /// Decides by load alone, for paths that are not inference routes: any replica may take it.
    ///
    /// # Errors
    /// [`Reject::NoReplica`].
    pub fn place_blind(&mut self, shared: &Shared, snapshot: &Snapshot, now: Now) -> Result<Placement, Reject> {
        let pool = snapshot.fleet.pools.iter().max_by_key(|pool| pool.members.len()).ok_or(Reject::NoReplica)?;
        self.chain.clear();
        self.transcript.close();
        let affinity_key = self.rng.u64(..);
        let key = Key { affinity_key, session: None, head: Head::default(), wish: Wish::default() };
        self.place(shared, snapshot, None, pool.id, key, 0, now)
    }

    /// Places a request that failed where it was once more, at a replica it has not tried.
    ///
    /// # Errors
    /// [`Reject::NoReplica`] when there is none left.
    pub fn place_again(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        placement: &mut Placement,
        now: Now,
    ) -> Result<(), Reject> {
        let chain = std::mem::take(&mut placement.chain);
        let picked = self.price_and_pick(shared, snapshot, &chain, placement, now);
        placement.chain = chain;
        picked?;
        self.settle(shared, snapshot, placement, now)
    }

    /// The decision that was just made is acted upon, if it is: it is put on record, and the policy takes note.
    fn settle(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        placement: &mut Placement,
        now: Now,
    ) -> Result<(), Reject> {
        hold::stand(shared, snapshot, placement)?;
        if placement.hold.is_some() {
            return Ok(());
        }
        shared.record(snapshot, placement, now);
        let view = self.candidates.shown();
        snapshot.policy.placed(view, self.picked);
        hold::spend(shared, snapshot, view, self.picked, placement, now);
        let (pool, slot) = (placement.decision.pool, placement.decision.chosen.slot);
        self.candidates.placed(shared, snapshot, pool, slot);
        Ok(())
    }

    /// Takes a finished placement's memory back for the next request.
    pub fn recycle(&mut self, mut placement: Placement) {
        let chain = std::mem::take(&mut placement.chain);
        if self.spare.len() < SPARE_CHAINS && chain.capacity() <= SPARE_CHAIN_BLOCKS {
            self.spare.push((chain, std::mem::take(&mut placement.transcript)));
        }
    }

    /// Prices every replica of the pool that may take the request, and picks one into `placement`.
    fn price_and_pick(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        chain: &[BlockHash],
        placement: &mut Placement,
        now: Now,
    ) -> Result<(), Reject> {
        let pool = pool_by_id(snapshot, placement.decision.pool).ok_or(Reject::NoReplica)?;
        if !std::mem::take(&mut self.is_told) {
            shared.index.lookup(chain, &mut self.depths);
        }
        if self.generation.replace(snapshot.generation()) != Some(snapshot.generation()) {
            self.reports.forget_former(&shared.load);
        }
        self.listen(shared, HEARD_BY_A_DECISION, now);
        let known = Known { shared, snapshot, reports: &self.reports, now };
        let seen = self.candidates.view(known, pool, (chain, &self.depths), placement, &mut self.rng);
        self.costs.resize(seen.view.len(), 0.0);
        snapshot.policy.cost(seen.view, &mut self.rng, &mut self.costs);
        let pick = pick(&self.costs, &mut self.rng).ok_or(Reject::NoReplica)?;
        let priced = (self.costs.as_slice(), snapshot.policy.is_priced());
        let (pick, bound) =
            objective::choose(shared, placement, seen, priced, pick, &mut self.predicted, &mut self.rng)?;
        self.picked = pick.best;
        choice::note(placement, seen, &self.costs, pick, bound, known);
        let candidates = seen.candidates;
        placement.held_blocks = self.depths.get(placement.decision.chosen.slot) as usize;
        let said = self.candidates.said(pick.best).filter(|_| priced.1);
        (placement.indexed_tokens, placement.warm_blocks) =
            said.unwrap_or((placement.decision.chosen.warm_tokens, placement.held_blocks));
        let awaited = underway::awaited(shared, snapshot, placement, chain, now);
        choice::hold(placement, self.candidates.shown(), pick.best, awaited, known);
        placement.hold = self.candidates.hold(known, pick.best, candidates, placement);
        if placement.hold.is_none() {
            placement.hold = hold::in_line(known, self.candidates.shown(), pick.best, placement);
        }
        Ok(())
    }
}

/// The pool that serves the request's model.
fn pool_of<'s>(snapshot: &'s Snapshot, request: &Request<'_>) -> Result<&'s Pool, Reject> {
    snapshot.fleet.pool_for(request.model).map_err(|none| match none {
        NoPool::ModelNeeded => Reject::Body(BodyFault::Missing { field: "model" }),
        NoPool::Unknown => Reject::UnknownModel,
        NoPool::Empty => Reject::NoReplica,
    })
}

fn pool_by_id(snapshot: &Snapshot, pool: PoolId) -> Option<&Pool> {
    snapshot.fleet.pools.get(usize::from(pool.0))
}

/// Where a prompt's chain starts, and who it is of.
struct Fingerprint {
    root: u64,
    /// Keeps a session together.
    affinity_key: u64,
    /// The same, if the session was named.
    session: Option<u64>,
}

/// Hashes the prompt into `chain`.
///
/// The first hash takes in all that separates caches: the model, the adapter, the salt, and whether the prompt is text or
/// token ids. Requests that leave nothing reusable (token counts) have no chain. Where a next turn can go on from what is
/// answered, `transcript` is opened at the prompt's end.
fn fingerprint(
    shared: &Shared,
    pool: &Pool,
    request: &Request<'_>,
    hints: Hints<'_>,
    chain: &mut Vec<BlockHash>,
    transcript: Option<&mut Transcript>,
) -> Fingerprint {
    let model = if pool.is_wildcard() { request.model.unwrap_or_default() } else { &pool.model };
    let kind: &[u8] = match request.prompt {
        crate::parse::Prompt::Text(_) => b"text",
        crate::parse::Prompt::Tokens(_) => b"tokens",
    };
    let served = pool.served_as.as_deref().unwrap_or(model);
    let root = shared.hasher.root(&[
        kind,
        served.as_bytes(),
        request.adapter.unwrap_or_default().as_bytes(),
        request.cache_salt.unwrap_or_default().as_bytes(),
    ]);
    let prompt = request.prompt.bytes();
    chain.clear();
    if request.api.leaves_cache() {
        shared.hasher.chain(root, prompt, chain);
        if let Some(transcript) = transcript.filter(|_| request.goes_on()) {
            transcript.open(chain.last().map_or(root, |last| last.0), prompt);
        }
    }
    if let Some(session) = hints.session.or(request.session) {
        let key = shared.hasher.root(&[b"session", session.as_bytes()]);
        return Fingerprint { root, affinity_key: key, session: Some(key) };
    }
    let affinity_key = match chain.first() {
        Some(first) => first.0,
        None => shared.hasher.root(&[b"prompt", prompt.get(..BLOCK_BYTES).unwrap_or(prompt)]),
    };
    Fingerprint { root, affinity_key, session: None }
}

#[cfg(test)]
mod tests;
