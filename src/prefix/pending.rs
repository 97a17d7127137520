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

/// Claims at one replica at once; more are not waited for.
const PENDING_MAX: usize = 64;

/// Tells those who wait that a claim is over, however it ended.
#[derive(Debug, Default)]
pub struct Ticket {
    over: AtomicBool,
    notify: Notify,
}

impl Ticket {
    /// True once it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Resolves once it is over.
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

/// What of a request's prefix others cannot use yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The blocks from `depth` on, where `hash` stands: they are being computed. Over with the prefill.
    Prefill {
        /// Place in the chain.
        depth: usize,
        /// The block there.
        hash: BlockHash,
    },
    /// All of its blocks: the engine keeps them in a slot that one request at a time can use. Over with the request.
    Slot(Box<[BlockHash]>),
}

impl Claim {
    /// True when a request with `chain`, of which it would reuse `warm` blocks, builds on what is claimed.
    fn concerns(&self, chain: &[BlockHash], warm: usize) -> bool {
        match self {
            Self::Prefill { depth, hash } => chain.get(*depth) == Some(hash),
            Self::Slot(claimed) => {
                let common = common_prefix(claimed, chain);
                common > 0 && 2 * common >= warm
            }
        }
    }
}

/// Blocks that two chains share: chained hashes, once different, stay so.
fn common_prefix(a: &[BlockHash], b: &[BlockHash]) -> usize {
    let shorter = a.len().min(b.len());
    let (mut low, mut high) = (0, shorter);
    while low < high {
        let middle = low + (high - low) / 2;
        if a[middle] == b[middle] { low = middle + 1 } else { high = middle }
    }
    low
}

#[derive(Debug)]
struct Pending {
    claim: Claim,
    expected: Now,
    until: Now,
    ticket: Arc<Ticket>,
}

/// Prefills under way, by replica. Its locks are never waited for: who finds one taken goes without.
#[derive(Debug)]
pub struct PendingPrefills {
    by_slot: Box<[Mutex<Vec<Pending>>]>,
}

/// A claim to wait for, and until when that is worth it.
#[derive(Clone, Debug)]
pub struct Awaited {
    /// Says when it is over.
    pub ticket: Arc<Ticket>,
    /// When it should be over.
    pub expected: Now,
    /// After this, computing the blocks again is the better bet.
    pub until: Now,
}

/// A claim that holds. Dropping it, however the request ends, lets those go who wait for it.
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

    /// Announces `claim` at `slot`, which should be over at `expected`, and is not worth waiting for after `until`.
    #[must_use]
    pub fn announce(
        self: &Arc<Self>,
        slot: ReplicaSlot,
        claim: Claim,
        expected: Now,
        until: Now,
    ) -> Option<Announcement> {
        let mut pending = self.by_slot.get(slot.index())?.try_lock()?;
        if pending.len() >= PENDING_MAX {
            return None;
        }
        let ticket = Arc::new(Ticket::default());
        pending.push(Pending { claim, expected, until, ticket: Arc::clone(&ticket) });
        Some(Announcement { pending: Arc::clone(self), slot, ticket })
    }

    /// The claim at `slot` that a request with `chain`, of which it would reuse `warm` blocks, has to wait for: the last
    /// one made, which itself waits for those before it.
    #[must_use]
    pub fn find(&self, slot: ReplicaSlot, chain: &[BlockHash], warm: usize, now: Now) -> Option<Awaited> {
        let pending = self.by_slot.get(slot.index())?.try_lock()?;
        let last = pending.iter().rev().find(|one| one.until > now && one.claim.concerns(chain, warm))?;
        Some(Awaited { ticket: Arc::clone(&last.ticket), expected: last.expected, until: last.until })
    }

    /// How many claims at `slot` such a request would wait for, one after the other.
    #[must_use]
    pub fn ahead(&self, slot: ReplicaSlot, chain: &[BlockHash], warm: usize) -> usize {
        let pending = self.by_slot.get(slot.index()).and_then(Mutex::try_lock);
        pending.map_or(0, |pending| pending.iter().filter(|one| one.claim.concerns(chain, warm)).count())
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

    fn prefill(depth: usize, hash: u64) -> Claim {
        Claim::Prefill { depth, hash: BlockHash(hash) }
    }

    #[test]
    fn who_shares_the_blocks_under_way_finds_them() {
        let pending = Arc::new(PendingPrefills::new(4));
        let first = pending.announce(SLOT, prefill(1, 20), Now(100), Now(100)).unwrap();
        let find = |slot, hashes: &[u64], now| pending.find(slot, &chain(hashes), hashes.len(), Now(now));
        assert!(find(SLOT, &[10, 20, 30], 50).is_some());
        assert!(find(SLOT, &[10, 21], 50).is_none(), "another prompt");
        assert!(find(SLOT, &[10], 50).is_none(), "all of it is held already");
        assert!(find(ReplicaSlot(2), &[10, 20], 50).is_none(), "another replica");
        assert!(find(SLOT, &[10, 20], 100).is_none(), "not worth waiting for any more");
        let second = pending.announce(SLOT, prefill(2, 30), Now(200), Now(200)).unwrap();
        let awaited = find(SLOT, &[10, 20, 30], 50).unwrap();
        assert_eq!(awaited.until, Now(200));
        assert!(!awaited.ticket.is_over());
        drop(second);
        assert!(awaited.ticket.is_over());
        drop(first);
        assert!(find(SLOT, &[10, 20, 30], 50).is_none());
    }

    #[test]
    fn a_slot_is_waited_for_by_those_whose_prefix_it_holds() {
        let pending = Arc::new(PendingPrefills::new(4));
        let _running = pending.announce(SLOT, Claim::Slot(chain(&[1, 2, 3, 4]).into()), Now(9), Now(9)).unwrap();
        let ahead = |hashes: &[u64], warm| pending.ahead(SLOT, &chain(hashes), warm);
        assert_eq!(ahead(&[1, 2, 3, 5], 3), 1, "the same conversation, another turn");
        assert_eq!(ahead(&[1, 6, 7, 8, 9], 4), 0, "a common system prompt only: another slot holds more");
        assert_eq!(ahead(&[9, 8], 0), 0);
        let _queued = pending.announce(SLOT, Claim::Slot(chain(&[1, 2, 3, 5]).into()), Now(9), Now(9)).unwrap();
        assert_eq!(ahead(&[1, 2, 3, 6], 3), 2);
    }

    #[tokio::test]
    async fn those_who_wait_are_let_go() {
        let pending = Arc::new(PendingPrefills::new(4));
        let first = pending.announce(SLOT, prefill(0, 1), Now(9), Now(9)).unwrap();
        let awaited = pending.find(SLOT, &chain(&[1]), 1, Now(0)).unwrap();
        let waiting = tokio::spawn(async move { awaited.ticket.over().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
    }

    #[test]
    fn announcements_are_bounded() {
        let pending = Arc::new(PendingPrefills::new(2));
        let held: Vec<_> = (0..100).filter_map(|n| pending.announce(SLOT, prefill(0, n), Now(9), Now(9))).collect();
        assert_eq!(held.len(), PENDING_MAX);
    }
}
