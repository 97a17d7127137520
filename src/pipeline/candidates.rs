//! The view that a policy prices: who may take the request, and what is known of each.
//!
//! What changes with every request (requests in flight, prefill ahead, how much of this prompt is held) is read anew for
//! each decision. What changes slowly (learned rates, cache use, limits) is kept for [`SLOW_FOR`]: reading it costs ten
//! times as much, and it moves little from one request to the next.

use super::{Placement, Shared, Snapshot};
use crate::clock::Now;
use crate::fleet::Pool;
use crate::id::PoolId;
use crate::policy::View;
use crate::prefix::BLOCK_BYTES;
use crate::prefix::index::WarmDepths;
use std::time::Duration;

/// How long the slow columns are kept.
const SLOW_FOR: Duration = Duration::from_millis(10);
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
    /// When the slow columns were read.
    read_at: Now,
    view: View,
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
        if kept.of != of || now.since(kept.read_at) >= SLOW_FOR {
            (kept.of, kept.read_at) = (of, now);
            read_slow(&mut kept.view, shared, snapshot, pool);
        }
        let view = &mut kept.view;
        view.prompt_tokens = placement.decision.prompt_tokens;
        view.affinity_key = placement.affinity_key;
        let all_healthy = read_load(view, shared, now);
        read_warm(view, depths, snapshot.ratios.tokens(pool.id, BLOCK_BYTES));
        let tried = placement.tried();
        if all_healthy && tried.is_empty() {
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

/// Reads anew what changes slowly; the other columns get their length.
fn read_slow(view: &mut View, shared: &Shared, snapshot: &Snapshot, pool: &Pool) {
    view.clear();
    for &slot in &pool.members {
        let rates = shared.rates.rates(slot);
        let limits = snapshot.limits(slot);
        let resident = shared.index.resident_blocks(slot) as f32;
        view.slots.push(slot);
        view.slots_limit.push(limits.slots);
        view.service_s.push(shared.rates.service_s(slot));
        view.base_s.push(rates.base_s);
        view.prefill_s_per_token.push(rates.prefill_s_per_token);
        view.resident_blocks.push(resident);
        view.kv_usage.push((resident / limits.kv_blocks).min(1.0));
    }
    for column in [&mut view.in_flight, &mut view.prefill_tokens, &mut view.warm_tokens] {
        column.resize(pool.members.len(), 0.0);
    }
}

/// Reads what is in flight. True when every replica takes requests.
fn read_load(view: &mut View, shared: &Shared, now: Now) -> bool {
    let mut all_healthy = true;
    let cells = view.in_flight.iter_mut().zip(&mut view.prefill_tokens);
    for (&slot, (in_flight, prefill_tokens)) in view.slots.iter().zip(cells) {
        let count = shared.load.in_flight(slot);
        *in_flight = lossy(count);
        *prefill_tokens = shared.load.prefill_tokens(slot) as f32;
        all_healthy &= shared.health.admits(slot, count, now);
    }
    all_healthy
}

/// Turns depths into tokens.
fn read_warm(view: &mut View, depths: &WarmDepths, tokens_per_block: f32) {
    if depths.touched().is_empty() {
        return view.warm_tokens.fill(0.0);
    }
    for (&slot, warm) in view.slots.iter().zip(&mut view.warm_tokens) {
        *warm = view.prompt_tokens.min(lossy(depths.get(slot)) * tokens_per_block);
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^24, or good to 7 digits")]
const fn lossy(count: u32) -> f32 {
    count as f32
}
