//! The view that a policy prices: who may take the request, and what is known of each.
//!
//! What changes with every request (requests in flight, prefill ahead, how much of this prompt is held) is read anew for
//! each decision. What changes slowly (learned rates, cache use, limits) is at most [`SWEEP`] old: reading it takes fifty
//! times as long, so each decision reads a share of the replicas, as large as the time since the last one. The cost is
//! then the same every second however many requests come, and no request pays for all.

use super::{Placement, Shared, Snapshot};
use crate::clock::Now;
use crate::fleet::Pool;
use crate::id::PoolId;
use crate::policy::View;
use crate::prefix::BLOCK_BYTES;
use crate::prefix::index::WarmDepths;
use std::time::Duration;

/// The time in which the slow columns of all replicas are read once.
const SWEEP: Duration = Duration::from_millis(50);
/// Pools whose columns are kept; more share the places.
const POOLS: usize = 16;

/// One shard's views.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pools: [PoolView; POOLS],
    /// The candidates, when some members of the pool are none.
    admitted: View,
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
    /// Places whose `warm_tokens` are not zero.
    warm: Vec<u16>,
}

impl Candidates {
    /// The members of `pool` that may take the request now.
    pub(super) fn view(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        pool: &Pool,
        depths: &WarmDepths,
        placement: &Placement,
        now: Now,
    ) -> &View {
        let Self { pools, admitted } = self;
        let kept = &mut pools[usize::from(pool.id.0) % POOLS];
        let of = Some((snapshot.generation(), pool.id));
        if kept.of != of {
            kept.reset(pool);
            kept.of = of;
        }
        kept.sweep(shared, snapshot, now);
        kept.view.prompt_tokens = placement.decision.prompt_tokens;
        kept.view.affinity_key = placement.affinity_key;
        kept.read_load(shared);
        kept.read_warm(depths, snapshot.ratios.tokens(pool.id, BLOCK_BYTES));
        let (view, tried) = (&kept.view, placement.tried());
        if tried.is_empty() && shared.health.all_healthy(&view.slots) {
            return view;
        }
        admitted.clear();
        (admitted.prompt_tokens, admitted.affinity_key) = (view.prompt_tokens, view.affinity_key);
        for (place, slot) in view.slots.iter().enumerate() {
            let in_flight = shared.load.in_flight(*slot);
            if !tried.contains(slot) && shared.health.admits(*slot, in_flight, now) {
                admitted.push_from(view, place);
            }
        }
        admitted
    }
}

impl PoolView {
    /// Starts over with the members of `pool`.
    fn reset(&mut self, pool: &Pool) {
        (self.next, self.swept) = (0, None);
        self.view.reset(&pool.members);
        self.warm.clear();
        for (place, slot) in (0..).zip(&pool.members) {
            if self.places.len() <= slot.index() {
                self.places.resize(slot.index() + 1, 0);
            }
            self.places[slot.index()] = place;
        }
    }

    /// Reads what is in flight.
    fn read_load(&mut self, shared: &Shared) {
        let View { slots, in_flight, prefill_tokens, .. } = &mut self.view;
        let cells = in_flight.iter_mut().zip(prefill_tokens);
        for ((in_flight, prefill_tokens), (requests, tokens)) in cells.zip(shared.load.read(slots)) {
            *in_flight = lossy(requests);
            *prefill_tokens = tokens.cast_signed() as f32;
        }
    }

    /// Turns depths into tokens, for the replicas that hold anything.
    fn read_warm(&mut self, depths: &WarmDepths, tokens_per_block: f32) {
        let Self { view, places, warm, .. } = self;
        for place in warm.drain(..) {
            view.warm_tokens[usize::from(place)] = 0.0;
        }
        for &slot in depths.touched() {
            let Some(&place) = places.get(slot.index()) else { continue };
            // Replicas of other pools hold the prompt too, when they serve several models under one name.
            if view.slots.get(usize::from(place)) == Some(&slot) {
                view.warm_tokens[usize::from(place)] =
                    view.prompt_tokens.min(lossy(depths.get(slot)) * tokens_per_block);
                warm.push(place);
            }
        }
    }

    /// Reads the slow columns of the replicas that are due.
    fn sweep(&mut self, shared: &Shared, snapshot: &Snapshot, now: Now) {
        let members = self.view.len();
        let mut due = members;
        match self.swept.filter(|swept| now.since(*swept) < SWEEP) {
            Some(swept) => {
                let each = SWEEP / u32::try_from(members).unwrap_or(u32::MAX).max(1);
                let count = u32::try_from(now.since(swept).as_nanos() / each.as_nanos().max(1)).unwrap_or(u32::MAX);
                due = members.min(count as usize);
                self.swept = Some(swept.plus(each * count));
            }
            None => self.swept = Some(now),
        }
        for _ in 0..due {
            read_slow(&mut self.view, self.next, shared, snapshot);
            self.next = if self.next + 1 < members { self.next + 1 } else { 0 };
        }
    }
}

/// Reads what changes slowly about the candidate at `place`.
fn read_slow(view: &mut View, place: usize, shared: &Shared, snapshot: &Snapshot) {
    let slot = view.slots[place];
    let rates = shared.rates.rates(slot);
    let limits = snapshot.limits(slot);
    let resident = shared.index.resident_blocks(slot) as f32;
    view.slots_limit[place] = limits.slots;
    view.service_s[place] = shared.rates.service_s(slot);
    view.base_s[place] = rates.base_s;
    view.prefill_s_per_token[place] = rates.prefill_s_per_token;
    view.resident_blocks[place] = resident;
    view.kv_usage[place] = (resident / limits.kv_blocks).min(1.0);
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^24, or good to 7 digits")]
const fn lossy(count: u32) -> f32 {
    count as f32
}
