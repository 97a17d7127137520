//! Load of the replicas. What the gateway itself has in flight at each: shared columns, one cell a replica, counted by a
//! guard that cannot forget to count back. What others have there is heard from the replicas: beacons come in through
//! [`receive`] and are judged by the [`gate`]; a [`report`] passes over a [`ring`] to every shard, which folds it into
//! [`columns`] of its own.
//!
//! Every change of a cell also moves the version of its group of [`GROUP`] cells, so that a shard that keeps a view of
//! the fleet reads again only what has changed: at 4,096 replicas, 256 versions and a few groups, not 4,096 cells.

pub mod backlog;
pub mod columns;
pub mod gate;
pub mod heard;
mod history;
pub mod plane;
pub mod receive;
pub mod report;
pub mod ring;
mod udp;
pub mod xdp;

pub use self::history::Most;

use self::history::History;
use crate::clock::Now;
use crate::id::ReplicaSlot;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Cells that share a version.
pub const GROUP: usize = 16;

/// What is in flight at one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Requests.
    pub requests: u32,
    /// Uncached prompt tokens whose first answer byte has not come yet.
    pub prefill_tokens: u64,
    /// Tokens the requests hold in its KV cache, or will: whole prompts, cached or not, and what they are expected to
    /// generate.
    pub context_tokens: u64,
}

#[derive(Debug, Default)]
struct Cell {
    requests: AtomicU32,
    prefill_tokens: AtomicU64,
    context_tokens: AtomicU64,
}

impl Cell {
    fn note(&self, history: &History, now: Now) {
        history.note(self.requests.load(Relaxed), self.prefill_tokens.load(Relaxed), now);
    }
}

/// In-flight work by replica, exact at any moment, shared by all shards.
#[derive(Debug)]
pub struct LoadColumns {
    cells: Box<[Cell]>,
    /// Apart from the cells: who follows a group reads these, and each history is as large as forty of them.
    histories: Box<[History]>,
    versions: Box<[AtomicU32]>,
    /// Since when each slot is its replica's.
    taken_up: Box<[AtomicU64]>,
}

impl LoadColumns {
    /// Columns of `slots_max` cells, all zero.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self {
            cells: (0..slots_max).map(|_| Cell::default()).collect(),
            histories: (0..slots_max).map(|_| History::default()).collect(),
            versions: (0..slots_max.div_ceil(GROUP)).map(|_| AtomicU32::new(0)).collect(),
            taken_up: (0..slots_max).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Requests in flight at `slot`.
    #[inline]
    #[must_use]
    pub fn in_flight(&self, slot: ReplicaSlot) -> u32 {
        self.read(slot).requests
    }

    /// Uncached prompt tokens sent to `slot` whose first answer byte has not come yet.
    #[inline]
    #[must_use]
    pub fn prefill_tokens(&self, slot: ReplicaSlot) -> u64 {
        self.read(slot).prefill_tokens
    }

    /// All that is in flight at `slot`.
    #[inline]
    #[must_use]
    pub fn read(&self, slot: ReplicaSlot) -> InFlight {
        self.cells.get(slot.index()).map_or_else(InFlight::default, |cell| InFlight {
            requests: cell.requests.load(Relaxed),
            prefill_tokens: cell.prefill_tokens.load(Relaxed),
            context_tokens: cell.context_tokens.load(Relaxed),
        })
    }

    /// The version of the cells from `group` × [`GROUP`] on. Who has read it and reads the cells after sees all that was
    /// counted before it.
    #[inline]
    #[must_use]
    pub fn version(&self, group: usize) -> u32 {
        self.versions.get(group).map_or(0, |version| version.load(Ordering::Acquire))
    }

    /// Since when `slot` is its replica's.
    #[inline]
    #[must_use]
    pub fn taken_up(&self, slot: ReplicaSlot) -> Now {
        Now(self.taken_up.get(slot.index()).map_or(0, |since| since.load(Relaxed)))
    }

    /// From `now` on `slot` is another replica's, or nobody's.
    pub fn take_up(&self, slot: ReplicaSlot, now: Now) {
        if let Some(since) = self.taken_up.get(slot.index()) {
            since.store(now.0, Relaxed);
        }
    }

    /// The most that was in flight at `slot` at any time from `from` to `now`: what a report of that age is to be held
    /// against.
    #[must_use]
    pub fn most_since(&self, slot: ReplicaSlot, from: Now, now: Now) -> Most {
        let of_slot = self.cells.get(slot.index()).zip(self.histories.get(slot.index()));
        of_slot.map_or_else(Most::default, |(cell, history)| {
            cell.note(history, now);
            history.most(from, now)
        })
    }

    /// Requests in flight at all replicas.
    #[must_use]
    pub fn in_flight_total(&self) -> u64 {
        self.cells.iter().map(|cell| u64::from(cell.requests.load(Relaxed))).sum()
    }

    /// Changes the cell of `slot`, and lets those who keep a view know.
    fn change(&self, slot: ReplicaSlot, change: impl FnOnce(&Cell)) {
        let (Some(cell), Some(version)) = (self.cells.get(slot.index()), self.versions.get(slot.index() / GROUP))
        else {
            return;
        };
        change(cell);
        version.fetch_add(1, Ordering::Release);
    }
}

/// One request at one replica. Dropping it, however the request ends, takes its counts back.
#[derive(Debug)]
pub struct Flight {
    columns: Arc<LoadColumns>,
    slot: ReplicaSlot,
    prefill_tokens: u64,
    context_tokens: u64,
}

impl Flight {
    /// Counts a request with `uncached_tokens` of prefill ahead of it at `slot` from `now` on, where it holds
    /// `context_tokens` until it ends: its whole prompt, and what the caller expects it to generate.
    #[must_use]
    pub fn start(
        columns: &Arc<LoadColumns>,
        slot: ReplicaSlot,
        uncached_tokens: u64,
        context_tokens: u64,
        now: Now,
    ) -> Self {
        columns.change(slot, |cell| {
            cell.requests.fetch_add(1, Relaxed);
            cell.prefill_tokens.fetch_add(uncached_tokens, Relaxed);
            cell.context_tokens.fetch_add(context_tokens, Relaxed);
            if let Some(history) = columns.histories.get(slot.index()) {
                cell.note(history, now);
            }
        });
        Self { columns: Arc::clone(columns), slot, prefill_tokens: uncached_tokens, context_tokens }
    }

    /// The first byte of the answer has come: the prefill is done.
    pub fn prefilled(&mut self) {
        let tokens = std::mem::take(&mut self.prefill_tokens);
        if tokens > 0 {
            self.columns.change(self.slot, |cell| {
                cell.prefill_tokens.fetch_sub(tokens, Relaxed);
            });
        }
    }

    /// Where the request is.
    #[must_use]
    pub const fn slot(&self) -> ReplicaSlot {
        self.slot
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let tokens = std::mem::take(&mut self.prefill_tokens);
        self.columns.change(self.slot, |cell| {
            cell.prefill_tokens.fetch_sub(tokens, Relaxed);
            cell.context_tokens.fetch_sub(self.context_tokens, Relaxed);
            cell.requests.fetch_sub(1, Relaxed);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_return_to_zero_however_a_request_ends() {
        let columns = Arc::new(LoadColumns::new(4));
        let slot = ReplicaSlot(2);
        let mut streaming = Flight::start(&columns, slot, 100, 400, Now(0));
        let cancelled = Flight::start(&columns, slot, 50, 60, Now(0));
        assert_eq!((columns.in_flight(slot), columns.prefill_tokens(slot)), (2, 150));
        streaming.prefilled();
        streaming.prefilled();
        let rest = InFlight { requests: 2, prefill_tokens: 50, context_tokens: 460 };
        assert_eq!(columns.read(slot), rest, "its context stays until it ends");
        drop(cancelled);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _flight = Flight::start(&columns, slot, 7, 7, Now(0));
            panic!("handler failed");
        }));
        assert!(panicked.is_err());
        drop(streaming);
        assert_eq!((columns.in_flight_total(), columns.read(slot)), (0, InFlight::default()));
    }

    #[test]
    fn every_change_moves_the_version_of_its_group_alone() {
        let columns = Arc::new(LoadColumns::new(40));
        let versions = || [0, 1, 2].map(|group| columns.version(group));
        let mut seen = versions();
        let mut moved = |what: &str| {
            let before = std::mem::replace(&mut seen, versions());
            assert!(before[1] != seen[1] && before[0] == seen[0] && before[2] == seen[2], "{what}");
        };
        let mut flight = Flight::start(&columns, ReplicaSlot(17), 5, 9, Now(0));
        moved("started");
        flight.prefilled();
        moved("prefilled");
        drop(flight);
        moved("ended");
    }
}
