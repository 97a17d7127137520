//! Which replicas take requests: one state machine ([`machine`]) over what active checks, requests and beacons say, with
//! drains and warm-up beside it. Client errors never count against a replica; one that was ejected comes back on
//! probation, one request at a time; and a pool is never emptied by its own failures.
//!
//! | state     | new requests | how it comes about | how it ends |
//! |-----------|--------------|--------------------|-------------|
//! | starting  | only if no other can, and it has not been asked in vain | it joined | first good sign |
//! | healthy   | yes          | a good check, a beacon that says ready, a good answer | |
//! | ejected   | no           | failed requests in a row | its time is over |
//! | probation | one at a time | an ejection's time is over | a request succeeds, or fails |
//! | down      | no           | failed checks, or a beacon that says not ready | first good sign |
//!
//! Any number of threads change a replica's state, by compare-and-swap of one word ([`word`]); no request takes a lock.
//! How many replicas are out is counted ahead of the change that puts one out, and behind the one that ends it, so that
//! [`HealthColumns::is_all_plain`] may be late to say yes and is never early.
//!
//! The request on probation is counted by a lease, not by what is in flight: streams from before the ejection may go on
//! for minutes. A lease ends with an outcome, or after a while when there is none (the client left).

mod machine;
mod say;
mod word;

pub use machine::{DrainCause, Drains};
pub use say::{CheckFault, Description, Why};

use crate::clock::Now;
use crate::config::EjectionConfig;
use crate::id::ReplicaSlot;
use crate::load::heard::PERIODS_UNTIL_STALE;
use machine::{Blame, CHECKS_MAX, Effects, Event, Phase, Said, State, next};
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::time::Duration;
use word::{CLOUDED, OUT, pack, unpack};

/// How long a request on probation may go without an outcome before another is let through.
const PROBE_LEASE: Duration = Duration::from_secs(30);

/// What beacons said of draining is out of date after so much silence: the engine was to stop, and if it runs, its agent
/// alone was stopped. Checks speak for it from then on.
const DRAIN_OUTDATED: Duration = Duration::from_secs(30);

/// What the gateway thinks of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// It has given no good sign yet.
    Starting,
    /// It takes requests.
    Healthy,
    /// It failed too often and takes none for now.
    Ejected,
    /// Its time out is over: it takes one request at a time until one succeeds.
    Probation,
    /// Checks fail, or it says itself that it is not ready.
    Down,
}

impl HealthState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Starting, Self::Healthy, Self::Ejected, Self::Probation, Self::Down];

    /// Name in `/replicas`, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Ejected => "ejected",
            Self::Probation => "probation",
            Self::Down => "down",
        }
    }

    const fn of(state: State, now: Now) -> Self {
        match state.phase {
            Phase::Starting | Phase::InVain => Self::Starting,
            Phase::Healthy => Self::Healthy,
            Phase::Ejected { .. } if state.is_on_probation(now) => Self::Probation,
            Phase::Ejected { .. } => Self::Ejected,
            Phase::Down(_) => Self::Down,
        }
    }
}

/// When a replica joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// With the gateway: all are new, and none warms up.
    AtStart,
    /// While it ran: it warms up.
    Later,
}

#[derive(Debug, Default)]
struct Cell {
    /// A [`State`].
    word: AtomicU64,
    /// Failed requests in a row.
    failures_in_row: AtomicU32,
    /// How the last failed check failed: a [`CheckFault`].
    check_fault: AtomicU32,
    /// While on probation: until when a request is taken to be there.
    probed_until: AtomicU64,
    /// Zero when not new.
    warming_until: AtomicU64,
    /// Since when it is in its state, and why: see [`say`].
    note: AtomicU64,
    /// It is to be checked at once.
    check_now: AtomicBool,
}

/// Health by replica, shared by all shards.
#[derive(Debug)]
pub struct HealthColumns {
    cells: Box<[Cell]>,
    /// By slot, when its beacons count as silent: apart from the cells, since beacons write it all the time. Zero when
    /// there were none.
    silent_after: Box<[AtomicU64]>,
    /// Replicas that are not plain, or more.
    out: AtomicU32,
    /// Replicas whose `warming_until` is not zero, or more.
    warming: AtomicU32,
    /// Latest end of a warm-up.
    warming_last: AtomicU64,
    /// How long a warm-up takes, nanoseconds; zero when there is none.
    warm_up_ns: AtomicU64,
    /// The time of the last sweep: good enough to say since when.
    coarse_now: AtomicU64,
    /// When the next replica that is out is checked.
    next_check: AtomicU64,
}

impl HealthColumns {
    /// Columns of `slots_max` healthy cells.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self {
            cells: (0..slots_max).map(|_| Cell::default()).collect(),
            silent_after: (0..slots_max).map(|_| AtomicU64::new(0)).collect(),
            out: AtomicU32::new(0),
            warming: AtomicU32::new(0),
            warming_last: AtomicU64::new(0),
            warm_up_ns: AtomicU64::new(0),
            coarse_now: AtomicU64::new(0),
            next_check: AtomicU64::new(0),
        }
    }

    fn word(&self, slot: ReplicaSlot) -> u64 {
        self.cells.get(slot.index()).map_or(0, |cell| cell.word.load(Acquire))
    }

    // -- what requests ask

    /// The state of `slot` at `now`.
    #[must_use]
    pub fn state(&self, slot: ReplicaSlot, now: Now) -> HealthState {
        HealthState::of(unpack(self.word(slot)), now)
    }

    /// Whether a request may go to `slot` now.
    #[inline]
    #[must_use]
    pub fn admits(&self, slot: ReplicaSlot, _in_flight: u32, now: Now) -> bool {
        let word = self.word(slot);
        if word & OUT == 0 {
            return true;
        }
        let state = unpack(word);
        let probed_until = || self.cells.get(slot.index()).map_or(0, |cell| cell.probed_until.load(Relaxed));
        !state.drains.is_any() && state.is_on_probation(now) && now.0 >= probed_until()
    }

    /// Whether a request that nobody else can take may try `slot`: it has given no good sign yet, nor a bad one.
    #[must_use]
    pub fn may_try(&self, slot: ReplicaSlot) -> bool {
        let state = unpack(self.word(slot));
        state.phase == Phase::Starting && !state.drains.is_any()
    }

    /// Whether `slot` has been found failing, so that a request which waits for it had better go elsewhere.
    #[must_use]
    pub fn is_failing(&self, slot: ReplicaSlot, now: Now) -> bool {
        match self.state(slot, now) {
            HealthState::Ejected | HealthState::Down => true,
            HealthState::Starting | HealthState::Healthy | HealthState::Probation => false,
        }
    }

    /// A request was placed at `slot`: on probation, others wait for what becomes of it. Shards that place one in the
    /// same microsecond may let two through.
    #[inline]
    pub fn placed(&self, slot: ReplicaSlot, now: Now) {
        let Some(cell) = self.cells.get(slot.index()) else { return };
        let word = cell.word.load(Acquire);
        if word & OUT == 0 {
            return;
        }
        if let Phase::Ejected { until_ms } = unpack(word).phase {
            let until = until_ms.saturating_mul(1_000_000);
            cell.probed_until.store(Now(now.0.max(until)).plus(PROBE_LEASE).0, Relaxed);
        }
    }

    /// Whether every replica takes requests as any other does: none is out, on probation, draining or warming up. It may
    /// go on to say no for a moment when that is over.
    #[inline]
    #[must_use]
    pub fn is_all_plain(&self, now: Now) -> bool {
        self.out.load(Acquire) == 0 && self.warming_count(now) == 0
    }

    /// A replica answered as it should.
    pub fn succeeded(&self, slot: ReplicaSlot) {
        let Some(cell) = self.cells.get(slot.index()) else { return };
        if cell.failures_in_row.load(Relaxed) != 0 {
            cell.failures_in_row.store(0, Relaxed);
        }
        let word = cell.word.load(Acquire);
        if word & (OUT | CLOUDED) != 0 {
            if matches!(unpack(word).phase, Phase::Ejected { .. }) {
                cell.probed_until.store(0, Relaxed);
            }
            self.apply(slot, Event::RequestOk, Now(self.coarse_now.load(Relaxed)));
        }
    }

    /// A replica failed (no connection, 5xx, broken or missing answer). `peers` are the members of its pool.
    /// Returns true when this ejected it.
    pub fn failed(&self, slot: ReplicaSlot, peers: &[ReplicaSlot], rules: &EjectionConfig, now: Now) -> bool {
        let Some(cell) = self.cells.get(slot.index()) else { return false };
        let is_on_probation = match self.state(slot, now) {
            // It was on its way before: it is out for that already.
            HealthState::Ejected | HealthState::Down => return false,
            HealthState::Probation => true,
            HealthState::Starting | HealthState::Healthy => false,
        };
        cell.probed_until.store(0, Relaxed);
        let failures = cell.failures_in_row.fetch_add(1, Relaxed).saturating_add(1);
        let is_limit = failures >= rules.consecutive_failures;
        if !is_on_probation && !is_limit {
            return false;
        }
        // Those on probation are out too: they take next to nothing, and may fail yet.
        let others_out = peers.iter().filter(|p| **p != slot && self.word(**p) & OUT != 0).count();
        let share_after = (others_out + 1) * 100;
        let pool_can_spare = peers.len() >= 2 && share_after <= peers.len() * usize::from(rules.max_percent);
        let blame = Blame { is_limit, pool_can_spare, base: rules.base, max: rules.max };
        let is_ejected = self.apply(slot, Event::RequestFailed(blame), now).is_ejected;
        if is_ejected {
            cell.failures_in_row.store(0, Relaxed);
        }
        is_ejected
    }

    /// A request found nobody listening at `slot`: a check is due at once. Goes beside [`Self::failed`].
    pub fn refused(&self, slot: ReplicaSlot, now: Now) {
        self.apply(slot, Event::Refused, now);
    }

    // -- what checks and beacons say

    /// A check of `slot` ended. After `failures_max` failed ones in a row it is down; after one, if it has beacons and
    /// they have stopped.
    pub fn checked(&self, slot: ReplicaSlot, result: Result<(), CheckFault>, failures_max: u32, now: Now) {
        self.note_silence(slot, now);
        let limit = u16::try_from(failures_max).unwrap_or(CHECKS_MAX).clamp(1, CHECKS_MAX);
        let event = match result {
            Ok(()) => Event::CheckOk,
            Err(fault) => {
                if let Some(cell) = self.cells.get(slot.index()) {
                    cell.check_fault.store(fault.code(), Relaxed);
                }
                if fault == CheckFault::TimedOut {
                    Event::CheckTimedOut { limit }
                } else {
                    Event::CheckFailed { limit }
                }
            }
        };
        self.apply(slot, event, now);
    }

    /// Nobody checks: a replica of which nothing is known takes requests.
    pub fn trusted(&self, slot: ReplicaSlot, now: Now) {
        self.apply(slot, Event::Trusted, now);
    }

    /// A beacon of `slot` says whether it is ready, and whether it drains; the next comes after `period`.
    pub fn beacon(&self, slot: ReplicaSlot, ready: bool, draining: bool, period: Duration, now: Now) {
        let Some(silent_after) = self.silent_after.get(slot.index()) else { return };
        silent_after.store(now.plus(period.saturating_mul(PERIODS_UNTIL_STALE)).0.max(1), Relaxed);
        let state = unpack(self.word(slot));
        let (said, event) = if ready { (Said::Ready, Event::SaidReady) } else { (Said::NotReady, Event::SaidNotReady) };
        if state.said != said {
            self.apply(slot, event, now);
        }
        self.set_drain(slot, DrainCause::Beacon, draining);
    }

    /// The engine at `slot` has restarted: what was held against it is forgotten, and it warms up. Goes before the
    /// [`Self::beacon`] that tells of it.
    pub fn restarted(&self, slot: ReplicaSlot, now: Now) {
        if let Some(cell) = self.cells.get(slot.index()) {
            cell.failures_in_row.store(0, Relaxed);
            cell.probed_until.store(0, Relaxed);
            self.apply(slot, Event::Restarted, now);
        }
    }

    /// Whether `slot` has beacons and they have stopped.
    #[must_use]
    pub fn is_silent(&self, slot: ReplicaSlot, now: Now) -> bool {
        let after = self.silent_after.get(slot.index()).map_or(0, |after| after.load(Relaxed));
        after != 0 && now.0 > after
    }

    fn note_silence(&self, slot: ReplicaSlot, now: Now) {
        if self.is_silent(slot, now) && !matches!(unpack(self.word(slot)).said, Said::Nothing | Said::Silent) {
            self.apply(slot, Event::FellSilent, now);
        }
    }

    // -- drains and warm-up

    /// `slot` takes no new requests for `cause`, or does again. Those in flight end in peace.
    pub fn set_drain(&self, slot: ReplicaSlot, cause: DrainCause, drains: bool) {
        if unpack(self.word(slot)).drains.has(cause) != drains {
            let event = if drains { Event::Drained(cause) } else { Event::Undrained(cause) };
            self.apply(slot, event, Now(self.coarse_now.load(Relaxed)));
        }
    }

    /// Why `slot` drains; none when it does not.
    #[must_use]
    pub fn drains(&self, slot: ReplicaSlot) -> Drains {
        unpack(self.word(slot)).drains
    }

    /// How long those that join later, or restart, warm up; `None`: they do not.
    pub fn set_warm_up_time(&self, time: Option<Duration>) {
        self.warm_up_ns.store(Now(0).plus(time.unwrap_or_default()).0, Relaxed);
    }

    /// From now until `until`, `slot` warms up: it is given a share of the cold requests. It ends then, or with
    /// [`Self::warmed_up`].
    pub fn warm_up(&self, slot: ReplicaSlot, until: Now) {
        let Some(cell) = self.cells.get(slot.index()) else { return };
        self.warming_last.fetch_max(until.0, AcqRel);
        self.warming.fetch_add(1, AcqRel);
        if cell.warming_until.swap(until.0.max(1), AcqRel) != 0 {
            self.warming.fetch_sub(1, AcqRel);
        }
    }

    /// The warm-up of `slot` is over, if there was one.
    pub fn warmed_up(&self, slot: ReplicaSlot) {
        if let Some(cell) = self.cells.get(slot.index())
            && cell.warming_until.swap(0, AcqRel) != 0
        {
            self.warming.fetch_sub(1, AcqRel);
        }
    }

    /// Whether `slot` warms up.
    #[must_use]
    pub fn is_warming(&self, slot: ReplicaSlot, now: Now) -> bool {
        self.cells.get(slot.index()).is_some_and(|cell| now.0 < cell.warming_until.load(Relaxed))
    }

    /// How many warm up; for a moment after the end of one, one more.
    #[inline]
    #[must_use]
    pub fn warming_count(&self, now: Now) -> usize {
        let warming = self.warming.load(Acquire);
        if warming == 0 || now.0 >= self.warming_last.load(Acquire) { 0 } else { warming as usize }
    }

    // -- what the control thread does

    /// A replica has `slot` now, and nothing is known of it. Where nobody checks, [`Self::trusted`] follows.
    pub fn joined(&self, slot: ReplicaSlot, arrival: Arrival, now: Now) {
        self.apply(slot, Event::Joined { is_late: arrival == Arrival::Later }, now);
    }

    /// Forgets all about `slot`: nobody has it, or another replica will.
    pub fn reset(&self, slot: ReplicaSlot) {
        let Some(cell) = self.cells.get(slot.index()) else { return };
        self.apply(slot, Event::Left, Now(self.coarse_now.load(Relaxed)));
        self.warmed_up(slot);
        cell.failures_in_row.store(0, Relaxed);
        cell.check_fault.store(0, Relaxed);
        cell.probed_until.store(0, Relaxed);
        cell.note.store(0, Relaxed);
        cell.check_now.store(false, Relaxed);
        if let Some(silent_after) = self.silent_after.get(slot.index()) {
            silent_after.store(0, Relaxed);
        }
    }

    /// As [`Self::reset`], for a slot that nobody has; next to nothing when there is nothing to forget.
    pub fn forget_unless_plain(&self, slot: ReplicaSlot) {
        if self.word(slot) & (OUT | CLOUDED) != 0 {
            self.reset(slot);
        }
    }

    /// Notes what time alone has changed at `slot`: beacons that stopped, a warm-up that is over. To be called every
    /// few tens of milliseconds.
    pub fn sweep(&self, slot: ReplicaSlot, now: Now) {
        self.coarse_now.fetch_max(now.0, Relaxed);
        self.note_silence(slot, now);
        let silent_after = self.silent_after.get(slot.index()).map_or(0, |after| after.load(Relaxed));
        if silent_after != 0 && now > Now(silent_after).plus(DRAIN_OUTDATED) {
            self.set_drain(slot, DrainCause::Beacon, false);
        }
        let Some(cell) = self.cells.get(slot.index()) else { return };
        let until = cell.warming_until.load(Relaxed);
        if until != 0 && now.0 >= until && cell.warming_until.compare_exchange(until, 0, AcqRel, Relaxed).is_ok() {
            self.warming.fetch_sub(1, AcqRel);
        }
    }

    /// Whether `slot` is to be checked at once; asked once, answered once.
    #[must_use]
    pub fn take_check_now(&self, slot: ReplicaSlot) -> bool {
        self.cells
            .get(slot.index())
            .is_some_and(|cell| cell.check_now.load(Relaxed) && cell.check_now.swap(false, Relaxed))
    }

    /// When the next check of a replica that is out will be.
    pub fn set_next_check(&self, at: Now) {
        self.next_check.store(at.0, Relaxed);
    }

    /// How long until the next check of a replica that is out: until then nothing gets better. At least a second.
    #[must_use]
    pub fn retry_after(&self, now: Now) -> Duration {
        Now(self.next_check.load(Relaxed)).since(now).max(Duration::from_secs(1))
    }

    /// The one way in which a state changes.
    fn apply(&self, slot: ReplicaSlot, event: Event, now: Now) -> Effects {
        let Some(cell) = self.cells.get(slot.index()) else { return Effects::default() };
        let mut word = cell.word.load(Acquire);
        let effects = loop {
            let before = unpack(word);
            let (after, effects) = next(before, event, now);
            let changed = pack(after);
            if changed == word {
                break effects;
            }
            let leaves = before.is_plain() && !after.is_plain();
            if leaves {
                self.out.fetch_add(1, AcqRel);
            }
            match cell.word.compare_exchange_weak(word, changed, AcqRel, Acquire) {
                Ok(_) => {
                    if after.is_plain() && !before.is_plain() {
                        self.out.fetch_sub(1, AcqRel);
                    }
                    if after.phase != before.phase {
                        let is_same = HealthState::of(before, now) == HealthState::of(after, now);
                        let since = is_same.then(|| say::since_ms(cell.note.load(Relaxed)));
                        cell.note.store(say::note(since, now, event, after.phase), Relaxed);
                    }
                    break effects;
                }
                Err(other) => {
                    if leaves {
                        self.out.fetch_sub(1, AcqRel);
                    }
                    word = other;
                }
            }
        };
        if effects.check_now {
            cell.check_now.store(true, Relaxed);
        }
        let time = Duration::from_nanos(self.warm_up_ns.load(Relaxed));
        if effects.warms_up && !time.is_zero() {
            self.warm_up(slot, now.plus(time));
        }
        effects
    }

    /// What there is to tell of `slot`.
    #[must_use]
    pub fn describe(&self, slot: ReplicaSlot, now: Now) -> Description {
        let (note, fault) = self
            .cells
            .get(slot.index())
            .map_or((0, 0), |cell| (cell.note.load(Relaxed), cell.check_fault.load(Relaxed)));
        say::describe(unpack(self.word(slot)), note, fault, self.is_warming(slot, now), now)
    }
}

#[cfg(test)]
mod tests;
