//! The parameters of the policies that others use, as a file says them.

use schemars::JsonSchema;
use serde::Serialize;

use super::super::baselines::{
    CacheAwareConfig, ChwblConfig, DualMapConfig, DynamoConfig, PrebleConfig, SpillGateConfig,
    StickyUntilSaturatedConfig, Weights,
};
use super::super::schema as form;
use super::super::unit::format_duration;

/// Weights of the `weighted` policy's scores.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "weights")]
pub(crate) struct RawWeights {
    /// Share of the prompt that is already there.
    #[schemars(schema_with = "form::number")]
    prefix: f64,
    /// Few requests waiting.
    #[schemars(schema_with = "form::number")]
    queue: f64,
    /// Much of the KV cache free.
    #[schemars(schema_with = "form::number")]
    kv: f64,
    /// Of requests that are cold everywhere, how long the replica has been given none; 0: it does not count.
    #[schemars(schema_with = "form::number")]
    no_hit_lru: f64,
}

impl Default for RawWeights {
    fn default() -> Self {
        Self::from(&Weights::default())
    }
}

impl From<&Weights> for RawWeights {
    fn from(weights: &Weights) -> Self {
        let Weights { prefix, queue, kv, no_hit_lru } = *weights;
        Self { prefix, queue, kv, no_hit_lru }
    }
}

/// Parameters of `sticky_until_saturated`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "sticky_until_saturated")]
pub(crate) struct RawStickyUntilSaturated {
    /// A replica that holds this share of the prompt is warm.
    #[schemars(schema_with = "form::share")]
    affinity: f64,
    /// Warm replicas are left when the best of them is expected to be this much slower than the best of the others; 0s:
    /// never.
    #[schemars(schema_with = "form::duration")]
    break_after: String,
    /// Tokens any replica prefills a second, to make time of tokens in flight.
    #[schemars(schema_with = "form::number")]
    prefill_tokens_per_s: f64,
}

impl Default for RawStickyUntilSaturated {
    fn default() -> Self {
        Self::from(&StickyUntilSaturatedConfig::default())
    }
}

impl From<&StickyUntilSaturatedConfig> for RawStickyUntilSaturated {
    fn from(config: &StickyUntilSaturatedConfig) -> Self {
        Self {
            affinity: config.affinity,
            break_after: format_duration(config.break_after),
            prefill_tokens_per_s: config.prefill_tokens_per_s,
        }
    }
}

/// Parameters of `chwbl`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "chwbl")]
pub(crate) struct RawChwbl {
    /// Most load of a replica, as a multiple of the mean.
    #[schemars(schema_with = "form::number")]
    load_factor: f64,
    /// Places of each replica on the ring.
    #[schemars(schema_with = "form::count")]
    virtual_nodes: u16,
}

impl Default for RawChwbl {
    fn default() -> Self {
        Self::from(&ChwblConfig::default())
    }
}

impl From<&ChwblConfig> for RawChwbl {
    fn from(config: &ChwblConfig) -> Self {
        Self { load_factor: config.load_factor, virtual_nodes: config.virtual_nodes }
    }
}

/// Parameters of `cache_aware`, as SGLang's router and vllm-router name them.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "cache_aware")]
pub(crate) struct RawCacheAware {
    /// A prompt of which more than this share is held anywhere goes there.
    #[schemars(schema_with = "form::share")]
    cache_threshold: f64,
    /// The fleet is out of balance when the most and the fewest requests are further apart than this, and ...
    #[schemars(schema_with = "form::count")]
    balance_abs_threshold: u32,
    /// ... the most are more than this many times the fewest.
    #[schemars(schema_with = "form::number")]
    balance_rel_threshold: f64,
}

impl Default for RawCacheAware {
    fn default() -> Self {
        Self::from(&CacheAwareConfig::default())
    }
}

impl From<&CacheAwareConfig> for RawCacheAware {
    fn from(config: &CacheAwareConfig) -> Self {
        let CacheAwareConfig { cache_threshold, balance_abs_threshold, balance_rel_threshold } = *config;
        Self { cache_threshold, balance_abs_threshold, balance_rel_threshold }
    }
}

/// Parameters of `spill_gate`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "spill_gate")]
pub(crate) struct RawSpillGate {
    /// A prompt of which more than this share is held anywhere goes there.
    #[schemars(schema_with = "form::share")]
    cache_threshold: f64,
    /// A replica with more than this many times the mean of requests, and ...
    #[schemars(schema_with = "form::number")]
    ratio: f64,
    /// ... more of them above the mean than the margin, is passed over. The margin is twice the root of the mean, but no
    /// less than this.
    #[schemars(schema_with = "form::count")]
    margin_min: u32,
    /// The most that the margin is.
    #[schemars(schema_with = "form::count")]
    margin_max: u32,
    /// Tokens that a running request is taken to have left.
    #[schemars(schema_with = "form::number")]
    request_tokens: f64,
    /// Tokens a second, to make time of tokens.
    #[schemars(schema_with = "form::number")]
    tokens_per_s: f64,
    /// What a half full KV cache counts, as time.
    #[schemars(schema_with = "form::duration")]
    kv_pressure: String,
    /// Of so many prompts that are held nowhere, one goes to a replica that holds little; 0: none.
    #[schemars(schema_with = "form::count")]
    warm_up_every: u32,
}

impl Default for RawSpillGate {
    fn default() -> Self {
        Self::from(&SpillGateConfig::default())
    }
}

impl From<&SpillGateConfig> for RawSpillGate {
    fn from(config: &SpillGateConfig) -> Self {
        Self {
            cache_threshold: config.cache_threshold,
            ratio: config.ratio,
            margin_min: config.margin_min,
            margin_max: config.margin_max,
            request_tokens: config.request_tokens,
            tokens_per_s: config.tokens_per_s,
            kv_pressure: format_duration(config.kv_pressure),
            warm_up_every: config.warm_up_every,
        }
    }
}

/// Parameters of `dynamo`, as Dynamo names them.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "dynamo")]
pub(crate) struct RawDynamo {
    /// What a token that is held takes off the prefill.
    #[schemars(schema_with = "form::number")]
    overlap_score_credit: f64,
    /// What prefill counts beside decoding.
    #[schemars(schema_with = "form::number")]
    prefill_load_scale: f64,
}

impl Default for RawDynamo {
    fn default() -> Self {
        Self::from(&DynamoConfig::default())
    }
}

impl From<&DynamoConfig> for RawDynamo {
    fn from(config: &DynamoConfig) -> Self {
        let DynamoConfig { overlap_score_credit, prefill_load_scale } = *config;
        Self { overlap_score_credit, prefill_load_scale }
    }
}

/// Parameters of `dualmap`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "dualmap")]
pub(crate) struct RawDualMap {
    /// Time to first token beyond which affinity is given up.
    #[schemars(schema_with = "form::duration")]
    ttft_slo: String,
    /// Places of each replica on the ring.
    #[schemars(schema_with = "form::count")]
    virtual_nodes: u16,
}

impl Default for RawDualMap {
    fn default() -> Self {
        Self::from(&DualMapConfig::default())
    }
}

impl From<&DualMapConfig> for RawDualMap {
    fn from(config: &DualMapConfig) -> Self {
        Self { ttft_slo: format_duration(config.ttft_slo), virtual_nodes: config.virtual_nodes }
    }
}

/// Parameters of `preble`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "preble")]
pub(crate) struct RawPreble {
    /// How long work that was placed counts as load.
    #[schemars(schema_with = "form::duration")]
    window: String,
}

impl Default for RawPreble {
    fn default() -> Self {
        Self::from(&PrebleConfig::default())
    }
}

impl From<&PrebleConfig> for RawPreble {
    fn from(config: &PrebleConfig) -> Self {
        Self { window: format_duration(config.window) }
    }
}
