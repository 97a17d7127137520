//! Parameters of the policies that others use. The defaults are what each of them documents.

use std::time::Duration;

/// `weighted`: what each score counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Share of the prompt that is already there. Default 3.
    pub prefix: f64,
    /// Few requests waiting in the engine's queue. Default 2.
    pub queue: f64,
    /// Much of the KV cache free. Default 2.
    pub kv: f64,
    /// Of requests that are cold everywhere, how long the replica has been given none. Default 0: it does not count.
    pub no_hit_lru: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { prefix: 3.0, queue: 2.0, kv: 2.0, no_hit_lru: 0.0 }
    }
}

/// `sticky_until_saturated`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StickyUntilSaturatedConfig {
    /// A replica that holds this share of the prompt is warm. Default 0.8.
    pub affinity: f64,
    /// Warm replicas are left when the best of them is expected to be this much slower than the best of the others; zero:
    /// never. Default 18 s.
    pub break_after: Duration,
    /// Tokens any replica prefills a second, to make time of tokens in flight. Default 15,928.
    pub prefill_tokens_per_s: f64,
}

impl Default for StickyUntilSaturatedConfig {
    fn default() -> Self {
        Self { affinity: 0.8, break_after: Duration::from_secs(18), prefill_tokens_per_s: 15_928.0 }
    }
}

/// `chwbl`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChwblConfig {
    /// Most load of a replica, as a multiple of the mean. Default 1.25.
    pub load_factor: f64,
    /// Places of each replica on the ring. Default 256.
    pub virtual_nodes: u16,
}

impl Default for ChwblConfig {
    fn default() -> Self {
        Self { load_factor: 1.25, virtual_nodes: 256 }
    }
}

/// `cache_aware`; the names are those of the routers that have it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheAwareConfig {
    /// A prompt of which more than this share is held anywhere goes there. Default 0.3.
    pub cache_threshold: f64,
    /// The fleet is out of balance when the most and the fewest requests are further apart than this, and ... Default 64.
    pub balance_abs_threshold: u32,
    /// ... the most are more than this many times the fewest. Default 1.5.
    pub balance_rel_threshold: f64,
}

impl Default for CacheAwareConfig {
    fn default() -> Self {
        Self { cache_threshold: 0.3, balance_abs_threshold: 64, balance_rel_threshold: 1.5 }
    }
}

/// `spill_gate`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpillGateConfig {
    /// A prompt of which more than this share is held anywhere goes there. Default 0.3.
    pub cache_threshold: f64,
    /// A replica with more than this many times the mean of requests, and ... Default 1.5.
    pub ratio: f64,
    /// ... more of them above the mean than the margin, is passed over. The margin is twice the root of the mean, but no
    /// less than this. Default 4.
    pub margin_min: u32,
    /// The most that the margin is. Default 64.
    pub margin_max: u32,
    /// Tokens that a running request is taken to have left. Default 1,024.
    pub request_tokens: f64,
    /// Tokens a second, to make time of tokens. Default 2,000.
    pub tokens_per_s: f64,
    /// What a half full KV cache counts, as time. Default 150 ms.
    pub kv_pressure: Duration,
    /// Of so many prompts that are held nowhere, one goes to a replica that holds little; zero: none. Default 4.
    pub warm_up_every: u32,
}

impl Default for SpillGateConfig {
    fn default() -> Self {
        Self {
            cache_threshold: 0.3,
            ratio: 1.5,
            margin_min: 4,
            margin_max: 64,
            request_tokens: 1024.0,
            tokens_per_s: 2000.0,
            kv_pressure: Duration::from_millis(150),
            warm_up_every: 4,
        }
    }
}

/// `dynamo`; the names are Dynamo's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DynamoConfig {
    /// What a token that is held takes off the prefill. Default 1.
    pub overlap_score_credit: f64,
    /// What prefill counts beside decoding. Default 1.
    pub prefill_load_scale: f64,
}

impl Default for DynamoConfig {
    fn default() -> Self {
        Self { overlap_score_credit: 1.0, prefill_load_scale: 1.0 }
    }
}

/// `dualmap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualMapConfig {
    /// Time to first token beyond which affinity is given up. Default 5 s.
    pub ttft_slo: Duration,
    /// Places of each replica on the ring. Default 256.
    pub virtual_nodes: u16,
}

impl Default for DualMapConfig {
    fn default() -> Self {
        Self { ttft_slo: Duration::from_secs(5), virtual_nodes: 256 }
    }
}

/// `preble`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrebleConfig {
    /// How long work that was placed counts as load. Default 3 minutes.
    pub window: Duration,
}

impl Default for PrebleConfig {
    fn default() -> Self {
        Self { window: Duration::from_secs(180) }
    }
}
