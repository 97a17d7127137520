//! The beacon: how a replica tells gateways its load, by datagram. This page is the specification of version 1; who
//! follows it can send and receive beacons without reading the code.
//!
//! A beacon is one UDP datagram of 120 to 1,200 bytes, sent unicast or multicast, 1 to 100 times a second as a rule,
//! and never answered. All numbers are little-endian and unsigned; nothing is aligned; there is no padding. A lost
//! beacon is not sent again: the next one says all that matters.
//!
//! ```text
//! | head, 104 bytes | facts: TLVs, 0 to 1,080 bytes | MAC, 16 bytes |
//! ```
//!
//! # Head
//!
//! | offset | bytes | field | meaning |
//! |-------:|------:|-------|---------|
//! |   0 | 4 | magic                 | `45 4d 42 4c`, the letters EMBL |
//! |   4 | 1 | version               | 1 |
//! |   5 | 1 | must understand       | 0; a later beacon that a receiver of this page would misread sets it |
//! |   6 | 2 | length                | of the whole datagram, MAC and all |
//! |   8 | 4 | key id                | number of the key it is signed with; 0: not signed |
//! |  12 | 4 | bits                  | see below |
//! |  16 | 8 | sender                | which replica it speaks for, see *Sender* |
//! |  24 | 8 | incarnation           | when the engine started, µs of Unix time, see *Order* |
//! |  32 | 8 | sequence              | rises by one with each beacon, see *Order* |
//! |  40 | 8 | sent                  | when it was sent, ns of Unix time |
//! |  48 | 4 | period                | µs until the next one, 100 to 60,000,000 |
//! |  52 | 4 | running               | requests the engine runs, whoever sent them |
//! |  56 | 4 | waiting               | requests in the engine's queue |
//! |  60 | 4 | KV usage              | share of the KV cache in use, parts in a million, 0 to 1,000,000 |
//! |  64 | 4 | KV blocks             | blocks of the KV cache |
//! |  68 | 4 | KV block tokens       | tokens to a block |
//! |  72 | 4 | prefill tokens        | prompt tokens that wait for their prefill |
//! |  76 | 4 | cache resets          | times the engine has emptied its cache without a restart |
//! |  80 | 8 | blocks evicted        | since the engine started |
//! |  88 | 8 | prefix tokens queried | prompt tokens looked up in the prefix cache since the engine started |
//! |  96 | 8 | prefix tokens hit     | of these, found |
//!
//! | bit | set when |
//! |----:|----------|
//! | 0 | the engine takes requests (ready) |
//! | 1 | the engine is about to leave: no new requests, please (draining) |
//! | 2 | KV usage is known |
//! | 3 | KV blocks is known |
//! | 4 | KV block tokens is known |
//! | 5 | prefill tokens is known |
//! | 6 | blocks evicted is known |
//! | 7 | prefix tokens queried is known |
//! | 8 | prefix tokens hit is known |
//! | 9 to 31 | sent as 0, ignored when read |
//!
//! A field that is not known is sent as 0 with its bit clear, and ignored when read. The other fields are always known.
//! An engine that is not ready still sends beacons; so does one that drains.
//!
//! # Facts
//!
//! What changes rarely follows the head as TLVs, back to back: type (2 bytes), length of the value (2 bytes), value.
//!
//! | type | value | how often |
//! |-----:|-------|-----------|
//! | 1 | URL at which gateways reach the replica, `http://host:port`; needed to register oneself | at most once |
//! | 2 | engine: `vllm`, `sglang`, `trtllm`, `triton`, `llamacpp`, or another word              | at most once |
//! | 3 | a model it serves, as requests name it                                                 | once for each |
//! | 4 | an adapter (LoRA) that is loaded                                                       | once for each |
//! | 5 | an adapter that requests wait for                                                      | once for each |
//! | 6 | a label for people, `key=value`; the key is not empty                                  | once for each |
//! | 7 | requests it runs at once (slots), 4 bytes, at least 1                                  | at most once |
//!
//! Values but that of type 7 are UTF-8 text without control characters (Unicode Cc), and not empty. Types 3 to 6 are
//! lists; one TLV of such a type with an empty value, and no other, says that the list is empty. Types not in the table
//! are skipped.
//!
//! Facts may be sent in part: a beacon may carry all, some or none. A type that a beacon carries is said whole, and
//! takes the place of all that was said of that type before; a type it does not carry stays as it was, until the engine
//! restarts. So a sender whose facts are too long for one beacon spreads the types over several. A list too long even
//! for a beacon of its own is cut, the most useful first. Because beacons get lost and gateways restart, facts are
//! said again at least every few seconds, and at once when they change.
//!
//! # MAC
//!
//! The last 16 bytes are the first 16 of HMAC-SHA-256 (RFC 2104) over all bytes before them, under a secret of 16 to 64
//! bytes that has the key id as its number; zeros when the key id is 0. Receivers may know several keys, so that keys
//! can be changed one sender at a time. They compare in constant time.
//!
//! The MAC proves who sent a beacon, and that nobody changed it. Nothing is encrypted: load, names and labels can be
//! read on the way.
//!
//! # Sender
//!
//! The first 8 bytes, read as a little-endian number, of the SHA-256 of the replica's id: a name that gateways have in
//! their configuration, or else `host:port` as in the URL at which they reach it, in lower case. `10.0.0.7:8000` is
//! `0x4f8bc62298585104`. At any time one process sends for one replica.
//!
//! # Order
//!
//! - *Sequence*. A sender starts with the Unix time in microseconds and adds one with each beacon, so that sequences
//!   rise across its restarts too, without a disk. (Nobody sends a million beacons a second.)
//! - *Sent*. From the same clock, which is to be right: receivers drop beacons whose time is off by more than a bound,
//!   by default 30 s.
//! - *Incarnation*. Any number that stays the same while the engine runs and is greater after it has restarted:
//!   gateways forget what they believed to be in its KV cache when it rises. The time at which the engine's process
//!   started is best; else that at which the sender first saw it, or saw its counters fall. It must be settled once,
//!   not worked out anew for each beacon. The sender's own restart should not change it.
//! - *Cache resets*. Any change of it within an incarnation means that the cache was emptied.
//!
//! # What a receiver drops
//!
//! In this order, so that what costs little comes first; each cause is counted by itself:
//!
//! 1. what does not begin with the magic; other versions; a *must understand* byte that is not 0; fewer than 120 bytes
//!    or more than 1,200; more or fewer bytes than *length* says;
//! 2. key id 0, if the receiver has any key; without keys, all but key id 0 from a loopback address;
//! 3. key ids it does not know; a wrong MAC;
//! 4. a MAC that is not zeros with key id 0; a period, or a KV usage said to be known, out of its bounds; a TLV that
//!    goes beyond the facts; text that is not as above; a type that stands more often than it may; slots that are not 4
//!    bytes, or 0;
//! 5. senders it does not know, unless they may register themselves, the beacon is signed and carries a URL;
//! 6. a time of sending further than the bound from its own clock, before or behind;
//! 7. incarnations lower than the last, unless the sender has been silent for three of its periods;
//! 8. sequences that do not rise. So a beacon counts once, however often it arrives, and never after a later one. A
//!    sender that comes back with a lower sequence (its clock was set back, and it restarted) is heard again once its
//!    predecessor has been silent for three periods and it sends at a later time than any beacon before: no beacon that
//!    was heard before can be.
//!
//! Receivers keep no state on disk. What was recorded before a receiver restarts can be played to it afterwards, until
//! the time of sending is out of the bound.
//!
//! # Example
//!
//! A replica with the id `10.0.0.7:8000` and the key 1, `000102030405060708090a0b0c0d0e0f`:
//!
//! ```text
//! 0000  45 4d 42 4c 01 00 c1 00 01 00 00 00 fd 01 00 00  EMBL............
//! 0010  04 51 58 98 22 c6 8b 4f 00 60 5b a0 9d 37 06 00  .QX."..O.`[..7..
//! 0020  83 f6 f3 a0 9d 37 06 00 80 b5 eb c1 bc 3f 49 18  .....7.......?I.
//! 0030  50 c3 00 00 0c 00 00 00 03 00 00 00 68 89 09 00  P...........h...
//! 0040  00 20 00 00 10 00 00 00 00 10 00 00 01 00 00 00  . ..............
//! 0050  4d 00 00 00 00 00 00 00 40 42 0f 00 00 00 00 00  M.......@B......
//! 0060  c0 27 09 00 00 00 00 00 01 00 14 00 68 74 74 70  .'..........http
//! 0070  3a 2f 2f 31 30 2e 30 2e 30 2e 37 3a 38 30 30 30  ://10.0.0.7:8000
//! 0080  02 00 04 00 76 6c 6c 6d 07 00 04 00 00 01 00 00  ....vllm........
//! 0090  03 00 05 00 6c 6c 61 6d 61 04 00 03 00 73 71 6c  ....llama....sql
//! 00a0  05 00 03 00 72 61 67 06 00 06 00 7a 6f 6e 65 3d  ....rag....zone=
//! 00b0  61 eb 41 32 1d 50 4f d2 a1 2f 33 2a 1c b5 f9 8d  a.A2.PO../3*....
//! 00c0  55                                               U
//! ```
//!
//! It was started at 1,750,000,000 s of Unix time; the sender started ten seconds later and sends its fourth beacon,
//! 150 ms on, one every 50 ms. It is ready; runs 12 requests, 3 wait; 62.5 % of 8,192 blocks of 16 tokens are in use;
//! 4,096 prompt tokens wait for their prefill; its cache was emptied once; 77 blocks were evicted; 1,000,000 tokens
//! were looked up and 600,000 found. Facts: `http://10.0.0.7:8000`, `vllm`, 256 slots, the model `llama`, the adapter
//! `sql` loaded, `rag` waiting, the label `zone=a`.

mod fact;
mod field;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use fact::{Fact, FactKind, FactKinds, FactsIter};
pub use read::{Beacon, BeaconFault, Sealed};
pub use write::Oversize;

use sha2::{Digest, Sha256};
use std::ops::RangeInclusive;

/// Most bytes of a beacon: they pass any network unfragmented.
pub const DATAGRAM_MAX: usize = 1200;
/// Fewest bytes of a beacon: a head and a MAC.
pub const DATAGRAM_MIN: usize = field::HEAD_BYTES + super::key::MAC_BYTES;
/// What [`Head::period_us`] may be: 100 µs to a minute.
pub const PERIOD_US: RangeInclusive<u32> = 100..=60_000_000;
/// KV usage is said in parts of a million: this many are all of it.
pub const KV_USAGE_PPM_MAX: u32 = 1_000_000;

/// Which replica a beacon speaks for: the first 8 bytes, little-endian, of the SHA-256 of its `host:port` or of its
/// configured id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SenderId(pub u64);

impl SenderId {
    /// The sender whose replica has the id or the `host:port` `text`.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(Sha256::digest(text.as_bytes()));
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// Which beacon it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whose it is.
    pub sender: SenderId,
    /// When the engine started, microseconds of Unix time: it rises when the engine restarts.
    pub incarnation: u64,
    /// Rises with each beacon of a sender, across restarts: the Unix time in microseconds at which the sender started,
    /// plus the number of beacons it has sent since.
    pub sequence: u64,
    /// When it was sent, nanoseconds of Unix time.
    pub sent_unix_ns: u64,
    /// Microseconds between two beacons, within [`PERIOD_US`].
    pub period_us: u32,
}

/// What a replica has to do, and how full it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// The engine takes requests.
    pub ready: bool,
    /// The engine is about to leave: no new requests.
    pub draining: bool,
    /// Requests it runs.
    pub running: u32,
    /// Requests in its queue.
    pub waiting: u32,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<f32>,
    /// Blocks of the KV cache.
    pub kv_blocks: Option<u32>,
    /// Tokens to a block.
    pub kv_block_tokens: Option<u32>,
    /// Prompt tokens that wait for their prefill.
    pub prefill_tokens: Option<u32>,
    /// Times the engine has emptied its cache, without a restart.
    pub cache_resets: u32,
    /// Blocks evicted since the engine started.
    pub blocks_evicted: Option<u64>,
    /// Prompt tokens looked up in the prefix cache since the engine started.
    pub prefix_tokens_queried: Option<u64>,
    /// Of these, found.
    pub prefix_tokens_hit: Option<u64>,
}

/// What changes rarely; each beacon may carry all, some or none of it.
///
/// A list that is empty here is not said; one that holds only an empty string is said to be empty. Text that a beacon
/// cannot carry (empty, or with control characters; a label whose key is empty or holds `=`) is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `http://host:port`, for those that register themselves.
    pub url: Option<String>,
    /// Its engine's name: `vllm`, `sglang`, `trtllm`, `triton`, `llamacpp`, ...
    pub engine: Option<String>,
    /// Requests it runs at once.
    pub slots: Option<u32>,
    /// Models it serves.
    pub models: Vec<String>,
    /// Adapters (LoRA) that are loaded.
    pub adapters_loaded: Vec<String>,
    /// Adapters that requests wait for.
    pub adapters_waiting: Vec<String>,
    /// Labels for people.
    pub labels: Vec<(String, String)>,
}

/// A whole beacon, to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Which beacon it is.
    pub head: Head,
    /// The replica's load.
    pub load: Load,
    /// What there is to say beside.
    pub facts: Facts,
}
