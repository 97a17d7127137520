//! Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018), as KubeAI has it.
//!
//! The walk starts at the session's place on the ring (else that of the prompt's first block), and stops at the first
//! replica with `load + 1 ≤ load_factor · (total + 1) / n`; with none such, or none in flight at all, where it started.
//!
//! Source: `internal/loadbalancer/balance_chwbl.go` of KubeAI (`chwblGetAddr`, `chwblLoadOK`), with 256 places a replica
//! and a mean load factor of 125 %.
//!
//! Known weakness: with fewer requests than replicas the bound is below one request, nobody is within it, and the session
//! stays where it is hashed to; and what a request costs or where its prefix is warm does not count.

use super::ring::Ring;
use super::{Policy, View, parameter};
use crate::config::ChwblConfig;

/// The session's own replica, or the next on the ring within its share.
#[derive(Debug)]
pub struct Chwbl {
    load_factor: f32,
    ring: Ring,
}

impl Chwbl {
    /// The policy with the parameters of `config`.
    #[must_use]
    pub fn new(config: &ChwblConfig) -> Self {
        Self { load_factor: parameter(config.load_factor), ring: Ring::new(config.virtual_nodes) }
    }
}

impl Policy for Chwbl {
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^24, and a distance of 7 digits")]
    fn cost(&self, view: &View, _rng: &mut fastrand::Rng, costs: &mut [f32]) {
        let total: f32 = view.in_flight.iter().sum();
        let bound = self.load_factor * (total + 1.0) / view.len().max(1) as f32;
        for (place, cost) in costs.iter_mut().enumerate() {
            let is_within = total <= 0.0 || view.in_flight[place] + 1.0 <= bound;
            let around = self.ring.distance(view.slots[place], view.affinity_key) as f32 / u64::MAX as f32;
            *cost = around + if is_within { 0.0 } else { 2.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{best, view};
    use super::*;

    #[test]
    fn a_session_stays_until_its_replica_is_over_its_share() {
        let policy = Chwbl::new(&ChwblConfig::default());
        let home = best(&policy, &view(&[0.0; 4], &[0.0; 4]));
        let mut load = [3.0; 4];
        // 1.25 × 13 / 4 is 4.06: four are within.
        assert_eq!(best(&policy, &view(&load, &[0.0; 4])), home);
        load[home] = 4.0;
        let next = best(&policy, &view(&load, &[0.0; 4]));
        assert_ne!(next, home);
        load[next] = 9.0;
        let after = best(&policy, &view(&load, &[0.0; 4]));
        assert!(after == home || after != next, "a larger total raises the bound");
        let loose = Chwbl::new(&ChwblConfig { load_factor: 4.0, ..ChwblConfig::default() });
        load = [3.0; 4];
        load[home] = 9.0;
        assert_eq!(best(&loose, &view(&load, &[0.0; 4])), home);
    }

    #[test]
    fn each_session_has_its_own_replica_whatever_is_warm() {
        let policy = Chwbl::new(&ChwblConfig::default());
        let mut homes = [0; 4];
        for key in 0..400 {
            let mut view = view(&[0.0; 4], &[1000.0, 0.0, 0.0, 0.0]);
            view.affinity_key = super::super::ring::mix(key + 1);
            homes[best(&policy, &view)] += 1;
        }
        assert!(homes.iter().all(|count| (60..140).contains(count)), "{homes:?}");
    }

    #[test]
    fn its_weakness_a_few_requests_are_not_balanced() {
        let policy = Chwbl::new(&ChwblConfig::default());
        let home = best(&policy, &view(&[0.0; 8], &[0.0; 8]));
        let mut load = [0.0; 8];
        load[home] = 4.0;
        assert_eq!(best(&policy, &view(&load, &[0.0; 8])), home, "1.25 × 5 / 8 is below one");
    }
}
