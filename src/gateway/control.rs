//! The control thread: the only writer of the snapshot. It reloads the configuration on SIGHUP, resolves the names of
//! replicas, and asks them what they serve; nothing it does holds up a request, the start, a reload or the stop.
//!
//! Names and questions are a task of their own, a round: one at a time, a few replicas at once, each on a thread that may
//! block. A round only takes down addresses and answers; the loop compares these with the snapshot in force and rebuilds
//! it where they differ, so that a round may be cut short at any point and nothing is lost.

use super::check;
use crate::config::{self, Config};
use crate::fleet::{Discovered, Engine, Fleet, Membership, Registry, Replica};
use crate::health::Arrival;
use crate::pipeline::{Snapshot, TokenRatios};
use crate::proxy::Core;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::oneshot;
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
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Replicas asked at once.
const ASK_AT_ONCE: usize = 16;
/// Threads that may block: what a round uses, and what rounds cut short leave waiting for a timeout.
pub(super) const THREADS_MAX: usize = 4 * ASK_AT_ONCE;
/// Models believed of one replica, and bytes read to learn them.
const MODELS_MAX: usize = 1024;
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Loads the configuration anew.
pub type Reload = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// The single writer of the fleet.
pub(super) struct Control {
    core: Arc<Core>,
    registry: Mutex<Registry>,
    discovered: Mutex<HashMap<String, Discovered>>,
    reload: Option<Reload>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("discovered", &self.discovered).finish_non_exhaustive()
    }
}

impl Control {
    /// The control of `core`, whose snapshot `registry` built.
    #[must_use]
    pub(super) fn new(core: Arc<Core>, registry: Registry, reload: Option<Reload>) -> Self {
        Self { core, registry: Mutex::new(registry), discovered: Mutex::default(), reload }
    }

    /// What all share.
    pub(super) fn core(&self) -> Arc<Core> {
        Arc::clone(&self.core)
    }

    /// Runs until `stop` is sent or dropped.
    pub(super) async fn run(self: Arc<Self>, mut stop: oneshot::Receiver<()>) {
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
        refresh.reset();
        // Whoever has not answered by then is asked again later, and holds nobody up.
        let first = tokio::time::sleep(ASK_FIRST);
        tokio::pin!(first);
        let mut round = Round(None);
        loop {
            tokio::select! {
                _ = &mut stop => return,
                _ = hangup.recv(), if self.reload.is_some() => {
                    self.reload();
                    // Those that are new are not to wait until the old have been asked.
                    round = Round(None);
                    unknown.reset_immediately();
                }
                () = round.over(), if round.is_on() => {
                    self.take_up();
                    self.core.asked.store(true, Relaxed);
                }
                () = &mut first, if !self.core.asked.load(Relaxed) => {
                    self.take_up();
                    self.core.asked.store(true, Relaxed);
                }
                _ = take_up.tick(), if round.is_on() => self.take_up(),
                _ = refresh.tick(), if !round.is_on() => round = Round::start(&self, true),
                _ = unknown.tick(), if !round.is_on() => round = Round::start(&self, false),
            }
        }
    }

    /// Reloads the configuration. A bad one changes nothing, loudly.
    pub(super) fn reload(&self) {
        let Some(reload) = &self.reload else { return };
        let applied = reload().and_then(|config| self.apply(config));
        match applied {
            Ok(()) => {
                self.core.metrics.reloads.inc();
                self.core.reload_error.store(Arc::new(None));
            }
            Err(error) => {
                self.core.metrics.reload_failures.inc();
                tracing::error!(error, "the new configuration is refused; the old one stays");
                self.core.reload_error.store(Arc::new(Some(error)));
            }
        }
    }

    fn apply(&self, config: Config) -> Result<(), String> {
        let before = self.core.snapshot.load_full();
        let changes = config::diff(&before.config, &config);
        self.rebuild(config)?;
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

    /// Builds the snapshot for `config` and what is known of the replicas, and swaps it in.
    fn rebuild(&self, config: Config) -> Result<(), String> {
        let before = self.core.snapshot.load_full();
        let mut registry = self.registry.lock();
        let mut discovered = self.discovered.lock();
        let idle = |slot| self.core.shared.load.in_flight(slot) == 0;
        let (fleet, change) =
            registry.rebuild(&config.replicas, &config.models, &discovered, idle).map_err(|full| full.to_string())?;
        // What was said of itself by one that left, or is elsewhere now, is no longer true.
        let joined: HashSet<_> = change.joined.iter().collect();
        let stayed: HashSet<&str> = fleet
            .replicas
            .iter()
            .filter(|replica| !joined.contains(&replica.slot))
            .map(|replica| replica.config.id.as_str())
            .collect();
        discovered.retain(|id, _| stayed.contains(id.as_str()));
        self.swap(config, fleet, &change, &before.ratios);
        Ok(())
    }

    fn swap(&self, config: Config, fleet: Fleet, change: &Membership, ratios: &TokenRatios) {
        let snapshot = Arc::new(Snapshot::new(config, fleet, ratios));
        let now = self.core.clock.now();
        self.core.shared.apply(change, &snapshot, now);
        check::welcome(&self.core.shared, change, &snapshot.config, Arrival::Later, now);
        self.core.snapshot.store(snapshot);
    }

    /// Rebuilds the snapshot if replicas have said what it does not show.
    fn take_up(&self) {
        let snapshot = self.core.snapshot.load_full();
        if snapshot.fleet.is_outdated(&self.discovered.lock())
            && let Err(error) = self.rebuild(snapshot.config.clone())
        {
            tracing::error!(error, "cannot take up what replicas said");
        }
    }

    /// Resolves names and asks replicas what they are and serve: of all, or only of those not known yet. A name that
    /// does not resolve keeps its last address.
    async fn ask_replicas(self: Arc<Self>, all: bool) {
        let replicas = self.core.snapshot.load().fleet.replicas.clone();
        let mut waiting = replicas.into_iter().filter_map(|replica| {
            let look_up = all || replica.address().is_none();
            (look_up || !self.discovered.lock().contains_key(&replica.config.id)).then_some((replica, look_up))
        });
        let mut asked = JoinSet::new();
        loop {
            while asked.len() < ASK_AT_ONCE
                && let Some((replica, look_up)) = waiting.next()
            {
                asked.spawn_blocking(move || {
                    let said = find_and_ask(&replica, look_up)?;
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
        let id = &replica.config.id;
        let mut discovered = self.discovered.lock();
        if discovered.get(id) != Some(&said) {
            tracing::info!(replica = id, models = ?said.models, engine = said.engine.as_str(), slots = said.slots, "replica says what it is");
            discovered.insert(id.clone(), said);
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

/// What `replica` says of itself, after its name was looked up if `look_up`.
fn find_and_ask(replica: &Replica, look_up: bool) -> Option<Discovered> {
    if look_up && let Some(address) = self::look_up(&replica.authority) {
        replica.set_address(address);
    }
    ask(replica.address()?)
}

fn look_up(authority: &str) -> Option<SocketAddr> {
    let found: Vec<_> = authority.to_socket_addrs().ok()?.collect();
    let v4 = found.iter().find(|address| matches!(address.ip(), IpAddr::V4(_)));
    v4.or_else(|| found.first()).copied()
}

/// `GET /v1/models`, and of llama.cpp `GET /props`; `None` while there is no answer.
fn ask(address: SocketAddr) -> Option<Discovered> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(ASK_TIMEOUT)).build().into();
    let get = |path: &str| -> Option<Value> {
        let mut answer = agent.get(format!("http://{address}{path}")).call().ok()?;
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().ok()?;
        serde_json::from_slice(&body).ok()
    };
    let listed = get("/v1/models")?;
    let listed = listed.get("data")?.as_array()?;
    let mut models: Vec<String> =
        listed.iter().filter_map(|model| Some(model.get("id")?.as_str()?.to_owned())).take(MODELS_MAX).collect();
    models.sort();
    models.dedup();
    let is_llama = listed.iter().any(|model| model.get("owned_by").and_then(Value::as_str) == Some("llamacpp"));
    if !is_llama {
        return Some(Discovered { models, ..Discovered::default() });
    }
    let slots = get("/props").and_then(|props| props.get("total_slots")?.as_u64()?.try_into().ok());
    Some(Discovered { models, engine: Engine::LlamaCpp, slots: slots.filter(|slots| *slots > 0), kv_tokens: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use tokio::sync::Notify;

    fn control(yaml: &str, reload: Option<Reload>) -> Arc<Control> {
        let (core, registry) = crate::gateway::build(config::parse(yaml).unwrap(), 1).unwrap();
        Arc::new(Control::new(core, registry, reload))
    }

    fn said(model: &str) -> Discovered {
        Discovered { models: vec![model.to_owned()], ..Discovered::default() }
    }

    const ONE: &str = "{index: {memory: 16MiB}, replicas: [{id: a, url: 'http://127.0.0.1:1'}]}";

    #[test]
    fn what_a_replica_said_is_taken_up_whatever_became_of_the_round() {
        let control = control(ONE, None);
        let replica = Arc::clone(&control.core.snapshot.load().fleet.replicas[0]);
        assert_eq!(replica.address(), "127.0.0.1:1".parse().ok(), "known before the first request");
        control.note(&replica, said("m"));
        // The round ends here, and so may another before anybody looks.
        control.note(&replica, said("m"));
        control.take_up();
        let snapshot = control.core.snapshot.load_full();
        assert_eq!(snapshot.fleet.pools[0].model, "m");
        control.take_up();
        assert!(Arc::ptr_eq(&snapshot, &control.core.snapshot.load()), "no news, no rebuild");
    }

    #[test]
    fn a_replica_that_moved_is_not_believed_what_it_said_elsewhere() {
        let control = control(ONE, None);
        let before = Arc::clone(&control.core.snapshot.load().fleet.replicas[0]);
        control.note(&before, said("m"));
        control.take_up();
        control.apply(config::parse(&ONE.replace(":1'", ":2'")).unwrap()).unwrap();
        assert!(control.discovered.lock().is_empty());
        // An answer to a question asked before the reload.
        control.note(&before, said("m"));
        control.take_up();
        assert_eq!(control.core.snapshot.load().fleet.replicas[0].models, None);
    }

    #[test]
    fn reload_and_stop_are_served_while_replicas_do_not_answer() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let yaml = ONE.replace("127.0.0.1:1", &silent.local_addr().unwrap().to_string());
        let reloaded = Arc::new(Notify::new());
        let (told, again) = (Arc::clone(&reloaded), config::parse(&yaml).unwrap());
        let control = control(
            &yaml,
            Some(Box::new(move || {
                told.notify_one();
                Ok(again.clone())
            })),
        );
        let soon = ASK_FIRST / 2;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (stop, stopped) = oneshot::channel();
            let running = tokio::spawn(Arc::clone(&control).run(stopped));
            let asked = tokio::task::spawn_blocking(move || silent.accept().map(|asked| (asked, silent)));
            let _open = asked.await.unwrap().unwrap();
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
            tokio::time::timeout(soon, reloaded.notified()).await.expect("the reload waits for nobody");
            stop.send(()).unwrap();
            tokio::time::timeout(soon, running).await.expect("nor does the stop").unwrap();
        });
        runtime.shutdown_background();
    }
}
