//! The most that the gateway has had in flight at a replica, over the last seconds.
//!
//! A load report is late: it tells of a moment before it was sent, and requests were on their way to the replica, and
//! answers on their way back, at that moment. So it is held against the most that the gateway had there at any time since:
//! what the report has beyond that is of others for sure.
//!
//! Time is cut into buckets; each keeps the most that was noted in it. Counts are noted when they rise, and when a report
//! comes: they may have fallen meanwhile, so what was noted last before a time is the most that there was at that time.

use crate::clock::Now;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Length of a bucket.
const BUCKET: Duration = Duration::from_millis(50);
/// Buckets kept: 3.2 seconds.
const BUCKETS: usize = 64;

/// Requests and prompt tokens of one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Most {
    /// Requests in flight.
    pub requests: u32,
    /// Uncached prompt tokens whose first answer byte has not come yet.
    pub prefill_tokens: u32,
}

/// One replica's history. A bucket's number stands above the most that was noted in it, so that a later one takes its
/// place by being larger, and no lock is needed.
#[derive(Debug)]
pub(super) struct History {
    /// Requests and tokens: both are noted together.
    buckets: [[AtomicU64; 2]; BUCKETS],
}

impl Default for History {
    fn default() -> Self {
        Self { buckets: [const { [AtomicU64::new(0), AtomicU64::new(0)] }; BUCKETS] }
    }
}

impl History {
    /// So much is there at `now`.
    pub(super) fn note(&self, requests: u32, prefill_tokens: u64, now: Now) {
        let number = number(now);
        let tokens = prefill_tokens.min(u64::from(u32::MAX));
        for (most, value) in self.buckets[place(number)].iter().zip([u64::from(requests), tokens]) {
            let noted = number << 32 | value;
            if most.load(Relaxed) < noted {
                most.fetch_max(noted, Relaxed);
            }
        }
    }

    /// The most from `from` to `to`, as far as it is kept.
    pub(super) fn most(&self, from: Now, to: Now) -> Most {
        let last = number(to);
        let first = number(from).max((last + 1).saturating_sub(BUCKETS as u64));
        let oldest = (last + 1).saturating_sub(BUCKETS as u64);
        let most = |which: usize| {
            let noted = |number: u64| {
                let word = self.buckets[place(number)][which].load(Relaxed);
                (word >> 32 == number).then_some(word & u64::from(u32::MAX))
            };
            let before = (oldest..first).rev().find_map(noted);
            u32::try_from((first..=last).filter_map(noted).chain(before).max().unwrap_or(0)).unwrap_or(u32::MAX)
        };
        Most { requests: most(0), prefill_tokens: most(1) }
    }
}

/// The number of the bucket of `now`; never zero, which is none.
#[expect(clippy::cast_possible_truncation, reason = "fifty milliseconds")]
const fn number(now: Now) -> u64 {
    (now.0 / BUCKET.as_nanos() as u64 + 1) & u32::MAX as u64
}

#[expect(clippy::cast_possible_truncation, reason = "below 64")]
const fn place(number: u64) -> usize {
    (number % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now(ms * 1_000_000)
    }

    fn most(history: &History, from_ms: u64, to_ms: u64) -> u32 {
        history.most(at(from_ms), at(to_ms)).requests
    }

    #[test]
    fn the_most_of_a_time_is_found_and_what_was_there_when_it_began() {
        let history = History::default();
        assert_eq!(history.most(at(0), at(9_000)), Most::default());
        history.note(3, 100, at(1_000));
        history.note(5, 700, at(1_010));
        history.note(1, 0, at(1_500));
        history.note(2, 50, at(2_000));
        assert_eq!(history.most(at(1_000), at(2_000)), Most { requests: 5, prefill_tokens: 700 });
        assert_eq!(most(&history, 1_300, 1_400), 5, "nothing was noted in that time: it may still have been five");
        assert_eq!(most(&history, 1_700, 2_000), 2);
        assert_eq!(most(&history, 1_600, 1_900), 1);
        assert_eq!(most(&history, 0, 900), 0);
        assert_eq!(most(&history, 0, 60_000), 0, "too long ago");
    }

    #[test]
    fn any_history_is_what_a_list_says() {
        bolero::check!().with_type::<(Vec<(u8, u8)>, u8, u8)>().for_each(|(notes, from, length)| {
            let (history, mut now, mut list) = (History::default(), 0, Vec::new());
            for (pause, requests) in notes.iter().take(100) {
                now += u64::from(*pause) * 2;
                history.note(u32::from(*requests), 0, at(now));
                list.push((now / 50, u32::from(*requests)));
            }
            let from = now.saturating_sub(u64::from(*from) * 8);
            let to = (from + u64::from(*length)).min(now);
            let within = list.iter().filter(|(bucket, _)| (from / 50..=to / 50).contains(bucket));
            let before = list.iter().filter(|(bucket, _)| *bucket < from / 50).map(|(bucket, _)| *bucket).max();
            let kept = before.filter(|bucket| bucket + BUCKETS as u64 > to / 50);
            let before = list.iter().filter(|(bucket, _)| Some(*bucket) == kept);
            let wanted = within.chain(before).map(|(_, requests)| *requests).max().unwrap_or(0);
            assert_eq!(most(&history, from, to), wanted);
        });
    }
}
