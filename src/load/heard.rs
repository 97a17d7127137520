//! When each replica was last heard of, and how soon its next word is due: shared by who hears (ingest, scrape) and who
//! watches for silence (the control thread).

use super::report::LoadSource;
use crate::clock::Now;
use crate::id::ReplicaSlot;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A replica is silent after so many periods without a word (design: beacon, version 1).
pub const PERIODS_UNTIL_STALE: u32 = 3;

#[derive(Debug, Default)]
struct Cell {
    /// Zero: never.
    at: AtomicU64,
    /// The period in microseconds; the highest bit says that it was read from its metrics page.
    period: AtomicU32,
}

/// Marks a period as that of a scrape. Periods are far below half an hour.
const SCRAPED: u32 = 1 << 31;

/// The last word of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastWord {
    /// When it was heard.
    pub at: Now,
    /// Time until the next was due.
    pub period: Duration,
    /// Who said so.
    pub source: LoadSource,
}

impl LastWord {
    /// Whether the next word is so late that the replica counts as silent.
    #[must_use]
    pub fn is_stale(&self, now: Now) -> bool {
        now.since(self.at) > self.period * PERIODS_UNTIL_STALE
    }
}

/// The last word of each replica.
#[derive(Debug)]
pub struct LastHeard {
    cells: Box<[Cell]>,
}

impl LastHeard {
    /// Columns of `slots_max` cells, of which nothing was heard.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self { cells: (0..slots_max).map(|_| Cell::default()).collect() }
    }

    /// Notes that `slot` was heard.
    pub fn note(&self, slot: ReplicaSlot, word: LastWord) {
        let Some(cell) = self.cells.get(slot.index()) else { return };
        let micros = u32::try_from(word.period.as_micros()).unwrap_or(u32::MAX).min(SCRAPED - 1);
        let mark = match word.source {
            LoadSource::Beacon => 0,
            LoadSource::Scrape => SCRAPED,
        };
        cell.period.store(micros | mark, Relaxed);
        cell.at.store(word.at.0.max(1), Relaxed);
    }

    /// The last word of `slot`; `None`: it was never heard.
    #[must_use]
    pub fn last(&self, slot: ReplicaSlot) -> Option<LastWord> {
        let cell = self.cells.get(slot.index())?;
        let at = cell.at.load(Relaxed);
        let period = cell.period.load(Relaxed);
        let source = if period & SCRAPED == 0 { LoadSource::Beacon } else { LoadSource::Scrape };
        let period = Duration::from_micros(u64::from(period & !SCRAPED));
        (at != 0).then_some(LastWord { at: Now(at), period, source })
    }

    /// Another replica has `slot` now.
    pub fn forget(&self, slot: ReplicaSlot) {
        if let Some(cell) = self.cells.get(slot.index()) {
            cell.at.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_kept_until_forgotten_and_goes_stale_after_three_periods() {
        let heard = LastHeard::new(2);
        let slot = ReplicaSlot(1);
        assert_eq!(heard.last(slot), None);
        for source in [LoadSource::Beacon, LoadSource::Scrape] {
            let word = LastWord { at: Now(5_000_000), period: Duration::from_millis(10), source };
            heard.note(slot, word);
            assert_eq!(heard.last(slot), Some(word));
            assert!(!word.is_stale(Now(35_000_000)) && word.is_stale(Now(35_000_001)));
        }
        assert_eq!(heard.last(ReplicaSlot(0)), None);
        heard.note(ReplicaSlot(9), heard.last(slot).unwrap());
        heard.forget(slot);
        assert_eq!(heard.last(slot), None);
    }
}
