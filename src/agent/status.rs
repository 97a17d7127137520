//! What an agent tells people: complaints that repeat are told once a minute with their number, and each minute a line
//! says how things go, with rates.

use std::time::Duration;

use crate::clock::Now;
use crate::wire::beacon::Load;

/// A complaint that goes on is told again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// One kind of complaint.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    text: String,
    told: Option<Now>,
    times: u64,
}

impl Complaint {
    /// Whether `text` is to be told now, and how often it came up since it was told last.
    pub(super) fn raise(&mut self, text: &str, now: Now) -> Option<u64> {
        self.times += 1;
        let is_new = self.text != text;
        // One that alternates between two texts is told at most every second.
        let quiet = if is_new { Duration::from_secs(1) } else { AGAIN_AFTER };
        if self.told.is_some_and(|told| now.since(told) < quiet) {
            return None;
        }
        text.clone_into(&mut self.text);
        self.told = Some(now);
        Some(std::mem::take(&mut self.times))
    }

    /// It is over; whether it had been told.
    pub(super) fn settle(&mut self) -> bool {
        let was = self.told.is_some();
        if was {
            *self = Self::default();
        }
        was
    }
}

/// What the minute's line is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// Beacons a second.
    pub(super) beacons: f64,
    /// Prompt tokens looked up a second.
    pub(super) queried: Option<f64>,
    /// The share of them that was found.
    pub(super) hit_share: Option<f64>,
    /// Blocks evicted a second.
    pub(super) evicted: Option<f64>,
}

/// Works rates out from counters.
#[derive(Debug, Default)]
pub(super) struct Minute {
    began: Option<(Now, Load)>,
    pub(super) beacons: u64,
}

impl Minute {
    /// The rates since the last call; none at the first.
    pub(super) fn rates(&mut self, load: &Load, now: Now) -> Option<Rates> {
        let beacons = std::mem::take(&mut self.beacons);
        let (began, before) = self.began.replace((now, *load))?;
        let seconds = now.seconds_since(began).max(1e-3);
        // A counter that fell was begun anew with the engine.
        let risen = |before: Option<u64>, after: Option<u64>| Some(figure(after?.checked_sub(before?)?));
        let queried = risen(before.prefix_tokens_queried, load.prefix_tokens_queried);
        let hit = risen(before.prefix_tokens_hit, load.prefix_tokens_hit);
        let evicted = risen(before.blocks_evicted, load.blocks_evicted);
        Some(Rates {
            beacons: figure(beacons) / seconds,
            queried: queried.map(|tokens| tokens / seconds),
            hit_share: queried.zip(hit).filter(|(queried, _)| *queried > 0.0).map(|(queried, hit)| hit / queried),
            evicted: evicted.map(|blocks| blocks / seconds),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
const fn figure(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now(seconds * 1_000_000_000)
    }

    #[test]
    fn complaints_are_told_once_a_minute() {
        let mut complaint = Complaint::default();
        assert_eq!(complaint.raise("a", at(1)), Some(1));
        assert!((2..60).all(|second| complaint.raise("a", at(second)).is_none()));
        assert_eq!(complaint.raise("a", at(61)), Some(59));
        assert_eq!(complaint.raise("b", at(62)), Some(1), "another one is told at once");
        assert_eq!(complaint.raise("a", at(62)), None, "but not each time it changes");
        assert!(complaint.settle() && !complaint.settle());
        assert_eq!(complaint.raise("b", at(63)), Some(1));
    }

    #[test]
    fn rates_are_differences_over_time() {
        let load = |queried, hit| Load {
            prefix_tokens_queried: Some(queried),
            prefix_tokens_hit: Some(hit),
            ..Load::default()
        };
        let mut minute = Minute { beacons: 5, ..Minute::default() };
        assert_eq!(minute.rates(&load(100, 10), at(0)), None);
        minute.beacons = 200;
        let rates = minute.rates(&load(1_100, 510), at(10)).unwrap();
        let expected = Rates { beacons: 20.0, queried: Some(100.0), hit_share: Some(0.5), evicted: None };
        assert_eq!(rates, expected);
        assert_eq!(minute.rates(&load(5, 5), at(20)).unwrap().queried, None, "the engine has restarted");
    }
}
