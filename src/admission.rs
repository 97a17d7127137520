//! Who waits at the gateway before a replica is found for them: a line for each pool, first come, first served.
//!
//! A policy may have a request wait ([`crate::policy::Policy::waits`]): where all caches are full of what will be needed
//! again and engines have enough to do, what is sent now only pushes out and queues. In the line it costs no engine
//! anything, and goes when a replica has the time, wherever that is then. Requests that find their prompt warm do not
//! wait, and so do not stand in line.
//!
//! Only the first few of a line look for a replica, when they are called (something was freed) and now and then (time
//! alone makes caches colder): however many wait, the cost is that of a few. A few and not one, for the first may want a
//! replica that is busy for long, while others would take those that are not.

use crate::id::PoolId;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::sync::Notify;

/// Pools with a line of their own; of more, several share one.
const LINES: usize = 64;

/// So many of a line look for a replica.
pub const LOOKING: usize = 8;

/// One pool's line.
#[derive(Debug, Default)]
struct Line {
    len: AtomicUsize,
    queue: Mutex<VecDeque<Arc<Notify>>>,
}

/// All lines.
#[derive(Debug)]
pub struct WaitingRoom {
    lines: Box<[Line]>,
}

/// A place in a line. Dropping it, however the request fares, lets the next one be first.
#[derive(Debug)]
pub struct Ticket {
    room: Arc<WaitingRoom>,
    pool: PoolId,
    own: Arc<Notify>,
}

impl Default for WaitingRoom {
    fn default() -> Self {
        Self { lines: (0..LINES).map(|_| Line::default()).collect() }
    }
}

impl WaitingRoom {
    fn line(&self, pool: PoolId) -> &Line {
        &self.lines[usize::from(pool.0) % LINES]
    }

    /// How many wait for a replica of `pool`.
    #[inline]
    #[must_use]
    pub fn len(&self, pool: PoolId) -> usize {
        self.line(pool).len.load(Relaxed)
    }

    /// True when nobody waits for a replica of `pool`.
    #[inline]
    #[must_use]
    pub fn is_empty(&self, pool: PoolId) -> bool {
        self.len(pool) == 0
    }

    /// True when so few wait for a replica of `pool` that one more may look at once.
    #[inline]
    #[must_use]
    pub fn is_short(&self, pool: PoolId) -> bool {
        self.len(pool) < LOOKING
    }

    /// Stands in line for a replica of `pool`, behind all that do; `None` when `most` do already.
    #[must_use]
    pub fn join(self: &Arc<Self>, pool: PoolId, most: usize) -> Option<Ticket> {
        let own = Arc::new(Notify::new());
        let line = self.line(pool);
        let mut queue = line.queue.lock();
        if queue.len() >= most {
            return None;
        }
        queue.push_back(Arc::clone(&own));
        line.len.store(queue.len(), Relaxed);
        // The line may have become shorter since it was found to be long.
        if queue.len() <= LOOKING {
            own.notify_one();
        }
        drop(queue);
        Some(Ticket { room: Arc::clone(self), pool, own })
    }

    /// A replica of `pool` has less to do: the first in line look at once.
    #[inline]
    pub fn call(&self, pool: PoolId) {
        if !self.is_empty(pool) {
            self.line(pool).queue.lock().iter().take(LOOKING).for_each(|one| one.notify_one());
        }
    }
}

impl Ticket {
    /// It is one of the first.
    #[must_use]
    pub fn looks(&self) -> bool {
        self.room.line(self.pool).queue.lock().iter().take(LOOKING).any(|one| Arc::ptr_eq(one, &self.own))
    }

    /// Resolves when it is one of the first and something was freed, or when it becomes one.
    pub async fn called(&self) {
        self.own.notified().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let line = self.room.line(self.pool);
        let mut queue = line.queue.lock();
        let Some(place) = queue.iter().position(|one| Arc::ptr_eq(one, &self.own)) else { return };
        let _own = queue.remove(place);
        line.len.store(queue.len(), Relaxed);
        if place < LOOKING
            && let Some(next) = queue.get(LOOKING - 1)
        {
            next.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_now::is_ready;

    /// Whether a future is ready now, without waiting.
    mod futures_now {
        use std::pin::pin;
        use std::task::{Context, Waker};

        pub(super) fn is_ready(future: impl Future<Output = ()>) -> bool {
            pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
        }
    }

    const POOL: PoolId = PoolId(3);

    #[test]
    fn the_first_are_called_and_whoever_is_one_of_them_after_one_has_left() {
        let room = Arc::new(WaitingRoom::default());
        let most = LOOKING + 2;
        let mut tickets: Vec<Ticket> = (0..most).filter_map(|_| room.join(POOL, most)).collect();
        assert_eq!((tickets.len(), room.len(POOL), room.is_short(POOL)), (most, most, false));
        assert!(room.join(POOL, most).is_none(), "the line is full");
        assert!(room.join(PoolId(4), 3).is_some_and(|other| other.looks()), "another pool's line");
        let joined: Vec<bool> = tickets.iter().map(|ticket| is_ready(ticket.called())).collect();
        assert_eq!(joined.iter().filter(|is| **is).count(), LOOKING, "who is one of the first looks once more");
        assert!(!is_ready(tickets[0].called()));
        room.call(POOL);
        let called: Vec<bool> = tickets.iter().map(|ticket| is_ready(ticket.called())).collect();
        let looking: Vec<bool> = tickets.iter().map(Ticket::looks).collect();
        assert_eq!((&called, called.iter().filter(|is| **is).count()), (&looking, LOOKING));
        drop(tickets.remove(LOOKING));
        assert!(!is_ready(tickets[LOOKING].called()), "those before it are all there");
        drop(tickets.remove(3));
        assert!(tickets[LOOKING - 1].looks() && is_ready(tickets[LOOKING - 1].called()));
        tickets.clear();
        assert!(room.is_empty(POOL) && room.is_short(POOL));
        room.call(POOL);
    }

    #[test]
    fn a_call_before_anybody_listens_is_not_lost() {
        let room = Arc::new(WaitingRoom::default());
        let ticket = room.join(POOL, 1).unwrap();
        room.call(POOL);
        assert!(is_ready(ticket.called()));
    }
}
