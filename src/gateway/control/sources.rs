//! The sources of replicas that the control thread follows: a task for the file, one for each name, and the replicas that
//! registered themselves. What each said last is kept here, and becomes one list.

use super::{dns, file};
use crate::clock::Clock;
use crate::config::{Config, DiscoveryConfig};
use crate::discovery::{Found, Merged, Registered, Source, SourceStatus, merge};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Changes that may wait to be taken up; the tasks wait when there are more.
const CHANGES_MAX: usize = 16;

/// Who tells of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    File(PathBuf),
    Name { name: String, port: Option<u16> },
}

impl Origin {
    const fn source(&self) -> Source {
        match self {
            Self::File(_) => Source::File,
            Self::Name { .. } => Source::Dns,
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Name { name, port: Some(port) } => write!(f, "{name}:{port}"),
            Self::Name { name, port: None } => f.write_str(name),
        }
    }
}

fn origins(config: &DiscoveryConfig) -> Vec<Origin> {
    let names = config.dns.iter().map(|dns| Origin::Name { name: dns.name.clone(), port: dns.port });
    config.file.iter().cloned().map(Origin::File).chain(names).collect()
}

/// What a task has to tell.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) origin: Origin,
    /// The list in force; `None`: the one before stays.
    pub(super) found: Option<Vec<Found>>,
    /// What is wrong, if anything is.
    pub(super) error: Option<String>,
}

/// A task that ends when it is dropped.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Followed {
    origin: Origin,
    found: Vec<Found>,
    error: Option<String>,
    has_spoken: bool,
    /// Held: it ends when it is dropped.
    task: Task,
}

/// What all sources said last.
#[derive(Debug)]
pub(super) struct Sources {
    /// Replicas that registered themselves.
    pub(super) registered: Registered,
    followed: Vec<Followed>,
    nameservers: Vec<SocketAddr>,
    changes: mpsc::Sender<Change>,
    clock: Clock,
}

/// What a change means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// The list is another one.
    pub(super) is_new_list: bool,
    /// What is newly wrong with the source.
    pub(super) fault: Option<(Source, String)>,
}

impl Sources {
    /// No sources yet; changes will come from the second value.
    pub(super) fn new(clock: Clock) -> (Self, mpsc::Receiver<Change>) {
        let (changes, inbox) = mpsc::channel(CHANGES_MAX);
        let sources =
            Self { registered: Registered::default(), followed: Vec::new(), nameservers: Vec::new(), changes, clock };
        (sources, inbox)
    }

    /// Follows what `config` names, and nothing else. What stays keeps its list.
    pub(super) fn follow(&mut self, config: &DiscoveryConfig) {
        let wanted = origins(config);
        self.followed.retain(|followed| wanted.contains(&followed.origin));
        self.follow_also(config);
        if !config.beacons {
            self.registered.clear();
        }
    }

    /// Follows what `config` names, beside what is followed already.
    pub(super) fn follow_also(&mut self, config: &DiscoveryConfig) {
        let other_servers = std::mem::replace(&mut self.nameservers, config.nameservers.clone()) != config.nameservers;
        for origin in origins(config) {
            let known = self.followed.iter().position(|followed| followed.origin == origin);
            match known {
                Some(place) => {
                    if other_servers && origin.source() == Source::Dns {
                        self.followed[place].task = self.start(&origin, config);
                    }
                }
                None => {
                    let task = self.start(&origin, config);
                    self.followed.push(Followed { origin, found: Vec::new(), error: None, has_spoken: false, task });
                }
            }
        }
    }

    fn start(&self, origin: &Origin, config: &DiscoveryConfig) -> Task {
        let changes = self.changes.clone();
        Task(match origin {
            Origin::File(path) => tokio::spawn(file::watch(path.clone(), changes)),
            Origin::Name { name, port } => {
                let dns = crate::config::DnsConfig { name: name.clone(), port: *port, models: Vec::new() };
                tokio::spawn(dns::watch(dns, dns::resolver(&config.nameservers), self.clock, changes))
            }
        })
    }

    /// Takes in what a task tells. One that is followed no longer is not listened to.
    pub(super) fn take(&mut self, change: Change) -> Taken {
        let Change { origin, found, error } = change;
        let Some(followed) = self.followed.iter_mut().find(|followed| followed.origin == origin) else {
            return Taken { is_new_list: false, fault: None };
        };
        followed.has_spoken = true;
        let is_new_fault = error.is_some() && followed.error != error;
        let fault = error.clone().filter(|_| is_new_fault).map(|error| (origin.source(), format!("{origin}: {error}")));
        followed.error = error;
        let found = found.filter(|found| *found != followed.found);
        let is_new_list = found.is_some();
        if let Some(found) = found {
            followed.found = found;
        }
        Taken { is_new_list, fault }
    }

    /// Whether everybody that is followed has said something, be it good or bad.
    pub(super) fn all_have_spoken(&self) -> bool {
        self.followed.iter().all(|followed| followed.has_spoken)
    }

    fn found(&self, origin: &Origin) -> &[Found] {
        let followed = self.followed.iter().find(|followed| followed.origin == *origin);
        followed.map(|followed| followed.found.as_slice()).unwrap_or_default()
    }

    /// The one list that `config` and what was found make, of at most `most`.
    pub(super) fn merged(&self, config: &Config, most: usize) -> Merged {
        let mut lists: Vec<(Source, Vec<Found>)> =
            vec![(Source::Static, config.replicas.iter().cloned().map(Found::from).collect())];
        if let Some(path) = &config.discovery.file {
            lists.push((Source::File, self.found(&Origin::File(path.clone())).to_vec()));
        }
        for dns in &config.discovery.dns {
            let mut found = self.found(&Origin::Name { name: dns.name.clone(), port: dns.port }).to_vec();
            for found in &mut found {
                found.replica.models.clone_from(&dns.models);
            }
            lists.push((Source::Dns, found));
        }
        if config.discovery.beacons {
            lists.push(self.registered.list());
        }
        merge(lists.iter().map(|(source, list)| (*source, list.as_slice())), most)
    }

    /// What is to be told of each source.
    pub(super) fn status(&self, config: &Config) -> Vec<SourceStatus> {
        let row = |source, replicas| SourceStatus { source, name: String::new(), replicas, error: None };
        let mut rows = vec![row(Source::Static, config.replicas.len())];
        rows.extend(self.followed.iter().map(|followed| SourceStatus {
            source: followed.origin.source(),
            name: followed.origin.to_string(),
            replicas: followed.found.len(),
            error: followed.error.clone(),
        }));
        if config.discovery.beacons {
            rows.push(row(Source::Beacon, self.registered.len()));
        }
        rows
    }
}
