//! DualMap (Yuan and others, *DualMap: Enabling Both Cache Affinity and Load Balancing for Distributed LLM Serving*,
//! arXiv 2602.06502): two hashes of the prefix give each request two candidates, so prefixes stay together and are spread
//! like the power of two choices.
//!
//! Of the two, the one that holds more of the prompt is picked (of equals, the faster), unless its expected time to first
//! token, `(waiting + uncached) · seconds a token`, exceeds `ttft_slo`: then the faster of the two. Both hashes are on a
//! ring, so that a replica that comes or goes moves few prefixes. The prefix is the session, else the first block; the
//! paper's moving of requests that already wait is not possible from outside an engine.
//!
//! Known weakness: it sees two replicas only, and waits at them however idle the others are.

use super::ring::{Ring, mix};
use super::{Policy, View};
use crate::config::DualMapConfig;

/// The second hash of a key.
const SECOND: u64 = 0x9e37_79b9_7f4a_7c15;

/// The warmer of two by hash, unless it is too slow.
#[derive(Debug)]
pub struct DualMap {
    ttft_slo_s: f32,
    ring: Ring,
}

impl DualMap {
    /// The policy with the parameters of `config`.
    #[must_use]
    pub fn new(config: &DualMapConfig) -> Self {
        Self { ttft_slo_s: config.ttft_slo.as_secs_f32(), ring: Ring::new(config.virtual_nodes) }
    }

    /// The two candidates; the second is another than the first, if there is another.
    fn two(&self, view: &View) -> Option<(usize, usize)> {
        let nearest = |key: u64, but: Option<usize>| {
            let places = (0..view.len()).filter(|place| Some(*place) != but);
            places.min_by_key(|place| self.ring.distance(view.slots[*place], key))
        };
        let first = nearest(mix(view.affinity_key), None)?;
        let second = nearest(mix(view.affinity_key ^ SECOND), Some(first)).unwrap_or(first);
        Some((first, second))
    }
}

impl Policy for DualMap {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        costs.fill(2.0);
        let Some((first, second)) = self.two(view) else { return };
        let ttft_s =
            |place: usize| (view.prefill_tokens[place] + view.uncached_tokens(place)) * view.prefill_s_per_token[place];
        let is_first_faster = ttft_s(first) <= ttft_s(second);
        let (faster, slower) = if is_first_faster { (first, second) } else { (second, first) };
        let is_slower_warmer = view.warm_tokens[slower] > view.warm_tokens[faster];
        let is_slower_picked = is_slower_warmer && ttft_s(slower) <= self.ttft_slo_s;
        let (best, next) = if is_slower_picked { (slower, faster) } else { (faster, slower) };
        costs[next] = 1.0;
        costs[best] = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{best, view};
    use super::*;

    fn policy() -> DualMap {
        DualMap::new(&DualMapConfig::default())
    }

    #[test]
    fn the_warmer_of_the_two_wins_until_it_is_too_slow() {
        let policy = policy();
        let (one, other) = policy.two(&view(&[0.0; 8], &[0.0; 8])).unwrap();
        assert_ne!(one, other);
        let mut view = view(&[0.0; 8], &[0.0; 8]);
        view.warm_tokens[other] = 500.0;
        view.prefill_tokens[other] = 40_000.0;
        assert_eq!(best(&policy, &view), other, "4.05 s");
        view.prefill_tokens[other] = 50_000.0;
        assert_eq!(best(&policy, &view), one, "5.05 s");
        view.prefill_tokens[one] = 60_000.0;
        assert_eq!(best(&policy, &view), other, "both are too slow, and it is the faster");
    }

    #[test]
    fn prefixes_are_spread_like_the_power_of_two_choices() {
        let policy = policy();
        let mut rng = fastrand::Rng::with_seed(4);
        let mut all = view(&[0.0; 8], &[0.0; 8]);
        for key in 0..800 {
            all.affinity_key = mix(key + 1);
            let place = super::super::sample::place(&policy, &all, &mut rng);
            all.prefill_tokens[place] += 1000.0;
        }
        let most = all.prefill_tokens.iter().copied().fold(0.0, f32::max);
        assert!(most <= 103_000.0, "{:?}", all.prefill_tokens);
        assert_eq!(best(&policy, &view(&[0.0], &[0.0])), 0, "one replica is both candidates");
    }

    #[test]
    fn its_weakness_the_two_may_be_busy_while_all_others_are_idle() {
        let policy = policy();
        let mut view = view(&[0.0; 8], &[0.0; 8]);
        let (one, other) = policy.two(&view).unwrap();
        (view.prefill_tokens[one], view.prefill_tokens[other]) = (900_000.0, 800_000.0);
        assert_eq!(best(&policy, &view), other);
    }
}
