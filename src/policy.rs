//! The named policies. Each sees the same columns, one cell a candidate, and writes a column of costs: lower is better,
//! infinite is "never". One picker takes the least, breaks ties at random, and remembers the runner-up.

mod baseline;
mod cache_aware;
mod chwbl;
pub mod column;
mod dualmap;
mod dynamo;
pub mod latency;
mod preble;
mod price;
pub mod pushed_out;
mod ring;
#[cfg(test)]
mod sample;
pub mod slo;
mod sticky_until_saturated;
#[cfg(test)]
mod table;
mod weighted;

pub use baseline::{LeastRequest, PowerOfTwo, Random, RoundRobin, Sticky};
pub use cache_aware::{CacheAware, SpillGate};
pub use chwbl::Chwbl;
pub use dualmap::DualMap;
pub use dynamo::{Dynamo, LMetric};
pub use preble::Preble;
pub use price::{Price, restore_s};
pub use sticky_until_saturated::StickyUntilSaturated;
pub use weighted::Weighted;

use self::latency::LatencyColumns;
use self::pushed_out::PushedOut;
use crate::clock::Now;
use crate::config::{PolicyConfig, PolicyName};
use crate::id::ReplicaSlot;

/// What decides on whether a request waits that was picked a candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Seconds that pass there until its prefill can begin.
    pub ahead_s: f32,
    /// It is one of the first of those who wait ([`crate::admission`]), or would be.
    pub is_first: bool,
    /// What may be spent on computing again what is pushed out is spent ([`crate::admission::RegenerationBudget`]).
    pub is_spent: bool,
}

/// What this core knows now of each candidate, as columns of equal length.
#[derive(Debug, Default)]
pub struct View {
    /// The candidates.
    pub slots: Vec<ReplicaSlot>,
    /// Requests there: those the gateway has in flight, and those of others as far as they were heard of.
    pub in_flight: Vec<f32>,
    /// Of these, the ones of others.
    pub elsewhere: Vec<f32>,
    /// Uncached prompt tokens waiting for prefill there, likewise.
    pub prefill_tokens: Vec<f32>,
    /// Tokens of this prompt that the replica holds and could reuse, on its device or in host memory.
    pub warm_tokens: Vec<f32>,
    /// Of these, the ones in host memory: they have to be restored first.
    pub restore_tokens: Vec<f32>,
    /// Seconds until what it holds is free to be reused, where a request must wait for that.
    pub prefix_wait_s: Vec<f32>,
    /// Tokens of another conversation that the replica gives up for this prompt, where it keeps prompts in slots.
    pub evicted_tokens: Vec<f32>,
    /// Seconds that computing these again takes, times how likely somebody asks for them.
    pub eviction_s: Vec<f32>,
    /// Requests it runs at once, as is known or can be seen from its queue; infinite when unknown.
    pub slots_limit: Vec<f32>,
    /// Mean seconds a request stays; zero when unknown.
    pub service_s: Vec<f32>,
    /// Seconds before the first prompt token is read.
    pub base_s: Vec<f32>,
    /// Seconds to prefill one token.
    pub prefill_s_per_token: Vec<f32>,
    /// Seconds to restore one token from host memory.
    pub restore_s_per_token: Vec<f32>,
    /// Prefix blocks it is believed to hold.
    pub resident_blocks: Vec<f32>,
    /// Share of its KV cache in use, 0 to 1: as heard, else as believed.
    pub kv_usage: Vec<f32>,
    /// Tokens that the gateway's own requests in flight hold there, or will: whole prompts and expected output.
    pub context_tokens: Vec<f32>,
    /// Tokens its KV cache holds: configured, discovered or assumed.
    pub kv_tokens: Vec<f32>,
    /// Predicted times to first token and per output token.
    pub latency: LatencyColumns,
    /// What the prompt would push out of a full cache.
    pub pushed_out: PushedOut,
    /// Of all in [`Self::in_flight`], as of the last [`Self::total`] or kept up since.
    pub in_flight_sum: f64,
    /// Places whose `warm_tokens` or `prefix_wait_s` may not be zero.
    pub warm: Vec<u16>,
    /// Places whose `eviction_s` is not zero.
    pub evicting: Vec<u16>,
    /// Some `prefix_wait_s` is not zero.
    pub is_awaited: bool,
    /// Some `restore_tokens` is not zero.
    pub is_restored: bool,
    /// Places that may not take this request. Only policies whose costs are seconds are shown any.
    pub barred: Vec<u16>,
    /// Tokens of this prompt.
    pub prompt_tokens: f32,
    /// Tokens to a block of the prefix index.
    pub index_block_tokens: f32,
    /// Output tokens expected of its answer.
    pub answer_tokens: f32,
    /// The request was placed before, and failed there.
    pub is_retry: bool,
    /// Equal for requests that should stay together (session, else first block).
    pub affinity_key: u64,
    /// The time of the decision.
    pub now: Now,
}

impl View {
    /// Candidates, with those that are barred.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.slots.len()
    }

    /// True when there is no candidate.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Tokens of the prompt that would have to be computed at `place`.
    #[inline(always)]
    #[must_use]
    pub fn uncached_tokens(&self, place: usize) -> f32 {
        (self.prompt_tokens - self.warm_tokens[place]).max(0.0)
    }

    /// Share of the prompt that is held at `place`, 0 to 1.
    #[inline(always)]
    #[must_use]
    pub fn held_share(&self, place: usize) -> f32 {
        (self.warm_tokens[place] / self.prompt_tokens.max(1.0)).clamp(0.0, 1.0)
    }

    /// True when nobody holds any of the prompt.
    #[must_use]
    pub fn is_cold(&self) -> bool {
        column::most(&self.warm_tokens, 0.0) <= 0.0
    }

    /// Empties all columns, keeping their memory.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.warm.clear();
        self.barred.clear();
        self.evicting.clear();
        (self.is_awaited, self.is_restored) = (false, false);
        self.latency.clear();
        self.pushed_out.clear();
        for column in self.columns_mut() {
            column.clear();
        }
    }

    /// Makes `slots` the candidates; the other columns are zero.
    pub fn reset(&mut self, slots: &[ReplicaSlot]) {
        self.clear();
        self.slots.extend_from_slice(slots);
        self.latency.reset(slots.len());
        self.pushed_out.reset(slots.len());
        for column in self.columns_mut() {
            column.resize(slots.len(), 0.0);
        }
    }

    /// Adds the candidate at `place` of `other`.
    pub fn push_from(&mut self, other: &Self, place: usize) {
        self.slots.push(other.slots[place]);
        self.latency.push_from(&other.latency, place);
        self.pushed_out.push_from(&other.pushed_out, place);
        for (column, from) in self.columns_mut().into_iter().zip(other.columns()) {
            column.push(from[place]);
        }
        let (warm_tokens, wait) = (other.warm_tokens[place], other.prefix_wait_s[place]);
        if warm_tokens > 0.0 || wait > 0.0 {
            self.warm.extend(u16::try_from(self.slots.len() - 1));
            self.is_awaited |= wait > 0.0;
            self.is_restored |= other.restore_tokens[place] > 0.0;
        }
        if other.eviction_s[place] > 0.0 {
            self.evicting.extend(u16::try_from(self.slots.len() - 1));
        }
    }

    /// Sets the sum from its column.
    pub fn total(&mut self) {
        self.in_flight_sum = self.in_flight.iter().copied().map(f64::from).sum();
    }

    fn columns(&self) -> [&[f32]; 17] {
        [
            &self.in_flight,
            &self.elsewhere,
            &self.prefill_tokens,
            &self.warm_tokens,
            &self.restore_tokens,
            &self.prefix_wait_s,
            &self.evicted_tokens,
            &self.eviction_s,
            &self.slots_limit,
            &self.service_s,
            &self.base_s,
            &self.prefill_s_per_token,
            &self.restore_s_per_token,
            &self.resident_blocks,
            &self.kv_usage,
            &self.context_tokens,
            &self.kv_tokens,
        ]
    }

    fn columns_mut(&mut self) -> [&mut Vec<f32>; 17] {
        [
            &mut self.in_flight,
            &mut self.elsewhere,
            &mut self.prefill_tokens,
            &mut self.warm_tokens,
            &mut self.restore_tokens,
            &mut self.prefix_wait_s,
            &mut self.evicted_tokens,
            &mut self.eviction_s,
            &mut self.slots_limit,
            &mut self.service_s,
            &mut self.base_s,
            &mut self.prefill_s_per_token,
            &mut self.restore_s_per_token,
            &mut self.resident_blocks,
            &mut self.kv_usage,
            &mut self.context_tokens,
            &mut self.kv_tokens,
        ]
    }
}

/// A way to choose. What it remembers, all shards share: atomics, bounded by the number of slots, and no locks.
pub trait Policy: Send + Sync + std::fmt::Debug {
    /// Writes the cost of each candidate of `view` to `costs` (same length).
    fn cost(&self, view: &View, rng: &mut fastrand::Rng, costs: &mut [f32]);

    /// Takes note that the request of `view` goes to `place`. It is called once for each decision that is acted upon, not
    /// for one that was only looked at.
    fn placed(&self, _view: &View, _place: usize) {}

    /// Seconds that computing again will take what a request pushes out that was picked `place`, where it is made to wait
    /// for that when too many are spent so.
    fn spends_s(&self, _view: &View, _place: usize) -> f32 {
        0.0
    }

    /// True when a request that was picked `place` should rather wait at the gateway for now.
    fn waits(&self, _view: &View, _place: usize, _standing: Standing) -> bool {
        false
    }

    /// True when costs are seconds.
    fn is_priced(&self) -> bool {
        false
    }
}

/// The policy that `config` names. What it remembers starts anew.
#[must_use]
pub fn build(config: &PolicyConfig) -> Box<dyn Policy> {
    match config.name {
        PolicyName::Price => Box::new(Price::new(config)),
        PolicyName::Weighted => Box::new(Weighted::new(&config.weights)),
        PolicyName::StickyUntilSaturated => Box::new(StickyUntilSaturated::new(&config.sticky_until_saturated)),
        PolicyName::LeastRequest => Box::new(LeastRequest),
        PolicyName::RoundRobin => Box::new(RoundRobin::default()),
        PolicyName::PowerOfTwo => Box::new(PowerOfTwo),
        PolicyName::Sticky => Box::new(Sticky),
        PolicyName::Chwbl => Box::new(Chwbl::new(&config.chwbl)),
        PolicyName::CacheAware => Box::new(CacheAware::new(&config.cache_aware)),
        PolicyName::SpillGate => Box::new(SpillGate::new(&config.spill_gate)),
        PolicyName::Dynamo => Box::new(Dynamo::new(&config.dynamo)),
        PolicyName::LMetric => Box::new(LMetric),
        PolicyName::DualMap => Box::new(DualMap::new(&config.dualmap)),
        PolicyName::Preble => Box::new(Preble::new(&config.preble)),
        PolicyName::Random => Box::new(Random),
    }
}

/// A parameter in the precision of costs.
#[expect(clippy::cast_possible_truncation, reason = "parameters need 7 digits")]
const fn parameter(value: f64) -> f32 {
    value as f32
}

/// Blocks of costs, at most, whose least is known.
const BLOCKS: usize = 64;
/// Costs of a block, at least.
const BLOCK_MIN: usize = 16;

/// Outcome of a choice, as indices into the view.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// The cheapest.
    pub best: usize,
    /// The next cheapest, if any is possible.
    pub runner_up: Option<usize>,
}

/// Takes the least cost; among equals each is as likely. `None` when every cost is infinite (or not a number).
///
/// One pass finds the least of each block of costs; all else looks at those few, and into a block or two.
#[must_use]
pub fn pick(costs: &[f32], rng: &mut fastrand::Rng) -> Option<Pick> {
    let mut least_of = [f32::INFINITY; BLOCKS];
    let size = costs.len().div_ceil(BLOCKS).max(BLOCK_MIN);
    column::least_of_blocks(costs, size, &mut least_of);
    let least = column::least(&least_of);
    if !least.is_finite() {
        return None;
    }
    let mut equals_of = [0_u32; BLOCKS];
    for ((equals, block_least), block) in equals_of.iter_mut().zip(&least_of).zip(costs.chunks(size)) {
        if *block_least <= least {
            *equals = block.iter().map(|cost| u32::from(*cost <= least)).sum();
        }
    }
    let equal: u32 = equals_of.iter().sum();
    let chosen = if equal > 1 { rng.u32(..equal) } else { 0 };
    let equal_at = |number| nth_equal(costs, size, &equals_of, least, number);
    let best = equal_at(chosen)?;
    if equal > 1 {
        return Some(Pick { best, runner_up: equal_at(u32::from(chosen == 0)) });
    }
    // The best's own block without it.
    let block = best / size;
    let others =
        || (block * size..).zip(costs.chunks(size).nth(block).unwrap_or_default()).filter(|(at, _)| *at != best);
    least_of[block] = others().fold(f32::INFINITY, |least, (_, cost)| least.min(*cost));
    let next = column::least(&least_of);
    if !next.is_finite() {
        return Some(Pick { best, runner_up: None });
    }
    let from = least_of.iter().position(|least| *least <= next)? * size;
    let runner_up = (from..).zip(costs.get(from..)?).find(|(at, cost)| **cost <= next && *at != best);
    Some(Pick { best, runner_up: runner_up.map(|(at, _)| at) })
}

/// The place of equal `number` (from zero) among costs of at most `least`, of which there are `equals_of` each block.
fn nth_equal(costs: &[f32], size: usize, equals_of: &[u32], least: f32, mut number: u32) -> Option<usize> {
    for (block, equals) in equals_of.iter().enumerate() {
        if number < *equals {
            let from = block * size;
            let mut equal = (from..).zip(costs.get(from..)?).filter(|(_, cost)| **cost <= least);
            return equal.nth(number as usize).map(|(place, _)| place);
        }
        number -= equals;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_built_and_picks_somebody() {
        for name in PolicyName::ALL {
            let policy = build(&PolicyConfig { name, ..PolicyConfig::default() });
            let mut rng = fastrand::Rng::with_seed(9);
            for n in 1..20 {
                let mut column = |most: f32| (0..n).map(|_| most * rng.f32()).collect::<Vec<f32>>();
                let mut view = sample::view(&column(200.0), &column(1500.0));
                (view.prefill_tokens, view.context_tokens) = (column(1e6), column(1e6));
                (view.kv_usage, view.resident_blocks) = (column(1.2), column(1e5));
                sample::place(policy.as_ref(), &view, &mut rng);
            }
            let mut costs = [];
            policy.cost(&View::default(), &mut rng, &mut costs);
        }
    }

    #[test]
    fn ties_are_broken_at_random_never_by_position() {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut seen = [0_u32; 4];
        for _ in 0..4000 {
            seen[pick(&[1.0, 1.0, 2.0, 1.0], &mut rng).unwrap().best] += 1;
        }
        assert_eq!(seen[2], 0);
        assert!([seen[0], seen[1], seen[3]].iter().all(|n| (1150..1520).contains(n)), "{seen:?}");
    }

    #[test]
    fn impossible_candidates_are_never_picked() {
        let mut rng = fastrand::Rng::with_seed(1);
        assert_eq!(pick(&[f32::INFINITY, f32::NAN], &mut rng), None);
        assert_eq!(pick(&[], &mut rng), None);
        assert_eq!(pick(&[f32::INFINITY, 3.0], &mut rng), Some(Pick { best: 1, runner_up: None }));
        assert_eq!(pick(&[5.0, 3.0, 4.0], &mut rng), Some(Pick { best: 1, runner_up: Some(2) }));
    }

    #[test]
    fn what_is_picked_is_what_sorting_picks_at_every_length() {
        let mut rng = fastrand::Rng::with_seed(23);
        for len in (1..200).chain([1000, 1024, 4000, 4096, 5000]) {
            for kinds in [2, 5, 1_000_000] {
                let mut cost = || match rng.u32(..kinds + 1) {
                    0 if kinds < 1000 => f32::INFINITY,
                    cost => cost as f32,
                };
                let costs: Vec<f32> = (0..len).map(|_| cost()).collect();
                let mut sorted: Vec<f32> = costs.iter().copied().filter(|cost| cost.is_finite()).collect();
                sorted.sort_by(f32::total_cmp);
                let picked = pick(&costs, &mut rng);
                assert_eq!(picked.map(|pick| costs[pick.best]), sorted.first().copied());
                let runner_up = picked.and_then(|pick| pick.runner_up);
                assert_eq!(runner_up.map(|place| costs[place]), sorted.get(1).copied());
                assert!(picked.is_none_or(|pick| pick.runner_up != Some(pick.best)));
            }
        }
    }
}
