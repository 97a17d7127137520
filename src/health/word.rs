//! A [`State`] in 64 bits, so that shards and the control thread change it with one compare-and-swap. Zero is a healthy
//! replica of which nothing else is to be said: by far the most common, and cheap to test for.

use super::machine::{Cause, Drains, Phase, Said, State};

/// Bits from the lowest: phase 3, drains 3, said 2, ejections 5, failed checks 10, slow 1, new 1, time 39.
mod field {
    pub(super) const DRAINS: u32 = 3;
    pub(super) const SAID: u32 = 6;
    pub(super) const EJECTIONS: u32 = 8;
    pub(super) const CHECKS: u32 = 13;
    pub(super) const SLOW: u32 = 23;
    pub(super) const NEW: u32 = 24;
    pub(super) const TIME: u32 = 25;
}

/// The bits that are zero of a replica that takes requests as any other.
pub(super) const OUT: u64 = 0b11_1111;
/// The bits that a success may change, beside those: ejections, failed checks, slow.
pub(super) const CLOUDED: u64 = ((1 << (field::NEW - field::EJECTIONS)) - 1) << field::EJECTIONS;
/// Latest end of an ejection: 17 years after the start.
const TIME_MAX: u64 = (1 << (64 - field::TIME)) - 1;

/// The word for `state`.
pub(super) fn pack(state: State) -> u64 {
    let (phase, time) = match state.phase {
        Phase::Healthy => (0, 0),
        Phase::Starting => (1, 0),
        Phase::InVain => (2, 0),
        Phase::Ejected { until_ms } => (3, until_ms.min(TIME_MAX)),
        Phase::Down(Cause::Checks) => (4, 0),
        Phase::Down(Cause::NotReady) => (5, 0),
        Phase::Down(Cause::Silence) => (6, 0),
    };
    let said = match state.said {
        Said::Nothing => 0,
        Said::Ready => 1,
        Said::NotReady => 2,
        Said::Silent => 3,
    };
    phase
        | u64::from(state.drains.0 & 7) << field::DRAINS
        | said << field::SAID
        | u64::from(state.ejections & 31) << field::EJECTIONS
        | u64::from(state.checks_failed & 1023) << field::CHECKS
        | u64::from(state.is_slow) << field::SLOW
        | u64::from(state.is_new) << field::NEW
        | time << field::TIME
}

/// The state that `word` holds.
#[expect(clippy::cast_possible_truncation, reason = "each is masked to fewer bits than its type has")]
pub(super) const fn unpack(word: u64) -> State {
    let phase = match word & 7 {
        0 => Phase::Healthy,
        1 => Phase::Starting,
        2 => Phase::InVain,
        3 => Phase::Ejected { until_ms: word >> field::TIME },
        4 => Phase::Down(Cause::Checks),
        5 => Phase::Down(Cause::NotReady),
        _ => Phase::Down(Cause::Silence),
    };
    let said = match (word >> field::SAID) & 3 {
        0 => Said::Nothing,
        1 => Said::Ready,
        2 => Said::NotReady,
        _ => Said::Silent,
    };
    State {
        phase,
        drains: Drains((word >> field::DRAINS) as u8 & 7),
        said,
        ejections: (word >> field::EJECTIONS) as u8 & 31,
        checks_failed: (word >> field::CHECKS) as u16 & 1023,
        is_slow: (word >> field::SLOW) & 1 == 1,
        is_new: (word >> field::NEW) & 1 == 1,
    }
}
