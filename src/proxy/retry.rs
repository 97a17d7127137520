//! When another replica may be tried: a budget, so that a failing fleet is not sent more than it was asked.

use crate::clock::Now;
use crate::config::RetryConfig;

/// Retries saved up are worth at most this many seconds of the floor, or as many of the recent requests.
const MEMORY_S: f64 = 10.0;

/// A token bucket: each request pays in a share of a retry, time pays in the floor, a retry takes one out.
#[derive(Clone, Debug)]
pub(super) struct RetryBudget {
    tokens: f64,
    filled_at: Now,
}

impl RetryBudget {
    /// A full bucket.
    #[must_use]
    pub(super) fn new(config: &RetryConfig, now: Now) -> Self {
        Self { tokens: Self::most(config), filled_at: now }
    }

    fn most(config: &RetryConfig) -> f64 {
        (config.budget_floor_per_s * MEMORY_S).max(100.0 * config.budget).max(1.0)
    }

    fn fill(&mut self, config: &RetryConfig, now: Now) {
        let earned = now.seconds_since(self.filled_at) * config.budget_floor_per_s;
        self.tokens = (self.tokens + earned).min(Self::most(config));
        // A request pays in as of when it came, which may be long before the last one that took out.
        self.filled_at = self.filled_at.max(now);
    }

    /// A request came.
    pub(super) fn deposit(&mut self, config: &RetryConfig, now: Now) {
        self.fill(config, now);
        self.tokens = (self.tokens + config.budget).min(Self::most(config));
    }

    /// Takes one retry out, if there is one.
    pub(super) fn withdraw(&mut self, config: &RetryConfig, now: Now) -> bool {
        self.fill(config, now);
        let granted = self.tokens >= 1.0;
        if granted {
            self.tokens -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_stay_a_share_of_requests() {
        let config = RetryConfig { attempts: 3, budget: 0.2, budget_floor_per_s: 0.0 };
        let mut budget = RetryBudget::new(&config, Now(0));
        while budget.withdraw(&config, Now(0)) {}
        let mut granted = 0;
        for _ in 0..1000 {
            budget.deposit(&config, Now(0));
            granted += u32::from(budget.withdraw(&config, Now(0)));
        }
        assert!((195..=205).contains(&granted), "{granted}");
    }

    #[test]
    fn the_floor_always_lets_some_through() {
        let config = RetryConfig { attempts: 3, budget: 0.0, budget_floor_per_s: 2.0 };
        let mut budget = RetryBudget::new(&config, Now(0));
        while budget.withdraw(&config, Now(0)) {}
        assert!(!budget.withdraw(&config, Now(400_000_000)));
        assert!(budget.withdraw(&config, Now(600_000_000)));
    }

    #[test]
    fn no_second_is_paid_twice() {
        let config = RetryConfig { attempts: 3, budget: 0.0, budget_floor_per_s: 1.0 };
        let mut budget = RetryBudget::new(&config, Now(0));
        let late = Now(60_000_000_000);
        while budget.withdraw(&config, late) {}
        budget.deposit(&config, Now(50_000_000_000));
        assert!(!budget.withdraw(&config, late));
    }
}
