//! The policies that any load balancer has: baselines in every comparison, and choices for those who want them.

use super::ring::mix;
use super::{Policy, View};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Fewest requests in flight.
#[derive(Debug)]
pub struct LeastRequest;

impl Policy for LeastRequest {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        costs.copy_from_slice(&view.in_flight);
    }
}

/// In turn, over all shards together.
#[derive(Debug, Default)]
pub struct RoundRobin {
    next: AtomicUsize,
}

impl Policy for RoundRobin {
    #[expect(clippy::cast_precision_loss, reason = "at most 4,096")]
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        let n = view.len().max(1);
        // A retry is not a turn: with two replicas, the one that fails would be first every time.
        let turn = if view.is_retry { self.next.load(Relaxed) } else { self.next.fetch_add(1, Relaxed) } % n;
        for (place, cost) in costs.iter_mut().enumerate() {
            *cost = ((place + n - turn) % n) as f32;
        }
    }
}

/// The lesser loaded of two drawn at random (Mitzenmacher, *The Power of Two Choices*, 2001).
#[derive(Debug)]
pub struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn cost(&self, view: &View, rng: &mut fastrand::Rng, costs: &mut [f32]) {
        costs.fill(f32::INFINITY);
        let n = view.len();
        if n == 0 {
            return;
        }
        let first = rng.usize(..n);
        let second = if n > 1 { (first + rng.usize(1..n)) % n } else { first };
        for place in [first, second] {
            costs[place] = view.in_flight[place];
        }
    }
}

/// Uniformly at random.
#[derive(Debug)]
pub struct Random;

impl Policy for Random {
    fn cost(&self, _view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        costs.fill(0.0);
    }
}

/// Always the same replica for the same session, whatever the load: rendezvous hashing (Thaler and Ravishankar, 1998),
/// so that a replica that leaves moves only its own sessions.
#[derive(Debug)]
pub struct Sticky;

impl Policy for Sticky {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        costs.fill(2.0);
        let weight = |place: usize| mix(view.affinity_key ^ mix(u64::from(view.slots[place].0) + 1));
        let mut ranked = [None::<(u64, usize)>; 2];
        for place in 0..view.len() {
            let entry = Some((weight(place), place));
            if entry > ranked[0] {
                ranked = [entry, ranked[0]];
            } else if entry > ranked[1] {
                ranked[1] = entry;
            }
        }
        for ((_, place), cost) in ranked.into_iter().flatten().zip([0.0, 1.0]) {
            costs[place] = cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{best, picked, view};
    use super::*;
    use crate::id::ReplicaSlot;

    #[test]
    fn each_policy_shares_as_documented() {
        let idle = view(&[0.0; 4], &[0.0; 4]);
        assert_eq!(picked(&RoundRobin::default(), &idle), [100; 4]);
        for policy in [&LeastRequest as &dyn Policy, &Random, &PowerOfTwo] {
            assert!(picked(policy, &idle).iter().all(|n| (70..130).contains(n)), "{policy:?}");
        }
        let uneven = view(&[3.0, 0.0, 1.0, 2.0], &[0.0; 4]);
        assert_eq!(best(&LeastRequest, &uneven), 1);
        let two = picked(&PowerOfTwo, &uneven);
        assert!(two[0] == 0 && two[1] > 170 && two[2] > two[3], "{two:?}");
        assert_eq!(picked(&Sticky, &uneven).iter().filter(|n| **n == 400).count(), 1);
    }

    #[test]
    fn sticky_moves_only_the_sessions_of_a_replica_that_left() {
        for key in 0..200 {
            let mut all = view(&[0.0; 4], &[0.0; 4]);
            all.affinity_key = key;
            let home = all.slots[best(&Sticky, &all)];
            let mut fewer = view(&[0.0; 3], &[0.0; 3]);
            fewer.affinity_key = key;
            let after = fewer.slots[best(&Sticky, &fewer)];
            assert!(home == after || home == ReplicaSlot(3));
        }
    }
}
