//! The facts of a beacon: its TLVs, read one by one.

use super::field::TLV_HEAD_BYTES;
use super::read::BeaconFault;

/// Kinds of facts; the discriminant is the TLV's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FactKind {
    /// URL of the replica.
    Url = 1,
    /// Name of the engine.
    Engine = 2,
    /// A model it serves.
    Model = 3,
    /// An adapter that is loaded.
    AdapterLoaded = 4,
    /// An adapter that requests wait for.
    AdapterWaiting = 5,
    /// A label for people.
    Label = 6,
    /// Requests it runs at once.
    Slots = 7,
}

impl FactKind {
    /// The kind of a TLV's type.
    const fn of(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Url,
            2 => Self::Engine,
            3 => Self::Model,
            4 => Self::AdapterLoaded,
            5 => Self::AdapterWaiting,
            6 => Self::Label,
            7 => Self::Slots,
            _ => return None,
        })
    }

    /// Whether several may stand in a beacon, and none be said.
    const fn is_list(self) -> bool {
        match self {
            Self::Model | Self::AdapterLoaded | Self::AdapterWaiting | Self::Label => true,
            Self::Url | Self::Engine | Self::Slots => false,
        }
    }
}

/// Which kinds of facts a beacon carries. Default: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FactKinds(u8);

impl FactKinds {
    /// Whether facts of `kind` are among them.
    #[must_use]
    pub const fn contains(self, kind: FactKind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a kind is in both.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// These and `kind`.
    const fn with(self, kind: FactKind) -> Self {
        Self(self.0 | 1 << kind as u8)
    }
}

/// One fact, borrowed from a beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact<'d> {
    /// URL of the replica.
    Url(&'d str),
    /// Name of the engine.
    Engine(&'d str),
    /// A model it serves.
    Model(&'d str),
    /// An adapter that is loaded.
    AdapterLoaded(&'d str),
    /// An adapter that requests wait for.
    AdapterWaiting(&'d str),
    /// A label for people: its key and value.
    Label(&'d str, &'d str),
    /// Requests it runs at once.
    Slots(u32),
}

/// What one TLV says.
enum Tlv<'d> {
    /// A fact.
    Fact(FactKind, Fact<'d>),
    /// That a list is empty.
    Nothing(FactKind),
    /// Nothing that is known here.
    Unknown,
}

/// The first TLV of `bytes`, and those behind it.
fn split(bytes: &[u8]) -> Result<(Tlv<'_>, &[u8]), BeaconFault> {
    let (&[t0, t1, l0, l1], rest) = bytes.split_first_chunk::<TLV_HEAD_BYTES>().ok_or(BeaconFault::TlvOverrun)?;
    let (value, rest) = rest.split_at_checked(u16::from_le_bytes([l0, l1]).into()).ok_or(BeaconFault::TlvOverrun)?;
    let Some(kind) = FactKind::of(u16::from_le_bytes([t0, t1])) else { return Ok((Tlv::Unknown, rest)) };
    if value.is_empty() && kind.is_list() {
        return Ok((Tlv::Nothing(kind), rest));
    }
    Ok((Tlv::Fact(kind, read(kind, value)?), rest))
}

/// What `value` says as a fact of `kind`.
fn read(kind: FactKind, value: &[u8]) -> Result<Fact<'_>, BeaconFault> {
    Ok(match kind {
        FactKind::Url => Fact::Url(text(value)?),
        FactKind::Engine => Fact::Engine(text(value)?),
        FactKind::Model => Fact::Model(text(value)?),
        FactKind::AdapterLoaded => Fact::AdapterLoaded(text(value)?),
        FactKind::AdapterWaiting => Fact::AdapterWaiting(text(value)?),
        FactKind::Label => {
            let (key, value) = text(value)?.split_once('=').ok_or(BeaconFault::Label)?;
            if key.is_empty() {
                return Err(BeaconFault::Label);
            }
            Fact::Label(key, value)
        }
        FactKind::Slots => {
            let slots = u32::from_le_bytes(value.try_into().map_err(|_other_length| BeaconFault::Slots)?);
            if slots == 0 {
                return Err(BeaconFault::Slots);
            }
            Fact::Slots(slots)
        }
    })
}

/// Text of a value.
fn text(value: &[u8]) -> Result<&str, BeaconFault> {
    str::from_utf8(value).ok().filter(|text| is_text(text)).ok_or(BeaconFault::Text)
}

/// Whether a beacon can carry `text`.
pub(super) fn is_text(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// Checks all TLVs; which kinds there are.
pub(super) fn check(mut bytes: &[u8]) -> Result<FactKinds, BeaconFault> {
    let (mut said, mut empty) = (FactKinds::default(), FactKinds::default());
    while !bytes.is_empty() {
        let (tlv, rest) = split(bytes)?;
        bytes = rest;
        let (kind, is_alone) = match tlv {
            Tlv::Fact(kind, _) => (kind, !kind.is_list()),
            Tlv::Nothing(kind) => (kind, true),
            Tlv::Unknown => continue,
        };
        if empty.contains(kind) || is_alone && said.contains(kind) {
            return Err(BeaconFault::Twice);
        }
        if matches!(tlv, Tlv::Nothing(_)) {
            empty = empty.with(kind);
        }
        said = said.with(kind);
    }
    Ok(said)
}

/// The facts of a beacon in their order.
#[derive(Clone, Debug)]
pub struct FactsIter<'d> {
    pub(super) rest: &'d [u8],
}

impl<'d> Iterator for FactsIter<'d> {
    type Item = Fact<'d>;

    fn next(&mut self) -> Option<Fact<'d>> {
        while !self.rest.is_empty() {
            // Checked when the beacon was read, so that there is no error to lose here.
            let (tlv, rest) = split(self.rest).ok()?;
            self.rest = rest;
            if let Tlv::Fact(_, fact) = tlv {
                return Some(fact);
            }
        }
        None
    }
}
