//! Which replicas are left out because they keep failing, and for how long. Client errors never count; a replica
//! comes back on probation, one request at a time, and a pool is never emptied by its own failures.
//!
//! The request on probation is counted by a lease, not by what is in flight: streams from before the ejection may go on
//! for minutes. A lease ends with an outcome, or after a while when there is none (the client left).

use crate::clock::Now;
use crate::config::EjectionConfig;
use crate::id::ReplicaSlot;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How long a request on probation may go without an outcome before another is let through.
const PROBE_LEASE: Duration = Duration::from_secs(30);

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
    /// While on probation: until when a request is taken to be there.
    probed_until: AtomicU64,
    /// Zero when not new.
    warming_until: AtomicU64,
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

    /// Whether a request may go to `slot` now.
    #[inline]
    #[must_use]
    pub fn admits(&self, slot: ReplicaSlot, _in_flight: u32, now: Now) -> bool {
        match self.state(slot, now) {
            HealthState::Healthy => true,
            HealthState::Ejected => false,
            HealthState::Probation => {
                self.cells.get(slot.index()).is_some_and(|cell| now.0 >= cell.probed_until.load(Relaxed))
            }
        }
    }

    /// A request was placed at `slot`: on probation, others wait for what becomes of it. Shards that place one in the
    /// same microsecond may let two through.
    #[inline]
    pub fn placed(&self, slot: ReplicaSlot, now: Now) {
        let Some(cell) = self.cells.get(slot.index()) else { return };
        let until = cell.ejected_until.load(Relaxed);
        if until != 0 {
            cell.probed_until.store(Now(now.0.max(until)).plus(PROBE_LEASE).0, Relaxed);
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
            cell.probed_until.store(0, Relaxed);
        }
    }

    /// A replica failed (no connection, 5xx, broken or missing answer). `peers` are the members of its pool.
    /// Returns true when this ejected it.
    pub fn failed(&self, slot: ReplicaSlot, peers: &[ReplicaSlot], rules: &EjectionConfig, now: Now) -> bool {
        let Some(cell) = self.cells.get(slot.index()) else { return false };
        let state = self.state(slot, now);
        if state == HealthState::Ejected {
            // It was on its way before: it is out for that already.
            return false;
        }
        cell.probed_until.store(0, Relaxed);
        let failures = cell.failures_in_row.fetch_add(1, Relaxed).saturating_add(1);
        if state == HealthState::Healthy && failures < rules.consecutive_failures {
            return false;
        }
        // Those on probation are out too: they take next to nothing, and may fail yet.
        let others_out = peers.iter().filter(|p| **p != slot && self.state(**p, now) != HealthState::Healthy).count();
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

    /// From now until `until`, `slot` warms up: it is given a share of the cold requests.
    pub fn warm_up(&self, slot: ReplicaSlot, until: Now) {
        if let Some(cell) = self.cells.get(slot.index()) {
            cell.warming_until.store(until.0, Relaxed);
        }
    }

    /// Whether `slot` warms up.
    #[must_use]
    pub fn is_warming(&self, slot: ReplicaSlot, now: Now) -> bool {
        self.cells.get(slot.index()).is_some_and(|cell| now.0 < cell.warming_until.load(Relaxed))
    }

    /// Whether every replica takes requests as any other does: none is out, on probation, draining or warming up.
    #[must_use]
    pub fn is_all_plain(&self, now: Now) -> bool {
        self.cells.iter().all(|cell| cell.ejected_until.load(Relaxed) == 0 && now.0 >= cell.warming_until.load(Relaxed))
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
        assert!(health.admits(bad, 7, at(2)), "streams from before do not keep it out");
        health.placed(bad, at(2));
        assert!(!health.admits(bad, 0, at(2)), "one at a time");
        assert!(health.failed(bad, &PEERS, &RULES, at(2)), "on probation one failure is enough");
        assert_eq!(health.state(bad, at(5)), HealthState::Ejected);
        assert_eq!(health.state(bad, at(6)), HealthState::Probation);
        health.succeeded(bad);
        assert_eq!(health.state(bad, at(6)), HealthState::Healthy);
        health.placed(bad, at(6));
        assert!(health.admits(bad, 1, at(6)), "no lease for the healthy");
    }

    #[test]
    fn a_probe_that_never_ends_gives_way_to_the_next() {
        let health = HealthColumns::new(2);
        let bad = PEERS[0];
        assert!((0..2).any(|_| health.failed(bad, &PEERS, &RULES, at(0))));
        // Decided before it was ejected, placed again after: the lease counts from the probation on.
        health.placed(bad, at(1));
        assert!(!health.admits(bad, 0, at(2)) && !health.admits(bad, 0, at(31)));
        assert!(health.admits(bad, 0, at(32)));
    }

    #[test]
    fn failures_from_before_an_ejection_do_not_prolong_it() {
        let health = HealthColumns::new(2);
        let ejected = (0..18).filter(|_| health.failed(PEERS[0], &PEERS, &RULES, at(0))).count();
        assert_eq!(ejected, 1);
        assert_eq!(health.state(PEERS[0], at(2)), HealthState::Probation);
    }

    #[test]
    fn a_pool_is_never_emptied() {
        let health = HealthColumns::new(2);
        let eject = |slot| (0..4).any(|_| health.failed(slot, &PEERS, &RULES, at(0)));
        assert!(eject(PEERS[0]));
        assert!(!eject(PEERS[1]), "half of the pool is out already");
        let later = (0..4).any(|_| health.failed(PEERS[1], &PEERS, &RULES, at(2)));
        assert!(!later, "the other is on probation: it may fail yet");
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
