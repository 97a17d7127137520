//! The load plane's sections, as a file says them.

use schemars::JsonSchema;
use serde::Serialize;

use super::super::schema as form;
use super::super::unit::format_duration;
use super::super::{BeaconConfig, DiscoveryConfig, DnsConfig, HealthConfig, ScrapeConfig, WarmUpConfig};
use super::{OrWord, shown_path};

/// Load reports by datagram: replicas, or agents beside them, tell how full they are.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "beacons")]
pub(crate) struct RawBeacons {
    /// Where they are received: an address or a list, unicast or multicast. Empty: nowhere. Cannot change without a
    /// restart.
    #[schemars(schema_with = "form::addresses_or_none")]
    listen: Vec<String>,
    /// Network interface of multicast groups and of kernel bypass; `auto` is the one that has the address. Cannot change
    /// without a restart.
    interface: String,
    /// File of keys, one `id:hex` a line, or `off`: then beacons are accepted from this machine only.
    #[schemars(schema_with = "form::path_or_off")]
    keys: String,
    /// How far a sender's clock may be off.
    #[schemars(schema_with = "form::duration")]
    clock_skew: String,
    /// Threads that receive. Cannot change without a restart.
    #[schemars(schema_with = "form::count")]
    threads: u16,
    /// Kernel bypass: `auto`, `native` (in the driver), `skb` (in the kernel's generic hook), or `off`. Cannot change
    /// without a restart.
    #[schemars(schema_with = "form::bypass")]
    bypass: &'static str,
    /// Receive without ever sleeping: a core for some microseconds less. Cannot change without a restart.
    busy_poll: bool,
}

impl Default for RawBeacons {
    fn default() -> Self {
        Self::from(&BeaconConfig::default())
    }
}

impl From<&BeaconConfig> for RawBeacons {
    fn from(beacons: &BeaconConfig) -> Self {
        Self {
            listen: beacons.listen.iter().map(ToString::to_string).collect(),
            interface: beacons.interface.clone().unwrap_or_else(|| "auto".to_owned()),
            keys: shown_path(beacons.keys.as_deref()),
            clock_skew: format_duration(beacons.clock_skew),
            threads: beacons.threads,
            bypass: beacons.bypass.as_str(),
            busy_poll: beacons.busy_poll,
        }
    }
}

/// The gateway reads the engines' own metrics pages.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "scrape")]
pub(crate) struct RawScrape {
    /// How often each is read.
    #[schemars(schema_with = "form::duration")]
    interval: String,
    /// Path of the page at the replica's URL.
    #[schemars(schema_with = "form::path")]
    path: String,
}

impl Default for RawScrape {
    fn default() -> Self {
        Self::from(&ScrapeConfig::default())
    }
}

impl From<&ScrapeConfig> for RawScrape {
    fn from(scrape: &ScrapeConfig) -> Self {
        Self { interval: format_duration(scrape.interval), path: scrape.path.clone() }
    }
}

/// Where replicas come from, beside `replicas`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "discovery")]
pub(crate) struct RawDiscovery {
    /// A file with a list of replicas, in the form of `replicas`; watched. Or `off`.
    #[schemars(schema_with = "form::path_or_off")]
    file: String,
    /// Names to look up: each address is a replica.
    #[schemars(schema_with = "form::names")]
    dns: Vec<RawDns>,
    /// Servers asked for these names: an address or a list. Empty: those of the system.
    #[schemars(schema_with = "form::addresses_or_none")]
    nameservers: Vec<String>,
    /// Replicas may register themselves by a beacon with a key. Needs `beacons.listen` and `beacons.keys`.
    beacons: bool,
    /// A replica that registered itself is removed after so long without a beacon.
    #[schemars(schema_with = "form::duration")]
    expire: String,
}

impl Default for RawDiscovery {
    fn default() -> Self {
        Self::from(&DiscoveryConfig::default())
    }
}

impl From<&DiscoveryConfig> for RawDiscovery {
    fn from(discovery: &DiscoveryConfig) -> Self {
        Self {
            file: shown_path(discovery.file.as_deref()),
            dns: discovery.dns.iter().map(RawDns::from).collect(),
            nameservers: discovery.nameservers.iter().map(ToString::to_string).collect(),
            beacons: discovery.beacons,
            expire: format_duration(discovery.expire),
        }
    }
}

/// A name each of whose addresses is a replica.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("required" = ["name"]))]
#[schemars(rename = "dns")]
pub(crate) struct RawDns {
    /// The name.
    name: String,
    /// Port of its A and AAAA records; `srv`: it has SRV records, which tell theirs.
    #[schemars(schema_with = "form::port_or_srv", default = "by_srv")]
    port: OrWord<u16>,
    /// Model names served there. Empty: each replica is asked (`GET /v1/models`).
    #[serde(default)]
    models: Vec<String>,
}

const fn by_srv() -> OrWord<u16> {
    OrWord::Word("srv")
}

impl From<&DnsConfig> for RawDns {
    fn from(dns: &DnsConfig) -> Self {
        let port = dns.port.map_or_else(by_srv, OrWord::Value);
        Self { name: dns.name.clone(), port, models: dns.models.clone() }
    }
}

/// Active health checks.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "health")]
pub(crate) struct RawHealth {
    /// Path that is asked for.
    #[schemars(schema_with = "form::path")]
    path: String,
    /// How often.
    #[schemars(schema_with = "form::duration")]
    interval: String,
    /// How long an answer may take; at most `interval`.
    #[schemars(schema_with = "form::duration")]
    timeout: String,
    /// Failures in a row after which a replica is down.
    #[schemars(schema_with = "form::count")]
    failures: u32,
}

impl Default for RawHealth {
    fn default() -> Self {
        Self::from(&HealthConfig::default())
    }
}

impl From<&HealthConfig> for RawHealth {
    fn from(health: &HealthConfig) -> Self {
        Self {
            path: health.path.clone(),
            interval: format_duration(health.interval),
            timeout: format_duration(health.timeout),
            failures: health.failures,
        }
    }
}

/// How new and restarted replicas are given work.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "warm_up")]
pub(crate) struct RawWarmUp {
    /// Share of the requests that are cold everywhere that go to those that warm up: 0.25 or 25%.
    #[schemars(schema_with = "form::share")]
    share: f64,
    /// Longest time a replica warms up.
    #[schemars(schema_with = "form::duration")]
    time: String,
}

impl Default for RawWarmUp {
    fn default() -> Self {
        Self::from(&WarmUpConfig::default())
    }
}

impl From<&WarmUpConfig> for RawWarmUp {
    fn from(warm_up: &WarmUpConfig) -> Self {
        Self { share: warm_up.share, time: format_duration(warm_up.time) }
    }
}
