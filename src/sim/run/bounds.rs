//! Bounds: choosers that know what no gateway knows.

use super::super::cache::ById;
use super::super::engine::SimEngine;
use super::super::workload::Segment;
use super::{BoundName, Chooser, Live, Plan};
use crate::id::ReplicaSlot;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What a second of prefill that is not repeated is worth to the oracle, beside the wait that it saves.
const REUSE_BONUS: f64 = 1.0;

/// The chooser of a bound.
#[derive(Debug)]
pub(super) struct Bound {
    name: Option<BoundName>,
    /// Seconds of prefill on their way to each engine.
    coming_s: Vec<f64>,
    /// Those on their way: which request, how many seconds.
    on_the_way: Vec<(u32, f64)>,
}

impl Bound {
    pub(super) fn new(plan: &Plan<'_>) -> Self {
        let name = match plan.chooser {
            Chooser::Bound(name) => Some(name),
            Chooser::Policy(_) => None,
        };
        Self { name, coming_s: vec![0.0; plan.engines.len()], on_the_way: Vec::new() }
    }

    /// The cached tokens that an engine is told to find, where the bound says so.
    pub(super) fn dictated(&self, belady: &ById<u32>, key: u64, seen_tokens: u32) -> Option<u32> {
        match self.name? {
            BoundName::Oracle => None,
            BoundName::InfiniteCache => Some(seen_tokens),
            BoundName::PooledBelady => Some(belady.get(&key).copied().unwrap_or(0).min(seen_tokens)),
        }
    }

    /// The engine with the least expected time to the first token, less what reuse is worth.
    pub(super) fn choose(
        &mut self,
        engines: &[SimEngine],
        live: &Live,
        request: u32,
        rng: &mut fastrand::Rng,
    ) -> ReplicaSlot {
        let first = rng.usize(..engines.len().max(1));
        let mut best = (f64::INFINITY, 0.0, 0);
        for place in (first..engines.len()).chain(0..first) {
            let engine = &engines[place];
            let cached = live.dictated.unwrap_or_else(|| {
                let held = engine.held(&live.prompt);
                held.device + held.host
            });
            let new = live.prompt_tokens.saturating_sub(cached);
            let own_s = engine.model().prefill_s(f64::from(new), f64::from(cached));
            let bonus_s = if live.dictated.is_some() { 0.0 } else { REUSE_BONUS * own_s };
            let cost = engine.expected_wait_s(u64::from(new)) + self.coming_s[place] + own_s + bonus_s;
            if cost < best.0 {
                best = (cost, own_s, place);
            }
        }
        let (_, own_s, place) = best;
        self.coming_s[place] += own_s;
        self.on_the_way.push((request, own_s));
        ReplicaSlot::from_index(place).unwrap_or(ReplicaSlot(0))
    }

    /// A request has reached the engine at `place`, which knows of it from now on.
    pub(super) fn arrived(&mut self, place: usize, request: u32) {
        if let Some(at) = self.on_the_way.iter().position(|(coming, _)| *coming == request) {
            let (_, own_s) = self.on_the_way.swap_remove(at);
            self.coming_s[place] -= own_s;
        }
    }
}

/// What one cache of `capacity` tokens finds of each prompt, by its key, when it evicts what is needed last (Bélády, *A
/// study of replacement algorithms for a virtual-storage computer*, 1966).
pub(super) fn belady(order: &[(u64, Vec<Segment>)], capacity: u64) -> ById<u32> {
    // When each segment is used after each use.
    let mut next_use: Vec<Vec<usize>> = order.iter().map(|(_, prompt)| vec![usize::MAX; prompt.len()]).collect();
    let mut last: ById<(usize, usize)> = ById::default();
    for (time, (_, prompt)) in order.iter().enumerate() {
        for (place, segment) in prompt.iter().enumerate() {
            if let Some((before, at)) = last.insert(segment.id, (time, place)) {
                next_use[before][at] = time;
            }
        }
    }
    let mut found = ById::default();
    // What is held, by segment: tokens, and when it is used next. Entries of the heap that say otherwise are outdated.
    let mut held: ById<(u32, usize)> = ById::default();
    let mut heap: BinaryHeap<(usize, Reverse<u64>, u64)> = BinaryHeap::new();
    let mut used = 0_u64;
    for (time, (key, prompt)) in order.iter().enumerate() {
        let mut cached = 0;
        for segment in prompt {
            let Some((tokens, _)) = held.get(&segment.id) else { break };
            cached += tokens.min(&segment.tokens);
            if *tokens < segment.tokens {
                break;
            }
        }
        found.insert(*key, cached);
        for (place, segment) in prompt.iter().enumerate() {
            let next = next_use[time][place];
            let before = held.insert(segment.id, (segment.tokens, next)).map_or(0, |(tokens, _)| tokens);
            used = used + u64::from(segment.tokens) - u64::from(before);
            // Of those needed at one time the deeper goes first.
            heap.push((next, Reverse(u64::MAX - place as u64), segment.id));
        }
        while used > capacity {
            let Some((next, _, id)) = heap.pop() else { break };
            let Some((tokens, _)) = held.get(&id).filter(|(_, at)| *at == next).copied() else { continue };
            let kept = u32::try_from((u64::from(tokens)).saturating_sub(used - capacity)).unwrap_or(0);
            used -= u64::from(tokens - kept);
            if kept == 0 {
                held.remove(&id);
            } else {
                held.insert(id, (kept, next));
                heap.push((next, Reverse(0), id));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(prompts: &[&[(u64, u32)]]) -> Vec<(u64, Vec<Segment>)> {
        let segment = |(id, tokens): &(u64, u32)| Segment { id: *id, tokens: *tokens };
        (0..).zip(prompts.iter().map(|prompt| prompt.iter().map(segment).collect())).collect()
    }

    #[test]
    fn what_is_needed_last_goes_first() {
        // A cyclic scan, the worst for LRU: with room for two of three, every other is found.
        let scan = order(&[&[(1, 100)], &[(2, 100)], &[(3, 100)], &[(1, 100)], &[(2, 100)], &[(3, 100)]]);
        let found = belady(&scan, 200);
        let hits: u32 = (0..6).map(|key| found[&key]).sum();
        assert_eq!(hits, 200);
        assert_eq!((0..6).map(|key| belady(&scan, 300)[&key]).sum::<u32>(), 300);
    }
}
