//! The configuration as a file says it: field names, units and words such as `off`. What is written out and what the
//! schema describes; a file is read by [`super::resolve`], and tests hold the two together.

mod baselines;
mod plane;

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

use super::schema as form;
use super::unit::{format_duration, format_size};
use super::{
    Config, EjectionConfig, IndexConfig, LimitsConfig, LogConfig, ModelConfig, PolicyConfig, ProcessConfig,
    ReplicaConfig, RetryConfig, TimeoutConfig,
};
use baselines::{
    RawCacheAware, RawChwbl, RawDualMap, RawDynamo, RawPreble, RawSpillGate, RawStickyUntilSaturated, RawWeights,
};
use plane::{RawBeacons, RawDiscovery};
pub(crate) use plane::{RawDns, RawHealth, RawScrape, RawWarmUp};

/// A number, or a word that stands for none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum OrWord<T> {
    Value(T),
    Word(&'static str),
}

impl<T> OrWord<T> {
    fn auto(value: Option<T>) -> Self {
        value.map_or(Self::Word("auto"), Self::Value)
    }

    fn off(value: Option<T>) -> Self {
        value.map_or(Self::Word("off"), Self::Value)
    }
}

/// Configuration of emberlane, an inference-aware gateway in front of LLM engine replicas.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "emberlane", extend("anyOf" = [{ "required": ["replicas"] }, { "required": ["discovery"] }]))]
pub(crate) struct RawConfig {
    /// Where clients connect: one address or a list. Cannot change without a restart.
    #[schemars(schema_with = "form::addresses")]
    listen: Vec<String>,
    /// Where people and Prometheus connect: an address, or `off`. Cannot change without a restart.
    #[schemars(schema_with = "form::address_or_off")]
    admin: String,
    /// Shards, one pinned core each; `auto` is one a core. Cannot change without a restart.
    #[schemars(schema_with = "form::count_or_auto")]
    shards: OrWord<u16>,
    process: RawProcess,
    /// The fleet: URLs, or maps with more to say about a replica. May be left out when `discovery` is there.
    #[schemars(schema_with = "form::replicas")]
    replicas: Vec<RawReplica>,
    /// Public model names that differ from what the replicas serve.
    models: Vec<RawModel>,
    /// How a replica is chosen: a name, or a map with its parameters.
    #[schemars(schema_with = "form::policy")]
    policy: RawPolicy,
    index: RawIndex,
    limits: RawLimits,
    timeouts: RawTimeouts,
    retry: RawRetry,
    ejection: RawEjection,
    log: RawLog,
    /// Paths that are not inference routes go to a replica by load alone; otherwise they are answered 404.
    passthrough: bool,
    beacons: RawBeacons,
    /// The gateway reads the engines' own metrics pages, for those without beacons: `off`, `true`, or a map.
    #[schemars(schema_with = "form::scrape")]
    scrape: OrWord<RawScrape>,
    discovery: RawDiscovery,
    /// Active health checks: a map, or `off`.
    #[schemars(schema_with = "form::health")]
    health: OrWord<RawHealth>,
    /// How new and restarted replicas are given work: a map, or `off`, as all others.
    #[schemars(schema_with = "form::warm_up")]
    warm_up: OrWord<RawWarmUp>,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self::from(&Config::default())
    }
}

impl From<&Config> for RawConfig {
    fn from(config: &Config) -> Self {
        Self {
            listen: config.listen.iter().map(ToString::to_string).collect(),
            admin: config.admin.map_or_else(|| "off".to_owned(), |address| address.to_string()),
            shards: OrWord::auto(config.shards),
            process: RawProcess::from(&config.process),
            replicas: config.replicas.iter().map(RawReplica::from).collect(),
            models: config.models.iter().map(RawModel::from).collect(),
            policy: RawPolicy::from(&config.policy),
            index: RawIndex::from(&config.index),
            limits: RawLimits::from(&config.limits),
            timeouts: RawTimeouts::from(&config.timeouts),
            retry: RawRetry::from(&config.retry),
            ejection: RawEjection::from(&config.ejection),
            log: RawLog::from(&config.log),
            passthrough: config.passthrough,
            beacons: RawBeacons::from(&config.beacons),
            scrape: OrWord::off(config.scrape.as_ref().map(RawScrape::from)),
            discovery: RawDiscovery::from(&config.discovery),
            health: OrWord::off(config.health.as_ref().map(RawHealth::from)),
            warm_up: OrWord::off(config.warm_up.as_ref().map(RawWarmUp::from)),
        }
    }
}

/// Settings of the process. Cannot change without a restart.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "process")]
pub(crate) struct RawProcess {
    /// Where the process id is written, or `off`.
    #[schemars(schema_with = "form::path_or_off")]
    pid_file: String,
    /// Unix socket over which listening sockets pass to the next process in a binary upgrade, or `off`.
    #[schemars(schema_with = "form::path_or_off")]
    upgrade_socket: String,
    /// Longest wait for requests in flight at a graceful stop.
    #[schemars(schema_with = "form::duration")]
    drain: String,
}

impl Default for RawProcess {
    fn default() -> Self {
        Self::from(&ProcessConfig::default())
    }
}

impl From<&ProcessConfig> for RawProcess {
    fn from(process: &ProcessConfig) -> Self {
        Self {
            pid_file: shown_path(process.pid_file.as_deref()),
            upgrade_socket: shown_path(process.upgrade_socket.as_deref()),
            drain: format_duration(process.drain),
        }
    }
}

/// A path, or `off`.
fn shown_path(path: Option<&Path>) -> String {
    path.map_or_else(|| "off".to_owned(), |path| path.display().to_string())
}

/// One engine endpoint.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("required" = ["url"]))]
#[schemars(rename = "replica")]
pub(crate) struct RawReplica {
    /// Name shown to people; `host:port` when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// `http://host:port`.
    #[schemars(schema_with = "form::url")]
    url: String,
    /// Model names served there. Empty: the replica is asked (`GET /v1/models`).
    #[serde(default)]
    models: Vec<String>,
    /// Requests it runs at once; more wait in its queue. `auto`: not known.
    #[schemars(schema_with = "form::count_or_auto", default = "unknown::<u32>")]
    slots: OrWord<u32>,
    /// Tokens its KV cache holds, which bounds what the index believes of it. `auto`: not known.
    #[schemars(schema_with = "form::count_or_auto", default = "unknown::<u64>")]
    kv_tokens: OrWord<u64>,
    /// Tokens to a block of its KV cache: a hit is a whole number of them. `auto`: as its beacons say, else not known.
    #[schemars(schema_with = "form::count_or_auto", default = "unknown::<u32>")]
    kv_block_tokens: OrWord<u32>,
    /// Tokens of KV cache that it keeps in host memory beside those: they are restored rather than computed again.
    /// `auto`: none, unless it is found to reuse more than `kv_tokens`.
    #[schemars(schema_with = "form::count_or_auto", default = "unknown::<u64>")]
    host_kv_tokens: OrWord<u64>,
    /// Tokens it restores a second from host memory. `auto`: 294,000, which is 26 ms a GB at 131 kB a token (a model of
    /// 8 billion parameters with 8 KV heads).
    #[schemars(schema_with = "form::number_or_auto", default = "unknown::<f64>")]
    restore_tokens_per_s: OrWord<f64>,
    /// Tokens it prefills a second. `auto`: learned.
    #[schemars(schema_with = "form::number_or_auto", default = "unknown::<f64>")]
    prefill_tokens_per_s: OrWord<f64>,
    /// Its metrics page, for `scrape` and agents. `auto`: the page of `scrape.path` at `url`.
    #[schemars(schema_with = "form::page_or_auto", default = "unknown::<String>")]
    metrics: OrWord<String>,
    /// It takes no new requests; those it has end in peace.
    #[serde(default)]
    drain: bool,
}

const fn unknown<T>() -> OrWord<T> {
    OrWord::Word("auto")
}

impl From<&ReplicaConfig> for RawReplica {
    fn from(replica: &ReplicaConfig) -> Self {
        Self {
            id: Some(replica.id.clone()),
            url: shown_url(&replica.url),
            models: replica.models.clone(),
            slots: OrWord::auto(replica.slots),
            kv_tokens: OrWord::auto(replica.kv_tokens),
            kv_block_tokens: OrWord::auto(replica.kv_block_tokens),
            host_kv_tokens: OrWord::auto(replica.host_kv_tokens),
            restore_tokens_per_s: OrWord::auto(replica.restore_tokens_per_s),
            prefill_tokens_per_s: OrWord::auto(replica.prefill_tokens_per_s),
            metrics: OrWord::auto(replica.metrics.as_ref().map(ToString::to_string)),
            drain: replica.drain,
        }
    }
}

/// As people write it, without the closing slash.
pub(crate) fn shown_url(url: &url::Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// One public model name.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "model")]
pub(crate) struct RawModel {
    /// What clients ask for.
    name: String,
    /// What is written into the forwarded body instead.
    served_as: String,
}

impl From<&ModelConfig> for RawModel {
    fn from(model: &ModelConfig) -> Self {
        Self { name: model.name.clone(), served_as: model.served_as.clone() }
    }
}

/// The policy and its parameters.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "policy")]
pub(crate) struct RawPolicy {
    /// Which one.
    #[schemars(schema_with = "form::policy_name")]
    name: &'static str,
    /// `weighted`: what each score counts.
    weights: RawWeights,
    /// `price`: tokens prefilled a second, assumed before anything is learned.
    #[schemars(schema_with = "form::number")]
    prefill_tokens_per_s: f64,
    /// `price`: value of a second of prefill not repeated, beside the wait it saves.
    #[schemars(schema_with = "form::number")]
    reuse_bonus: f64,
    /// `price`: what a second counts that computing again will take what a prompt pushes out of a cache.
    #[schemars(schema_with = "form::number")]
    eviction_weight: f64,
    /// `price`: what a second counts by which each answer under way is held up.
    #[schemars(schema_with = "form::number")]
    decode_weight: f64,
    answer_weight: f64,
    /// `price`: a long prompt waits at the gateway while the best replica for it has prompts to compute anyway.
    wait: bool,
    /// `price`: a prompt that waits is due after so many times its own prefill, and who is due first goes first.
    #[schemars(schema_with = "form::number")]
    patience: f64,
    /// `price`: about so much of the engines' time may go into computing again what placements push out.
    #[schemars(schema_with = "form::number")]
    regeneration_max: f64,
    sticky_until_saturated: RawStickyUntilSaturated,
    chwbl: RawChwbl,
    cache_aware: RawCacheAware,
    spill_gate: RawSpillGate,
    dynamo: RawDynamo,
    dualmap: RawDualMap,
    preble: RawPreble,
}

impl Default for RawPolicy {
    fn default() -> Self {
        Self::from(&PolicyConfig::default())
    }
}

impl From<&PolicyConfig> for RawPolicy {
    fn from(policy: &PolicyConfig) -> Self {
        Self {
            name: policy.name.as_str(),
            weights: RawWeights::from(&policy.weights),
            prefill_tokens_per_s: policy.prefill_tokens_per_s,
            reuse_bonus: policy.reuse_bonus,
            eviction_weight: policy.eviction_weight,
            decode_weight: policy.decode_weight,
            answer_weight: policy.answer_weight,
            wait: policy.wait,
            patience: policy.patience,
            regeneration_max: policy.regeneration_max,
            sticky_until_saturated: RawStickyUntilSaturated::from(&policy.sticky_until_saturated),
            chwbl: RawChwbl::from(&policy.chwbl),
            cache_aware: RawCacheAware::from(&policy.cache_aware),
            spill_gate: RawSpillGate::from(&policy.spill_gate),
            dynamo: RawDynamo::from(&policy.dynamo),
            dualmap: RawDualMap::from(&policy.dualmap),
            preble: RawPreble::from(&policy.preble),
        }
    }
}

/// The prefix index: which replica holds which prompts.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "index")]
pub(crate) struct RawIndex {
    /// Memory for its entries, whole MiB. Cannot change without a restart.
    #[schemars(schema_with = "form::size")]
    memory: String,
    /// Tokens a replica is believed to hold when neither this file nor the replica says.
    #[schemars(schema_with = "form::count")]
    kv_tokens_default: u64,
    /// What an answer said is on record too: the next turn of its conversation begins with it.
    outputs: bool,
}

impl Default for RawIndex {
    fn default() -> Self {
        Self::from(&IndexConfig::default())
    }
}

impl From<&IndexConfig> for RawIndex {
    fn from(index: &IndexConfig) -> Self {
        Self {
            memory: format_size(u64::from(index.memory_mib) << 20),
            kv_tokens_default: index.kv_tokens_default,
            outputs: index.outputs,
        }
    }
}

/// Bounds on what clients may send.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "limits")]
pub(crate) struct RawLimits {
    /// Largest body; beyond it clients are answered 413.
    #[schemars(schema_with = "form::size")]
    body: String,
    /// Deepest JSON.
    #[schemars(schema_with = "form::count")]
    json_depth: u16,
    /// Most JSON values in a body.
    #[schemars(schema_with = "form::count")]
    json_values: u32,
    /// Bodies in memory at once, a shard; beyond it newcomers are answered 503.
    #[schemars(schema_with = "form::size")]
    bodies_in_flight: String,
    /// Requests that wait for a replica of one pool, at most; beyond it newcomers are answered 429.
    #[schemars(schema_with = "form::count")]
    waiting: u32,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self::from(&LimitsConfig::default())
    }
}

impl From<&LimitsConfig> for RawLimits {
    fn from(limits: &LimitsConfig) -> Self {
        Self {
            body: format_size(limits.body_bytes),
            json_depth: limits.json_depth,
            json_values: limits.json_values,
            bodies_in_flight: format_size(limits.body_bytes_in_flight),
            waiting: limits.waiting,
        }
    }
}

/// Deadlines.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "timeouts")]
pub(crate) struct RawTimeouts {
    /// To connect to a replica.
    #[schemars(schema_with = "form::duration")]
    connect: String,
    /// For a client's whole body.
    #[schemars(schema_with = "form::duration")]
    body: String,
    /// Longest wait for a replica that has time for the request.
    #[schemars(schema_with = "form::duration")]
    wait: String,
    /// From the request's last byte to the response's head.
    #[schemars(schema_with = "form::duration")]
    first_byte: String,
    /// Between two reads of a response.
    #[schemars(schema_with = "form::duration")]
    gap: String,
    /// How long an idle connection to a replica is kept; engines close theirs after about 5 s.
    #[schemars(schema_with = "form::duration")]
    upstream_idle: String,
    /// How long an idle client connection is kept.
    #[schemars(schema_with = "form::duration")]
    client_idle: String,
}

impl Default for RawTimeouts {
    fn default() -> Self {
        Self::from(&TimeoutConfig::default())
    }
}

impl From<&TimeoutConfig> for RawTimeouts {
    fn from(timeouts: &TimeoutConfig) -> Self {
        Self {
            connect: format_duration(timeouts.connect),
            body: format_duration(timeouts.body),
            wait: format_duration(timeouts.wait),
            first_byte: format_duration(timeouts.first_byte),
            gap: format_duration(timeouts.gap),
            upstream_idle: format_duration(timeouts.upstream_idle),
            client_idle: format_duration(timeouts.client_idle),
        }
    }
}

/// When and how often another replica is tried, always before the first byte of a response.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "retry")]
pub(crate) struct RawRetry {
    /// Attempts in all, the first among them.
    #[schemars(schema_with = "form::count")]
    attempts: u8,
    /// Retries allowed, as a share of the requests of the last seconds: 0.2 or 20%.
    #[schemars(schema_with = "form::share")]
    budget: f64,
    /// Retries a second that are always allowed.
    #[schemars(schema_with = "form::number")]
    budget_floor_per_s: f64,
}

impl Default for RawRetry {
    fn default() -> Self {
        Self::from(&RetryConfig::default())
    }
}

impl From<&RetryConfig> for RawRetry {
    fn from(retry: &RetryConfig) -> Self {
        Self { attempts: retry.attempts, budget: retry.budget, budget_floor_per_s: retry.budget_floor_per_s }
    }
}

/// When a failing replica is left out, and for how long.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "ejection")]
pub(crate) struct RawEjection {
    /// Failures in a row.
    #[schemars(schema_with = "form::count")]
    consecutive_failures: u32,
    /// First time out; doubles each time.
    #[schemars(schema_with = "form::duration")]
    base: String,
    /// Longest time out.
    #[schemars(schema_with = "form::duration")]
    max: String,
    /// Largest share of a pool that may be out at once, in percent; the last replica is never left out.
    #[schemars(schema_with = "form::percent")]
    max_percent: u8,
}

impl Default for RawEjection {
    fn default() -> Self {
        Self::from(&EjectionConfig::default())
    }
}

impl From<&EjectionConfig> for RawEjection {
    fn from(ejection: &EjectionConfig) -> Self {
        Self {
            consecutive_failures: ejection.consecutive_failures,
            base: format_duration(ejection.base),
            max: format_duration(ejection.max),
            max_percent: ejection.max_percent,
        }
    }
}

/// Logs, to standard error.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "log")]
pub(crate) struct RawLog {
    /// `text` for people, `json` for machines.
    #[schemars(schema_with = "form::log_format")]
    format: &'static str,
    /// `error`, `warn`, `info`, `debug`, `trace`, or by target: `info,emberlane=debug`.
    level: String,
    /// Share of requests that get an access line, 0 to 1; failures always do, at most 100 a second.
    #[schemars(schema_with = "form::share")]
    access_sample: f64,
}

impl Default for RawLog {
    fn default() -> Self {
        Self::from(&LogConfig::default())
    }
}

impl From<&LogConfig> for RawLog {
    fn from(log: &LogConfig) -> Self {
        Self { format: log.format.as_str(), level: log.level.clone(), access_sample: log.access_sample }
    }
}
