//! What the load plane is told: where load reports come from, where replicas come from, how they are checked, and how
//! newcomers are given work.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Load reports by datagram (beacons).
#[derive(Clone, Debug, PartialEq)]
pub struct BeaconConfig {
    /// Where beacons are received: unicast or multicast, IPv4 or IPv6. Empty: nowhere. Cannot change without a restart.
    pub listen: Vec<SocketAddr>,
    /// Interface of multicast groups and of kernel bypass; `None`: the one that has the address. Cannot change without a
    /// restart.
    pub interface: Option<String>,
    /// File of keys, one `id:hex` a line; all of them are accepted. Without one, beacons are accepted from loopback only.
    pub keys: Option<PathBuf>,
    /// How far a sender's clock may be off. Default 30 s.
    pub clock_skew: Duration,
    /// Threads that receive. Default 1. Cannot change without a restart.
    pub threads: u16,
    /// Kernel bypass. Default [`Bypass::Auto`]. Cannot change without a restart.
    pub bypass: Bypass,
    /// Receive without ever sleeping: a core for some microseconds less. Default no. Cannot change without a restart.
    pub busy_poll: bool,
}

impl Default for BeaconConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            interface: None,
            keys: None,
            clock_skew: Duration::from_secs(30),
            threads: 1,
            bypass: Bypass::default(),
            busy_poll: false,
        }
    }
}

/// How beacons get past the kernel's network stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bypass {
    /// AF_XDP in the driver, else in the kernel's generic hook, else not at all: whatever works.
    #[default]
    Auto,
    /// AF_XDP in the driver.
    Native,
    /// AF_XDP in the kernel's generic hook.
    Skb,
    /// Plain sockets.
    Off,
}

impl Bypass {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Native, Self::Skb, Self::Off];

    /// The name in configuration and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Skb => "skb",
            Self::Off => "off",
        }
    }
}

/// The gateway reads the engines' own metrics pages.
#[derive(Clone, Debug, PartialEq)]
pub struct ScrapeConfig {
    /// How often each is read. Default 250 ms.
    pub interval: Duration,
    /// Path of the page at the replica's URL. Default `/metrics`.
    pub path: String,
}

impl Default for ScrapeConfig {
    fn default() -> Self {
        Self { interval: Duration::from_millis(250), path: "/metrics".to_owned() }
    }
}

/// Where replicas come from, beside `replicas`.
#[derive(Clone, Debug, PartialEq)]
pub struct DiscoveryConfig {
    /// A file with a list of replicas, as `replicas` has it; watched.
    pub file: Option<PathBuf>,
    /// Names to look up.
    pub dns: Vec<DnsConfig>,
    /// Servers that are asked for these names; empty: those of the system.
    pub nameservers: Vec<SocketAddr>,
    /// Replicas may register themselves by a beacon with a key. Default no.
    pub beacons: bool,
    /// A replica that registered itself is removed after so long without a beacon. Default 30 s.
    pub expire: Duration,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self { file: None, dns: Vec::new(), nameservers: Vec::new(), beacons: false, expire: Duration::from_secs(30) }
    }
}

impl DiscoveryConfig {
    /// Whether replicas may come from anywhere but `replicas`.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.file.is_some() || !self.dns.is_empty() || self.beacons
    }
}

/// A name each of whose addresses is a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// The name.
    pub name: String,
    /// Port of its A and AAAA records; `None`: it has SRV records.
    pub port: Option<u16>,
    /// Models served there. Empty: each replica is asked.
    pub models: Vec<String>,
}

impl std::fmt::Display for DnsConfig {
    /// `name:port`, or the name alone of SRV records: as `--dns` takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Active health checks.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthConfig {
    /// Path that is asked for. Default `/health`.
    pub path: String,
    /// How often. Default 2 s.
    pub interval: Duration,
    /// How long an answer may take. Default 1 s.
    pub timeout: Duration,
    /// Failures in a row after which a replica is down. Default 2.
    pub failures: u32,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            path: "/health".to_owned(),
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            failures: 2,
        }
    }
}

/// How new and restarted replicas are given work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WarmUpConfig {
    /// Share of the requests that are cold everywhere that go to those that warm up. Default 0.25.
    pub share: f64,
    /// Longest time a replica warms up. Default 60 s.
    pub time: Duration,
}

impl Default for WarmUpConfig {
    fn default() -> Self {
        Self { share: 0.25, time: Duration::from_secs(60) }
    }
}
