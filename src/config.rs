//! Configuration: YAML text → a marked tree → a resolved [`Config`] that cannot be invalid. All errors are reported at
//! once, each with its line, its column and its path.
//!
//! [`parse`] reads a file's text, [`from_flags`] a command line without one, [`parse_with`] both. [`diff`] says what a
//! reload changes, [`to_yaml`] and [`to_json`] write the resolved form, which is itself a valid file, and [`schema`]
//! describes files to editors. Nothing here reads files or clocks.

mod baselines;
pub(crate) mod error;
pub(crate) mod flags;
mod plane;
mod raw;
pub(crate) mod read;
mod reload;
mod resolve;
mod schema;
pub(crate) mod spec;
pub mod unit;
mod write;
pub(crate) mod yaml;

pub use baselines::{
    CacheAwareConfig, ChwblConfig, DualMapConfig, DynamoConfig, PrebleConfig, SpillGateConfig,
    StickyUntilSaturatedConfig, Weights,
};
pub use error::ConfigError;
pub use flags::Flags;
pub use plane::{BeaconConfig, Bypass, DiscoveryConfig, DnsConfig, HealthConfig, ScrapeConfig, WarmUpConfig};
pub use reload::{Change, diff};
pub use resolve::replicas::{endpoint, parse_replicas, replica_url};
pub use schema::schema;
pub use spec::split_specs;
pub use write::{to_json, to_yaml};
pub use yaml::TEXT_BYTES_MAX;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Reads the text of a configuration file.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse(text: &str) -> Result<Config, Vec<ConfigError>> {
    parse_with(text, &Flags::default())
}

/// Reads the text of a configuration file, command-line flags going before what it says.
///
/// # Errors
/// Everything that is wrong with either; errors in flags have line 0 and the flag's name as path.
pub fn parse_with(text: &str, flags: &Flags) -> Result<Config, Vec<ConfigError>> {
    let errors = error::Errors::default();
    let config = yaml::read(text, &errors).and_then(|mut root| {
        flags.apply(&mut root);
        resolve::resolve(&root, &errors)
    });
    finish(config, errors)
}

/// The configuration of a command line without a file: defaults, and what the flags say.
///
/// # Errors
/// Everything that is wrong with the flags; at least one replica is needed.
pub fn from_flags(flags: &Flags) -> Result<Config, Vec<ConfigError>> {
    let errors = error::Errors::default();
    let root = flags.tree(&errors);
    let config = resolve::resolve(&root, &errors);
    finish(config, errors)
}

fn finish(config: Option<Config>, errors: error::Errors) -> Result<Config, Vec<ConfigError>> {
    match (config, errors.into_list()) {
        (Some(config), None) => Ok(config),
        (_, errors) => Err(errors.unwrap_or_default()),
    }
}

/// A whole, valid configuration. The default has no replicas.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect. At least one. Default 0.0.0.0:8080. Cannot change without a restart.
    pub listen: Vec<SocketAddr>,
    /// Where people and Prometheus connect; `None` turns it off. Default 127.0.0.1:9090. Cannot change without a restart.
    pub admin: Option<SocketAddr>,
    /// Shards (one pinned core each); `None` is one a core. Cannot change without a restart.
    pub shards: Option<u16>,
    /// Process settings. Cannot change without a restart.
    pub process: ProcessConfig,
    /// The fleet, in the order of the file.
    pub replicas: Vec<ReplicaConfig>,
    /// Public model names that differ from what replicas serve.
    pub models: Vec<ModelConfig>,
    /// How a replica is chosen.
    pub policy: PolicyConfig,
    /// The prefix index.
    pub index: IndexConfig,
    /// Bounds on what clients may send.
    pub limits: LimitsConfig,
    /// Deadlines.
    pub timeouts: TimeoutConfig,
    /// When and how often another replica is tried.
    pub retry: RetryConfig,
    /// When a failing replica is left out, and for how long.
    pub ejection: EjectionConfig,
    /// Logs.
    pub log: LogConfig,
    /// Paths that are not inference routes go to a replica by load alone. Default no.
    pub passthrough: bool,
    /// Load reports by datagram.
    pub beacons: BeaconConfig,
    /// The gateway reads the engines' own metrics pages; `None`: it does not.
    pub scrape: Option<ScrapeConfig>,
    /// Where replicas come from, beside `replicas`.
    pub discovery: DiscoveryConfig,
    /// Active health checks; `None`: none.
    pub health: Option<HealthConfig>,
    /// How new and restarted replicas are given work; `None`: as all others.
    pub warm_up: Option<WarmUpConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080))],
            admin: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9090))),
            shards: None,
            process: ProcessConfig::default(),
            replicas: Vec::new(),
            models: Vec::new(),
            policy: PolicyConfig::default(),
            index: IndexConfig::default(),
            limits: LimitsConfig::default(),
            timeouts: TimeoutConfig::default(),
            retry: RetryConfig::default(),
            ejection: EjectionConfig::default(),
            log: LogConfig::default(),
            passthrough: false,
            beacons: BeaconConfig::default(),
            scrape: None,
            discovery: DiscoveryConfig::default(),
            health: Some(HealthConfig::default()),
            warm_up: Some(WarmUpConfig::default()),
        }
    }
}

/// Process-wide settings.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessConfig {
    /// Where the process id is written; `None` writes none.
    pub pid_file: Option<PathBuf>,
    /// Unix socket over which listening sockets pass to the next process in a binary upgrade.
    pub upgrade_socket: Option<PathBuf>,
    /// Longest wait for requests in flight at a graceful stop. Default 30 s.
    pub drain: Duration,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        Self { pid_file: None, upgrade_socket: None, drain: Duration::from_secs(30) }
    }
}

/// One engine endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaConfig {
    /// Name shown to people; defaults to `host:port`.
    pub id: String,
    /// `http://host:port`.
    pub url: url::Url,
    /// Model names served there. Empty: asked of the replica itself (`GET /v1/models`); until it answers, any name.
    pub models: Vec<String>,
    /// Requests it runs at once, when known; more wait in its queue.
    pub slots: Option<u32>,
    /// Tokens its KV cache holds, when known: bounds what the index believes of it.
    pub kv_tokens: Option<u64>,
    /// Tokens to a block of its KV cache, when known: a hit is a whole number of them.
    pub kv_block_tokens: Option<u32>,
    /// Tokens of KV cache that it keeps in host memory beside those, when known.
    pub host_kv_tokens: Option<u64>,
    /// Tokens it restores a second from host memory, when known.
    pub restore_tokens_per_s: Option<f64>,
    /// Tokens it prefills a second, when known; otherwise learned.
    pub prefill_tokens_per_s: Option<f64>,
    /// Its metrics page, when that is not `/metrics` at `url`. For `scrape`.
    pub metrics: Option<url::Url>,
    /// It takes no new requests; those it has end in peace.
    pub drain: bool,
}

impl ReplicaConfig {
    /// The replica `id` at `url`, of which nothing else is known.
    #[must_use]
    pub const fn new(id: String, url: url::Url) -> Self {
        Self {
            id,
            url,
            models: Vec::new(),
            slots: None,
            kv_tokens: None,
            kv_block_tokens: None,
            host_kv_tokens: None,
            restore_tokens_per_s: None,
            prefill_tokens_per_s: None,
            metrics: None,
            drain: false,
        }
    }
}

/// One public model name.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What clients ask for.
    pub name: String,
    /// What is written into the forwarded body instead.
    pub served_as: String,
}

/// Named policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyName {
    /// Least expected seconds: wait + uncached prefill, with a spill gate.
    #[default]
    Price,
    /// Weighted sum of prefix, queue and KV scores (llm-d's legacy default).
    Weighted,
    /// Fewest requests in flight.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// The lesser loaded of two at random.
    PowerOfTwo,
    /// Hash of the session (else of the prompt's first block), whatever the load.
    Sticky,
    /// The least uncached work among replicas that hold most of the prompt, until they are slower by far (llm-d's default).
    StickyUntilSaturated,
    /// Consistent hashing with bounded loads (KubeAI's).
    Chwbl,
    /// The longest prefix, unless the fleet is out of balance (SGLang's router, vllm-router).
    CacheAware,
    /// The longest prefix, unless the replica that has it is overloaded (smg's).
    SpillGate,
    /// Prefill and decode blocks (NVIDIA Dynamo's).
    Dynamo,
    /// Tokens to prefill times requests.
    LMetric,
    /// The warmer of two by hash, unless it is too slow.
    DualMap,
    /// The warmest if most of the prompt is warm, else the least loaded of late.
    Preble,
    /// Uniformly at random.
    Random,
}

impl PolicyName {
    /// All of them, in the order help shows them.
    pub const ALL: [Self; 15] = [
        Self::Price,
        Self::Weighted,
        Self::StickyUntilSaturated,
        Self::LeastRequest,
        Self::RoundRobin,
        Self::PowerOfTwo,
        Self::Sticky,
        Self::Chwbl,
        Self::CacheAware,
        Self::SpillGate,
        Self::Dynamo,
        Self::LMetric,
        Self::DualMap,
        Self::Preble,
        Self::Random,
    ];

    /// The name in configuration, on the command line and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Price => "price",
            Self::Weighted => "weighted",
            Self::LeastRequest => "least_request",
            Self::RoundRobin => "round_robin",
            Self::PowerOfTwo => "power_of_two",
            Self::Sticky => "sticky",
            Self::StickyUntilSaturated => "sticky_until_saturated",
            Self::Chwbl => "chwbl",
            Self::CacheAware => "cache_aware",
            Self::SpillGate => "spill_gate",
            Self::Dynamo => "dynamo",
            Self::LMetric => "lmetric",
            Self::DualMap => "dualmap",
            Self::Preble => "preble",
            Self::Random => "random",
        }
    }
}

impl std::str::FromStr for PolicyName {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == name).ok_or(UnknownPolicy)
    }
}

/// No policy has that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown policy; one of: price, weighted, sticky_until_saturated, least_request, round_robin, power_of_two, sticky, \
     chwbl, cache_aware, spill_gate, dynamo, lmetric, dualmap, preble, random"
)]
pub struct UnknownPolicy;

/// The policy and its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyConfig {
    /// Which.
    pub name: PolicyName,
    /// `weighted`: what each score counts. Default 3:2:2.
    pub weights: Weights,
    /// `price`: assumed prefill rate before anything is learned, tokens a second. Default 8,000.
    pub prefill_tokens_per_s: f64,
    /// `price`: value of a second of prefill not repeated, beside the wait it saves. Default 2.
    pub reuse_bonus: f64,
    /// `price`: what a second counts that computing again will take what a prompt pushes out. Default 4.
    pub eviction_weight: f64,
    /// `price`: what a second counts by which each answer under way is held up. Default 0.2.
    pub decode_weight: f64,
    /// `price`: what a second of its own answer counts. Default 0.
    pub answer_weight: f64,
    /// `price`: a long prompt waits at the gateway while the best replica for it has prompts to compute anyway. Default yes.
    pub wait: bool,
    /// `price`: a prompt that waits is due after so many times its own prefill, and who is due first goes first. With 0 it
    /// is first come, first served. Default 30.
    pub patience: f64,
    /// `price`: about so much of the engines' time may go into computing again what placements push out; beyond it, prompts
    /// that would push out more wait for engines without any request. Default 0.25; 1 or more is no limit.
    pub regeneration_max: f64,
    /// Parameters of `sticky_until_saturated`.
    pub sticky_until_saturated: StickyUntilSaturatedConfig,
    /// Parameters of `chwbl`.
    pub chwbl: ChwblConfig,
    /// Parameters of `cache_aware`.
    pub cache_aware: CacheAwareConfig,
    /// Parameters of `spill_gate`.
    pub spill_gate: SpillGateConfig,
    /// Parameters of `dynamo`.
    pub dynamo: DynamoConfig,
    /// Parameters of `dualmap`.
    pub dualmap: DualMapConfig,
    /// Parameters of `preble`.
    pub preble: PrebleConfig,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            name: PolicyName::default(),
            weights: Weights::default(),
            prefill_tokens_per_s: 8_000.0,
            reuse_bonus: 2.0,
            eviction_weight: 4.0,
            decode_weight: 0.2,
            answer_weight: 0.0,
            wait: true,
            patience: 30.0,
            regeneration_max: 0.25,
            sticky_until_saturated: StickyUntilSaturatedConfig::default(),
            chwbl: ChwblConfig::default(),
            cache_aware: CacheAwareConfig::default(),
            spill_gate: SpillGateConfig::default(),
            dynamo: DynamoConfig::default(),
            dualmap: DualMapConfig::default(),
            preble: PrebleConfig::default(),
        }
    }
}

/// The prefix index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexConfig {
    /// Memory for entries, MiB. Default 64. Cannot change without a restart.
    pub memory_mib: u32,
    /// Tokens a replica is believed to hold when neither configuration nor the replica says. Default 400,000.
    pub kv_tokens_default: u64,
    /// What an answer said is on record too: the next turn of its conversation begins with it. Default true.
    pub outputs: bool,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { memory_mib: 64, kv_tokens_default: 400_000, outputs: true }
    }
}

/// Bounds on what clients may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Largest body, bytes. Default 64 MiB.
    pub body_bytes: u64,
    /// Deepest JSON. Default 128.
    pub json_depth: u16,
    /// Most JSON values. Default 4,000,000.
    pub json_values: u32,
    /// Bytes of bodies in memory at once, a shard; beyond it newcomers are answered 503. Default 1 GiB.
    pub body_bytes_in_flight: u64,
    /// Requests that wait for a replica of one pool, at most; beyond it newcomers are answered 429. Default 5,000.
    pub waiting: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            body_bytes: 64 << 20,
            json_depth: 128,
            json_values: 4_000_000,
            body_bytes_in_flight: 1 << 30,
            waiting: 5000,
        }
    }
}

/// Deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutConfig {
    /// To connect to a replica. Default 1 s.
    pub connect: Duration,
    /// For a client's whole body. Default 60 s.
    pub body: Duration,
    /// Longest wait for a replica that has time for the request. Default 600 s.
    pub wait: Duration,
    /// From the request's last byte to the response's head. Default 600 s.
    pub first_byte: Duration,
    /// Between two reads of a response. Default 120 s.
    pub gap: Duration,
    /// How long an idle connection to a replica is kept. Default 4 s (engines close after about 5).
    pub upstream_idle: Duration,
    /// How long an idle client connection is kept. Default 60 s.
    pub client_idle: Duration,
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            body: Duration::from_secs(60),
            wait: Duration::from_secs(600),
            first_byte: Duration::from_secs(600),
            gap: Duration::from_secs(120),
            upstream_idle: Duration::from_secs(4),
            client_idle: Duration::from_secs(60),
        }
    }
}

/// When and how often another replica is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryConfig {
    /// Attempts in all, the first among them. Default 3.
    pub attempts: u8,
    /// Retries allowed as a share of requests, over the last ten seconds or so. Default 0.2.
    pub budget: f64,
    /// Retries a second that are always allowed. Default 10.
    pub budget_floor_per_s: f64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { attempts: 3, budget: 0.2, budget_floor_per_s: 10.0 }
    }
}

/// When a failing replica is left out, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectionConfig {
    /// Failures in a row. Default 3.
    pub consecutive_failures: u32,
    /// First time out; doubles each time. Default 2 s.
    pub base: Duration,
    /// Longest time out. Default 60 s.
    pub max: Duration,
    /// Largest share of a pool that may be out at once, in percent; the last replica is never ejected. Default 50.
    pub max_percent: u8,
}

impl Default for EjectionConfig {
    fn default() -> Self {
        Self { consecutive_failures: 3, base: Duration::from_secs(2), max: Duration::from_secs(60), max_percent: 50 }
    }
}

/// Log format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    #[default]
    Text,
}

impl LogFormat {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Text, Self::Json];

    /// The name in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }
}

/// Logs.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// Format.
    pub format: LogFormat,
    /// Filter as `tracing` reads it: `info`, `emberlane=debug`, … Default `info`.
    pub level: String,
    /// Share of requests that get an access line, 0 to 1; failures always do, at most 100 a second. Default 0.
    pub access_sample: f64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::default(), level: "info".to_owned(), access_sample: 0.0 }
    }
}

#[cfg(test)]
mod tests;
