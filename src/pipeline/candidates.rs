//! The view that a policy prices: who may take the request, and what is known of each.
//!
//! A view of all members of a pool is kept from one decision to the next, and follows what changes:
//!
//! - *In flight.* A shard reads the version of each group of cells, and the cells of the groups whose version has moved.
//! - *Heard of others.* The log of the shard's columns names the slots whose reports say something new.
//! - *Slow* (learned rates, cache use, limits): at most [`SWEEP`] old, longer in a very large fleet. Reading it takes
//!   fifty times as long, so each decision reads a share of the replicas, as large as the time since the last one. The
//!   cost is then the same every second however many requests come, and no request pays for all.
//! - *Warm* (how much of this prompt each holds) differs with every request; it is written for the replicas that hold any
//!   of it, and taken back after.
//!
//! So a decision pays for what has changed since the last one and not for the size of the fleet, but for passes over a
//! few columns in SIMD lanes (the policy's, and the pick). Other ways lose by what they touch: reading every cell anew
//! is 4,096 loads that no lane can do; a version for each cell is as many; with larger groups, a few changes by other
//! shards have most cells read again; a log of changes of all shards would be a line that all of them write.
//!
//! The slow columns were half of what a view of 4,096 replicas cost when each decision read its share of a 50 ms sweep
//! whatever the size of the fleet; hence [`SWEEP_EACH_MIN`].

use super::slotted::Slotted;
use super::warming::{self, Side};
use super::{Hold, Limits, Placement, PromptTraits, Shared, Snapshot};
use crate::clock::Now;
use crate::fleet::Pool;
use crate::id::{BlockHash, PoolId, ReplicaSlot};
use crate::learn::Features;
use crate::load::backlog::{Cache, Prompt};
use crate::load::columns::ReportColumns;
use crate::load::{GROUP, InFlight};
use crate::policy::View;
use crate::policy::latency::Load;
use crate::policy::pushed_out::PushedOut;
use crate::prefix::BLOCK_BYTES;
use crate::prefix::index::WarmDepths;
use std::time::Duration;

/// The time in which the slow columns of all replicas are read once.
const SWEEP: Duration = Duration::from_millis(50);
/// Time, at least, between two replicas whose slow columns are read: beyond a thousand replicas a sweep takes longer, for
/// each of them is placed at, and learned from, the less often.
const SWEEP_EACH_MIN: Duration = Duration::from_micros(50);
/// Pools whose columns are kept; more share the places.
const POOLS: usize = 16;

/// What a decision is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'k> {
    /// What all shards share.
    pub(super) shared: &'k Shared,
    /// The configuration in force.
    pub(super) snapshot: &'k Snapshot,
    /// What this shard has heard from replicas.
    pub(super) reports: &'k ReportColumns,
    /// The time of the decision.
    pub(super) now: Now,
}

/// The candidates of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'v> {
    /// They, and perhaps some that are barred.
    pub(super) view: &'v View,
    /// How many may take it.
    pub(super) candidates: usize,
    /// Where it was drawn to, if it is cold everywhere while some warm up.
    pub(super) side: Option<Side>,
}

/// One shard's views.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pools: [PoolView; POOLS],
    /// The candidates, when some members of the pool are none and the policy would stumble over them.
    admitted: View,
    /// The view that was shown last.
    shown: Shown,
}

/// Which of its views a shard has shown to the policy.
#[derive(Clone, Copy, Debug)]
enum Shown {
    /// That of all members of a pool, by its place.
    Pool(usize),
    /// That of those that may take the request.
    Admitted,
}

impl Default for Shown {
    fn default() -> Self {
        Self::Pool(0)
    }
}

/// All members of a pool.
#[derive(Debug, Default)]
struct PoolView {
    /// Of which snapshot and pool.
    of: Option<(u64, PoolId)>,
    /// Where the sweep goes on.
    next: usize,
    /// Up to when it has come; `None` before it has read them all once.
    swept: Option<Now>,
    view: View,
    /// Places in `view` by slot; of the pool's members alone are they right.
    places: Vec<u16>,
    /// Tokens to a block of the engine at each place; zero when unknown.
    block_tokens: Vec<f32>,
    /// Each replica's clock in the index when it was read what would be pushed out there.
    clocks: Vec<u32>,
    /// What the gateway has in flight at each place.
    own: Vec<InFlight>,
    /// Groups of slots that have members here, each with the version last read.
    groups: Vec<(u16, u32)>,
    /// Changes of the reports that were followed.
    changes: u64,
    /// What is known of the members that keep prompts in slots.
    slotted: Slotted,
}

impl Candidates {
    /// The members of `pool` that may take the request now; `prompt` is its chain and what was found of it.
    pub(super) fn view(
        &mut self,
        known: Known<'_>,
        pool: &Pool,
        prompt: (&[BlockHash], &WarmDepths),
        placement: &Placement,
        rng: &mut fastrand::Rng,
    ) -> Seen<'_> {
        let Known { shared, snapshot, now, .. } = known;
        let Self { pools, admitted, shown } = self;
        *shown = Shown::Pool(usize::from(pool.id.0) % POOLS);
        let kept = &mut pools[usize::from(pool.id.0) % POOLS];
        let of = Some((snapshot.generation(), pool.id));
        let is_new = kept.of != of;
        if is_new {
            kept.reset(pool);
            kept.slotted.reset(pool, snapshot);
            kept.of = of;
        }
        kept.view.latency.set_now(now);
        kept.sweep(pool.id, known);
        kept.follow(known, is_new);
        kept.view.prompt_tokens = placement.decision.prompt_tokens;
        kept.view.affinity_key = placement.affinity_key;
        kept.view.now = now;
        kept.view.answer_tokens = snapshot.traits.get(pool.id).map_or(0.0, PromptTraits::answer_tokens);
        kept.view.index_block_tokens = snapshot.traits.tokens(pool.id, BLOCK_BYTES);
        kept.read_warm(prompt.1);
        let is_priced = snapshot.policy.is_priced();
        if is_priced {
            kept.slotted.read(&mut kept.view, known, placement, prompt);
        }
        let (view, tried) = (&mut kept.view, placement.tried());
        view.is_retry = !tried.is_empty();
        view.barred.clear();
        if tried.is_empty() && shared.health.is_all_plain(now) {
            return Seen { view, candidates: view.len(), side: None };
        }
        bar(view, known, tried);
        let candidates = view.len() - view.barred.len();
        let side = if tried.is_empty() { warming::choose_side(view, known, rng) } else { None };
        if is_priced || view.barred.is_empty() {
            return Seen { view, candidates, side };
        }
        *shown = Shown::Admitted;
        admitted.clear();
        (admitted.prompt_tokens, admitted.affinity_key) = (view.prompt_tokens, view.affinity_key);
        (admitted.is_retry, admitted.now) = (view.is_retry, view.now);
        (admitted.index_block_tokens, admitted.answer_tokens) = (view.index_block_tokens, view.answer_tokens);
        let mut barred = view.barred.iter().peekable();
        for place in 0..view.len() {
            if barred.next_if(|barred| usize::from(**barred) == place).is_none() {
                admitted.push_from(view, place);
            }
        }
        Seen { view: admitted, candidates, side }
    }

    /// What [`Self::view`] has shown last.
    pub(super) const fn shown(&self) -> &View {
        match self.shown {
            Shown::Pool(place) => &self.pools[place].view,
            Shown::Admitted => &self.admitted,
        }
    }

    /// What was said of the prompt at `place` of the view shown last, if that keeps prompts in slots: tokens that the
    /// index holds warm, and blocks that count as warm.
    pub(super) fn said(&self, place: usize) -> Option<(f32, usize)> {
        match self.shown {
            Shown::Pool(pool) => self.pools[pool].slotted.said(place),
            Shown::Admitted => None,
        }
    }

    /// Whether the request that was picked `place` of the view shown last is to be held back.
    pub(super) fn hold(
        &self,
        known: Known<'_>,
        place: usize,
        candidates: usize,
        placement: &Placement,
    ) -> Option<Hold> {
        match self.shown {
            Shown::Pool(pool) => {
                let PoolView { view, slotted, .. } = &self.pools[pool];
                slotted.hold(view, candidates, place, placement, known)
            }
            Shown::Admitted => None,
        }
    }

    /// A request was put on record at `slot`: its cache is fuller from now on, not from the next sweep, or all that comes
    /// until then would go where it was emptiest before.
    pub(super) fn placed(&mut self, shared: &Shared, snapshot: &Snapshot, pool: PoolId, slot: ReplicaSlot) {
        let kept = &mut self.pools[usize::from(pool.0) % POOLS];
        if let Some(place) = kept.place(slot) {
            let resident = shared.index.resident_blocks(slot) as f32;
            let before = std::mem::replace(&mut kept.view.resident_blocks[place], resident);
            let more = (resident - before) / snapshot.limits(slot).kv_blocks;
            kept.view.kv_usage[place] = (kept.view.kv_usage[place] + more).clamp(0.0, 1.0);
            // What it would give up next is another only once its clock has moved on: by a hundredth of the cache.
            if kept.clocks[place] != shared.index.clock(slot) {
                kept.read_pushed_out(place, (shared, snapshot, pool));
            }
        }
    }
}

/// Bars those that take no requests now or have failed this one. Where that leaves nobody, those that have given no sign
/// yet, good or bad, are better than nobody.
fn bar(view: &mut View, known: Known<'_>, tried: &[ReplicaSlot]) {
    let View { slots, barred, .. } = view;
    let health = &known.shared.health;
    let load = &known.shared.load;
    let _any = bar_unless(slots, tried, barred, |slot| health.admits(slot, load.in_flight(slot), known.now))
        || bar_unless(slots, tried, barred, |slot| health.may_try(slot));
}

/// Bars all that are tried or not open; returns whether that leaves anybody.
fn bar_unless(
    slots: &[ReplicaSlot],
    tried: &[ReplicaSlot],
    barred: &mut Vec<u16>,
    is_open: impl Fn(ReplicaSlot) -> bool,
) -> bool {
    barred.clear();
    let open = |slot: &ReplicaSlot| is_open(*slot) && !tried.contains(slot);
    barred.extend((0..).zip(slots).filter(|(_, slot)| !open(slot)).map(|(place, _)| place));
    barred.len() < slots.len()
}

impl PoolView {
    /// Starts over with the members of `pool`.
    fn reset(&mut self, pool: &Pool) {
        (self.next, self.swept) = (0, None);
        self.view.reset(&pool.members);
        self.block_tokens.clear();
        self.block_tokens.resize(pool.members.len(), 0.0);
        self.clocks.clear();
        self.clocks.resize(pool.members.len(), 0);
        self.own.clear();
        self.own.resize(pool.members.len(), InFlight::default());
        self.groups.clear();
        for (place, slot) in (0..).zip(&pool.members) {
            if self.places.len() <= slot.index() {
                self.places.resize(slot.index() + 1, 0);
            }
            self.places[slot.index()] = place;
            self.groups.extend(u16::try_from(slot.index() / GROUP).map(|group| (group, 0)));
        }
        self.groups.sort_unstable();
        self.groups.dedup();
    }

    /// The place of `slot`, if it is a member.
    #[inline(always)]
    fn place(&self, slot: ReplicaSlot) -> Option<usize> {
        let place = usize::from(*self.places.get(slot.index())?);
        (self.view.slots.get(place) == Some(&slot)).then_some(place)
    }

    /// Takes up what has changed of what is in flight and of what was heard; with `all`, of all there is.
    fn follow(&mut self, known: Known<'_>, all: bool) {
        let mut groups = std::mem::take(&mut self.groups);
        for (group, seen) in &mut groups {
            let version = known.shared.load.version(usize::from(*group));
            if version != *seen || all {
                *seen = version;
                self.follow_group(usize::from(*group), known);
            }
        }
        self.groups = groups;
        match known.reports.changed_since(self.changes).filter(|_| !all) {
            Some(slots) => {
                for slot in slots {
                    if let Some(place) = self.place(slot) {
                        self.settle(place, known);
                    }
                }
            }
            None => {
                (0..self.view.len()).for_each(|place| self.settle(place, known));
                self.view.total();
            }
        }
        self.changes = known.reports.changes();
    }

    /// Takes up what has changed of what is in flight in one group of slots.
    fn follow_group(&mut self, group: usize, known: Known<'_>) {
        for slot in (group * GROUP..(group + 1) * GROUP).filter_map(ReplicaSlot::from_index) {
            let Some(place) = self.place(slot) else { continue };
            let own = known.shared.load.read(slot);
            if own != self.own[place] {
                self.own[place] = own;
                self.settle(place, known);
            }
        }
    }

    /// Joins what the gateway has in flight at `place` and what was heard of others there, and has it priced.
    fn settle(&mut self, place: usize, known: Known<'_>) {
        let Self { view, own, .. } = self;
        let (slot, own) = (view.slots[place], own[place]);
        let heard = known.reports.elsewhere(slot);
        let limits = known.snapshot.limits(slot);
        let in_flight = lossy(own.requests) + heard.requests;
        view.in_flight_sum += f64::from(in_flight) - f64::from(view.in_flight[place]);
        view.in_flight[place] = in_flight;
        view.elsewhere[place] = heard.requests;
        view.prefill_tokens[place] = own.prefill_tokens.cast_signed() as f32 + heard.prefill_tokens;
        view.context_tokens[place] = own.context_tokens.cast_signed() as f32;
        view.slots_limit[place] = limits.slots.min(heard.slots);
        let believed = (view.resident_blocks[place] / limits.kv_blocks).min(1.0);
        view.kv_usage[place] = heard.kv_usage.map_or(believed, |said| believed + heard.weight * (said - believed));
        // Of a prompt like those that are there.
        let typical = Prompt { new: 0.0, cached: view.context_tokens[place] / lossy(own.requests.max(1)) };
        let load = load(view, place, (typical, heard.prefill_tokens), known, known.now);
        view.latency.settle(place, &load);
    }

    /// Turns depths into tokens, for the replicas that hold anything.
    fn read_warm(&mut self, depths: &WarmDepths) {
        let Self { view, places, block_tokens, .. } = self;
        let tokens_per_block = view.index_block_tokens;
        for place in view.warm.drain(..) {
            view.warm_tokens[usize::from(place)] = 0.0;
            view.restore_tokens[usize::from(place)] = 0.0;
            view.prefix_wait_s[usize::from(place)] = 0.0;
        }
        (view.is_awaited, view.is_restored) = (false, depths.has_host());
        for &slot in depths.touched() {
            let Some(&place) = places.get(slot.index()) else { continue };
            // Replicas of other pools may hold the prompt too: pools can be names of one model.
            if view.slots.get(usize::from(place)) == Some(&slot) {
                let at = usize::from(place);
                let tokens = |blocks: u32| view.prompt_tokens.min(lossy(blocks) * tokens_per_block);
                let (held, on_device) = (tokens(depths.get(slot)), tokens(depths.on_device(slot)));
                // A hit is a whole number of the engine's blocks, and the last token of a prompt is always computed.
                let block = block_tokens[at];
                let warm =
                    if block > 0.0 { (held.min(view.prompt_tokens - 1.0) / block).floor() * block } else { held };
                view.warm_tokens[at] = warm;
                view.restore_tokens[at] = (warm - on_device).max(0.0);
                view.warm.push(place);
            }
        }
    }

    /// Reads what would be pushed out of the cache at `place`. It takes as long as pricing hundreds of replicas.
    fn read_pushed_out(&mut self, place: usize, (shared, snapshot, pool): (&Shared, &Snapshot, PoolId)) {
        let slot = self.view.slots[place];
        if let Some(traits) = snapshot.traits.get(pool).filter(|_| snapshot.policy.is_priced()) {
            self.clocks[place] = shared.index.clock(slot);
            let block_tokens = snapshot.traits.tokens(pool, BLOCK_BYTES);
            let sizes = PushedOut::sizes().map(|tokens| tokens / block_tokens);
            let shares = shared.index.pushed_out(slot, &sizes, |idle_ms| traits.reuse.again(idle_ms));
            self.view.pushed_out.set(place, &shares);
        }
    }

    /// Reads the slow columns of the replicas that are due.
    fn sweep(&mut self, pool: PoolId, known: Known<'_>) {
        let now = known.now;
        let members = self.view.len();
        let mut due = members;
        let count = u32::try_from(members).unwrap_or(u32::MAX).max(1);
        let each = (SWEEP / count).max(SWEEP_EACH_MIN);
        match self.swept.filter(|swept| now.since(*swept) < each * count) {
            Some(swept) => {
                let count = u32::try_from(now.since(swept).as_nanos() / each.as_nanos()).unwrap_or(u32::MAX);
                due = members.min(count as usize);
                self.swept = Some(swept.plus(each * count));
            }
            None => self.swept = Some(now),
        }
        for _ in 0..due {
            read_slow(&mut self.view, self.next, known);
            self.read_pushed_out(self.next, (known.shared, known.snapshot, pool));
            self.block_tokens[self.next] = block_tokens(self.view.slots[self.next], known);
            self.settle(self.next, known);
            self.next = if self.next + 1 < members { self.next + 1 } else { 0 };
            if self.next == 0 {
                self.view.total();
            }
        }
    }
}

/// What makes a request with `prompt` wait at `place` that is sent there at `sent`: what the gateway has there, the
/// prefill of `others` (tokens), and the queue for a slot.
fn load(view: &View, place: usize, (prompt, others): (Prompt, f32), known: Known<'_>, sent: Now) -> Load {
    let slot = view.slots[place];
    let limits = known.snapshot.limits(slot);
    let requests = view.in_flight[place];
    let over = (requests + 1.0 - limits.slots).max(0.0) / limits.slots.max(1.0);
    let pace = view.latency.learned(place).pace();
    let cache = cache(slot, &limits, known);
    let backlog = known.shared.backlogs.read(slot, (&pace, &cache), prompt, sent);
    Load {
        others_s: others * view.prefill_s_per_token[place] + over * view.service_s[place],
        requests,
        context_tokens: view.context_tokens[place] + backlog.generated_tokens,
        backlog,
    }
}

/// The KV cache of `slot`, as far as requests wait for room in it.
fn cache(slot: ReplicaSlot, limits: &Limits, known: Known<'_>) -> Cache {
    if !limits.is_kv_said {
        return Cache::default();
    }
    Cache { tokens: limits.kv_tokens, answer_s: known.shared.rates.answer_s(slot) }
}

/// What the request of `view` meets at `place` if it is sent there at `sent`.
///
/// The index knows whole blocks of its own, and engines mostly have smaller ones: of the block in which what is held
/// ends, some is there too, as much as was found before; half, as long as nothing was.
pub(super) fn meets(view: &View, place: usize, known: Known<'_>, sent: Now) -> Features {
    let slot = view.slots[place];
    let others = known.reports.elsewhere(slot).prefill_tokens;
    let (prompt_tokens, warm) = (view.prompt_tokens, view.warm_tokens[place]);
    let index_block = view.index_block_tokens;
    let ends_within = warm > 0.0 && warm + index_block < prompt_tokens;
    let half = || (0.5 * (index_block - block_tokens(slot, known))).max(0.0);
    let tail =
        if ends_within { known.shared.rates.tail_tokens(slot).unwrap_or_else(half).min(index_block) } else { 0.0 };
    let prompt = Prompt { new: (prompt_tokens - warm - tail).max(0.0), cached: warm + tail };
    let features = load(view, place, (prompt, others), known, sent).features(prompt_tokens, warm + tail);
    // It says that there may be one, too.
    Features { tail_tokens: if ends_within { tail.max(f32::MIN_POSITIVE) } else { 0.0 }, ..features }
}

/// Tokens to a block of the engine at `slot`, as configured or as it said; zero when unknown.
fn block_tokens(slot: ReplicaSlot, known: Known<'_>) -> f32 {
    let configured = known.snapshot.limits(slot).kv_block_tokens;
    configured.or_else(|| known.shared.memory.block_tokens(slot)).map_or(0.0, lossy)
}

/// Reads what changes slowly about the candidate at `place`.
fn read_slow(view: &mut View, place: usize, known: Known<'_>) {
    let slot = view.slots[place];
    let rates = known.shared.rates.rates(slot);
    view.service_s[place] = known.shared.rates.service_s(slot);
    view.base_s[place] = rates.base_s;
    view.prefill_s_per_token[place] = rates.prefill_s_per_token;
    known.shared.rates.fade(slot, known.now);
    view.latency.learn(place, &known.shared.rates.coefficients(slot));
    let limits = known.snapshot.limits(slot);
    view.restore_s_per_token[place] = limits.restore_s_per_token;
    view.kv_tokens[place] = limits.kv_tokens;
    view.resident_blocks[place] = known.shared.index.resident_blocks(slot) as f32;
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^24, or good to 7 digits")]
const fn lossy(count: u32) -> f32 {
    count as f32
}

#[cfg(test)]
mod tests;
