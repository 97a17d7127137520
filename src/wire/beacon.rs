//! The beacon: how a replica tells gateways its load, by datagram.

/// Which replica a beacon speaks for: the first 8 bytes, little-endian, of the SHA-256 of its `host:port` or of its
/// configured id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SenderId(pub u64);

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
    /// Microseconds between two beacons.
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
