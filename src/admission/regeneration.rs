//! How much of the engines' time placements may cost in computing again what they push out of caches.

use crate::clock::Now;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What was not used in so long a time may be made up for at once.
const SAVED_MOST: Duration = Duration::from_secs(10);

/// One pool's account: each placement that pushes out what will be needed again pays for it, and while more was paid than
/// was allowed, those that would may wait. Beyond the point where contexts no longer fit into the caches, this is what
/// keeps those that are in there from being replaced before they are used.
///
/// It is the generic cell rate algorithm (ITU-T I.371): all that is kept is up to when the allowance is spent.
#[derive(Debug, Default)]
pub struct Regeneration {
    spent_until: AtomicU64,
}

impl Regeneration {
    /// True when the allowance is spent.
    #[inline]
    #[must_use]
    pub fn is_spent(&self, now: Now) -> bool {
        self.spent_until.load(Relaxed) > now.0
    }

    /// Seconds until it is not any more.
    #[must_use]
    pub fn spent_s(&self, now: Now) -> f64 {
        Now(self.spent_until.load(Relaxed)).seconds_since(now)
    }

    /// `engine_s` seconds of an engine will be spent on what was pushed out now; `engines` is how many seconds of engines
    /// may be, each second.
    pub fn spend(&self, engine_s: f64, engines: f64, now: Now) {
        let lasts = Duration::try_from_secs_f64(engine_s / engines).unwrap_or(Duration::ZERO);
        let saved_from = now.0.saturating_sub(nanos(SAVED_MOST));
        let spend = |until: u64| Some(until.max(saved_from).saturating_add(nanos(lasts)));
        let _before = self.spent_until.fetch_update(Relaxed, Relaxed, spend);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now(seconds * 1_000_000_000)
    }

    #[test]
    fn what_is_allowed_can_be_spent_each_second_and_what_was_saved_at_once() {
        let account = Regeneration::default();
        assert!(!account.is_spent(at(0)));
        // Two engines, each with a quarter of its time: half a second each second, and ten seconds' worth at first.
        account.spend(4.0, 0.5, at(100));
        assert!(!account.is_spent(at(100)), "8 of 10 s");
        account.spend(3.0, 0.5, at(100));
        assert!(account.is_spent(at(103)), "14 of 10 s");
        assert!((account.spent_s(at(103)) - 1.0).abs() < 1e-9 && account.spent_s(at(105)) <= 0.0);
        assert!(!account.is_spent(at(104)));
        account.spend(0.0, 0.5, at(104));
        assert!(!account.is_spent(at(104)));
    }

    #[test]
    fn what_is_no_time_costs_nothing() {
        let account = Regeneration::default();
        for (engine_s, engines) in [(f64::NAN, 1.0), (-1.0, 1.0), (1.0, 0.0), (0.0, 0.0)] {
            account.spend(engine_s, engines, at(50));
            assert!(!account.is_spent(at(50)), "{engine_s} / {engines}");
        }
    }
}
