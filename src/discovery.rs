//! Where replicas come from, and what of it becomes the fleet: lists from several sources, merged into one.
//!
//! Four sources name replicas, in the order of their authority: the configuration ([`Source::Static`]), a watched file,
//! DNS, and replicas that register themselves by beacon. The same `host:port` named by two of them is one replica, with
//! the id and the settings of the first. [`merge`] makes the list that [`crate::fleet::Registry`] turns into slots; a
//! replica that is no longer named leaves: it gets no new request, those in flight there end in peace, and only then is
//! its slot given to another.
//!
//! A source that fails never empties the fleet: what it said last stays, and the failure is told ([`DiscoveryStatus`],
//! the log, a metric). Here are the rules, without sockets and clocks; `gateway::control` reads the file, asks DNS, and
//! hears from the threads that receive beacons.
//!
//! ## What the receivers of beacons do
//! They send [`News`] over a bounded channel and never wait for it: [`News::Registration`] when a stranger with a key and
//! a URL is heard, [`News::Facts`] when what a replica says of itself changes. For every beacon of a replica they note the
//! time in its cell of [`crate::load::heard::LastHeard`], and that keeps a registration alive. Once the stranger has a
//! slot it is in the gate's directory, and no stranger any more; until then the registration is to be repeated, now and
//! then: nothing else keeps it.

mod kept;
mod registered;
mod said;

pub use kept::{Answer, GRACE, Kept};
pub use registered::{News, Registered, Registration, RegistrationFault};
pub use said::Sayings;

use crate::config::{ReplicaConfig, endpoint};
use std::collections::{HashMap, HashSet};

/// Who names a replica, in the order of their authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// `replicas` of the configuration.
    Static,
    /// The file of `discovery.file`.
    File,
    /// A name of `discovery.dns`.
    Dns,
    /// The replica itself.
    Beacon,
}

impl Source {
    /// All of them, in the order of their authority.
    pub const ALL: [Self; 4] = [Self::Static, Self::File, Self::Dns, Self::Beacon];

    /// The name in `/config`, `/replicas`, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::File => "file",
            Self::Dns => "dns",
            Self::Beacon => "beacon",
        }
    }
}

/// A replica that a source names.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What is known of it.
    pub replica: ReplicaConfig,
    /// Another `host:port` of the same endpoint: the name that an SRV record gives it.
    pub alias: Option<String>,
}

impl From<ReplicaConfig> for Found {
    fn from(replica: ReplicaConfig) -> Self {
        Self { replica, alias: None }
    }
}

/// One list out of several.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merged {
    /// The fleet to be, those of the first source first.
    pub replicas: Vec<ReplicaConfig>,
    /// Who named each of `replicas`.
    pub sources: Vec<Source>,
    /// Ids of those for which there was no room, and who named them.
    pub left_out: Vec<(String, Source)>,
}

/// Merges lists, the one with the most authority first, into one of at most `most`.
///
/// An id that is taken by another endpoint gives way to the endpoint's own `host:port`.
#[must_use]
pub fn merge<'f>(lists: impl IntoIterator<Item = (Source, &'f [Found])>, most: usize) -> Merged {
    let mut merged = Merged::default();
    let (mut endpoints, mut ids) = (HashSet::new(), HashSet::new());
    for (source, found) in lists.into_iter().flat_map(|(source, list)| list.iter().map(move |found| (source, found))) {
        let own = endpoint(&found.replica.url);
        let is_known = endpoints.contains(&own) || found.alias.as_ref().is_some_and(|alias| endpoints.contains(alias));
        endpoints.extend(found.alias.clone());
        endpoints.insert(own.clone());
        if is_known {
            continue;
        }
        let mut replica = found.replica.clone();
        if ids.contains(&replica.id) {
            replica.id = own;
        }
        if merged.replicas.len() >= most || !ids.insert(replica.id.clone()) {
            merged.left_out.push((replica.id, source));
            continue;
        }
        merged.replicas.push(replica);
        merged.sources.push(source);
    }
    merged
}

/// What `/config` tells of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// Which kind.
    pub source: Source,
    /// The file, the name that is looked up; empty for the others.
    pub name: String,
    /// Replicas it names, those among them that another source named first.
    pub replicas: usize,
    /// What is wrong with it, while something is.
    pub error: Option<String>,
}

/// What `/config`, `/replicas` and the metrics tell of discovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryStatus {
    /// Every source, those that are turned off left out.
    pub sources: Vec<SourceStatus>,
    /// Ids of replicas for which there is no room.
    pub left_out: Vec<String>,
    /// Who named each replica of the fleet, by its id.
    pub source_of: HashMap<String, Source>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(id: &str, host: &str) -> Found {
        ReplicaConfig::new(id.to_owned(), format!("http://{host}").parse().unwrap()).into()
    }

    fn shown(merged: &Merged) -> Vec<String> {
        let rows = merged.replicas.iter().zip(&merged.sources);
        rows.map(|(replica, source)| format!("{} {} {}", source.as_str(), replica.id, endpoint(&replica.url))).collect()
    }

    #[test]
    fn an_endpoint_named_twice_is_one_replica_with_the_settings_of_the_first() {
        let mut file = found("f", "h:80");
        file.replica.slots = Some(4);
        let (fixed, file) = ([found("a", "h")], [file, found("b", "h:81")]);
        let merged = merge([(Source::Static, &fixed[..]), (Source::File, &file)], 9);
        assert_eq!(shown(&merged), ["static a h:80", "file b h:81"]);
        assert_eq!(merged.replicas[0].slots, None);
        let merged = merge([(Source::File, &file[..])], 9);
        assert_eq!(shown(&merged)[0], "file f h:80", "once the first is gone, the other's word counts");
    }

    #[test]
    fn an_id_taken_by_another_endpoint_gives_way() {
        let lists = [found("r1", "h:1"), found("r1", "h:2"), found("h:3", "h:4"), found("x", "h:3"), found("x", "h:5")];
        let merged = merge([(Source::Static, &lists[..1]), (Source::File, &lists[1..])], 9);
        assert_eq!(shown(&merged), ["static r1 h:1", "file h:2 h:2", "file h:3 h:4", "file x h:3", "file h:5 h:5"]);
        let lists = [found("h:2", "h:1"), found("x", "h:3"), found("x", "h:2")];
        let merged = merge([(Source::Static, &lists[..])], 9);
        assert_eq!(merged.left_out, [("h:2".to_owned(), Source::Static)], "told, not silent");
    }

    #[test]
    fn a_name_of_an_srv_record_is_the_endpoint_it_points_to() {
        let by_name = [found("e-0", "e-0:80")];
        let by_srv = [Found { alias: Some("e-0:80".to_owned()), ..found("e-0:80", "10.0.0.1:80") }];
        let merged = merge([(Source::Static, &by_name[..]), (Source::Dns, &by_srv)], 9);
        assert_eq!(shown(&merged), ["static e-0 e-0:80"]);
        let itself = [found("10.0.0.1:80", "10.0.0.1:80")];
        let merged = merge([(Source::Dns, &by_srv[..]), (Source::Beacon, &itself)], 9);
        assert_eq!(shown(&merged), ["dns e-0:80 10.0.0.1:80"]);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let many: Vec<Found> = (1..6).map(|n| found(&format!("r{n}"), &format!("h:{n}"))).collect();
        let merged = merge([(Source::Static, &many[..1]), (Source::Beacon, &many[1..])], 3);
        assert_eq!(merged.replicas.len(), 3);
        assert_eq!(merged.left_out, [("r4".to_owned(), Source::Beacon), ("r5".to_owned(), Source::Beacon)]);
    }

    /// Whatever the lists: within bounds, no id and no endpoint twice, sources in order, nobody vanishes untold.
    #[test]
    fn merging_holds_its_promises() {
        bolero::check!().with_type::<(Vec<(u8, u8, u8)>, u8)>().for_each(|(rows, most)| {
            let mut lists: [Vec<Found>; 4] = Default::default();
            for (source, id, port) in rows {
                let port = u16::from(port % 8) + 1;
                lists[usize::from(source % 4)].push(found(&format!("h:{}", id % 8), &format!("h:{port}")));
            }
            let merged = merge(Source::ALL.into_iter().zip(lists.iter().map(Vec::as_slice)), usize::from(most % 8));
            let ids: HashSet<_> = merged.replicas.iter().map(|replica| &replica.id).collect();
            let endpoints: HashSet<_> = merged.replicas.iter().map(|replica| endpoint(&replica.url)).collect();
            let named: HashSet<_> = lists.iter().flatten().map(|found| endpoint(&found.replica.url)).collect();
            assert!(merged.replicas.len() <= usize::from(most % 8));
            assert_eq!((ids.len(), endpoints.len()), (merged.replicas.len(), merged.replicas.len()));
            assert_eq!(merged.replicas.len() + merged.left_out.len(), named.len());
            assert!(merged.sources.is_sorted());
        });
    }
}
