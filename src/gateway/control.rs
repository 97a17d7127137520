//! The control thread: the only writer of the snapshot. It reloads the configuration on SIGHUP, follows the sources of
//! replicas (a file, DNS, beacons), resolves the names of replicas, and asks them what they serve; nothing it does holds
//! up a request, a reload or the stop, and the start waits a second at most.
//!
//! Names and questions are a task of their own, a round: one at a time, a few replicas at once, each on a thread that may
//! block. A round only takes down addresses and answers; the loop compares these with the snapshot in force and rebuilds
//! it where they differ, so that a round may be cut short at any point and nothing is lost.

mod ask;
mod dns;
mod file;
mod find;
mod sources;
mod watch;

use self::find::senders;
use self::sources::{Change, Sources};
use self::watch::Watch;
use super::check;
use crate::config::{self, Config};
use crate::discovery::{DiscoveryStatus, Merged, News, Sayings};
use crate::fleet::{Discovered, Fleet, Membership, Registry, Replica};
use crate::health::Arrival;
use crate::pipeline::{PoolTraits, Snapshot};
use crate::proxy::Core;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

/// How often replicas that have not said what they serve are asked.
const ASK_UNKNOWN: Duration = Duration::from_secs(1);
/// How often those that have are asked again, and names resolve anew.
const REFRESH: Duration = Duration::from_secs(30);
/// How often answers are taken up while a round goes on.
const TAKE_UP: Duration = Duration::from_secs(1);
/// How long readiness waits for the first answers.
const ASK_FIRST: Duration = Duration::from_secs(1);
/// How often registrations are looked through, and those for whom there was no room are tried again.
const TIDY: Duration = Duration::from_secs(1);
/// News of beacons that may wait to be taken up.
const NEWS_MAX: usize = 1024;
/// Replicas asked at once.
const ASK_AT_ONCE: usize = 16;
/// Threads that may block: what a round uses, and what rounds cut short leave waiting for a timeout.
pub(super) const THREADS_MAX: usize = 4 * ASK_AT_ONCE;

/// Loads the configuration anew.
pub type Reload = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// The single writer of the fleet.
pub(super) struct Control {
    core: Arc<Core>,
    registry: Mutex<Registry>,
    sayings: Mutex<Sayings>,
    sources: Mutex<Sources>,
    news: mpsc::Sender<News>,
    watch: Mutex<Watch>,
    reload: Option<Reload>,
}

/// What the control thread hears.
#[derive(Debug)]
pub(super) struct Inbox {
    changes: mpsc::Receiver<Change>,
    news: mpsc::Receiver<News>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("sayings", &self.sayings)
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// The control of `core`, whose snapshot `registry` built.
    #[must_use]
    pub(super) fn new(core: Arc<Core>, registry: Registry, reload: Option<Reload>) -> (Self, Inbox) {
        let (sources, changes) = Sources::new(core.clock);
        let (sender, news) = mpsc::channel(NEWS_MAX);
        let control = Self {
            registry: Mutex::new(registry),
            sayings: Mutex::default(),
            sources: Mutex::new(sources),
            news: sender,
            watch: Mutex::default(),
            reload,
            core,
        };
        (control, Inbox { changes, news })
    }

    /// What all share.
    pub(super) fn core(&self) -> Arc<Core> {
        Arc::clone(&self.core)
    }

    /// Runs until `stop` is sent or dropped.
    pub(super) async fn run(self: Arc<Self>, mut inbox: Inbox, mut stop: oneshot::Receiver<()>) {
        let mut hangup = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                tracing::error!(%error, "cannot listen for SIGHUP: reloads need a restart");
                return;
            }
        };
        let every = |period| {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        let (mut unknown, mut refresh, mut take_up) = (every(ASK_UNKNOWN), every(REFRESH), every(TAKE_UP));
        let mut tidy = every(TIDY);
        refresh.reset();
        // Whoever has not answered by then is asked again later, and holds nobody up.
        let first = tokio::time::sleep(ASK_FIRST);
        tokio::pin!(first);
        let mut round = Round(None);
        loop {
            // True when somebody new is to be asked, who is not to wait until the others have been.
            let has_newcomers = tokio::select! {
                _ = &mut stop => return,
                _ = hangup.recv(), if self.reload.is_some() => {
                    self.reload(&mut inbox).await;
                    true
                }
                Some(change) = inbox.changes.recv() => self.take(change) && self.refresh(),
                Some(news) = inbox.news.recv() => self.hear(news, &mut inbox.news) && self.refresh(),
                // A process that stops has closed its ears: silence says nothing.
                _ = tidy.tick(), if !self.core.stopping.load(Relaxed) => {
                    self.watch();
                    self.tidy() && self.refresh()
                }
                () = round.over(), if round.is_on() => {
                    self.take_up();
                    self.core.asked.store(true, Relaxed);
                    false
                }
                () = &mut first, if !self.core.asked.load(Relaxed) => {
                    self.take_up();
                    self.core.asked.store(true, Relaxed);
                    false
                }
                _ = take_up.tick(), if round.is_on() => {
                    self.take_up();
                    false
                }
                _ = refresh.tick(), if !round.is_on() => {
                    round = Round::start(&self, true);
                    false
                }
                _ = unknown.tick(), if !round.is_on() => {
                    round = Round::start(&self, false);
                    false
                }
            };
            if has_newcomers {
                round = Round(None);
                unknown.reset_immediately();
            }
        }
    }

    /// Reloads the configuration. A bad one changes nothing, loudly.
    async fn reload(&self, inbox: &mut Inbox) {
        let Some(reload) = &self.reload else { return };
        let applied = match reload() {
            Ok(config) => {
                // Replicas that are to be found elsewhere from now on are found before the old list goes.
                self.find(&config.discovery, inbox).await;
                self.apply(config)
            }
            Err(error) => Err(error),
        };
        self.sources.lock().follow(&self.core.snapshot.load().config.discovery);
        match applied {
            Ok(()) => {
                self.core.metrics.reloads.inc();
                self.core.reload_error.store(Arc::new(None));
            }
            Err(error) => {
                self.core.metrics.reload_failures.inc();
                tracing::error!(error, "the new configuration is refused; the old one stays");
                // What was found meanwhile counts for the old one, too.
                self.refresh();
                self.core.reload_error.store(Arc::new(Some(error)));
            }
        }
    }

    fn apply(&self, config: Config) -> Result<(), String> {
        let before = self.core.snapshot.load_full();
        let changes = config::diff(&before.config, &config);
        let keys = super::ingest::read_keys(&config.beacons).map_err(|error| error.to_string())?;
        self.rebuild(config)?;
        self.core.plane.keys.store(Arc::new(keys));
        if changes.is_empty() {
            tracing::info!("configuration reloaded: nothing changed");
        }
        for change in &changes {
            if change.needs_restart {
                tracing::warn!(%change, "changed in the file, but takes a restart to take effect");
            } else {
                tracing::info!(%change, "configuration reloaded");
            }
        }
        Ok(())
    }

    /// Builds the snapshot for `config` and what is known of the replicas, and swaps it in. Returns whether somebody is
    /// new.
    fn rebuild(&self, config: Config) -> Result<bool, String> {
        let before = self.core.snapshot.load_full();
        let mut registry = self.registry.lock();
        let mut sayings = self.sayings.lock();
        let sources = self.sources.lock();
        let Merged { replicas, sources: named_by, left_out } = sources.merged(&config, self.core.slots_max);
        let (known, idle) = (sayings.merged(), |slot| self.core.shared.load.in_flight(slot) == 0);
        let mut left_out: Vec<String> = left_out.into_iter().map(|(id, _)| id).collect();
        let (fleet, change) = if config.discovery.is_on() {
            let (fleet, change, no_slot) = registry.rebuild_what_fits(&replicas, &config.models, &known, idle);
            left_out.extend(no_slot);
            (fleet, change)
        } else {
            registry.rebuild(&config.replicas, &config.models, &known, idle).map_err(|full| full.to_string())?
        };
        // What was said of itself by one that left, or is elsewhere now, is no longer true.
        let joined: HashSet<_> = change.joined.iter().collect();
        let stayed: HashSet<&str> = fleet
            .replicas
            .iter()
            .filter(|replica| !joined.contains(&replica.slot))
            .map(|replica| replica.config.id.as_str())
            .collect();
        sayings.retain(|id| stayed.contains(id));
        let source_of = replicas.into_iter().map(|replica| replica.id).zip(named_by).collect();
        self.report(DiscoveryStatus { sources: sources.status(&config), left_out, source_of }, &before, &fleet);
        // Before the slots are taken up: what is heard under them meanwhile counts for nobody.
        self.core.plane.gate.set_directory(senders(&fleet, &sources));
        self.swap(config, fleet, &change, &before.traits);
        Ok(!change.joined.is_empty())
    }

    fn swap(&self, config: Config, fleet: Fleet, change: &Membership, traits: &PoolTraits) {
        let snapshot = Arc::new(Snapshot::new(config, fleet, traits));
        for &slot in change.joined.iter().chain(&change.left) {
            self.core.plane.heard.forget(slot);
        }
        let now = self.core.clock.now();
        self.core.shared.apply(change, &snapshot, now);
        change.joined.iter().for_each(|slot| self.core.plane.gate.forget(*slot));
        let arrival = if self.core.checked.load(Relaxed) { Arrival::Later } else { Arrival::AtStart };
        check::welcome(&self.core.shared, change, &snapshot.config, arrival, now);
        self.core.snapshot.store(snapshot);
    }

    /// Builds the snapshot anew from the configuration in force. Returns whether somebody is new.
    fn refresh(&self) -> bool {
        let config = self.core.snapshot.load().config.clone();
        self.rebuild(config).unwrap_or_else(|error| {
            tracing::error!(error, "cannot take up what is known of the replicas");
            false
        })
    }

    /// Rebuilds the snapshot if replicas have said what it does not show.
    fn take_up(&self) {
        if self.core.snapshot.load().fleet.is_outdated(&self.sayings.lock().merged()) {
            self.refresh();
        }
    }

    /// Resolves names and asks replicas what they are and serve: of all, or only of those not known yet. A name that
    /// does not resolve keeps its last address.
    async fn ask_replicas(self: Arc<Self>, all: bool) {
        let replicas = self.core.snapshot.load().fleet.replicas.clone();
        let mut waiting = replicas.into_iter().filter_map(|replica| {
            let look_up = all || replica.address().is_none();
            (look_up || !self.sayings.lock().has_answered(&replica.config.id)).then_some((replica, look_up))
        });
        let mut asked = JoinSet::new();
        loop {
            while asked.len() < ASK_AT_ONCE
                && let Some((replica, look_up)) = waiting.next()
            {
                asked.spawn_blocking(move || {
                    let said = ask::find_and_ask(&replica, look_up)?;
                    Some((replica, said))
                });
            }
            match asked.join_next().await {
                Some(Ok(Some((replica, said)))) => self.note(&replica, said),
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Takes down what a replica says, if it still is the one that has that id.
    fn note(&self, replica: &Replica, said: Discovered) {
        let snapshot = self.core.snapshot.load();
        if !snapshot.fleet.replica(replica.slot).is_some_and(|now| now.is_same(replica)) {
            return;
        }
        let (id, shown) = (&replica.config.id, said.clone());
        if self.sayings.lock().answered(id, said) {
            let engine = shown.engine.as_str();
            tracing::info!(replica = id, models = ?shown.models, engine, slots = shown.slots, "replica says what it is");
        }
    }
}

/// A round of questions, while it goes on. Dropping it cuts it short.
struct Round(Option<JoinHandle<()>>);

impl Round {
    fn start(control: &Arc<Control>, all: bool) -> Self {
        Self(Some(tokio::spawn(Arc::clone(control).ask_replicas(all))))
    }

    const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Waits for its end; never ends when there is none.
    async fn over(&mut self) {
        match &mut self.0 {
            Some(task) => {
                if let Err(error) = task.await {
                    tracing::error!(%error, "a round of questions to replicas broke off");
                }
                self.0 = None;
            }
            None => std::future::pending().await,
        }
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests;
