//! What is told of a replica's health: since when it is as it is, and why, in plain words.

use super::HealthState;
use super::machine::{Cause, Drains, Event, Phase, State};
use crate::clock::Now;
use std::fmt;

/// How a check failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckFault {
    /// Nobody listens there.
    Refused,
    /// No answer in time.
    TimedOut,
    /// The connection broke, or the answer is not HTTP.
    Broken,
    /// Its name has not resolved.
    NoAddress,
    /// The answer has this status.
    Status(u16),
}

impl CheckFault {
    /// Name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Broken => "broken",
            Self::NoAddress => "no_address",
            Self::Status(_) => "status",
        }
    }

    /// As a number other than zero: a status, or a number below all of them.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::Refused => 1,
            Self::TimedOut => 2,
            Self::Broken => 3,
            Self::NoAddress => 4,
            Self::Status(status) => u32::from(status).max(100),
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => None,
            1 => Some(Self::Refused),
            2 => Some(Self::TimedOut),
            3 => Some(Self::Broken),
            4 => Some(Self::NoAddress),
            status => u16::try_from(status).ok().map(Self::Status),
        }
    }
}

impl fmt::Display for CheckFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::TimedOut => f.write_str("no answer in time"),
            Self::Broken => f.write_str("the connection broke"),
            Self::NoAddress => f.write_str("its name does not resolve"),
            Self::Status(status) => write!(f, "HTTP {status}"),
        }
    }
}

/// Why a replica is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing has happened to it.
    Untouched,
    /// It has only just joined.
    JustJoined,
    /// Nobody checks.
    NoChecks,
    /// A check was answered.
    CheckOk,
    /// Checks failed, the last of them like this.
    Checks(Option<CheckFault>),
    /// Its beacons stopped and a check failed.
    Silence(Option<CheckFault>),
    /// A request was answered.
    RequestOk,
    /// Requests failed in a row.
    Requests,
    /// A request found nobody listening.
    Refused,
    /// Its beacon says that it is ready.
    SaidReady,
    /// Its beacon says that it is not.
    SaidNotReady,
    /// Its beacons stopped; the last said that it is not ready.
    FellSilent,
    /// It restarted.
    Restarted,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let because = |f: &mut fmt::Formatter<'_>, text: &str, fault: Option<CheckFault>| match fault {
            Some(fault) => write!(f, "{text}: {fault}"),
            None => f.write_str(text),
        };
        match *self {
            Self::Untouched => f.write_str("nothing is held against it"),
            Self::JustJoined => f.write_str("no check has been answered yet"),
            Self::NoChecks => f.write_str("health checks are off"),
            Self::CheckOk => f.write_str("a health check succeeded"),
            Self::Checks(fault) => because(f, "health checks fail", fault),
            Self::Silence(fault) => because(f, "its beacons stopped and a health check failed", fault),
            Self::RequestOk => f.write_str("a request succeeded"),
            Self::Requests => f.write_str("requests failed in a row"),
            Self::Refused => f.write_str("a request could not connect"),
            Self::SaidReady => f.write_str("its beacon says ready"),
            Self::SaidNotReady => f.write_str("its beacon says not ready"),
            Self::FellSilent => f.write_str("its beacons stopped after one that said not ready"),
            Self::Restarted => f.write_str("its engine restarted"),
        }
    }
}

/// What there is to tell of a replica's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its state.
    pub state: HealthState,
    /// Since when.
    pub since: Now,
    /// Why.
    pub why: Why,
    /// Why it drains, if it does.
    pub drains: Drains,
    /// It warms up.
    pub is_warming: bool,
}

/// When and why a replica came to `phase`, in one word: the time in milliseconds over 8 bits for the reason. The time is
/// `since_ms`, or else now.
pub(super) fn note(since_ms: Option<u64>, now: Now, event: Event, phase: Phase) -> u64 {
    let why = match event {
        Event::Left | Event::Drained(_) | Event::Undrained(_) => 0,
        Event::Joined { .. } => 1,
        Event::Trusted => 2,
        Event::CheckOk => 3,
        Event::CheckFailed { .. } | Event::CheckTimedOut { .. } if phase == Phase::Down(Cause::Silence) => 5,
        Event::CheckFailed { .. } | Event::CheckTimedOut { .. } => 4,
        Event::RequestOk => 6,
        Event::RequestFailed(_) => 7,
        Event::Refused => 8,
        Event::SaidReady => 9,
        Event::SaidNotReady => 10,
        Event::FellSilent => 11,
        Event::Restarted => 12,
    };
    since_ms.unwrap_or(now.0 / 1_000_000) << 8 | why
}

/// The time in a [`note`], milliseconds.
pub(super) const fn since_ms(note: u64) -> u64 {
    note >> 8
}

/// Puts what is known of a replica into words; `fault` is the code of a [`CheckFault`].
pub(super) fn describe(state: State, note: u64, fault: u32, is_warming: bool, now: Now) -> Description {
    let fault = CheckFault::from_code(fault);
    let why = match note & 0xFF {
        1 => Why::JustJoined,
        2 => Why::NoChecks,
        3 => Why::CheckOk,
        4 => Why::Checks(fault),
        5 => Why::Silence(fault),
        6 => Why::RequestOk,
        7 => Why::Requests,
        8 => Why::Refused,
        9 => Why::SaidReady,
        10 => Why::SaidNotReady,
        11 => Why::FellSilent,
        12 => Why::Restarted,
        _ => Why::Untouched,
    };
    let since_ms = match state.phase {
        Phase::Ejected { until_ms } if state.is_on_probation(now) => until_ms,
        Phase::Starting | Phase::InVain | Phase::Healthy | Phase::Ejected { .. } | Phase::Down(_) => since_ms(note),
    };
    let since = Now(since_ms.saturating_mul(1_000_000));
    Description { state: HealthState::of(state, now), since, why, drains: state.drains, is_warming }
}
