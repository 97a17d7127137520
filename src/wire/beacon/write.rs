//! Writing a beacon.

use super::fact::{FactKind, is_text};
use super::field::{self, HEAD_BYTES, HeadBytes, TLV_HEAD_BYTES, bit, put};
use super::{DATAGRAM_MAX, DATAGRAM_MIN, Facts, KV_USAGE_PPM_MAX, Load, Message, PERIOD_US};
use crate::wire::key::{Key, MAC_BYTES};

/// Most bytes of facts in a beacon.
const FACTS_BYTES_MAX: usize = DATAGRAM_MAX - DATAGRAM_MIN;

/// A beacon does not fit into a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the beacon would have {bytes} bytes, more than {DATAGRAM_MAX}; spread its facts over several")]
pub struct Oversize {
    /// How many bytes it would have.
    pub bytes: usize,
}

impl Message {
    /// Writes the beacon's bytes into `out`, in place of what is there, signed with `key` if there is one.
    ///
    /// What it writes can always be read: a period or a KV usage out of bounds is brought within, and text that
    /// beacons cannot carry is left out (see [`super::Facts`]).
    ///
    /// # Errors
    /// The facts are too long for one beacon; `out` is empty then. Send them in [`Facts::parts`].
    pub fn encode(&self, key: Option<&Key>, out: &mut Vec<u8>) -> Result<(), Oversize> {
        out.clear();
        out.resize(HEAD_BYTES, 0);
        put_facts(&self.facts, out);
        let bytes = out.len() + MAC_BYTES;
        let Some(length) = u16::try_from(bytes).ok().filter(|_| bytes <= DATAGRAM_MAX) else {
            out.clear();
            return Err(Oversize { bytes });
        };
        if let Some(head) = out.first_chunk_mut::<HEAD_BYTES>() {
            self.put_head(head, length, key.map_or(0, Key::id));
        }
        let mac = key.map_or([0; MAC_BYTES], |key| key.sign(out));
        out.extend_from_slice(&mac);
        Ok(())
    }

    fn put_head(&self, head: &mut HeadBytes, length: u16, key_id: u32) {
        let (which, load) = (&self.head, &self.load);
        put(head, 0, field::MAGIC);
        put(head, field::VERSION_AT, [field::VERSION]);
        put(head, field::LENGTH, length.to_le_bytes());
        put(head, field::KEY_ID, key_id.to_le_bytes());
        put(head, field::SENDER, which.sender.0.to_le_bytes());
        put(head, field::INCARNATION, which.incarnation.to_le_bytes());
        put(head, field::SEQUENCE, which.sequence.to_le_bytes());
        put(head, field::SENT, which.sent_unix_ns.to_le_bytes());
        put(head, field::PERIOD, which.period_us.clamp(*PERIOD_US.start(), *PERIOD_US.end()).to_le_bytes());
        put(head, field::RUNNING, load.running.to_le_bytes());
        put(head, field::WAITING, load.waiting.to_le_bytes());
        put(head, field::CACHE_RESETS, load.cache_resets.to_le_bytes());
        put_known(head, load);
    }
}

impl Facts {
    /// These facts in parts that each fit into a beacon: one if they do as they are, none if there is nothing to say.
    /// Lists stay whole; one that is too long even for a beacon of its own ends before the first item that does not fit.
    /// A URL or a name of an engine that does not fit is left out.
    #[must_use]
    pub fn parts(&self) -> Vec<Self> {
        let mut parts: Vec<(usize, Self)> = Vec::new();
        for facts in self.by_kind() {
            let mut bytes = Vec::new();
            put_facts(&facts, &mut bytes);
            if bytes.is_empty() || bytes.len() > FACTS_BYTES_MAX {
                continue;
            }
            match parts.iter_mut().find(|(used, _)| used + bytes.len() <= FACTS_BYTES_MAX) {
                Some((used, part)) => {
                    *used += bytes.len();
                    part.take(facts);
                }
                None => parts.push((bytes.len(), facts)),
            }
        }
        parts.into_iter().map(|(_, part)| part).collect()
    }

    /// The facts of each kind by themselves, lists no longer than fit into a beacon.
    fn by_kind(&self) -> [Self; 7] {
        let cut = |list: &[String]| {
            let mut room = FACTS_BYTES_MAX;
            list[..list.iter().take_while(|text| takes(&mut room, text.len())).count()].to_vec()
        };
        let mut room = FACTS_BYTES_MAX;
        let labels = self.labels.iter().take_while(|(key, value)| takes(&mut room, key.len() + 1 + value.len()));
        [
            Self { url: self.url.clone(), ..Self::default() },
            Self { engine: self.engine.clone(), ..Self::default() },
            Self { slots: self.slots, ..Self::default() },
            Self { models: cut(&self.models), ..Self::default() },
            Self { adapters_loaded: cut(&self.adapters_loaded), ..Self::default() },
            Self { adapters_waiting: cut(&self.adapters_waiting), ..Self::default() },
            Self { labels: labels.cloned().collect(), ..Self::default() },
        ]
    }

    /// Takes over what `other`, of other kinds, says.
    fn take(&mut self, other: Self) {
        self.url = self.url.take().or(other.url);
        self.engine = self.engine.take().or(other.engine);
        self.slots = self.slots.or(other.slots);
        self.models.extend(other.models);
        self.adapters_loaded.extend(other.adapters_loaded);
        self.adapters_waiting.extend(other.adapters_waiting);
        self.labels.extend(other.labels);
    }
}

/// Whether a TLV with a value of `bytes` fits into the `room` that is left; then it is taken.
fn takes(room: &mut usize, bytes: usize) -> bool {
    let left = room.checked_sub(TLV_HEAD_BYTES + bytes);
    *room = left.unwrap_or(*room);
    left.is_some()
}

fn put_facts(facts: &Facts, out: &mut Vec<u8>) {
    facts.url.iter().for_each(|url| put_text(out, FactKind::Url, url));
    facts.engine.iter().for_each(|engine| put_text(out, FactKind::Engine, engine));
    if let Some(slots) = facts.slots.filter(|slots| *slots > 0) {
        put_tlv(out, FactKind::Slots, &slots.to_le_bytes());
    }
    put_list(out, FactKind::Model, &facts.models);
    put_list(out, FactKind::AdapterLoaded, &facts.adapters_loaded);
    put_list(out, FactKind::AdapterWaiting, &facts.adapters_waiting);
    if let [(key, value)] = &*facts.labels
        && key.is_empty()
        && value.is_empty()
    {
        put_tlv(out, FactKind::Label, &[]);
    }
    for (key, value) in &facts.labels {
        if !key.is_empty() && !key.contains('=') {
            put_text(out, FactKind::Label, &format!("{key}={value}"));
        }
    }
}

/// Writes the fields that may be unknown, and the bits that say which are known.
fn put_known(head: &mut HeadBytes, load: &Load) {
    let mut bits = 0;
    let mut known = |bit: u32, is_known: bool| bits |= if is_known { bit } else { 0 };
    known(bit::READY, load.ready);
    known(bit::DRAINING, load.draining);
    let kv_usage = load.kv_usage.filter(|share| !share.is_nan()).map(ppm_of_share);
    for (bit, at, value) in [
        (bit::KV_USAGE, field::KV_USAGE, kv_usage),
        (bit::KV_BLOCKS, field::KV_BLOCKS, load.kv_blocks),
        (bit::KV_BLOCK_TOKENS, field::KV_BLOCK_TOKENS, load.kv_block_tokens),
        (bit::PREFILL_TOKENS, field::PREFILL_TOKENS, load.prefill_tokens),
    ] {
        known(bit, value.is_some());
        put(head, at, value.unwrap_or(0).to_le_bytes());
    }
    for (bit, at, value) in [
        (bit::BLOCKS_EVICTED, field::BLOCKS_EVICTED, load.blocks_evicted),
        (bit::PREFIX_TOKENS_QUERIED, field::PREFIX_TOKENS_QUERIED, load.prefix_tokens_queried),
        (bit::PREFIX_TOKENS_HIT, field::PREFIX_TOKENS_HIT, load.prefix_tokens_hit),
    ] {
        known(bit, value.is_some());
        put(head, at, value.unwrap_or(0).to_le_bytes());
    }
    put(head, field::BITS, bits.to_le_bytes());
}

/// One TLV for each of a list's texts that beacons can carry; an empty TLV for a list of only an empty text.
fn put_list(out: &mut Vec<u8>, kind: FactKind, texts: &[String]) {
    if texts.iter().map(String::as_str).eq([""]) {
        put_tlv(out, kind, &[]);
    }
    texts.iter().for_each(|text| put_text(out, kind, text));
}

/// A TLV, if beacons can carry the text.
fn put_text(out: &mut Vec<u8>, kind: FactKind, text: &str) {
    if is_text(text) {
        put_tlv(out, kind, text.as_bytes());
    }
}

/// A TLV. One whose value is too long for its length field is far too long for a beacon, so that its length is never
/// sent.
fn put_tlv(out: &mut Vec<u8>, kind: FactKind, value: &[u8]) {
    out.extend_from_slice(&u16::from(kind as u8).to_le_bytes());
    out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(value);
}

/// Parts in a million of a share of 1, from none to all of them.
#[expect(clippy::cast_possible_truncation, reason = "clamped, and rounded to a whole number")]
#[expect(clippy::cast_sign_loss, reason = "clamped to zero and above")]
fn ppm_of_share(share: f32) -> u32 {
    (f64::from(share.clamp(0.0, 1.0)) * f64::from(KV_USAGE_PPM_MAX)).round() as u32
}
