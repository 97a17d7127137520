//! Writing a beacon.

use super::fact::{FactKind, is_text};
use super::field::{self, HEAD_BYTES, HeadBytes, bit, put};
use super::{DATAGRAM_MAX, KV_USAGE_PPM_MAX, Load, Message, PERIOD_US};
use crate::wire::key::{Key, MAC_BYTES};

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
    /// The facts are too long for one beacon; `out` is empty then. Send them in parts, each list whole.
    pub fn encode(&self, key: Option<&Key>, out: &mut Vec<u8>) -> Result<(), Oversize> {
        out.clear();
        out.resize(HEAD_BYTES, 0);
        self.put_facts(out);
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

    fn put_facts(&self, out: &mut Vec<u8>) {
        let facts = &self.facts;
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
