//! The tree of a file → [`Config`]: the only place where a configuration is checked. Every section is read whatever is
//! wrong in the others.

mod baselines;
mod plane;
pub(super) mod replicas;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{Errors, excerpt};
use super::read::{Field, Section};
use super::unit::{format_duration, format_size};
use super::yaml::Node;
use super::{
    Config, EjectionConfig, IndexConfig, LimitsConfig, LogConfig, LogFormat, ModelConfig, PolicyConfig, PolicyName,
    ProcessConfig, ReplicaConfig, RetryConfig, TimeoutConfig,
};
use replicas::model_name;

const LISTEN_MAX: usize = 64;
const SHARDS_MAX: u16 = 1024;
const MODELS_MAX: usize = 4096;
const SLOTS_MAX: u32 = 1_000_000;
const TOKENS_MAX: u64 = 1_000_000_000_000;
const BLOCK_TOKENS_MAX: u32 = 65_536;
const RATE_MAX: f64 = 1e9;
const DAY: Duration = Duration::from_secs(24 * 3600);
const MILLISECOND: Duration = Duration::from_millis(1);
const MIB: u64 = 1 << 20;
/// `sun_path` holds 108 bytes, the last of them zero.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Reads the whole tree. The result counts only when `errors` is still empty.
pub(crate) fn resolve(root: &Node, errors: &Errors) -> Option<Config> {
    let mut file = Section::root(root, errors)?;
    let default = Config::default();
    let listen_field = file.get("listen");
    let admin_field = file.get("admin");
    let (listen, admin) = addresses(listen_field.as_ref(), admin_field.as_ref(), &default);
    let shards = file.read("shards", None, |field| or_auto(field, |field| field.count(1..=SHARDS_MAX)));
    let process = file.read("process", default.process, process);
    let beacons = file.read("beacons", default.beacons, plane::beacons);
    let discovery_field = file.get("discovery");
    let discovery = discovery_field.as_ref().and_then(|field| plane::discovery(field, &beacons));
    let discovery = discovery.unwrap_or(default.discovery);
    let replicas = replicas::replicas(&mut file, discovery_field.is_some());
    let models = file.read("models", Vec::new(), |field| models(field, &replicas, discovery.is_on()));
    let config = Config {
        listen,
        admin,
        shards,
        process,
        models,
        replicas,
        policy: file.read("policy", default.policy, policy),
        index: file.read("index", default.index, index),
        limits: file.read("limits", default.limits, limits),
        timeouts: file.read("timeouts", default.timeouts, timeouts),
        retry: file.read("retry", default.retry, retry),
        ejection: file.read("ejection", default.ejection, ejection),
        log: file.read("log", default.log, log),
        passthrough: file.read("passthrough", default.passthrough, Field::flag),
        beacons,
        scrape: file.read("scrape", default.scrape, plane::scrape),
        discovery,
        health: file.read("health", default.health, plane::health),
        warm_up: file.read("warm_up", default.warm_up, plane::warm_up),
    };
    file.finish();
    Some(config)
}

/// A value, or `auto` for none.
fn or_auto<T>(field: &Field<'_>, read: impl FnOnce(&Field<'_>) -> Option<T>) -> Option<Option<T>> {
    if field.is("auto") { Some(None) } else { read(field).map(Some) }
}

/// `off`, which readers of older YAML turn into `false`.
fn is_off(field: &Field<'_>) -> bool {
    field.is("off") || field.is("false")
}

fn addresses(
    listen: Option<&Field<'_>>,
    admin: Option<&Field<'_>>,
    default: &Config,
) -> (Vec<SocketAddr>, Option<SocketAddr>) {
    let mut taken: Vec<(SocketAddr, String)> = Vec::new();
    for item in
        listen.and_then(|field| field.one_or_more(LISTEN_MAX, "an address or a list of them")).unwrap_or_default()
    {
        if let Some(address) = free_address(&item, &taken) {
            taken.push((address, item.place()));
        }
    }
    if let Some(field) = listen.filter(|field| field.is_empty_list()) {
        field.fail::<()>("at least one address to listen on is needed, such as 0.0.0.0:8080");
    }
    if listen.is_none() {
        taken.extend(default.listen.iter().map(|address| (*address, "`listen`, by default".to_owned())));
    }
    let admin = match admin {
        Some(field) if is_off(field) => None,
        Some(field) => free_address(field, &taken),
        None => {
            if let (Some(clash), Some(field)) =
                (default.admin.filter(|admin| clashes(*admin, &taken).is_some()), listen)
            {
                field.fail::<()>(format!(
                    "{clash} is where `admin` listens by default; give `admin` another address or `off`"
                ));
            }
            default.admin
        }
    };
    (taken.into_iter().map(|(address, _)| address).collect(), admin)
}

fn free_address(field: &Field<'_>, taken: &[(SocketAddr, String)]) -> Option<SocketAddr> {
    let address = field.address()?;
    match clashes(address, taken) {
        Some(place) => field.fail(format!("{address} is already taken by {place}")),
        None => Some(address),
    }
}

/// The address that cannot be listened on beside `address`. A port of 0 is chosen by the system and clashes with none.
fn clashes(address: SocketAddr, taken: &[(SocketAddr, String)]) -> Option<&str> {
    let clash = taken.iter().find(|(other, _)| {
        let any = address.ip().is_unspecified() || other.ip().is_unspecified();
        let same_family = address.is_ipv4() == other.is_ipv4();
        address.port() != 0 && address.port() == other.port() && (address.ip() == other.ip() || any && same_family)
    });
    clash.map(|(_, place)| place.as_str())
}

fn process(field: &Field<'_>) -> Option<ProcessConfig> {
    let mut section = field.section("fields such as `drain`")?;
    let default = ProcessConfig::default();
    let process = ProcessConfig {
        pid_file: section.read("pid_file", None, |field| path_or_off(field, 4096)),
        upgrade_socket: section.read("upgrade_socket", None, |field| path_or_off(field, UNIX_PATH_BYTES_MAX)),
        drain: section.read("drain", default.drain, |field| field.duration(Duration::ZERO..=DAY)),
    };
    section.finish();
    Some(process)
}

fn path_or_off(field: &Field<'_>, bytes_max: usize) -> Option<Option<PathBuf>> {
    let text = field.text("a path or `off`")?;
    match text.len() {
        _ if is_off(field) => Some(None),
        0 => field.fail("an empty path; write `off` for none"),
        _ if text.contains('\0') => field.fail("a path cannot hold a zero byte"),
        length if length > bytes_max => {
            field.fail(format!("a path of {length} bytes; at most {bytes_max} are allowed"))
        }
        _ => Some(Some(PathBuf::from(text))),
    }
}

fn models(field: &Field<'_>, replicas: &[ReplicaConfig], more_to_come: bool) -> Option<Vec<ModelConfig>> {
    let items = field.items(MODELS_MAX, "a list such as `- { name: gpt-4o, served_as: llama }`")?;
    // Replicas without a list are asked for theirs later, and some are yet to be found: nothing can be said of them now.
    let all_listed = !more_to_come && !replicas.is_empty() && replicas.iter().all(|replica| !replica.models.is_empty());
    let mut names = BTreeMap::new();
    let mut models = Vec::new();
    for item in items {
        let Some(model) = model(&item) else { continue };
        if all_listed && !replicas.iter().any(|replica| replica.models.contains(&model.served_as)) {
            item.fail::<()>(format!("no replica lists {} among its models", excerpt(&model.served_as)));
        }
        if let Some(first) = names.insert(model.name.clone(), item.place()) {
            item.fail::<()>(format!("the name {} is already that of {first}", excerpt(&model.name)));
        }
        models.push(model);
    }
    Some(models)
}

fn model(field: &Field<'_>) -> Option<ModelConfig> {
    let mut section = field.section("fields `name` and `served_as`")?;
    let (name, served_as) = (section.get("name"), section.get("served_as"));
    if name.is_none() {
        section.missing("name", "what clients ask for");
    }
    if served_as.is_none() {
        section.missing("served_as", "what the replicas call the model");
    }
    section.finish();
    let (name, served_as) = (name.as_ref().and_then(model_name), served_as.as_ref().and_then(model_name));
    Some(ModelConfig { name: name?, served_as: served_as? })
}

pub(super) fn policy(field: &Field<'_>) -> Option<PolicyConfig> {
    let default = PolicyConfig::default();
    if field.scalar().is_some() {
        return Some(PolicyConfig { name: policy_name(field)?, ..default });
    }
    let mut section = field.section("a policy's name, or fields such as `name`")?;
    let policy = PolicyConfig {
        name: section.read("name", default.name, policy_name),
        weights: section.read("weights", default.weights, baselines::weights),
        prefill_tokens_per_s: section
            .read("prefill_tokens_per_s", default.prefill_tokens_per_s, |field| field.number(1.0..=RATE_MAX)),
        reuse_bonus: section.read("reuse_bonus", default.reuse_bonus, |field| field.number(0.0..=100.0)),
        eviction_weight: section.read("eviction_weight", default.eviction_weight, |field| field.number(0.0..=100.0)),
        answer_weight: section.read("answer_weight", default.answer_weight, |field| field.number(0.0..=100.0)),
        decode_weight: section.read("decode_weight", default.decode_weight, |field| field.number(0.0..=100.0)),
        wait: section.read("wait", default.wait, Field::flag),
        patience: section.read("patience", default.patience, |field| field.number(0.0..=1000.0)),
        regeneration_max: section
            .read("regeneration_max", default.regeneration_max, |field| field.number(0.0..=1000.0)),
        sticky_until_saturated: section.read(
            "sticky_until_saturated",
            default.sticky_until_saturated,
            baselines::sticky_until_saturated,
        ),
        chwbl: section.read("chwbl", default.chwbl, baselines::chwbl),
        cache_aware: section.read("cache_aware", default.cache_aware, baselines::cache_aware),
        spill_gate: section.read("spill_gate", default.spill_gate, baselines::spill_gate),
        dynamo: section.read("dynamo", default.dynamo, baselines::dynamo),
        dualmap: section.read("dualmap", default.dualmap, baselines::dualmap),
        preble: section.read("preble", default.preble, baselines::preble),
    };
    section.finish();
    Some(policy)
}

pub(super) fn policy_name(field: &Field<'_>) -> Option<PolicyName> {
    field.choice(&PolicyName::ALL.map(|policy| (policy.as_str(), policy)))
}

fn index(field: &Field<'_>) -> Option<IndexConfig> {
    let mut section = field.section("fields such as `memory`")?;
    let default = IndexConfig::default();
    let index = IndexConfig {
        memory_mib: section.read("memory", default.memory_mib, |field| {
            let bytes = field.size(MIB..=MIB * MIB)?;
            if !bytes.is_multiple_of(MIB) {
                return field.fail("must be a whole number of MiB");
            }
            u32::try_from(bytes / MIB).ok()
        }),
        kv_tokens_default: section
            .read("kv_tokens_default", default.kv_tokens_default, |field| field.count(1..=TOKENS_MAX)),
        outputs: section.read("outputs", default.outputs, Field::flag),
    };
    section.finish();
    Some(index)
}

fn limits(field: &Field<'_>) -> Option<LimitsConfig> {
    let mut section = field.section("fields such as `body`")?;
    let default = LimitsConfig::default();
    let limits = LimitsConfig {
        body_bytes: section.read("body", default.body_bytes, |field| field.size(1024..=1024 * MIB)),
        json_depth: section.read("json_depth", default.json_depth, |field| field.count(1..=1024_u16)),
        json_values: section.read("json_values", default.json_values, |field| field.count(1..=100_000_000_u32)),
        body_bytes_in_flight: section
            .read("bodies_in_flight", default.body_bytes_in_flight, |field| field.size(1024..=MIB * MIB)),
        waiting: section.read("waiting", default.waiting, |field| field.count(0..=1_000_000_u32)),
    };
    if section.is_clean() && limits.body_bytes_in_flight < limits.body_bytes {
        let (all, one) = (format_size(limits.body_bytes_in_flight), format_size(limits.body_bytes));
        section.fail_at("bodies_in_flight", format!("{all} is less than one `body` of {one}; give it more"));
    }
    section.finish();
    Some(limits)
}

fn timeouts(field: &Field<'_>) -> Option<TimeoutConfig> {
    let mut section = field.section("fields such as `connect`")?;
    let default = TimeoutConfig::default();
    let mut timeout = |name, default| section.read(name, default, |field| field.duration(MILLISECOND..=DAY));
    let timeouts = TimeoutConfig {
        connect: timeout("connect", default.connect),
        body: timeout("body", default.body),
        wait: timeout("wait", default.wait),
        first_byte: timeout("first_byte", default.first_byte),
        gap: timeout("gap", default.gap),
        upstream_idle: timeout("upstream_idle", default.upstream_idle),
        client_idle: timeout("client_idle", default.client_idle),
    };
    section.finish();
    Some(timeouts)
}

fn retry(field: &Field<'_>) -> Option<RetryConfig> {
    let mut section = field.section("fields such as `attempts`")?;
    let default = RetryConfig::default();
    let retry = RetryConfig {
        attempts: section.read("attempts", default.attempts, |field| field.count(1..=10_u8)),
        budget: section.read("budget", default.budget, Field::share),
        budget_floor_per_s: section
            .read("budget_floor_per_s", default.budget_floor_per_s, |field| field.number(0.0..=1e6)),
    };
    section.finish();
    Some(retry)
}

fn ejection(field: &Field<'_>) -> Option<EjectionConfig> {
    let mut section = field.section("fields such as `consecutive_failures`")?;
    let default = EjectionConfig::default();
    let ejection = EjectionConfig {
        consecutive_failures: section
            .read("consecutive_failures", default.consecutive_failures, |field| field.count(1..=1_000_000_u32)),
        base: section.read("base", default.base, |field| field.duration(MILLISECOND..=DAY)),
        max: section.read("max", default.max, |field| field.duration(MILLISECOND..=DAY)),
        max_percent: section.read("max_percent", default.max_percent, Field::percent),
    };
    if section.is_clean() && ejection.max < ejection.base {
        let (max, base) = (format_duration(ejection.max), format_duration(ejection.base));
        section.fail_at("max", format!("{max}, the longest time out, is shorter than the first: `base` is {base}"));
    }
    section.finish();
    Some(ejection)
}

fn log(field: &Field<'_>) -> Option<LogConfig> {
    let mut section = field.section("fields such as `level`")?;
    let default = LogConfig::default();
    let log = LogConfig {
        format: section.read("format", default.format, |field| {
            field.choice(&LogFormat::ALL.map(|format| (format.as_str(), format)))
        }),
        level: section.read("level", default.level, log_filter),
        access_sample: section.read("access_sample", default.access_sample, Field::share),
    };
    section.finish();
    Some(log)
}

/// A `tracing` filter. A lone word that is no level would be taken for a target's name and silence everything else:
/// surely a slip, so it is an error.
fn log_filter(field: &Field<'_>) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const WHAT: &str = "a level (off, error, warn, info, debug, trace) or target=level, separated by commas";
    let text = field.text(WHAT)?;
    if text.len() > 1024 {
        return field.fail("a filter of more than 1024 bytes");
    }
    for directive in text.split(',').map(str::trim) {
        if !directive.contains(['=', '[']) && !LEVELS.contains(&directive.to_ascii_lowercase().as_str()) {
            let hint = super::read::closest(directive, &LEVELS).map(|level| format!("; did you mean `{level}`?"));
            return field.fail(format!("expected {WHAT}, found {}{}", excerpt(directive), hint.unwrap_or_default()));
        }
    }
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Some(text.to_owned()),
        Err(reason) => field.fail(format!("expected {WHAT}, found {}: {reason}", excerpt(text))),
    }
}
