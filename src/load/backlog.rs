//! The prefill that the gateway has standing before each replica, in seconds of that replica's time, and how far it has
//! come.
//!
//! Tokens alone do not say how long there is to wait: what one costs depends on what stands before it, and of a prompt
//! that was sent a while ago much has been computed. So each request brings the seconds that its own prefill is expected
//! to take; engines compute one after the other in the order they came, so from the moment the one in front began, the
//! sum becomes less by a second each second. With that, what is still ahead is known to a step, where the plain sum is
//! off by half a prompt.

use crate::clock::Now;
use crate::id::ReplicaSlot;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Prefill is spread over about this many seconds to say what share of its time a replica spends on it.
const SHARE_OVER_S: f64 = 10.0;
/// Most seconds of prefill that one request may bring.
const WORK_S_MAX: f64 = 600.0;

/// What stands before one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Requests whose prefill is not over.
    pub prefills: u32,
    /// When all of it should be computed; meaningless without any.
    pub prefilled_by: Now,
    /// Share of the last ten seconds or so that new prefill takes; above one when it comes faster than it is computed.
    pub prefill_share: f32,
}

#[derive(Debug, Default)]
struct Cell {
    prefills: AtomicU32,
    work_us: AtomicU64,
    /// When the one in front began.
    begun: AtomicU64,
    /// Seconds of prefill that came of late (the bits of an `f64`), as of a moment.
    lately_s: AtomicU64,
    lately_at: AtomicU64,
}

impl Cell {
    /// What came of late. Two shards at once may lose one of two additions: it is an average.
    fn lately_s(&self, now: Now) -> f64 {
        let passed = now.seconds_since(Now(self.lately_at.load(Relaxed)));
        f64::from_bits(self.lately_s.load(Relaxed)) * (-passed / SHARE_OVER_S).exp()
    }
}

/// Backlogs by replica, shared by all shards.
#[derive(Debug)]
pub struct Backlogs {
    cells: Box<[Cell]>,
}

impl Backlogs {
    /// Of `slots_max` replicas, all empty.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self { cells: (0..slots_max).map(|_| Cell::default()).collect() }
    }

    /// What stands before `slot`.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a share needs no more than 7 digits")]
    pub fn read(&self, slot: ReplicaSlot, now: Now) -> Backlog {
        self.cells.get(slot.index()).map_or_else(Backlog::default, |cell| Backlog {
            prefills: cell.prefills.load(Relaxed),
            prefilled_by: Now(cell.begun.load(Relaxed)).plus(Duration::from_micros(cell.work_us.load(Relaxed))),
            prefill_share: (cell.lately_s(now) / SHARE_OVER_S) as f32,
        })
    }
}

/// One request's part of a backlog. Dropping it takes it back.
#[derive(Debug)]
pub struct Work {
    backlogs: Arc<Backlogs>,
    slot: ReplicaSlot,
    work_us: u64,
    is_over: bool,
}

impl Work {
    /// A request comes to `slot` at `now`, whose prefill takes `work_s` and begins `base_s` from now where nothing is
    /// before it.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    pub fn start(backlogs: &Arc<Backlogs>, slot: ReplicaSlot, (base_s, work_s): (f64, f64), now: Now) -> Self {
        let bounded = |seconds: f64| if seconds.is_finite() { seconds.clamp(0.0, WORK_S_MAX) } else { 0.0 };
        let work_us = (bounded(work_s) * 1e6) as u64;
        if let Some(cell) = backlogs.cells.get(slot.index()) {
            let lately_s = cell.lately_s(now) + bounded(work_s);
            cell.lately_s.store(lately_s.to_bits(), Relaxed);
            cell.lately_at.store(now.0, Relaxed);
            if cell.prefills.fetch_add(1, Relaxed) == 0 {
                cell.begun.store(now.plus(Duration::from_secs_f64(bounded(base_s))).0, Relaxed);
            }
            cell.work_us.fetch_add(work_us, Relaxed);
        }
        Self { backlogs: Arc::clone(backlogs), slot, work_us, is_over: false }
    }

    /// Its prefill is over; the next one's begins.
    pub fn prefilled(&mut self, now: Now) {
        if let Some(cell) = self.take()
            && cell.prefills.load(Relaxed) > 0
        {
            cell.begun.store(now.0, Relaxed);
        }
    }

    fn take(&mut self) -> Option<&Cell> {
        let cell = self.backlogs.cells.get(self.slot.index()).filter(|_| !self.is_over)?;
        self.is_over = true;
        cell.prefills.fetch_sub(1, Relaxed);
        cell.work_us.fetch_sub(self.work_us, Relaxed);
        Some(cell)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: ReplicaSlot = ReplicaSlot(1);

    fn at(ms: u64) -> Now {
        Now(ms * 1_000_000)
    }

    #[test]
    fn what_is_ahead_becomes_less_as_it_is_computed() {
        let backlogs = Arc::new(Backlogs::new(2));
        let mut first = Work::start(&backlogs, SLOT, (0.01, 0.2), at(100));
        assert_eq!(backlogs.read(SLOT, at(100)).prefilled_by, at(310));
        let mut second = Work::start(&backlogs, SLOT, (0.01, 0.3), at(150));
        let both = backlogs.read(SLOT, at(150));
        assert_eq!((both.prefills, both.prefilled_by), (2, at(610)));
        first.prefilled(at(330));
        assert_eq!(backlogs.read(SLOT, at(330)).prefilled_by, at(630), "it took longer");
        second.prefilled(at(600));
        second.prefilled(at(900));
        drop(first);
        assert_eq!(backlogs.read(SLOT, at(600)).prefills, 0);
    }

    #[test]
    fn all_of_it_is_taken_back_however_a_request_ends() {
        let backlogs = Arc::new(Backlogs::new(2));
        for work_s in [0.0, f64::NAN, -1.0, f64::INFINITY, 1e9] {
            let work = Work::start(&backlogs, SLOT, (f64::NAN, work_s), at(5));
            assert!(backlogs.read(SLOT, at(5)).prefilled_by <= at(700_000), "{work_s}");
            drop(work);
            assert_eq!(backlogs.read(SLOT, at(5)).prefills, 0);
        }
        let _outside = Work::start(&backlogs, ReplicaSlot(9), (0.0, 1.0), at(5));
    }

    #[test]
    fn the_share_of_prefill_is_what_came_lately() {
        let backlogs = Arc::new(Backlogs::new(2));
        for second in 0..100 {
            drop(Work::start(&backlogs, SLOT, (0.0, 0.4), at(1000 * second)));
        }
        let share = |ms| f64::from(backlogs.read(SLOT, at(ms)).prefill_share);
        assert!((share(99_500) - 0.4).abs() < 0.05, "{}", share(99_500));
        assert!(share(130_000) < 0.03);
    }
}
