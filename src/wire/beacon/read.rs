//! Reading a beacon: first its envelope, of which it can be told whether it is genuine; then what is in it.

use super::fact::{self, Fact, FactKinds, FactsIter};
use super::field::{self, HEAD_BYTES, HeadBytes, bit, u16_at, u32_at, u64_at};
use super::{DATAGRAM_MAX, DATAGRAM_MIN, Facts, Head, KV_USAGE_PPM_MAX, Load, PERIOD_US, SenderId};
use crate::wire::key::{Key, MAC_BYTES};

/// Why bytes are not a beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeaconFault {
    /// Does not begin with the magic.
    #[error("it does not begin with EMBL")]
    Magic,
    /// Another version.
    #[error("it is of another version than 1")]
    Version,
    /// The byte that must be understood is not zero.
    #[error("it needs something that is not understood here")]
    MustUnderstand,
    /// Shorter than a beacon can be.
    #[error("it is shorter than {DATAGRAM_MIN} bytes")]
    TooShort,
    /// Longer than a beacon may be.
    #[error("it is longer than {DATAGRAM_MAX} bytes")]
    TooLong,
    /// Fewer bytes than it says.
    #[error("it is shorter than it says")]
    Truncated,
    /// More bytes than it says.
    #[error("it is longer than it says")]
    Trailing,
    /// A MAC without a key.
    #[error("it has a MAC, but no key id")]
    MacWithoutKey,
    /// A period outside [`PERIOD_US`].
    #[error("its period is not 100 us to 60 s")]
    Period,
    /// More of the KV cache in use than there is.
    #[error("it says that more than all of the KV cache is in use")]
    KvUsage,
    /// A TLV goes on beyond the facts.
    #[error("a TLV goes beyond the end")]
    TlvOverrun,
    /// Text that is empty, not UTF-8, or has control characters.
    #[error("a text is empty, not UTF-8, or has control characters")]
    Text,
    /// A label is not `key=value`.
    #[error("a label is not `key=value`")]
    Label,
    /// The slots are not a number of 4 bytes, or zero.
    #[error("the slots are not a number of 4 bytes above zero")]
    Slots,
    /// What may stand once stands twice, or an empty list has items.
    #[error("a fact that may stand once stands twice")]
    Twice,
}

/// A datagram that has the outer form of a beacon; what it says is not looked at yet.
#[derive(Clone, Copy, Debug)]
pub struct Sealed<'d> {
    /// All but the MAC.
    signed: &'d [u8],
    head: &'d HeadBytes,
    facts: &'d [u8],
    mac: &'d [u8; MAC_BYTES],
}

impl<'d> Sealed<'d> {
    /// Looks at magic, version and length.
    ///
    /// # Errors
    /// It is not a beacon of this version, or not whole.
    #[inline]
    pub fn read(datagram: &'d [u8]) -> Result<Self, BeaconFault> {
        if !datagram.starts_with(&field::MAGIC) {
            return Err(if datagram.len() < field::MAGIC.len() { BeaconFault::TooShort } else { BeaconFault::Magic });
        }
        if datagram.get(field::VERSION_AT).is_some_and(|version| *version != field::VERSION) {
            return Err(BeaconFault::Version);
        }
        if datagram.get(field::MUST_UNDERSTAND).is_some_and(|byte| *byte != 0) {
            return Err(BeaconFault::MustUnderstand);
        }
        if datagram.len() > DATAGRAM_MAX {
            return Err(BeaconFault::TooLong);
        }
        let (signed, mac) = datagram.split_last_chunk::<MAC_BYTES>().ok_or(BeaconFault::TooShort)?;
        let (head, facts) = signed.split_first_chunk::<HEAD_BYTES>().ok_or(BeaconFault::TooShort)?;
        match usize::from(u16_at(head, field::LENGTH)) {
            length if length > datagram.len() => Err(BeaconFault::Truncated),
            length if length < datagram.len() => Err(BeaconFault::Trailing),
            _ => Ok(Self { signed, head, facts, mac }),
        }
    }

    /// Number of the key it is signed with; 0: not signed.
    #[inline]
    #[must_use]
    pub const fn key_id(&self) -> u32 {
        u32_at(self.head, field::KEY_ID)
    }

    /// Whom it says it speaks for: true only if the MAC is.
    #[inline]
    #[must_use]
    pub const fn sender(&self) -> SenderId {
        SenderId(u64_at(self.head, field::SENDER))
    }

    /// Whether it is signed with `key`. Takes the same time whichever byte is wrong.
    #[must_use]
    pub fn is_signed_by(&self, key: &Key) -> bool {
        self.key_id() == key.id() && key.verifies(self.signed, self.mac)
    }

    /// Reads what it says, whether or not it is genuine.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    #[inline]
    pub fn open(self) -> Result<Beacon<'d>, BeaconFault> {
        if self.key_id() == 0 && *self.mac != [0; MAC_BYTES] {
            return Err(BeaconFault::MacWithoutKey);
        }
        if !PERIOD_US.contains(&u32_at(self.head, field::PERIOD)) {
            return Err(BeaconFault::Period);
        }
        let has_kv_usage = u32_at(self.head, field::BITS) & bit::KV_USAGE != 0;
        if has_kv_usage && u32_at(self.head, field::KV_USAGE) > KV_USAGE_PPM_MAX {
            return Err(BeaconFault::KvUsage);
        }
        let kinds = fact::check(self.facts)?;
        Ok(Beacon { sealed: self, kinds })
    }
}

/// A beacon that is well formed, borrowed from a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Beacon<'d> {
    sealed: Sealed<'d>,
    kinds: FactKinds,
}

impl<'d> Beacon<'d> {
    /// Reads a datagram, whoever signed it. Allocates nothing.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    #[inline]
    pub fn parse(datagram: &'d [u8]) -> Result<Self, BeaconFault> {
        Sealed::read(datagram)?.open()
    }

    /// Number of the key it is signed with; 0: not signed.
    #[inline]
    #[must_use]
    pub const fn key_id(&self) -> u32 {
        self.sealed.key_id()
    }

    /// Whether it is signed with `key`. Takes the same time whichever byte is wrong.
    #[must_use]
    pub fn is_signed_by(&self, key: &Key) -> bool {
        self.sealed.is_signed_by(key)
    }

    /// Which beacon it is.
    #[inline]
    #[must_use]
    pub const fn head(&self) -> Head {
        let head = self.sealed.head;
        Head {
            sender: self.sealed.sender(),
            incarnation: u64_at(head, field::INCARNATION),
            sequence: u64_at(head, field::SEQUENCE),
            sent_unix_ns: u64_at(head, field::SENT),
            period_us: u32_at(head, field::PERIOD),
        }
    }

    /// What the replica has to do, and how full it is.
    #[inline]
    #[must_use]
    pub fn load(&self) -> Load {
        let head = self.sealed.head;
        let bits = u32_at(head, field::BITS);
        let small = |known, at| (bits & known != 0).then(|| u32_at(head, at));
        let large = |known, at| (bits & known != 0).then(|| u64_at(head, at));
        Load {
            ready: bits & bit::READY != 0,
            draining: bits & bit::DRAINING != 0,
            running: u32_at(head, field::RUNNING),
            waiting: u32_at(head, field::WAITING),
            kv_usage: small(bit::KV_USAGE, field::KV_USAGE).map(share_of_ppm),
            kv_blocks: small(bit::KV_BLOCKS, field::KV_BLOCKS),
            kv_block_tokens: small(bit::KV_BLOCK_TOKENS, field::KV_BLOCK_TOKENS),
            prefill_tokens: small(bit::PREFILL_TOKENS, field::PREFILL_TOKENS),
            cache_resets: u32_at(head, field::CACHE_RESETS),
            blocks_evicted: large(bit::BLOCKS_EVICTED, field::BLOCKS_EVICTED),
            prefix_tokens_queried: large(bit::PREFIX_TOKENS_QUERIED, field::PREFIX_TOKENS_QUERIED),
            prefix_tokens_hit: large(bit::PREFIX_TOKENS_HIT, field::PREFIX_TOKENS_HIT),
        }
    }

    /// The facts in their order, borrowed.
    #[must_use]
    pub const fn iter_facts(&self) -> FactsIter<'d> {
        FactsIter { rest: self.sealed.facts }
    }

    /// Which kinds of facts it carries. One that is a list may be said to be empty: then it is here, and none of its
    /// items is in [`Self::iter_facts`].
    #[inline]
    #[must_use]
    pub const fn fact_kinds(&self) -> FactKinds {
        self.kinds
    }

    /// The replica's URL, if it is said.
    #[must_use]
    pub fn url(&self) -> Option<&'d str> {
        self.iter_facts().find_map(|fact| if let Fact::Url(url) = fact { Some(url) } else { None })
    }

    /// The facts, owned.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        for fact in self.iter_facts() {
            match fact {
                Fact::Url(url) => facts.url = Some(url.to_owned()),
                Fact::Engine(engine) => facts.engine = Some(engine.to_owned()),
                Fact::Model(model) => facts.models.push(model.to_owned()),
                Fact::AdapterLoaded(adapter) => facts.adapters_loaded.push(adapter.to_owned()),
                Fact::AdapterWaiting(adapter) => facts.adapters_waiting.push(adapter.to_owned()),
                Fact::Label(key, value) => facts.labels.push((key.to_owned(), value.to_owned())),
                Fact::Slots(slots) => facts.slots = Some(slots),
            }
        }
        facts
    }

    /// The facts as they were sent: equal bytes say the same.
    #[inline]
    #[must_use]
    pub const fn facts_bytes(&self) -> &'d [u8] {
        self.sealed.facts
    }
}

/// A share of 1 from parts in a million, at most all of them.
#[expect(clippy::cast_possible_truncation, reason = "seven digits are what f32 holds")]
fn share_of_ppm(ppm: u32) -> f32 {
    (f64::from(ppm) / f64::from(KV_USAGE_PPM_MAX)) as f32
}
