//! What was last heard of a replica's load, as it passes from who hears it to every shard.

use crate::clock::Now;
use crate::id::ReplicaSlot;

/// Who said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadSource {
    /// A beacon.
    Beacon,
    /// The engine's metrics page, read by the gateway.
    Scrape,
}

/// One replica's load, as of one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadReport {
    /// Whose.
    pub slot: ReplicaSlot,
    /// Who said so.
    pub source: LoadSource,
    /// When it was heard.
    pub received: Now,
    /// Microseconds until the next is due.
    pub period_us: u32,
    /// Requests it runs, whoever sent them.
    pub running: u32,
    /// Requests in its queue.
    pub waiting: u32,
    /// Requests this gateway had in flight there at that moment: the others are of other gateways.
    pub own_in_flight: u32,
    /// Prompt tokens that wait for their prefill, when known.
    pub prefill_tokens: Option<u32>,
    /// Of this gateway's, at that moment.
    pub own_prefill_tokens: u32,
    /// Share of the KV cache in use, 0 to 1, when known.
    pub kv_usage: Option<f32>,
}
