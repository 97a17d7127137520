//! Prefixes that are being computed right now. The index puts a prompt on record the moment it is placed, so that a
//! burst of requests with one new prefix goes to one replica; but until the first of them is prefilled, an engine has
//! nothing for the others to reuse, and would compute the same blocks again beside it. Whoever comes second can wait for
//! the first here, at the gateway, where waiting costs the engine nothing.

use crate::clock::Now;
use crate::id::{BlockHash, ReplicaSlot};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// Prefills announced at one replica at once; more are not waited for.
const PENDING_MAX: usize = 64;

/// Tells those who wait that a prefill is over, however it ended.
#[derive(Debug, Default)]
pub struct Ticket {
    over: AtomicBool,
    notify: Notify,
}

impl Ticket {
    /// True once the prefill is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Resolves once the prefill is over.
    pub async fn over(&self) {
        while !self.is_over() {
            let notified = self.notify.notified();
            if self.is_over() {
                return;
            }
            notified.await;
        }
    }
}

#[derive(Debug)]
struct Pending {
    /// The first block that is being computed, and its place in the chain.
    hash: BlockHash,
    depth: usize,
    until: Now,
    ticket: Arc<Ticket>,
}

/// Prefills under way, by replica. Its locks are never waited for: who finds one taken goes without.
#[derive(Debug)]
pub struct PendingPrefills {
    by_slot: Box<[Mutex<Vec<Pending>>]>,
}

/// A prefill to wait for, and until when that is worth it.
#[derive(Clone, Debug)]
pub struct Awaited {
    /// Says when it is over.
    pub ticket: Arc<Ticket>,
    /// After this, computing the blocks again is the better bet.
    pub until: Now,
}

/// A prefill under way. Dropping it, however the request ends, lets those go who wait for it.
#[derive(Debug)]
pub struct Announcement {
    pending: Arc<PendingPrefills>,
    slot: ReplicaSlot,
    ticket: Arc<Ticket>,
}

impl PendingPrefills {
    /// Room for `slots_max` replicas.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self { by_slot: (0..slots_max).map(|_| Mutex::new(Vec::new())).collect() }
    }

    /// Announces that `slot` computes the chain from `depth` on, where `hash` stands, and will until about `until`.
    #[must_use]
    pub fn announce(
        self: &Arc<Self>,
        slot: ReplicaSlot,
        depth: usize,
        hash: BlockHash,
        until: Now,
    ) -> Option<Announcement> {
        let mut pending = self.by_slot.get(slot.index())?.try_lock()?;
        if pending.len() >= PENDING_MAX {
            return None;
        }
        let ticket = Arc::new(Ticket::default());
        pending.push(Pending { hash, depth, until, ticket: Arc::clone(&ticket) });
        Some(Announcement { pending: Arc::clone(self), slot, ticket })
    }

    /// The prefill at `slot` that `chain` builds on, if one is under way: the deepest, which itself waits for the others.
    #[must_use]
    pub fn find(&self, slot: ReplicaSlot, chain: &[BlockHash], now: Now) -> Option<Awaited> {
        let pending = self.by_slot.get(slot.index())?.try_lock()?;
        let shared = pending.iter().filter(|one| one.until > now && chain.get(one.depth) == Some(&one.hash));
        let deepest = shared.max_by_key(|one| one.depth)?;
        Some(Awaited { ticket: Arc::clone(&deepest.ticket), until: deepest.until })
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        self.ticket.over.store(true, Ordering::Release);
        self.ticket.notify.notify_waiters();
        if let Some(cell) = self.pending.by_slot.get(self.slot.index()) {
            cell.lock().retain(|one| !Arc::ptr_eq(&one.ticket, &self.ticket));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: ReplicaSlot = ReplicaSlot(1);

    fn chain(hashes: &[u64]) -> Vec<BlockHash> {
        hashes.iter().map(|hash| BlockHash(*hash)).collect()
    }

    #[test]
    fn who_shares_the_blocks_under_way_finds_them() {
        let pending = Arc::new(PendingPrefills::new(4));
        let first = pending.announce(SLOT, 1, BlockHash(20), Now(100)).unwrap();
        assert!(pending.find(SLOT, &chain(&[10, 20, 30]), Now(50)).is_some());
        assert!(pending.find(SLOT, &chain(&[10, 21]), Now(50)).is_none(), "another prompt");
        assert!(pending.find(SLOT, &chain(&[10]), Now(50)).is_none(), "all of it is held already");
        assert!(pending.find(ReplicaSlot(2), &chain(&[10, 20]), Now(50)).is_none(), "another replica");
        assert!(pending.find(SLOT, &chain(&[10, 20]), Now(100)).is_none(), "not worth waiting for any more");
        let deeper = pending.announce(SLOT, 2, BlockHash(30), Now(200)).unwrap();
        let awaited = pending.find(SLOT, &chain(&[10, 20, 30]), Now(50)).unwrap();
        assert_eq!(awaited.until, Now(200));
        assert!(!awaited.ticket.is_over());
        drop(deeper);
        assert!(awaited.ticket.is_over());
        drop(first);
        assert!(pending.find(SLOT, &chain(&[10, 20, 30]), Now(50)).is_none());
    }

    #[tokio::test]
    async fn those_who_wait_are_let_go() {
        let pending = Arc::new(PendingPrefills::new(4));
        let first = pending.announce(SLOT, 0, BlockHash(1), Now(9)).unwrap();
        let awaited = pending.find(SLOT, &chain(&[1]), Now(0)).unwrap();
        let waiting = tokio::spawn(async move { awaited.ticket.over().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
    }

    #[test]
    fn announcements_are_bounded() {
        let pending = Arc::new(PendingPrefills::new(2));
        let held: Vec<_> = (0..100).filter_map(|n| pending.announce(SLOT, 0, BlockHash(n), Now(9))).collect();
        assert_eq!(held.len(), PENDING_MAX);
    }
}
