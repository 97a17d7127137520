//! The default: each candidate is priced in seconds, and the cheapest wins.
//!
//! ```text
//! cost = wait                    tokens ahead × prefill + queue for a slot + slow-down by those already decoding
//!      + base                    what any request pays there
//!      + uncached × prefill      this prompt's own work
//!      + restored × restore      what it holds in host memory comes back to the device first
//!      + uncached × prefill × (reuse bonus + crowding)
//!      + eviction × (1 + reuse bonus)
//! ```
//! The last lines are what is lost later: work done twice is GPU time that others wait for, and new blocks push out old
//! ones, the sooner the fuller the replica's cache is beside its peers'. What is pushed out of a slot is known: the time to
//! compute it again, by how likely that is asked for.
//!
//! What others have at a replica, as far as it was heard of, counts as what the gateway has there itself.
//!
//! What does not depend on the request (wait and base) stands in a column of its own, set anew where something has changed
//! ([`Policy::stand`]), and so do the sum and the most that the gate and the crowding need. A request that is cold almost
//! everywhere then costs one pass over three columns, and a few places that are priced by hand; one that is warm in many
//! places costs a pass over five. At 4,096 replicas these passes are bound by the second-level cache, so columns count and
//! not sums: five columns always, with two passes more for the sum and the most, took 2.4 times as long.
//!
//! The spill gate: a replica with clearly more than its share of requests gets no credit for its cache, so a hot prefix
//! spreads to a second replica instead of pinning the first (the rule is smg's per-request gate).

use super::{Policy, View};
use crate::config::PolicyConfig;

/// Weight of the crowding term: how much of a prompt's prefill it may cost to land on the fullest cache.
const CROWDING: f32 = 0.25;

/// With more than one in so many candidates warm, all are priced in lanes as if they were.
const WARM_SHARE: usize = 16;

/// Least expected seconds.
#[derive(Debug)]
pub struct Price {
    slowdown_s: f32,
    reuse_bonus: f32,
    spill_ratio: f32,
    spill_margin: f32,
}

impl Price {
    /// The policy with the parameters of `config`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "prices need 7 digits")]
    pub const fn new(config: &PolicyConfig) -> Self {
        Self {
            slowdown_s: config.decode_slowdown.as_secs_f32(),
            reuse_bonus: config.reuse_bonus as f32,
            spill_ratio: config.spill_ratio as f32,
            spill_margin: config.spill_margin as f32,
        }
    }
}

impl Policy for Price {
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        cost_columns(self, view, costs);
        // Who waits for a slot waits for the prefill in it, too: the longer of the two, not both.
        for place in view.warm.iter().filter(|_| view.is_awaited).map(|place| usize::from(*place)) {
            let ahead = view.prefill_tokens[place] * view.prefill_s_per_token[place];
            costs[place] += larger(view.prefix_wait_s[place] - ahead, 0.0);
        }
        for place in view.warm.iter().filter(|_| view.is_restored).map(|place| usize::from(*place)) {
            costs[place] += restore_s(view, place);
        }
        for place in view.evicting.iter().map(|place| usize::from(*place)) {
            costs[place] += view.eviction_s[place] * (1.0 + self.reuse_bonus);
        }
        for place in &view.barred {
            costs[usize::from(*place)] = f32::INFINITY;
        }
    }

    fn stand(&self, view: &mut View, place: usize) {
        let ahead = view.prefill_tokens[place] * view.prefill_s_per_token[place];
        let (in_flight, limit) = (view.in_flight[place], view.slots_limit[place]);
        let wait = wait(in_flight, limit, ahead, view.service_s[place], self.slowdown_s);
        view.standing_s[place] = wait + view.base_s[place];
    }

    fn is_priced(&self) -> bool {
        true
    }
}

/// Seconds that a token to compute counts for.
#[inline(always)]
fn per_token(price: &Price, crowding: f32, prefill: f32, resident: f32) -> f32 {
    prefill * (1.0 + price.reuse_bonus + crowding * resident)
}

/// Prices all candidates, in the widest lanes this CPU has. The result is the same on all of them.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn cost_columns(price: &Price, view: &View, costs: &mut [f32]) {
    let barred: f64 = view.barred.iter().map(|place| f64::from(view.in_flight[usize::from(*place)])).sum();
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a mean of 7 digits")]
    let mean = ((view.in_flight_sum - barred) / (view.len() - view.barred.len()).max(1) as f64) as f32;
    let gate = (price.spill_ratio * mean).max(mean + price.spill_margin);
    let crowding = CROWDING / larger(view.resident_blocks_most, 1.0);
    // Columns of one known length: the loops have no bounds to check and no branch, and run on SIMD lanes.
    let n = costs.len();
    let (in_flight, standing) = (&view.in_flight[..n], &view.standing_s[..n]);
    let (warm_tokens, resident) = (&view.warm_tokens[..n], &view.resident_blocks[..n]);
    let prefill = &view.prefill_s_per_token[..n];
    let warm_cost = |place: usize| {
        let warm = if in_flight[place] > gate { 0.0 } else { warm_tokens[place] };
        let own = larger(view.prompt_tokens - warm, 0.0);
        standing[place] + own * per_token(price, crowding, prefill[place], resident[place])
    };
    if view.warm.len() > n / WARM_SHARE {
        for (place, cost) in costs.iter_mut().enumerate() {
            *cost = warm_cost(place);
        }
        return;
    }
    let own = larger(view.prompt_tokens, 0.0);
    for (place, cost) in costs.iter_mut().enumerate() {
        *cost = standing[place] + own * per_token(price, crowding, prefill[place], resident[place]);
    }
    for place in view.warm.iter().map(|place| usize::from(*place)) {
        costs[place] = warm_cost(place);
    }
}

/// Seconds until what candidate `place` holds of the prompt in host memory is on its device.
#[must_use]
pub fn restore_s(view: &View, place: usize) -> f32 {
    view.restore_tokens[place] * view.restore_s_per_token[place]
}

/// Seconds before a new request's own prefill starts at candidate `place`.
#[must_use]
pub fn wait_s(view: &View, place: usize, slowdown_s: f32) -> f32 {
    let ahead = view.prefill_tokens[place] * view.prefill_s_per_token[place];
    // Who waits for a slot waits for the prefill in it, too: the longer of the two, not both.
    let ahead = larger(ahead, view.prefix_wait_s[place]);
    wait(view.in_flight[place], view.slots_limit[place], ahead, view.service_s[place], slowdown_s)
}

/// The time `ahead`, the queue for one of `limit` slots, and the slow-down by those already decoding. Without a limit
/// (an infinite one) nobody is over it, and the queue is zero.
#[inline(always)]
fn wait(in_flight: f32, limit: f32, ahead: f32, service_s: f32, slowdown_s: f32) -> f32 {
    let over = larger(in_flight + 1.0 - limit, 0.0);
    let queue = over / larger(limit, 1.0) * larger(service_s, slowdown_s);
    let decoding = if in_flight < limit { in_flight } else { limit };
    ahead + queue + decoding * slowdown_s
}

/// The larger of two numbers; one instruction, as `f32::max` is not, for it cares about what is not a number.
#[inline(always)]
const fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::super::{build, pick};
    use super::*;
    use crate::config::PolicyName;
    use crate::id::ReplicaSlot;
    use std::time::Duration;

    fn config() -> PolicyConfig {
        PolicyConfig { name: PolicyName::Price, decode_slowdown: Duration::from_millis(10), ..PolicyConfig::default() }
    }

    fn view(in_flight: &[f32], warm: &[f32], waiting: &[f32]) -> View {
        let n = in_flight.len();
        View {
            slots: (0..n).filter_map(ReplicaSlot::from_index).collect(),
            in_flight: in_flight.to_vec(),
            elsewhere: vec![0.0; n],
            prefill_tokens: waiting.to_vec(),
            warm_tokens: warm.to_vec(),
            restore_tokens: vec![0.0; n],
            restore_s_per_token: vec![3.4e-6; n],
            prefix_wait_s: vec![0.0; n],
            eviction_s: vec![0.0; n],
            slots_limit: vec![f32::INFINITY; n],
            service_s: vec![0.0; n],
            base_s: vec![0.0; n],
            prefill_s_per_token: vec![1.25e-4; n],
            resident_blocks: vec![0.0; n],
            kv_usage: vec![0.0; n],
            standing_s: vec![0.0; n],
            warm: (0..).zip(warm).filter(|(_, warm)| **warm > 0.0).map(|(place, _)| place).collect(),
            prompt_tokens: 2000.0,
            affinity_key: 1,
            ..View::default()
        }
    }

    fn best(view: &mut View) -> usize {
        let policy = build(&config());
        view.total();
        (0..view.len()).for_each(|place| policy.stand(view, place));
        let mut costs = vec![0.0; view.len()];
        let mut rng = fastrand::Rng::with_seed(5);
        policy.cost(view, &mut rng, &mut costs);
        pick(&costs, &mut rng).unwrap().best
    }

    #[test]
    fn a_warm_replica_wins_until_waiting_costs_more() {
        assert_eq!(best(&mut view(&[1.0, 0.0], &[1900.0, 0.0], &[0.0, 0.0])), 0);
        assert_eq!(best(&mut view(&[1.0, 0.0], &[1900.0, 0.0], &[9000.0, 0.0])), 1);
    }

    #[test]
    fn a_burst_on_a_cold_prefix_stays_together() {
        // The first of the burst is being prefilled at 0: its blocks are on record there already.
        assert_eq!(best(&mut view(&[1.0, 0.0], &[2000.0, 0.0], &[2000.0, 0.0])), 0);
    }

    #[test]
    fn a_hot_prefix_spills() {
        let warm = [2000.0, 0.0, 0.0, 0.0];
        assert_eq!(best(&mut view(&[4.0, 0.0, 0.0, 0.0], &warm, &[0.0; 4])), 0);
        assert_ne!(best(&mut view(&[12.0, 1.0, 1.0, 1.0], &warm, &[0.0; 4])), 0);
    }

    #[test]
    fn a_full_engine_queues() {
        let mut view = view(&[4.0, 0.0], &[2000.0, 0.0], &[0.0, 0.0]);
        view.slots_limit = vec![4.0, 4.0];
        view.service_s = vec![3.0, 3.0];
        assert_eq!(best(&mut view), 1);
    }

    #[test]
    fn few_warm_and_many_are_priced_alike() {
        let mut rng = fastrand::Rng::with_seed(8);
        let mut column = |most: f32| (0..100).map(|_| most * rng.f32()).collect::<Vec<_>>();
        let mut view = view(&column(9.0), &[0.0; 100], &column(5000.0));
        (view.resident_blocks, view.prefill_s_per_token) = (column(900.0), column(1e-3));
        let policy = build(&config());
        let price = |view: &mut View| {
            view.total();
            (0..view.len()).for_each(|place| policy.stand(view, place));
            let mut costs = vec![0.0; view.len()];
            policy.cost(view, &mut fastrand::Rng::with_seed(1), &mut costs);
            costs
        };
        for place in [3, 50, 99] {
            view.warm_tokens[place] = 1500.0;
        }
        view.warm = vec![3, 50, 99];
        let few = price(&mut view);
        view.warm = (0..100).collect();
        assert_eq!(few, price(&mut view));
    }

    #[test]
    fn who_is_barred_is_not_picked_and_does_not_count_for_the_mean() {
        let mut view = view(&[12.0, 1.0, 1.0, 40.0], &[2000.0, 0.0, 0.0, 2000.0], &[0.0; 4]);
        assert_ne!(best(&mut view), 3);
        view.barred = vec![3];
        assert!([1, 2].contains(&best(&mut view)), "the first is over the mean of those that may");
        view.barred = vec![1, 2, 3];
        assert_eq!(best(&mut view), 0);
    }

    #[test]
    fn a_prefix_that_others_use_first_is_waited_for_or_left() {
        let mut view = view(&[1.0, 0.0], &[2000.0, 0.0], &[0.0, 0.0]);
        (view.prefix_wait_s[0], view.is_awaited) = (0.1, true);
        assert_eq!(best(&mut view), 0);
        view.prefix_wait_s[0] = 1.0;
        assert_eq!(best(&mut view), 1);
    }

    #[test]
    fn what_is_in_host_memory_is_worth_less_than_on_the_device_and_more_than_nothing() {
        let mut view = view(&[0.0; 3], &[0.0, 1900.0, 1900.0], &[0.0; 3]);
        (view.restore_tokens[1], view.is_restored) = (1500.0, true);
        assert_eq!(best(&mut view), 2);
        view.barred = vec![2];
        assert_eq!(best(&mut view), 1);
        // Where restoring takes longer than computing, it is no use.
        view.restore_s_per_token[1] = 1e-3;
        assert_eq!(best(&mut view), 0);
    }

    #[test]
    fn a_cold_prompt_goes_where_least_is_lost() {
        let mut view = view(&[0.0; 3], &[0.0; 3], &[0.0; 3]);
        (view.eviction_s, view.evicting) = (vec![0.2, 0.05, 0.1], vec![0, 1, 2]);
        assert_eq!(best(&mut view), 1);
        // What is lost is worth going to the trouble of computing elsewhere what is held here.
        (view.warm_tokens[0], view.warm) = (1000.0, vec![0]);
        assert_eq!(best(&mut view), 1);
        view.eviction_s[0] = 0.1;
        assert_eq!(best(&mut view), 0);
    }

    #[test]
    fn cold_prompts_go_where_the_cache_is_emptier() {
        let mut view = view(&[0.0, 0.0], &[0.0, 0.0], &[0.0, 0.0]);
        view.resident_blocks = vec![40.0, 10.0];
        assert_eq!(best(&mut view), 1);
    }
}
