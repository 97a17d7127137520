//! The named policies. Each sees the same columns, one cell a candidate, and writes a column of costs: lower is better,
//! infinite is "never". One picker takes the least, breaks ties at random, and remembers the runner-up.

mod baseline;
pub mod column;
mod price;

pub use baseline::{LeastRequest, PowerOfTwo, Random, RoundRobin, Sticky, Weighted};
pub use price::{Price, wait_s};

use crate::config::{PolicyConfig, PolicyName};
use crate::id::ReplicaSlot;

/// What this core knows now of each candidate, as columns of equal length.
#[derive(Debug, Default)]
pub struct View {
    /// The candidates.
    pub slots: Vec<ReplicaSlot>,
    /// Requests the gateway has in flight there.
    pub in_flight: Vec<f32>,
    /// Uncached prompt tokens waiting for prefill there.
    pub prefill_tokens: Vec<f32>,
    /// Tokens of this prompt that the replica holds and could reuse.
    pub warm_tokens: Vec<f32>,
    /// Seconds until what it holds is free to be reused, where a request must wait for that.
    pub prefix_wait_s: Vec<f32>,
    /// Requests it runs at once; infinite when unknown.
    pub slots_limit: Vec<f32>,
    /// Mean seconds a request stays; zero when unknown.
    pub service_s: Vec<f32>,
    /// Seconds before the first prompt token is read.
    pub base_s: Vec<f32>,
    /// Seconds to prefill one token.
    pub prefill_s_per_token: Vec<f32>,
    /// Prefix blocks it is believed to hold.
    pub resident_blocks: Vec<f32>,
    /// Share of its KV cache in use, 0 to 1.
    pub kv_usage: Vec<f32>,
    /// Tokens of this prompt.
    pub prompt_tokens: f32,
    /// The request was placed before, and failed there.
    pub is_retry: bool,
    /// Equal for requests that should stay together (session, else first block).
    pub affinity_key: u64,
}

impl View {
    /// Candidates.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.slots.len()
    }

    /// True when there is no candidate.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Empties all columns, keeping their memory.
    pub fn clear(&mut self) {
        self.slots.clear();
        for column in self.columns_mut() {
            column.clear();
        }
    }

    /// Makes `slots` the candidates; the other columns are zero.
    pub fn reset(&mut self, slots: &[ReplicaSlot]) {
        self.clear();
        self.slots.extend_from_slice(slots);
        for column in self.columns_mut() {
            column.resize(slots.len(), 0.0);
        }
    }

    /// Adds the candidate at `place` of `other`.
    pub fn push_from(&mut self, other: &Self, place: usize) {
        self.slots.push(other.slots[place]);
        for (column, from) in self.columns_mut().into_iter().zip(other.columns()) {
            column.push(from[place]);
        }
    }

    fn columns(&self) -> [&[f32]; 10] {
        [
            &self.in_flight,
            &self.prefill_tokens,
            &self.warm_tokens,
            &self.prefix_wait_s,
            &self.slots_limit,
            &self.service_s,
            &self.base_s,
            &self.prefill_s_per_token,
            &self.resident_blocks,
            &self.kv_usage,
        ]
    }

    fn columns_mut(&mut self) -> [&mut Vec<f32>; 10] {
        [
            &mut self.in_flight,
            &mut self.prefill_tokens,
            &mut self.warm_tokens,
            &mut self.prefix_wait_s,
            &mut self.slots_limit,
            &mut self.service_s,
            &mut self.base_s,
            &mut self.prefill_s_per_token,
            &mut self.resident_blocks,
            &mut self.kv_usage,
        ]
    }
}

/// A way to choose. Stateless but for counters that all shards share.
pub trait Policy: Send + Sync + std::fmt::Debug {
    /// Writes the cost of each candidate of `view` to `costs` (same length).
    fn cost(&self, view: &View, rng: &mut fastrand::Rng, costs: &mut [f32]);

    /// True when costs are seconds.
    fn is_priced(&self) -> bool {
        false
    }
}

/// The policy that `config` names.
#[must_use]
pub fn build(config: &PolicyConfig) -> Box<dyn Policy> {
    match config.name {
        PolicyName::Price => Box::new(Price::new(config)),
        PolicyName::Weighted => Box::new(Weighted::new(config.weights)),
        PolicyName::LeastRequest => Box::new(LeastRequest),
        PolicyName::RoundRobin => Box::new(RoundRobin::default()),
        PolicyName::PowerOfTwo => Box::new(PowerOfTwo),
        PolicyName::Sticky => Box::new(Sticky),
        PolicyName::Random => Box::new(Random),
    }
}

/// Outcome of a choice, as indices into the view.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// The cheapest.
    pub best: usize,
    /// The next cheapest, if any is possible.
    pub runner_up: Option<usize>,
}

/// Takes the least cost; among equals each is as likely. `None` when every cost is infinite (or not a number).
#[must_use]
pub fn pick(costs: &[f32], rng: &mut fastrand::Rng) -> Option<Pick> {
    let least = column::least(costs);
    if !least.is_finite() {
        return None;
    }
    let mut equals = costs.iter().enumerate().filter(|(_, cost)| **cost <= least).map(|(place, _)| place);
    let equal = costs.iter().map(|cost| u32::from(*cost <= least)).sum::<u32>();
    if equal > 1 {
        let chosen = rng.usize(..equal as usize);
        let best = equals.clone().nth(chosen)?;
        return Some(Pick { best, runner_up: equals.nth(usize::from(chosen == 0)) });
    }
    let best = equals.next()?;
    let (before, after) = (costs.get(..best).unwrap_or_default(), costs.get(best + 1..).unwrap_or_default());
    let next = column::least(before).min(column::least(after));
    let is_next = |(place, cost): (usize, &f32)| *cost <= next && place != best;
    let runner_up = if next.is_finite() { costs.iter().enumerate().position(is_next) } else { None };
    Some(Pick { best, runner_up })
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
