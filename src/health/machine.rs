//! The state machine of one replica's health: what it is, what can happen, and what becomes of it. One pure function,
//! [`next`]; `transitions.txt` beside this file is its whole table, and a test holds the two together.
//!
//! Three sources speak of a replica, and none may drown out the others: **checks** (the gateway asks), **requests** (how
//! those it was given went), and **beacons** (what it says of itself).
//! - A good check does not end an ejection: requests failed, so a request must succeed.
//! - A good check does not overrule a replica that says it is not ready.
//! - Beacons that go on saying *ready* do not overrule failed checks; one that says so *anew* does.
//! - A check that only took too long counts for nothing once a request succeeds: a busy engine is slow to say how it is.

use crate::clock::Now;
use std::time::Duration;

/// Why a replica takes no new requests though it could: whoever asked for it must take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainCause {
    /// Somebody asked the gateway: `POST /replicas/{id}/drain`.
    Admin,
    /// The replica says so itself.
    Beacon,
    /// The configuration, or a list of replicas, says so.
    File,
}

impl DrainCause {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Beacon, Self::File];

    /// Name in `/replicas`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Beacon => "beacon",
            Self::File => "file",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Admin => 1,
            Self::Beacon => 2,
            Self::File => 4,
        }
    }
}

/// The causes for which a replica drains; it does while there is any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drains(pub(super) u8);

impl Drains {
    /// Whether the replica drains.
    #[must_use]
    pub const fn is_any(self) -> bool {
        self.0 != 0
    }

    /// Whether it drains for `cause`.
    #[must_use]
    pub const fn has(self, cause: DrainCause) -> bool {
        self.0 & cause.bit() != 0
    }

    /// The causes.
    pub fn causes(self) -> impl Iterator<Item = DrainCause> {
        DrainCause::ALL.into_iter().filter(move |cause| self.has(*cause))
    }

    const fn with(self, cause: DrainCause) -> Self {
        Self(self.0 | cause.bit())
    }

    const fn without(self, cause: DrainCause) -> Self {
        Self(self.0 & !cause.bit())
    }
}

/// What the replica's beacons last said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Said {
    /// There were none.
    #[default]
    Nothing,
    /// It is ready.
    Ready,
    /// It is not.
    NotReady,
    /// They have stopped.
    Silent,
}

/// Why a replica is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Checks fail.
    Checks,
    /// It says that it is not ready.
    NotReady,
    /// Its beacons stopped, and a check failed.
    Silence,
}

/// Where a replica stands, drains and counters aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has given no good sign yet, nor has it been asked long. It takes requests if nobody else can.
    Starting,
    /// It has given no good sign yet, and has been asked in vain.
    InVain,
    /// It takes requests.
    #[default]
    Healthy,
    /// Requests failed. From `until` on it is on probation.
    Ejected {
        /// Milliseconds of the process's clock.
        until_ms: u64,
    },
    /// It takes none until there is a good sign.
    Down(Cause),
}

/// Health of one replica, all of it but the counter of failed requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) drains: Drains,
    pub(super) said: Said,
    /// Ejections since the last success.
    pub(super) ejections: u8,
    /// Failed checks in a row.
    pub(super) checks_failed: u16,
    /// The last of them only took too long.
    pub(super) is_slow: bool,
    /// It joined or restarted while the gateway ran: warms up at the first good sign.
    pub(super) is_new: bool,
}

/// Most ejections that are told apart, and failed checks.
pub(super) const EJECTIONS_MAX: u8 = 16;
pub(super) const CHECKS_MAX: u16 = 1000;

impl State {
    /// Whether it takes requests as any other does.
    pub(super) const fn is_plain(self) -> bool {
        matches!(self.phase, Phase::Healthy) && !self.drains.is_any()
    }

    /// Whether its time out is over.
    pub(super) const fn is_on_probation(self, now: Now) -> bool {
        matches!(self.phase, Phase::Ejected { until_ms } if until_ms <= now.0 / 1_000_000)
    }
}

/// A request that failed, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blame {
    /// As many in a row as there may be.
    pub(super) is_limit: bool,
    /// The pool can do without the replica.
    pub(super) pool_can_spare: bool,
    /// First time out; it doubles with each in a row.
    pub(super) base: Duration,
    /// Longest time out.
    pub(super) max: Duration,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A replica has the slot now, and is to be checked.
    Joined {
        /// The gateway had been running.
        is_late: bool,
    },
    /// Nobody checks: what is not known to be bad is good.
    Trusted,
    /// A check was answered as it should.
    CheckOk,
    /// A check was answered badly, or not at all.
    CheckFailed {
        /// In a row after which the replica is down.
        limit: u16,
    },
    /// A check was not answered in time.
    CheckTimedOut {
        /// As above.
        limit: u16,
    },
    /// A request was answered as it should.
    RequestOk,
    /// One was not.
    RequestFailed(Blame),
    /// A request found nobody listening.
    Refused,
    /// A beacon says ready.
    SaidReady,
    /// A beacon says not ready.
    SaidNotReady,
    /// Beacons have stopped.
    FellSilent,
    /// The engine has restarted. What the beacon that told of it says beside that, follows.
    Restarted,
    /// No new requests from now on.
    Drained(DrainCause),
    /// That is taken back.
    Undrained(DrainCause),
    /// The replica has left the slot.
    Left,
}

/// What is to be done beside taking down the new state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// Its warm-up begins.
    pub(super) warms_up: bool,
    /// It is checked at once, not when its turn comes.
    pub(super) check_now: bool,
    /// It was ejected by this very event.
    pub(super) is_ejected: bool,
}

/// What `event` at `now` makes of `state`.
pub(super) fn next(state: State, event: Event, now: Now) -> (State, Effects) {
    let mut after = state;
    let mut effects = Effects::default();
    match event {
        Event::Joined { is_late } => {
            after = State { phase: Phase::Starting, drains: state.drains, is_new: is_late, ..State::default() };
            effects.check_now = true;
        }
        Event::Left => after = State::default(),
        Event::Trusted => {
            if is_out(&state) && state.said != Said::NotReady {
                recover(&mut after, &mut effects);
            }
        }
        Event::CheckOk => {
            (after.checks_failed, after.is_slow) = (0, false);
            if is_out(&state) && state.said != Said::NotReady {
                recover(&mut after, &mut effects);
            }
        }
        Event::CheckFailed { limit } => check_failed(&mut after, limit, false),
        Event::CheckTimedOut { limit } => check_failed(&mut after, limit, true),
        Event::RequestOk => request_ok(&mut after, &mut effects),
        Event::RequestFailed(blame) => request_failed(&mut after, &mut effects, blame, now),
        Event::Refused => match state.phase {
            Phase::Starting => (after.phase, effects.check_now) = (Phase::InVain, true),
            Phase::Healthy | Phase::Ejected { .. } => effects.check_now = true,
            Phase::InVain | Phase::Down(_) => {}
        },
        Event::SaidReady => {
            after.said = Said::Ready;
            match state.phase {
                Phase::Starting | Phase::InVain => recover(&mut after, &mut effects),
                Phase::Down(_) if state.said != Said::Ready => recover(&mut after, &mut effects),
                Phase::Down(_) | Phase::Healthy | Phase::Ejected { .. } => {}
            }
        }
        Event::SaidNotReady => {
            after.said = Said::NotReady;
            after.phase = match state.phase {
                Phase::Starting | Phase::InVain => Phase::InVain,
                Phase::Healthy | Phase::Ejected { .. } | Phase::Down(_) => Phase::Down(Cause::NotReady),
            };
        }
        Event::FellSilent => fell_silent(&mut after, &mut effects),
        Event::Restarted => restarted(&mut after, &mut effects),
        Event::Drained(cause) => after.drains = state.drains.with(cause),
        Event::Undrained(cause) => after.drains = state.drains.without(cause),
    }
    (after, effects)
}

/// Whether any good sign is enough to bring it back.
const fn is_out(state: &State) -> bool {
    matches!(state.phase, Phase::Starting | Phase::InVain | Phase::Down(_))
}

/// The first good sign.
const fn recover(state: &mut State, effects: &mut Effects) {
    effects.warms_up = state.is_new;
    *state = State { phase: Phase::Healthy, checks_failed: 0, is_slow: false, is_new: false, ..*state };
}

fn check_failed(state: &mut State, limit: u16, is_slow: bool) {
    state.checks_failed = state.checks_failed.saturating_add(1).min(CHECKS_MAX);
    state.is_slow = is_slow;
    let is_silent = state.said == Said::Silent;
    if state.checks_failed < limit && !is_silent {
        return;
    }
    state.phase = match state.phase {
        Phase::Starting | Phase::InVain => Phase::InVain,
        Phase::Healthy | Phase::Ejected { .. } if is_silent => Phase::Down(Cause::Silence),
        Phase::Healthy | Phase::Ejected { .. } => Phase::Down(Cause::Checks),
        Phase::Down(cause) => Phase::Down(cause),
    };
}

fn request_ok(state: &mut State, effects: &mut Effects) {
    state.ejections = 0;
    match state.phase {
        Phase::Starting | Phase::InVain if state.said != Said::NotReady => recover(state, effects),
        Phase::Ejected { .. } => {
            (state.phase, effects.warms_up, state.is_new) = (Phase::Healthy, state.is_new, false);
        }
        // Those that are down end what they began: that says nothing of what they would do with more.
        Phase::Starting | Phase::InVain | Phase::Healthy | Phase::Down(_) => {}
    }
    if state.is_slow && matches!(state.phase, Phase::Healthy) {
        (state.checks_failed, state.is_slow) = (0, false);
    }
}

fn request_failed(state: &mut State, effects: &mut Effects, blame: Blame, now: Now) {
    let is_enough = match state.phase {
        Phase::Starting | Phase::Healthy => blame.is_limit,
        // Out already, and what was on its way before adds nothing; on probation one failure is enough.
        Phase::Ejected { .. } => state.is_on_probation(now),
        Phase::InVain | Phase::Down(_) => false,
    };
    if !is_enough || !blame.pool_can_spare {
        return;
    }
    let out = blame.base.saturating_mul(1 << state.ejections.min(EJECTIONS_MAX)).min(blame.max);
    state.ejections = state.ejections.saturating_add(1).min(EJECTIONS_MAX);
    state.phase = Phase::Ejected { until_ms: now.plus(out).0 / 1_000_000 };
    effects.is_ejected = true;
}

fn fell_silent(state: &mut State, effects: &mut Effects) {
    if state.said == Said::Nothing {
        return;
    }
    state.said = Said::Silent;
    if state.phase == Phase::Down(Cause::NotReady) {
        // What it said is out of date: nothing is known of it any more.
        (state.phase, state.checks_failed, effects.check_now) = (Phase::Starting, 0, true);
    }
}

fn restarted(state: &mut State, effects: &mut Effects) {
    *state = State {
        drains: state.drains.without(DrainCause::Beacon),
        said: Said::Nothing,
        ejections: 0,
        checks_failed: 0,
        is_slow: false,
        ..*state
    };
    match state.phase {
        Phase::Healthy | Phase::Ejected { .. } => {
            (state.phase, state.is_new, effects.warms_up) = (Phase::Healthy, false, true);
        }
        Phase::Starting | Phase::InVain | Phase::Down(_) => (state.is_new, effects.check_now) = (true, true),
    }
}
