//! The policies that others use: baselines in every comparison, and choices for those who want them.

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

/// The finaliser of SplitMix64 (Steele, Lea, Flood, 2014).
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Weighted sum of scores between 0 and 1 (llm-d's legacy default, prefix : queue : KV = 3 : 2 : 2).
#[derive(Debug)]
pub struct Weighted {
    prefix: f32,
    queue: f32,
    kv: f32,
}

impl Weighted {
    /// The blend with `weights` for prefix, queue and KV usage.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "weights need 7 digits")]
    pub const fn new(weights: [f64; 3]) -> Self {
        Self { prefix: weights[0] as f32, queue: weights[1] as f32, kv: weights[2] as f32 }
    }
}

impl Policy for Weighted {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        let (mut least, mut most) = (f32::INFINITY, 0.0_f32);
        for load in &view.in_flight {
            least = least.min(*load);
            most = most.max(*load);
        }
        for (place, cost) in costs.iter_mut().enumerate() {
            let queue = if most > least { (most - view.in_flight[place]) / (most - least) } else { 1.0 };
            let prefix = (view.warm_tokens[place] / view.prompt_tokens.max(1.0)).clamp(0.0, 1.0);
            let kv = (1.0 - view.kv_usage[place]).clamp(0.0, 1.0);
            *cost = -(self.prefix * prefix + self.queue * queue + self.kv * kv);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pick;
    use super::*;
    use crate::id::ReplicaSlot;

    fn view(in_flight: &[f32], warm: &[f32]) -> View {
        let n = in_flight.len();
        View {
            slots: (0..n).filter_map(ReplicaSlot::from_index).collect(),
            in_flight: in_flight.to_vec(),
            warm_tokens: warm.to_vec(),
            kv_usage: vec![0.0; n],
            prompt_tokens: 1000.0,
            affinity_key: 42,
            ..View::default()
        }
    }

    fn share(policy: &dyn Policy, view: &View) -> Vec<u32> {
        let mut rng = fastrand::Rng::with_seed(2);
        let mut costs = vec![0.0; view.len()];
        let mut seen = vec![0; view.len()];
        for _ in 0..4000 {
            policy.cost(view, &mut rng, &mut costs);
            seen[pick(&costs, &mut rng).unwrap().best] += 1;
        }
        seen
    }

    #[test]
    fn each_policy_shares_as_documented() {
        let idle = view(&[0.0; 4], &[0.0; 4]);
        assert_eq!(share(&RoundRobin::default(), &idle), [1000; 4]);
        for policy in [&LeastRequest as &dyn Policy, &Random, &PowerOfTwo, &Weighted::new([3.0, 2.0, 2.0])] {
            assert!(share(policy, &idle).iter().all(|n| (850..1150).contains(n)), "{policy:?}");
        }
        let uneven = view(&[3.0, 0.0, 1.0, 2.0], &[0.0; 4]);
        assert_eq!(share(&LeastRequest, &uneven), [0, 4000, 0, 0]);
        let two = share(&PowerOfTwo, &uneven);
        assert!(two[0] == 0 && two[1] > 1800 && two[2] > two[3], "{two:?}");
        assert_eq!(share(&Sticky, &uneven).iter().filter(|n| **n == 4000).count(), 1);
        assert_eq!(share(&Weighted::new([3.0, 2.0, 2.0]), &view(&[1.0, 0.0], &[1000.0, 0.0]))[0], 4000);
    }

    #[test]
    fn sticky_moves_only_the_sessions_of_a_replica_that_left() {
        let mut rng = fastrand::Rng::with_seed(2);
        let mut costs = vec![0.0; 4];
        for key in 0..200 {
            let mut all = view(&[0.0; 4], &[0.0; 4]);
            all.affinity_key = key;
            Sticky.cost(&all, &mut rng, &mut costs);
            let home = all.slots[pick(&costs, &mut rng).unwrap().best];
            let mut fewer = view(&[0.0; 3], &[0.0; 3]);
            fewer.affinity_key = key;
            Sticky.cost(&fewer, &mut rng, &mut costs[..3]);
            let after = fewer.slots[pick(&costs[..3], &mut rng).unwrap().best];
            assert!(home == after || home == ReplicaSlot(3));
        }
    }
}
