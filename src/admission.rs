//! Who waits at the gateway before a replica is found for them: a line for each pool.
//!
//! A policy may have a request wait ([`crate::policy::Policy::waits`]): where all caches are full of what will be needed
//! again and engines have enough to do, what is sent now only pushes out and queues. In the line it costs no engine
//! anything, and goes when a replica has the time, wherever that is then. Requests that find their prompt warm do not
//! wait, and so do not stand in line.
//!
//! Who is due first stands first, and a request is due the later the more there is to compute of it. So what is mostly
//! warm goes before what is cold, and conversations that are in caches stay there: were it first come, first served, each
//! would have lost its cache to the others by the time its turn comes, and all would be computed anew all the time. When
//! one is due does not move, and newcomers are due later and later: only so many overtake it.
//!
//! Only the first few of a line look for a replica, when they are called (something was freed) and now and then (time
//! alone makes caches colder): however many wait, the cost is that of a few. A few and not one, for the first may want a
//! replica that is busy for long, while others would take those that are not.

mod regeneration;

pub use regeneration::RegenerationBudget;

use crate::clock::Now;
use crate::id::PoolId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use tokio::sync::Notify;

/// Pools with a line of their own. Of more, several share one, and what they may spend; then those of one pool may have
/// to wait for those of another.
const LINES: usize = 64;

/// So many of a line look for a replica.
pub const LOOKING: usize = 8;

/// A place in a line: when it is due, and how many came before, for those that are due at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// When the request is due: those who are due later do not go before it.
    pub due: Now,
    joined: u64,
}

#[derive(Debug, Default)]
struct Queue {
    places: BTreeMap<Place, Arc<Notify>>,
    /// How many have joined it ever.
    joined: u64,
}

/// One pool's line.
#[derive(Debug)]
struct Line {
    len: AtomicUsize,
    /// When the last of those who look is due, as a [`Now`]; the end of time while there is room for more.
    last_due: AtomicU64,
    queue: Mutex<Queue>,
    regeneration: RegenerationBudget,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            len: AtomicUsize::new(0),
            last_due: AtomicU64::new(u64::MAX),
            queue: Mutex::default(),
            regeneration: RegenerationBudget::default(),
        }
    }
}

impl Line {
    /// Those who stand there have changed.
    fn note(&self, queue: &Queue) {
        self.len.store(queue.places.len(), Relaxed);
        let last = queue.places.keys().nth(LOOKING - 1);
        self.last_due.store(last.map_or(u64::MAX, |place| place.due.0), Relaxed);
    }
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
    place: Place,
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

    /// True when a request that is `due` then looks for a replica of `pool`, or would: it is one of the first in line.
    #[inline]
    #[must_use]
    pub fn looks(&self, pool: PoolId, due: Now) -> bool {
        due.0 <= self.line(pool).last_due.load(Relaxed)
    }

    /// What requests of `pool` may make replicas compute again.
    #[inline]
    #[must_use]
    pub fn regeneration(&self, pool: PoolId) -> &RegenerationBudget {
        &self.line(pool).regeneration
    }

    /// Stands in line for a replica of `pool`, behind all that are due before; `None` when `most` stand there already.
    #[must_use]
    pub fn join(self: &Arc<Self>, pool: PoolId, due: Now, most: usize) -> Option<Ticket> {
        let own = Arc::new(Notify::new());
        let line = self.line(pool);
        let mut queue = line.queue.lock();
        if queue.places.len() >= most {
            return None;
        }
        let place = Place { due, joined: queue.joined };
        queue.joined += 1;
        queue.places.insert(place, Arc::clone(&own));
        line.note(&queue);
        drop(queue);
        // The line may have become shorter since it was found to be long.
        if self.looks(pool, due) {
            own.notify_one();
        }
        Some(Ticket { room: Arc::clone(self), pool, place, own })
    }

    /// A replica of `pool` has less to do: the first in line look at once.
    #[inline]
    pub fn call(&self, pool: PoolId) {
        if !self.is_empty(pool) {
            self.line(pool).queue.lock().places.values().take(LOOKING).for_each(|one| one.notify_one());
        }
    }
}

impl Ticket {
    /// Where it stands.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.place
    }

    /// It is one of the first.
    #[must_use]
    pub fn looks(&self) -> bool {
        self.room.looks(self.pool, self.place.due)
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
        let looked = self.looks();
        let _own = queue.places.remove(&self.place);
        line.note(&queue);
        if looked && let Some(next) = queue.places.values().nth(LOOKING - 1) {
            next.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
