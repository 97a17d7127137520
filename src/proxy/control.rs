//! The control thread: the only writer of the snapshot. It reloads the configuration on SIGHUP, asks replicas what they
//! serve, and resolves their names; nothing it does holds up a request or the start.

use super::core::{Addresses, Core};
use crate::config::{self, Config};
use crate::fleet::{Discovered, Engine, Fleet, Membership, Registry};
use crate::id::ReplicaSlot;
use crate::pipeline::{Snapshot, TokenRatios};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::oneshot;

/// How often replicas that have not said what they serve are asked.
const ASK_UNKNOWN: Duration = Duration::from_secs(1);
/// How often those that have are asked again, and names resolve anew.
const REFRESH: Duration = Duration::from_secs(30);
/// How long readiness waits for the first answers.
const ASK_FIRST: Duration = Duration::from_secs(1);
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Replicas asked at once.
const ASK_AT_ONCE: usize = 16;
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

    /// Resolves the addresses that need no name service: known before the first request.
    pub(super) fn resolve_literals(&self) {
        let snapshot = self.core.snapshot.load();
        let literal = snapshot.fleet.replicas.iter().filter_map(|replica| {
            let address = replica.authority.parse::<SocketAddr>().ok()?;
            Some((replica.slot, address))
        });
        self.core.addresses.store(Arc::new(Addresses::new(literal)));
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
        let mut unknown = tokio::time::interval(ASK_UNKNOWN);
        let mut refresh = tokio::time::interval(REFRESH);
        refresh.tick().await;
        unknown.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = &mut stop => return,
                _ = hangup.recv(), if self.reload.is_some() => {
                    self.reload();
                    self.resolve().await;
                }
                _ = unknown.tick() => {
                    self.resolve_missing().await;
                    if self.core.asked.load(Relaxed) {
                        self.discover(false).await;
                    } else {
                        // Whoever has not answered by then is asked again later, and holds nobody up.
                        let _late = tokio::time::timeout(ASK_FIRST, self.discover(false)).await;
                        self.core.asked.store(true, Relaxed);
                    }
                }
                _ = refresh.tick() => {
                    self.resolve().await;
                    self.discover(true).await;
                }
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
        discovered.retain(|id, _| config.replicas.iter().any(|replica| replica.id == *id));
        let idle = |slot| self.core.shared.load.in_flight(slot) == 0;
        let (fleet, change) =
            registry.rebuild(&config.replicas, &config.models, &discovered, idle).map_err(|full| full.to_string())?;
        self.swap(config, fleet, &change, &before.ratios);
        Ok(())
    }

    fn swap(&self, config: Config, fleet: Fleet, change: &Membership, ratios: &TokenRatios) {
        let snapshot = Arc::new(Snapshot::new(config, fleet, ratios));
        self.core.shared.apply(change, &snapshot);
        let known = self.core.addresses.load();
        let addresses = snapshot.fleet.replicas.iter().filter_map(|replica| {
            let kept = known.get(replica.slot).filter(|_| !change.joined.contains(&replica.slot));
            Some((replica.slot, replica.authority.parse().ok().or(kept)?))
        });
        self.core.addresses.store(Arc::new(Addresses::new(addresses)));
        self.core.snapshot.store(snapshot);
    }

    async fn resolve_missing(&self) {
        let (snapshot, addresses) = (self.core.snapshot.load_full(), self.core.addresses.load_full());
        if snapshot.fleet.replicas.iter().any(|replica| addresses.get(replica.slot).is_none()) {
            self.resolve().await;
        }
    }

    /// Resolves every replica's name. A name that does not resolve keeps its last address.
    async fn resolve(&self) {
        let snapshot = self.core.snapshot.load_full();
        let wanted: Vec<(ReplicaSlot, String)> =
            snapshot.fleet.replicas.iter().map(|replica| (replica.slot, replica.authority.clone())).collect();
        let known = self.core.addresses.load_full();
        let resolved = tokio::task::spawn_blocking(move || {
            let one = |(slot, authority): (ReplicaSlot, String)| {
                Some((slot, look_up(&authority).or_else(|| known.get(slot))?))
            };
            wanted.into_iter().filter_map(one).collect::<Vec<_>>()
        });
        if let Ok(entries) = resolved.await {
            self.core.addresses.store(Arc::new(Addresses::new(entries)));
        }
    }

    /// Asks replicas what they are and serve; those that have said so only when `again`.
    async fn discover(&self, again: bool) {
        let snapshot = self.core.snapshot.load_full();
        let addresses = self.core.addresses.load_full();
        let known: HashSet<String> = self.discovered.lock().keys().cloned().collect();
        let asked: Vec<_> = snapshot
            .fleet
            .replicas
            .iter()
            .filter(|replica| again || !known.contains(&replica.config.id))
            .filter_map(|replica| Some((replica.config.id.clone(), addresses.get(replica.slot)?)))
            .collect();
        let mut changed = false;
        for group in asked.chunks(ASK_AT_ONCE) {
            let asking: Vec<_> = group
                .iter()
                .cloned()
                .map(|(id, address)| tokio::task::spawn_blocking(move || ask(address).map(|said| (id, said))))
                .collect();
            for answer in asking {
                if let Ok(Some((id, said))) = answer.await {
                    changed |= self.note(id, said);
                }
            }
        }
        if changed && let Err(error) = self.rebuild(self.core.snapshot.load().config.clone()) {
            tracing::error!(error, "cannot take up what replicas said");
        }
    }

    /// Takes down what a replica says; true when that is news.
    fn note(&self, id: String, said: Discovered) -> bool {
        let mut discovered = self.discovered.lock();
        let is_news = discovered.get(&id) != Some(&said);
        if is_news {
            tracing::info!(replica = id, models = ?said.models, engine = said.engine.as_str(), slots = said.slots, "replica says what it is");
            discovered.insert(id, said);
        }
        is_news
    }
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
    Some(Discovered { models, engine: Engine::LlamaCpp, slots: slots.filter(|slots| *slots > 0) })
}
