//! How the control thread finds replicas: what it hears from the sources and from the threads that receive beacons, and
//! what it tells of that.

use super::sources::{Change, Sources};
use super::{Control, Inbox};
use crate::config::DiscoveryConfig;
use crate::discovery::{DiscoveryStatus, News, Registration, Source};
use crate::fleet::{Discovered, Fleet, Replica};
use crate::id::ReplicaSlot;
use crate::load::report::LoadSource;
use crate::pipeline::Snapshot;
use crate::wire::beacon::SenderId;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the start, and a reload, wait for sources of replicas that are new.
const FIND_FIRST: Duration = Duration::from_secs(1);
/// News of beacons that are taken up at once.
const NEWS_AT_ONCE: usize = 256;

impl Control {
    /// Where the threads that receive beacons send what they hear. They drop what does not fit, and count it.
    #[must_use]
    pub(in crate::gateway) fn news(&self) -> mpsc::Sender<News> {
        self.news.clone()
    }

    /// Finds the first replicas: a process that takes over from another has its fleet before its first request.
    pub(in crate::gateway) async fn find_first(&self, inbox: &mut Inbox) {
        let config = self.core.snapshot.load().config.clone();
        if config.discovery.is_on() {
            self.find(&config.discovery, inbox).await;
            self.refresh();
        }
        let snapshot = self.core.snapshot.load();
        self.core.plane.gate.set_directory(senders(&snapshot.fleet, &self.sources.lock()));
    }

    /// Starts to follow what `config` names, and waits a while for the first word of each.
    pub(super) async fn find(&self, config: &DiscoveryConfig, inbox: &mut Inbox) {
        self.sources.lock().follow_also(config);
        let all = async {
            while !self.sources.lock().all_have_spoken()
                && let Some(change) = inbox.changes.recv().await
            {
                self.take(change);
            }
        };
        if tokio::time::timeout(FIND_FIRST, all).await.is_err() {
            tracing::warn!("not every source of replicas has answered; going on with those that are known");
        }
    }

    /// Takes in what a source tells, loudly if something is newly wrong with it. Returns whether the list is another.
    pub(super) fn take(&self, change: Change) -> bool {
        let mut sources = self.sources.lock();
        let taken = sources.take(change);
        if let Some((source, error)) = &taken.fault {
            self.core.metrics.discovery_failures.with_label_values(&[source.as_str()]).inc();
            tracing::warn!(source = source.as_str(), error, "a source of replicas fails; what it said before stays");
        }
        let old = self.core.discovery.load_full();
        let status = sources.status(&self.core.snapshot.load().config);
        self.core.discovery.store(Arc::new(DiscoveryStatus { sources: status, ..(*old).clone() }));
        taken.is_new_list
    }

    /// Takes in news of beacons, all that wait, within bounds. Returns whether the snapshot is to be rebuilt.
    pub(super) fn hear(&self, first: News, more: &mut mpsc::Receiver<News>) -> bool {
        let mut is_changed = false;
        let mut next = Some(first);
        for _ in 0..NEWS_AT_ONCE {
            match next.or_else(|| more.try_recv().ok()) {
                Some(News::Registration(registration)) => is_changed |= self.register(registration),
                Some(News::Facts { slot, sender, said }) => is_changed |= self.hear_facts(slot, sender, said),
                None => break,
            }
            next = None;
        }
        is_changed
    }

    fn register(&self, registration: Registration) -> bool {
        let snapshot = self.core.snapshot.load();
        if !snapshot.config.discovery.beacons {
            return false;
        }
        let url = registration.url.clone();
        match self.sources.lock().registered.register(registration, self.core.slots_max) {
            Ok(is_changed) => is_changed,
            Err(error) => {
                let failures = self.core.metrics.discovery_failures.with_label_values(&[Source::Beacon.as_str()]);
                // Beacons come many times a second.
                if failures.get().is_power_of_two() || failures.get() == 0 {
                    tracing::warn!(url, %error, "a registration is refused");
                }
                failures.inc();
                false
            }
        }
    }

    fn hear_facts(&self, slot: ReplicaSlot, sender: SenderId, said: Discovered) -> bool {
        let snapshot = self.core.snapshot.load();
        let Some(replica) = snapshot.fleet.replica(slot) else { return false };
        let mut sources = self.sources.lock();
        if !senders_of(replica, &sources).any(|known| known == sender) {
            return false;
        }
        let is_changed = sources.registered.update(&replica.authority, &said);
        drop(sources);
        let mut sayings = self.sayings.lock();
        sayings.told(&replica.config.id, said);
        is_changed || snapshot.fleet.is_outdated(&sayings.merged())
    }

    /// Removes registrations that were not heard for long. Returns whether the snapshot is to be rebuilt: for that, or
    /// because there may be room now for those left out.
    pub(super) fn tidy(&self) -> bool {
        let snapshot = self.core.snapshot.load();
        let is_crowded = !self.core.discovery.load().left_out.is_empty();
        let mut sources = self.sources.lock();
        if sources.registered.is_empty() {
            return is_crowded;
        }
        let slots: HashMap<&str, ReplicaSlot> =
            snapshot.fleet.replicas.iter().map(|replica| (replica.authority.as_str(), replica.slot)).collect();
        let heard = |own: &str| {
            let word = self.core.plane.heard.last(*slots.get(own)?)?;
            (word.source == LoadSource::Beacon).then_some(word.at)
        };
        let (after, now) = (snapshot.config.discovery.expire, self.core.clock.now());
        let gone = sources.registered.expire(after, now, heard);
        for replica in &gone {
            tracing::warn!(replica, "no beacon for long: a replica that had registered itself is removed");
        }
        is_crowded || !gone.is_empty()
    }

    /// Tells who came and who left by other ways than a reload, and for whom there is no room.
    pub(super) fn report(&self, status: DiscoveryStatus, before: &Snapshot, fleet: &Fleet) {
        let old = self.core.discovery.load();
        let ids = |replicas: &[Arc<Replica>]| -> HashSet<String> {
            replicas.iter().map(|replica| replica.config.id.clone()).collect()
        };
        let (had, have) = (ids(&before.fleet.replicas), ids(&fleet.replicas));
        let by = |status: &DiscoveryStatus, id: &str| status.source_of.get(id).map(|source| source.as_str());
        for replica in fleet.replicas.iter().filter(|replica| !had.contains(&replica.config.id)) {
            let id = &replica.config.id;
            tracing::info!(replica = id, url = %replica.config.url, source = by(&status, id), "replica found");
        }
        for replica in before.fleet.replicas.iter().filter(|replica| !have.contains(&replica.config.id)) {
            let id = &replica.config.id;
            let in_flight = self.core.shared.load.in_flight(replica.slot);
            tracing::info!(replica = id, source = by(&old, id), in_flight, "replica gone: it gets no new request");
        }
        if !status.left_out.is_empty() && status.left_out != old.left_out {
            let (count, first) = (status.left_out.len(), status.left_out.first());
            tracing::error!(count, first, room = self.core.slots_max, "no room for all replicas: some are left out");
        }
        self.core.discovery.store(Arc::new(status));
    }
}

/// Who is who in beacons: by id, by `host:port`, and as they registered.
pub(super) fn senders(fleet: &Fleet, sources: &Sources) -> Vec<(SenderId, ReplicaSlot)> {
    let each = |replica: &Arc<Replica>| -> Vec<_> {
        senders_of(replica, sources).map(|sender| (sender, replica.slot)).collect()
    };
    let mut senders: Vec<_> = fleet.replicas.iter().flat_map(each).collect();
    senders.sort_by_key(|(sender, _)| *sender);
    senders.dedup_by_key(|(sender, _)| *sender);
    senders
}

/// Who `replica` may be in beacons.
fn senders_of(replica: &Replica, sources: &Sources) -> impl Iterator<Item = SenderId> {
    let own = sources.registered.sender(&replica.authority);
    [SenderId::of(&replica.config.id), SenderId::of(&replica.authority)].into_iter().chain(own)
}
