//! The load plane's sections: `beacons`, `scrape`, `discovery`, `health` and `warm_up`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::super::error::excerpt;
use super::super::read::{Field, Section};
use super::super::unit::format_duration;
use super::super::{BeaconConfig, Bypass, DiscoveryConfig, DnsConfig, HealthConfig, ScrapeConfig, WarmUpConfig};
use super::replicas::model_names;
use super::{DAY, MILLISECOND, is_off, or_auto, path_or_off};

const LISTEN_MAX: usize = 16;
const THREADS_MAX: u16 = 64;
const NAMES_MAX: usize = 64;
const NAMESERVERS_MAX: usize = 8;
const PATH_BYTES_MAX: usize = 1024;
/// The kernel's `IFNAMSIZ` with its closing zero.
const INTERFACE_BYTES_MAX: usize = 15;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn beacons(field: &Field<'_>) -> Option<BeaconConfig> {
    let mut section = field.section("fields such as `listen`")?;
    let default = BeaconConfig::default();
    let listen = section.get("listen");
    let interface = section.read("interface", None, |field| or_auto(field, interface));
    let listen = listen.map(|field| listen_addresses(&field, interface.is_some())).unwrap_or_default();
    let beacons = BeaconConfig {
        listen,
        interface,
        keys: section.read("keys", None, |field| path_or_off(field, 4096)),
        clock_skew: section.read("clock_skew", default.clock_skew, |field| field.duration(MILLISECOND..=DAY)),
        threads: section.read("threads", default.threads, |field| field.count(1..=THREADS_MAX)),
        bypass: section.read("bypass", default.bypass, |field| {
            if is_off(field) {
                return Some(Bypass::Off);
            }
            field.choice(&Bypass::ALL.map(|bypass| (bypass.as_str(), bypass)))
        }),
        busy_poll: section.read("busy_poll", default.busy_poll, Field::flag),
    };
    section.finish();
    Some(beacons)
}

fn listen_addresses(field: &Field<'_>, has_interface: bool) -> Vec<SocketAddr> {
    let mut taken: Vec<SocketAddr> = Vec::new();
    for item in field.one_or_more(LISTEN_MAX, "an address or a list of them").unwrap_or_default() {
        let Some(address) = item.address() else { continue };
        let is_scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
        if address.port() != 0 && taken.contains(&address) {
            item.fail::<()>(format!("{address} is given twice; remove one"));
        } else if address.is_ipv6() && address.ip().is_multicast() && !has_interface && !is_scoped {
            item.fail::<()>("an IPv6 multicast group is joined on one interface: name it in `interface`");
        }
        taken.push(address);
    }
    taken
}

fn interface(field: &Field<'_>) -> Option<String> {
    let text = field.text("the name of a network interface such as eth0, or `auto`")?;
    let is_name = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if text.is_empty() || text.len() > INTERFACE_BYTES_MAX || !is_name {
        return field.fail(format!(
            "expected the name of a network interface such as eth0, or `auto`, found {}",
            excerpt(text)
        ));
    }
    Some(text.to_owned())
}

pub(super) fn scrape(field: &Field<'_>) -> Option<Option<ScrapeConfig>> {
    let default = ScrapeConfig::default();
    if is_off(field) {
        return Some(None);
    }
    if field.is("true") || field.is("on") {
        return Some(Some(default));
    }
    let mut section = field.section("`off`, `true`, or fields such as `interval`")?;
    let scrape = ScrapeConfig {
        interval: section.read("interval", default.interval, |field| field.duration(10 * MILLISECOND..=MINUTE)),
        path: section.read("path", default.path, path),
    };
    section.finish();
    Some(Some(scrape))
}

/// The path of a page at a replica.
fn path(field: &Field<'_>) -> Option<String> {
    let text = field.text("a path such as /metrics")?;
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !text.starts_with('/') || text.len() > PATH_BYTES_MAX || !is_plain {
        return field.fail(format!(
            "expected a path such as /metrics, of visible ASCII characters, found {}; begin it with /",
            excerpt(text)
        ));
    }
    Some(text.to_owned())
}

pub(super) fn discovery(field: &Field<'_>, beacons: &BeaconConfig) -> Option<DiscoveryConfig> {
    let mut section = field.section("fields such as `file`")?;
    let default = DiscoveryConfig::default();
    let discovery = DiscoveryConfig {
        file: section.read("file", None, |field| path_or_off(field, 4096)),
        dns: section.read("dns", Vec::new(), names),
        nameservers: section.read("nameservers", Vec::new(), |field| {
            let servers = field.one_or_more(NAMESERVERS_MAX, "an address or a list of them")?;
            Some(servers.iter().filter_map(Field::address).collect())
        }),
        beacons: section.read("beacons", default.beacons, Field::flag),
        expire: section.read("expire", default.expire, |field| field.duration(SECOND..=DAY)),
    };
    if discovery.beacons {
        require_listener_and_keys(&section, beacons);
    }
    section.finish();
    Some(discovery)
}

/// Whoever may name a replica is sent the prompts of others: only holders of a key may.
fn require_listener_and_keys(section: &Section<'_>, beacons: &BeaconConfig) {
    let missing = match (beacons.listen.is_empty(), beacons.keys.is_none()) {
        (false, false) => return,
        (true, false) => "`beacons.listen`, where beacons come in",
        (false, true) => "`beacons.keys`, since only holders of a key may register",
        (true, true) => "`beacons.listen`, where beacons come in, and `beacons.keys`, since only holders of a key may",
    };
    section.fail_at("beacons", format!("replicas that register themselves need {missing}"));
}

fn names(field: &Field<'_>) -> Option<Vec<DnsConfig>> {
    let items = field.items(NAMES_MAX, "a list such as `- engines.internal:8000`")?;
    let mut names: Vec<(DnsConfig, String)> = Vec::new();
    for item in items {
        let Some(dns) = dns(&item) else { continue };
        if let Some((_, first)) = names.iter().find(|(other, _)| other.name == dns.name && other.port == dns.port) {
            item.fail::<()>(format!("{dns} is already that of {first}"));
        }
        names.push((dns, item.place()));
    }
    Some(names.into_iter().map(|(dns, _)| dns).collect())
}

fn dns(field: &Field<'_>) -> Option<DnsConfig> {
    if let Some(text) = field.scalar() {
        let (name, port) = match text.rsplit_once(':') {
            None => (text, None),
            Some((name, port)) => match port.parse() {
                Ok(0) | Err(_) => {
                    return field.fail(format!("{} is no port (found {})", excerpt(port), excerpt(text)));
                }
                Ok(port) => (name, Some(port)),
            },
        };
        return Some(DnsConfig { name: dns_name(field, name)?, port, models: Vec::new() });
    }
    let mut section = field.section("a name such as engines.internal:8000, or fields such as `name`")?;
    let name = section.get("name");
    if name.is_none() {
        section.missing("name", "what to look up, such as engines.internal");
    }
    let port = section
        .read("port", None, |field| if field.is("srv") { Some(None) } else { field.count(1..=u16::MAX).map(Some) });
    let models = section.read("models", Vec::new(), model_names);
    section.finish();
    let name = name.and_then(|field| dns_name(&field, field.text("a name such as engines.internal")?))?;
    Some(DnsConfig { name, port, models })
}

/// Letters, digits, `-`, `_` and dots, in labels of 1 to 63 (RFC 1035, with the underscores of SRV names).
fn dns_name(field: &Field<'_>, text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        plain && (1..=63).contains(&label.len())
    };
    if name.parse::<IpAddr>().is_ok() {
        return field.fail(format!("{} is an address, not a name; list it in `replicas`", excerpt(text)));
    }
    if name.len() > 253 || !name.split('.').all(is_label) {
        return field.fail(format!("expected a name such as engines.internal, found {}", excerpt(text)));
    }
    Some(text.to_ascii_lowercase())
}

pub(super) fn health(field: &Field<'_>) -> Option<Option<HealthConfig>> {
    if is_off(field) {
        return Some(None);
    }
    let mut section = field.section("`off`, or fields such as `path`")?;
    let default = HealthConfig::default();
    let interval = section.read("interval", default.interval, |field| field.duration(10 * MILLISECOND..=HOUR));
    let health = HealthConfig {
        path: section.read("path", default.path, path),
        interval,
        timeout: section.read("timeout", default.timeout.min(interval), |field| field.duration(MILLISECOND..=HOUR)),
        failures: section.read("failures", default.failures, |field| field.count(1..=1000_u32)),
    };
    if section.is_clean() && health.timeout > health.interval {
        let (timeout, interval) = (format_duration(health.timeout), format_duration(health.interval));
        section.fail_at(
            "timeout",
            format!("{timeout} is longer than the time between two checks: `interval` is {interval}"),
        );
    }
    section.finish();
    Some(Some(health))
}

pub(super) fn warm_up(field: &Field<'_>) -> Option<Option<WarmUpConfig>> {
    if is_off(field) {
        return Some(None);
    }
    let mut section = field.section("`off`, or fields such as `share`")?;
    let default = WarmUpConfig::default();
    let warm_up = WarmUpConfig {
        share: section.read("share", default.share, |field| match field.share()? {
            share if share > 0.0 => Some(share),
            _ => field.fail("a newcomer with no share would stay cold; give it more, or write `warm_up: off`"),
        }),
        time: section.read("time", default.time, |field| field.duration(MILLISECOND..=DAY)),
    };
    section.finish();
    Some(Some(warm_up))
}
