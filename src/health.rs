//! Which replicas are left out because they keep failing, and for how long. Client errors never count; a replica
//! comes back on probation, one request at a time, and a pool is never emptied by its own failures.

use crate::clock::Now;
use crate::config::EjectionConfig;
use crate::id::ReplicaSlot;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// What the gateway thinks of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// It takes requests.
    Healthy,
    /// It failed too often and takes none for now.
    Ejected,
    /// Its time out is over: it takes one request at a time until one succeeds.
    Probation,
}

impl HealthState {
    /// Name in `/replicas`, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Ejected => "ejected",
            Self::Probation => "probation",
        }
    }
}

#[derive(Debug, Default)]
struct Cell {
    failures_in_row: AtomicU32,
    ejections_in_row: AtomicU32,
    /// Zero when not ejected.
    ejected_until: AtomicU64,
}

/// Passive health by replica, shared by all shards.
#[derive(Debug)]
pub struct HealthColumns {
    cells: Box<[Cell]>,
}

impl HealthColumns {
    /// Columns of `slots_max` healthy cells.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self { cells: (0..slots_max).map(|_| Cell::default()).collect() }
    }

    /// The state of `slot` at `now`.
    #[must_use]
    pub fn state(&self, slot: ReplicaSlot, now: Now) -> HealthState {
        let until = self.cells.get(slot.index()).map_or(0, |cell| cell.ejected_until.load(Relaxed));
        match until {
            0 => HealthState::Healthy,
            until if now.0 < until => HealthState::Ejected,
            _ => HealthState::Probation,
        }
    }

    /// Whether a request may go to `slot` now, with `in_flight` already there.
    #[inline]
    #[must_use]
    pub fn admits(&self, slot: ReplicaSlot, in_flight: u32, now: Now) -> bool {
        match self.state(slot, now) {
            HealthState::Healthy => true,
            HealthState::Ejected => false,
            HealthState::Probation => in_flight == 0,
        }
    }

    /// Whether every one of `slots` is [`HealthState::Healthy`]: the common case, found quickly.
    #[must_use]
    pub fn all_healthy(&self, slots: &[ReplicaSlot]) -> bool {
        let cells = &*self.cells;
        let until = |slot: &ReplicaSlot| cells.get(slot.index()).map_or(0, |cell| cell.ejected_until.load(Relaxed));
        slots.iter().fold(0, |any, slot| any | until(slot)) == 0
    }

    /// A replica answered as it should.
    pub fn succeeded(&self, slot: ReplicaSlot) {
        let Some(cell) = self.cells.get(slot.index()) else { return };
        if cell.failures_in_row.load(Relaxed) != 0 || cell.ejected_until.load(Relaxed) != 0 {
            cell.failures_in_row.store(0, Relaxed);
            cell.ejections_in_row.store(0, Relaxed);
            cell.ejected_until.store(0, Relaxed);
        }
    }

    /// A replica failed (no connection, 5xx, broken or missing answer). `peers` are the members of its pool.
    /// Returns true when this ejected it.
    pub fn failed(&self, slot: ReplicaSlot, peers: &[ReplicaSlot], rules: &EjectionConfig, now: Now) -> bool {
        let Some(cell) = self.cells.get(slot.index()) else { return false };
        let failures = cell.failures_in_row.fetch_add(1, Relaxed).saturating_add(1);
        let on_probation = self.state(slot, now) == HealthState::Probation;
        if !on_probation && failures < rules.consecutive_failures {
            return false;
        }
        let others_out = peers.iter().filter(|p| **p != slot && self.state(**p, now) == HealthState::Ejected).count();
        let share_after = (others_out + 1) * 100;
        if peers.len() < 2 || share_after > peers.len() * usize::from(rules.max_percent) {
            return false;
        }
        let doubled = cell.ejections_in_row.fetch_add(1, Relaxed).min(16);
        let out = rules.base.saturating_mul(1 << doubled).min(rules.max);
        cell.ejected_until.store(now.plus(out).0.max(1), Relaxed);
        cell.failures_in_row.store(0, Relaxed);
        true
    }

    /// Forgets all about `slot`: another replica has it now.
    pub fn reset(&self, slot: ReplicaSlot) {
        self.succeeded(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const RULES: EjectionConfig = EjectionConfig {
        consecutive_failures: 2,
        base: Duration::from_secs(2),
        max: Duration::from_secs(5),
        max_percent: 50,
    };
    const PEERS: [ReplicaSlot; 2] = [ReplicaSlot(0), ReplicaSlot(1)];

    fn at(seconds: u64) -> Now {
        Now(seconds * 1_000_000_000)
    }

    #[test]
    fn ejection_doubles_and_probation_lets_one_through() {
        let health = HealthColumns::new(2);
        let bad = PEERS[0];
        assert!(!health.failed(bad, &PEERS, &RULES, at(0)));
        assert!(health.failed(bad, &PEERS, &RULES, at(0)));
        assert!(!health.admits(bad, 0, at(1)));
        assert_eq!(health.state(bad, at(2)), HealthState::Probation);
        assert!(health.admits(bad, 0, at(2)) && !health.admits(bad, 1, at(2)));
        assert!(health.failed(bad, &PEERS, &RULES, at(2)), "on probation one failure is enough");
        assert_eq!(health.state(bad, at(5)), HealthState::Ejected);
        assert_eq!(health.state(bad, at(6)), HealthState::Probation);
        health.succeeded(bad);
        assert_eq!(health.state(bad, at(6)), HealthState::Healthy);
    }

    #[test]
    fn a_pool_is_never_emptied() {
        let health = HealthColumns::new(2);
        let eject = |slot| (0..4).any(|_| health.failed(slot, &PEERS, &RULES, at(0)));
        assert!(eject(PEERS[0]));
        assert!(!eject(PEERS[1]), "half of the pool is out already");
        let alone = HealthColumns::new(1);
        assert!(!(0..9).any(|_| alone.failed(PEERS[0], &PEERS[..1], &RULES, at(0))));
    }

    #[test]
    fn success_between_failures_starts_the_count_again() {
        let health = HealthColumns::new(2);
        for _ in 0..9 {
            assert!(!health.failed(PEERS[0], &PEERS, &RULES, at(0)));
            health.succeeded(PEERS[0]);
        }
    }
}
