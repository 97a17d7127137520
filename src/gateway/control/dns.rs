//! Looks names up, for as long as they are configured: A and AAAA records of a name with a port, or SRV records.
//!
//! Each name has a task of its own that asks again when the answer's time to live ends, and tells the control thread when
//! the list of replicas, or what is wrong, changes. [`Kept`] holds what counts while answers fail or are empty.
//!
//! Of SRV records those of the best (lowest) priority are taken, as RFC 2782 has it; the others are a reserve that a
//! client turns to when none of the first can be reached, and health checks of the first are the better answer here. Their
//! weights are left to the policy, which knows more. Addresses of targets come from the additional section where the
//! server is so kind, else they are looked up.

use super::sources::{Change, Origin};
use crate::clock::Clock;
use crate::config::{DnsConfig, ReplicaConfig, endpoint, replica_url};
use crate::discovery::{Answer, Found, GRACE, Kept};
use crate::id::ReplicaSlot;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How long a server has to answer, and how often it is asked.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// Targets of SRV records that are looked up at once.
const AT_ONCE: usize = 16;
/// Most targets of one name.
const TARGETS_MAX: usize = 1024;
/// An empty answer that does not say for how long it holds.
const EMPTY_TTL: Duration = Duration::from_secs(5);

/// Asks `servers`, or those of the system when there are none.
pub(super) fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let mut builder = if servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let config = ResolverConfig::from_name_servers(servers.iter().map(name_server).collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    // The time to live is kept here; a second cache would only make answers older.
    options.cache_size = 0;
    options.timeout = TIMEOUT;
    options.attempts = ATTEMPTS;
    builder.build()
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let on_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    let connections = vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())];
    NameServerConfig::new(address.ip(), true, connections)
}

/// Looks `dns` up until it is cut short, and tells what it finds over `changes`.
pub(super) async fn watch(
    dns: DnsConfig,
    resolver: Result<TokioResolver, NetError>,
    clock: Clock,
    changes: mpsc::Sender<Change>,
) {
    let origin = Origin::Name { name: dns.name.clone(), port: dns.port };
    let resolver = match resolver {
        Ok(resolver) => resolver,
        Err(error) => {
            // Nobody listens any more: nothing is left to do.
            let _stopped = changes.send(Change { origin, found: None, error: Some(error.to_string()) }).await;
            return;
        }
    };
    let mut records = match dns.port {
        Some(port) => Records::Addresses { port, v4: Kept::default(), v6: Kept::default() },
        None => Records::Services(Kept::default()),
    };
    let (mut told, began, mut had_any) = (None, clock.now(), false);
    loop {
        let (again, fault) = records.look_up(&resolver, &dns.name, clock).await;
        let found = records.found();
        // A failure with nothing kept says nothing, and at first an empty answer does not either: what was found by
        // whoever looked before (with other nameservers) stays.
        had_any |= !found.is_empty();
        let is_new_here = !had_any && clock.now().since(began) < GRACE;
        let says_nothing = found.is_empty() && (is_new_here || matches!(fault, Some(Fault::Failed(_))));
        let error = fault.map(|fault| fault.to_string());
        let change = Change { origin: origin.clone(), found: (!says_nothing).then_some(found), error };
        if told.as_ref() != Some(&change) {
            if changes.send(change.clone()).await.is_err() {
                return;
            }
            told = Some(change);
        }
        tokio::time::sleep(again).await;
    }
}

/// What is kept of one name.
enum Records {
    Addresses { port: u16, v4: Kept<IpAddr>, v6: Kept<IpAddr> },
    Services(Kept<Service>),
}

/// One address of one target of an SRV record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Service {
    target: String,
    address: SocketAddr,
    is_only: bool,
}

impl Records {
    /// Asks once. Returns after how long to ask again, and what is wrong.
    async fn look_up(&mut self, resolver: &TokioResolver, name: &str, clock: Clock) -> (Duration, Option<Fault>) {
        match self {
            Self::Addresses { v4, v6, .. } => {
                let (said_v4, said_v6) =
                    tokio::join!(addresses(resolver, name, RecordType::A), addresses(resolver, name, RecordType::AAAA));
                let now = clock.now();
                let (again_v4, again_v6) = (v4.take(said_v4.0, now), v6.take(said_v6.0, now));
                // Most names have addresses of one kind: that the other has none does not matter then.
                match (v4.items().is_empty(), v6.items().is_empty()) {
                    (false, true) => (again_v4, said_v4.1),
                    (true, false) => (again_v6, said_v6.1),
                    (true, true) | (false, false) => (again_v4.min(again_v6), worse(said_v4.1, said_v6.1)),
                }
            }
            Self::Services(kept) => {
                let (said, fault) = services(resolver, name, kept.items().is_empty()).await;
                (kept.take(said, clock.now()), fault)
            }
        }
    }

    fn found(&self) -> Vec<Found> {
        match self {
            Self::Addresses { port, v4, v6 } => {
                let all = v4.items().iter().chain(v6.items());
                all.filter_map(|ip| replica(SocketAddr::new(*ip, *port))).map(Found::from).collect()
            }
            Self::Services(kept) => kept.items().iter().filter_map(Service::found).collect(),
        }
    }
}

impl Service {
    /// It goes by the name of its target, unless that has several addresses.
    fn found(&self) -> Option<Found> {
        let named = format!("{}:{}", self.target, self.address.port());
        let mut replica = replica(self.address)?;
        if !self.is_only {
            return Some(replica.into());
        }
        // In the form that URLs have, to be compared with them.
        let alias = replica_url(&format!("http://{named}")).map_or(named, |url| endpoint(&url));
        replica.id.clone_from(&alias);
        Some(Found { replica, alias: Some(alias) })
    }
}

fn replica(address: SocketAddr) -> Option<ReplicaConfig> {
    let url = replica_url(&format!("http://{address}")).ok()?;
    Some(ReplicaConfig::new(endpoint(&url), url))
}

/// What is wrong with an answer, if anything is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    Empty,
    Failed(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("there are no such records"),
            Self::Failed(error) => f.write_str(error),
        }
    }
}

/// A failure goes before emptiness, which goes before nothing.
fn worse(one: Option<Fault>, other: Option<Fault>) -> Option<Fault> {
    if matches!(one, Some(Fault::Failed(_))) { one } else { other.or(one) }
}

type Said<T> = (Answer<T>, Option<Fault>);

fn unanswered<T>(error: &NetError) -> Said<T> {
    if let NetError::Dns(DnsError::NoRecordsFound(none)) = error {
        let ttl = none.negative_ttl.map_or(EMPTY_TTL, |seconds| Duration::from_secs(seconds.into()));
        return (Answer::None(ttl), Some(Fault::Empty));
    }
    (Answer::Failed, Some(Fault::Failed(error.to_string())))
}

/// How long all of an answer may be believed.
fn ttl(lookup: &Lookup) -> Duration {
    let least = lookup.answers().iter().map(|record| record.ttl).min();
    Duration::from_secs(least.unwrap_or_default().into())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "there are dozens of kinds of records")]
const fn address_in(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(v4) => Some(IpAddr::V4(v4.0)),
        RData::AAAA(v6) => Some(IpAddr::V6(v6.0)),
        _ => None,
    }
}

/// A record whose target is the root says that the service is not to be had here (RFC 2782).
fn service_in(data: &RData) -> Option<&SRV> {
    if let RData::SRV(srv) = data { Some(srv).filter(|srv| !srv.target.is_root() && srv.port != 0) } else { None }
}

/// Addresses of one kind, sorted: servers shuffle them.
async fn addresses(resolver: &TokioResolver, name: &str, kind: RecordType) -> Said<IpAddr> {
    let lookup = match resolver.lookup(name, kind).await {
        Ok(lookup) => lookup,
        Err(error) => return unanswered(&error),
    };
    let mut found: Vec<IpAddr> = lookup.answers().iter().filter_map(|record| address_in(&record.data)).collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(ReplicaSlot::LIMIT);
    if found.is_empty() {
        return (Answer::None(ttl(&lookup)), Some(Fault::Empty));
    }
    (Answer::Some(found, ttl(&lookup)), None)
}

/// The targets of best priority and their addresses. A target that cannot be looked up makes the whole answer a failure,
/// so that what was known stays; `take_parts`: nothing is known, so a part is better.
async fn services(resolver: &TokioResolver, name: &str, take_parts: bool) -> Said<Service> {
    let lookup = match resolver.lookup(name, RecordType::SRV).await {
        Ok(lookup) => lookup,
        Err(error) => return unanswered(&error),
    };
    let mut ttl = ttl(&lookup);
    let records = lookup.answers().iter().filter_map(|record| service_in(&record.data));
    let records: Vec<_> = records.take(TARGETS_MAX).collect();
    let Some(best) = records.iter().map(|srv| srv.priority).min() else {
        return (Answer::None(ttl), Some(Fault::Empty));
    };
    let mut ports: BTreeMap<&Name, Vec<u16>> = BTreeMap::new();
    for srv in records.iter().filter(|srv| srv.priority == best) {
        ports.entry(&srv.target).or_default().push(srv.port);
    }
    let mut known: BTreeMap<&Name, Vec<IpAddr>> = BTreeMap::new();
    for record in lookup.additionals() {
        if let Some(address) = address_in(&record.data).filter(|_| ports.contains_key(&record.name)) {
            ttl = ttl.min(Duration::from_secs(record.ttl.into()));
            known.entry(&record.name).or_default().push(address);
        }
    }
    let unknown: Vec<Name> = ports.keys().filter(|target| !known.contains_key(*target)).map(|n| (*n).clone()).collect();
    let (looked_up, failed) = targets(resolver, unknown, &mut ttl).await;
    known.extend(looked_up.iter().map(|(target, addresses)| (target, addresses.clone())));
    let fault = failed.map(Fault::Failed);
    if fault.is_some() && !take_parts {
        return (Answer::Failed, fault);
    }
    let mut found: Vec<Service> = Vec::new();
    for (target, ports) in ports {
        let addresses = known.get(target).map(Vec::as_slice).unwrap_or_default();
        let target = target.to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let pairs = ports.iter().flat_map(|port| addresses.iter().map(|ip| SocketAddr::new(*ip, *port)));
        let is_only = addresses.len() == 1;
        found.extend(pairs.map(|address| Service { target: target.clone(), address, is_only }));
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(ReplicaSlot::LIMIT);
    match (found.is_empty(), &fault) {
        (true, Some(_)) => (Answer::Failed, fault),
        (true, None) => (Answer::None(ttl), Some(Fault::Empty)),
        (false, _) => (Answer::Some(found, ttl), fault),
    }
}

/// Looks targets up, a few at once. Lowers `ttl` to the least of them; the second value tells of one that failed.
async fn targets(
    resolver: &TokioResolver,
    names: Vec<Name>,
    ttl: &mut Duration,
) -> (Vec<(Name, Vec<IpAddr>)>, Option<String>) {
    let (mut found, mut failed) = (Vec::new(), None);
    let (mut waiting, mut asked) = (names.into_iter(), JoinSet::new());
    loop {
        while asked.len() < AT_ONCE
            && let Some(name) = waiting.next()
        {
            let resolver = resolver.clone();
            asked.spawn(async move {
                let text = name.to_ascii();
                let both = tokio::join!(
                    addresses(&resolver, &text, RecordType::A),
                    addresses(&resolver, &text, RecordType::AAAA)
                );
                (name, both)
            });
        }
        let Some(done) = asked.join_next().await else { return (found, failed) };
        let Ok((name, (v4, v6))) = done else { continue };
        let mut all = Vec::new();
        for (answer, fault) in [v4, v6] {
            match answer {
                Answer::Some(addresses, least) => {
                    *ttl = (*ttl).min(least);
                    all.extend(addresses);
                }
                Answer::None(_) => {}
                Answer::Failed => failed = fault.map(|fault| format!("{name}: {fault}")),
            }
        }
        found.push((name, all));
    }
}
