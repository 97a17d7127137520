//! Why a datagram is not let in: one variant a cause, each counted by itself.

use crate::clock::Now;
use crate::wire::beacon::BeaconFault;

/// Why a datagram is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    /// Does not begin as beacons do.
    #[error("it is not a beacon")]
    NotABeacon,
    /// Another version, or one that needs more than is understood here.
    #[error("it is a beacon of a version that is not understood here")]
    Version,
    /// Too short, too long, or not as long as it says.
    #[error("it is not as long as it says, or not 120 to 1200 bytes")]
    Length,
    /// Something in it is not as specified.
    #[error("something in it is not as specified")]
    Malformed,
    /// Not signed, though there are keys.
    #[error("it is not signed; give the sender a key of the gateway's key file")]
    NotSigned,
    /// Not signed, there are no keys, and it does not come from this machine.
    #[error("it is not signed, and not from a loopback address; give gateway and sender a key")]
    NotLoopback,
    /// Signed with a key that is not known here.
    #[error("it is signed with a key that is not in the gateway's key file")]
    UnknownKey,
    /// Not signed with the key it names, or changed on its way.
    #[error("its MAC is wrong: the sender's key has the same number as the gateway's, but another secret")]
    WrongMac,
    /// Of no replica that is known here.
    #[error("no replica has its sender id")]
    UnknownSender,
    /// Sender and gateway do not agree what time it is.
    #[error("the sender's clock is further from the gateway's than `clock_skew`")]
    Clock,
    /// Heard before, or so old that it may have been.
    #[error("it was heard before")]
    Replayed,
    /// Overtaken by a later one.
    #[error("a later one came before it")]
    Late,
    /// Of an engine, or of a sender, that another has replaced.
    #[error("it is of an earlier incarnation of its engine or sender")]
    Leftover,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::NotABeacon,
        Self::Version,
        Self::Length,
        Self::Malformed,
        Self::NotSigned,
        Self::NotLoopback,
        Self::UnknownKey,
        Self::WrongMac,
        Self::UnknownSender,
        Self::Clock,
        Self::Replayed,
        Self::Late,
        Self::Leftover,
    ];

    /// Label in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotABeacon => "not_a_beacon",
            Self::Version => "version",
            Self::Length => "length",
            Self::Malformed => "malformed",
            Self::NotSigned => "not_signed",
            Self::NotLoopback => "not_loopback",
            Self::UnknownKey => "unknown_key",
            Self::WrongMac => "wrong_mac",
            Self::UnknownSender => "unknown_sender",
            Self::Clock => "clock",
            Self::Replayed => "replayed",
            Self::Late => "late",
            Self::Leftover => "leftover",
        }
    }

    /// Place in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Cause and time in one word, never 0: the time in the upper bits, which hold 18 years.
    pub(super) const fn pack(self, at: Now) -> u64 {
        at.0 << CAUSE_BITS | (self as u64 + 1)
    }

    /// What [`Self::pack`] wrote; nothing of 0.
    pub(super) fn unpack(word: u64) -> Option<(Self, Now)> {
        let cause = usize::try_from(word & ((1 << CAUSE_BITS) - 1)).ok()?.checked_sub(1)?;
        Some((*Self::ALL.get(cause)?, Now(word >> CAUSE_BITS)))
    }
}

/// Bits of a packed word that hold the cause.
const CAUSE_BITS: u32 = 5;

impl From<BeaconFault> for Refusal {
    fn from(fault: BeaconFault) -> Self {
        match fault {
            BeaconFault::Magic => Self::NotABeacon,
            BeaconFault::Version | BeaconFault::MustUnderstand => Self::Version,
            BeaconFault::TooShort | BeaconFault::TooLong | BeaconFault::Truncated | BeaconFault::Trailing => {
                Self::Length
            }
            BeaconFault::MacWithoutKey
            | BeaconFault::Period
            | BeaconFault::KvUsage
            | BeaconFault::TlvOverrun
            | BeaconFault::Text
            | BeaconFault::Label
            | BeaconFault::Slots
            | BeaconFault::Twice => Self::Malformed,
        }
    }
}
