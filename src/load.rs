//! Load of the replicas: what the gateway itself has in flight at each (shared columns, one cell a replica, counted by a
//! guard that cannot forget to count back), and how the replicas' own reports of their load come in.

pub mod gate;
pub mod heard;
pub mod plane;
pub mod receive;
pub mod report;
mod udp;
pub mod xdp;

use crate::id::ReplicaSlot;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// In-flight work by replica, exact at any moment, shared by all shards.
#[derive(Debug)]
pub struct LoadColumns {
    in_flight: Box<[AtomicU32]>,
    prefill_tokens: Box<[AtomicU64]>,
}

impl LoadColumns {
    /// Columns of `slots_max` cells, all zero.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self {
            in_flight: (0..slots_max).map(|_| AtomicU32::new(0)).collect(),
            prefill_tokens: (0..slots_max).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Requests in flight at `slot`.
    #[inline]
    #[must_use]
    pub fn in_flight(&self, slot: ReplicaSlot) -> u32 {
        self.in_flight.get(slot.index()).map_or(0, |cell| cell.load(Relaxed))
    }

    /// Uncached prompt tokens sent to `slot` whose first answer byte has not come yet.
    #[inline]
    #[must_use]
    pub fn prefill_tokens(&self, slot: ReplicaSlot) -> u64 {
        self.prefill_tokens.get(slot.index()).map_or(0, |cell| cell.load(Relaxed))
    }

    /// Both counts of each of `slots`: [`Self::in_flight`] and [`Self::prefill_tokens`].
    pub fn read<'a>(&'a self, slots: &'a [ReplicaSlot]) -> impl Iterator<Item = (u32, u64)> + use<'a> {
        let (in_flight, prefill_tokens) = (&*self.in_flight, &*self.prefill_tokens);
        slots.iter().map(move |slot| {
            let cells = in_flight.get(slot.index()).zip(prefill_tokens.get(slot.index()));
            cells.map_or((0, 0), |(requests, tokens)| (requests.load(Relaxed), tokens.load(Relaxed)))
        })
    }

    /// Requests in flight at all replicas.
    #[must_use]
    pub fn in_flight_total(&self) -> u64 {
        self.in_flight.iter().map(|cell| u64::from(cell.load(Relaxed))).sum()
    }
}

/// One request at one replica. Dropping it, however the request ends, takes its counts back.
#[derive(Debug)]
pub struct Flight {
    columns: Arc<LoadColumns>,
    slot: ReplicaSlot,
    prefill_tokens: u64,
}

impl Flight {
    /// Counts a request with `uncached_tokens` of prefill ahead of it at `slot`.
    #[must_use]
    pub fn start(columns: &Arc<LoadColumns>, slot: ReplicaSlot, uncached_tokens: u64) -> Self {
        if let Some(cell) = columns.in_flight.get(slot.index()) {
            cell.fetch_add(1, Relaxed);
        }
        if let Some(cell) = columns.prefill_tokens.get(slot.index()) {
            cell.fetch_add(uncached_tokens, Relaxed);
        }
        Self { columns: Arc::clone(columns), slot, prefill_tokens: uncached_tokens }
    }

    /// The first byte of the answer has come: the prefill is done.
    pub fn prefilled(&mut self) {
        let tokens = std::mem::take(&mut self.prefill_tokens);
        if let Some(cell) = self.columns.prefill_tokens.get(self.slot.index()) {
            cell.fetch_sub(tokens, Relaxed);
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
        self.prefilled();
        if let Some(cell) = self.columns.in_flight.get(self.slot.index()) {
            cell.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_return_to_zero_however_a_request_ends() {
        let columns = Arc::new(LoadColumns::new(4));
        let slot = ReplicaSlot(2);
        let mut streaming = Flight::start(&columns, slot, 100);
        let cancelled = Flight::start(&columns, slot, 50);
        assert_eq!((columns.in_flight(slot), columns.prefill_tokens(slot)), (2, 150));
        streaming.prefilled();
        streaming.prefilled();
        assert_eq!((columns.in_flight(slot), columns.prefill_tokens(slot)), (2, 50));
        drop(cancelled);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _flight = Flight::start(&columns, slot, 7);
            panic!("handler failed");
        }));
        assert!(panicked.is_err());
        drop(streaming);
        assert_eq!((columns.in_flight_total(), columns.prefill_tokens(slot)), (0, 0));
    }
}
