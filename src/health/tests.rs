//! The rules of passive ejection, the table of transitions, and health under many threads.

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
