//! What a name last resolved to, kept through failures and for a while through emptiness.
//!
//! A name service that fails says nothing of the replicas, so they stay. One that says a name has no addresses may mean
//! it (a deployment scaled to none) or be wrong for a moment (a server that lost its zone, a rolling restart): the
//! addresses stay for [`GRACE`], then they go. When to ask again follows from the answer: at the end of its TTL, within
//! [`TTL_MIN`] and [`TTL_MAX`], and with growing pauses while it fails.

use crate::clock::Now;
use std::time::Duration;

/// How long a name without addresses keeps those it had.
pub const GRACE: Duration = Duration::from_secs(30);
/// A shorter time to live is taken as this.
const TTL_MIN: Duration = Duration::from_secs(1);
/// A longer time to live is taken as this.
const TTL_MAX: Duration = Duration::from_secs(300);
/// Longest time between two questions while the answer is empty or missing.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What a name service said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// These, for so long.
    Some(Vec<T>, Duration),
    /// There are none (no such name, or it has no such records), for so long.
    None(Duration),
    /// Nothing: a time-out, a refusal, a server's failure.
    Failed,
}

/// The last word that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept<T> {
    items: Vec<T>,
    empty_since: Option<Now>,
    failures: u32,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { items: Vec::new(), empty_since: None, failures: 0 }
    }
}

impl<T> Kept<T> {
    /// What counts now.
    #[must_use]
    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// Takes an answer in, and says after how long to ask again.
    pub fn take(&mut self, answer: Answer<T>, now: Now) -> Duration {
        match answer {
            Answer::Some(items, ttl) => {
                *self = Self { items, ..Self::default() };
                ttl.clamp(TTL_MIN, TTL_MAX)
            }
            Answer::None(ttl) => {
                self.failures = 0;
                let since = *self.empty_since.get_or_insert(now);
                let left = GRACE.saturating_sub(now.since(since));
                if left.is_zero() {
                    self.items.clear();
                }
                let soon = if self.items.is_empty() { RETRY_MAX } else { left.min(RETRY_MAX) };
                ttl.min(soon).max(TTL_MIN)
            }
            Answer::Failed => {
                let pause = TTL_MIN.saturating_mul(1 << self.failures.min(8));
                self.failures = self.failures.saturating_add(1);
                pause.min(RETRY_MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now(seconds * 1_000_000_000)
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_time_to_live_is_kept_within_bounds() {
        let mut kept = Kept::default();
        for (ttl, again) in [(0, 1), (7, 7), (86_400, 300)] {
            assert_eq!(kept.take(Answer::Some(vec![1], s(ttl)), at(0)), s(again));
        }
    }

    #[test]
    fn failures_change_nothing_and_are_repeated_ever_later() {
        let mut kept = Kept::default();
        kept.take(Answer::Some(vec![1, 2], s(5)), at(0));
        let pauses: Vec<u64> = (0..6).map(|n| kept.take(Answer::Failed, at(n)).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
        assert_eq!(kept.items(), [1, 2]);
        kept.take(Answer::Some(vec![3], s(5)), at(9));
        assert_eq!(kept.take(Answer::Failed, at(9)), s(1));
        assert_eq!(kept.items(), [3]);
    }

    #[test]
    fn emptiness_is_believed_after_a_while() {
        let mut kept = Kept::default();
        assert_eq!(kept.take(Answer::None(s(60)), at(0)), s(10), "a name that has none yet is asked for again soon");
        kept.take(Answer::Some(vec![1], s(5)), at(0));
        assert_eq!(kept.take(Answer::None(s(60)), at(100)), s(10));
        assert_eq!(kept.items(), [1]);
        assert_eq!(kept.take(Answer::None(s(60)), at(125)), s(5), "at the end of the grace, not after it");
        kept.take(Answer::Failed, at(129));
        assert_eq!(kept.items(), [1]);
        kept.take(Answer::None(s(60)), at(130));
        assert!(kept.items().is_empty());
        kept.take(Answer::Some(vec![2], s(5)), at(140));
        kept.take(Answer::None(s(60)), at(145));
        assert_eq!(kept.items(), [2], "a new grace");
    }
}
