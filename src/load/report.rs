//! What was last heard of a replica's load, as it passes from who hears it to every shard.

use crate::clock::Now;
use crate::id::ReplicaSlot;

/// Who said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadSource {
    /// A beacon.
    #[default]
    Beacon,
    /// The engine's metrics page, read by the gateway.
    Scrape,
}

impl LoadSource {
    /// Name in `/replicas`, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Beacon => "beacon",
            Self::Scrape => "scrape",
        }
    }
}

/// One replica's load, as of one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadReport {
    /// Whose.
    pub slot: ReplicaSlot,
    /// Who said so.
    pub source: LoadSource,
    /// When it was heard: a time read before the replica's slot was looked up (for a scrape: before it was sent), so
    /// that whoever takes over the slot meanwhile is not taken for the one who spoke.
    pub received: Now,
    /// Microseconds until the next is due.
    pub period_us: u32,
    /// Requests it runs, whoever sent them.
    pub running: u32,
    /// Requests in its queue.
    pub waiting: u32,
    /// The most requests that this gateway had in flight there at any time since it was made: what is more is of other
    /// gateways.
    pub own_in_flight: u32,
    /// Prompt tokens that wait for their prefill, when known.
    pub prefill_tokens: Option<u32>,
    /// The most of this gateway's, likewise.
    pub own_prefill_tokens: u32,
    /// Share of the KV cache in use, 0 to 1, when known.
    pub kv_usage: Option<f32>,
}
