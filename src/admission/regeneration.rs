//! How much of the engines' time placements may cost in computing again what they push out of caches.

use crate::clock::Now;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What was not spent in so long a time may be spent at once.
const SAVED_MOST: Duration = Duration::from_secs(10);
/// After so long a time without spending there is something to spend again, however much was spent before.
const OVERSPENT_MOST: Duration = Duration::from_secs(60);

/// What one pool may spend. Each placement that pushes out what will be needed again pays for it; while more was spent than
/// is allowed, requests that would push out more wait. Where contexts do not fit into the caches any more, this is what
/// keeps those that are there from being replaced before they are used.
///
/// It is a generic cell rate algorithm (ITU-T I.371): all that is kept is when what was spent is made up for.
#[derive(Debug, Default)]
pub struct RegenerationBudget {
    spent_until: AtomicU64,
}

impl RegenerationBudget {
    /// True when nothing more may be spent now.
    #[inline]
    #[must_use]
    pub fn is_spent(&self, now: Now) -> bool {
        self.spent_until.load(Relaxed) > now.0
    }

    /// Seconds until something may be spent again.
    #[must_use]
    pub fn spent_s(&self, now: Now) -> f64 {
        Now(self.spent_until.load(Relaxed)).seconds_since(now)
    }

    /// Engines will spend `engine_s` seconds on what was pushed out now; `engines` is how many seconds of engines may be
    /// spent so each second.
    pub fn spend(&self, engine_s: f64, engines: f64, now: Now) {
        let lasts = Duration::try_from_secs_f64((engine_s / engines).clamp(0.0, 1e6)).unwrap_or(Duration::ZERO);
        let (saved_from, most) = (now.minus(SAVED_MOST), now.plus(OVERSPENT_MOST));
        let spend = |until: u64| Some(Now(until).max(saved_from).plus(lasts).min(most).0);
        let _before = self.spent_until.fetch_update(Relaxed, Relaxed, spend);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now(seconds * 1_000_000_000)
    }

    #[test]
    fn what_is_allowed_can_be_spent_each_second_and_what_was_saved_at_once() {
        let budget = RegenerationBudget::default();
        assert!(!budget.is_spent(at(0)));
        // Two engines, each with a quarter of its time: half a second each second, and ten seconds' worth at first.
        budget.spend(4.0, 0.5, at(100));
        assert!(!budget.is_spent(at(100)), "8 of 10 s");
        budget.spend(3.0, 0.5, at(100));
        assert!(budget.is_spent(at(103)), "14 of 10 s");
        assert!((budget.spent_s(at(103)) - 1.0).abs() < 1e-9 && budget.spent_s(at(105)) <= 0.0);
        assert!(!budget.is_spent(at(104)));
        budget.spend(0.0, 0.5, at(104));
        assert!(!budget.is_spent(at(104)));
    }

    #[test]
    fn an_hour_of_overspending_is_over_in_a_minute() {
        let budget = RegenerationBudget::default();
        for second in 100..3700 {
            budget.spend(5.0, 0.5, at(second));
        }
        budget.spend(1e30, 0.5, at(3700));
        assert!(budget.is_spent(at(3759)) && !budget.is_spent(at(3760)));
    }

    #[test]
    fn what_is_no_time_costs_nothing() {
        let budget = RegenerationBudget::default();
        for (engine_s, engines) in [(f64::NAN, 1.0), (-100.0, 1.0), (0.0, 0.0)] {
            budget.spend(engine_s, engines, at(50));
            assert!(!budget.is_spent(at(50)), "{engine_s} / {engines}");
        }
    }
}
