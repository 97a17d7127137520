//! The process: binds, builds the state that all shards share ([`Core`]), and runs one shard a core, the admin pages, and
//! a control thread that reloads the configuration and asks replicas what they are.

mod check;
mod control;
mod ingest;
mod listen;
mod scrape;

pub use self::control::Reload;
pub use self::ingest::IngestError;
pub use self::listen::TooManySockets;

use self::control::{Control, Inbox};
use self::ingest::{IngestThreads, Opening};
use self::listen::{Endpoint, OneThread};
use self::scrape::ScrapeThread;
use crate::admin::Admin;
use crate::clock::Clock;
use crate::config::Config;
use crate::fleet::Registry;
use crate::health::Arrival;
use crate::id::ReplicaSlot;
use crate::learn::Rates;
use crate::load::ring;
use crate::pipeline::{PoolTraits, Shared, SharedConfig, Snapshot};
use crate::proxy::{Core, Shard};
use async_trait::async_trait;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{
    ExecutionPhase, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, UnixShutdownSignalWatch,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{broadcast, oneshot};

/// Once nothing is in flight, how long idle client connections keep a stopping process.
const IDLE_CONNECTIONS_AT_STOP: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
/// After an upgrade, how long those that register themselves have to do so once more, before requests are taken.
const REGISTER_AGAIN: Duration = Duration::from_millis(1500);
/// Room for replicas that join later.
const SLOTS_SPARE: usize = 64;
/// Room for all replicas, when they come from elsewhere than the configuration.
const SLOTS_DISCOVERED: usize = 1024;

/// Load reports that wait for one reader: what 1,000 replicas send in 40 ms. Readers are woken at a quarter.
const REPORTS_MAX: usize = 4096;

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// More listening sockets than a binary upgrade can hand over.
    #[error(transparent)]
    Sockets(#[from] TooManySockets),
    /// Memory for the index, or a thread, cannot be had.
    #[error("cannot allocate what the gateway needs: {0}")]
    Resources(#[from] std::io::Error),
    /// Beacons cannot be received.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// More replicas than fit.
    #[error(transparent)]
    Fleet(#[from] crate::fleet::FleetFull),
}

/// How a gateway is run.
#[derive(Default)]
pub struct RunOptions {
    /// Take the listening sockets over from the process before (binary upgrade).
    pub upgrade: bool,
    /// Reload on SIGHUP with this.
    pub reload: Option<Reload>,
    /// Stop on SIGINT (at once), SIGTERM (gracefully) and SIGQUIT (handing sockets over). Otherwise only by
    /// [`Gateway::stop`].
    pub signals: bool,
}

impl std::fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunOptions")
            .field("upgrade", &self.upgrade)
            .field("signals", &self.signals)
            .finish_non_exhaustive()
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    core: Arc<Core>,
    listen: SocketAddr,
    admin: Option<SocketAddr>,
    server: Option<JoinHandle<()>>,
    control: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    ingest: Option<(IngestThreads, Option<ScrapeThread>)>,
    phases: broadcast::Receiver<ExecutionPhase>,
    stop: Option<oneshot::Sender<()>>,
}

impl Gateway {
    /// Starts a gateway that stops only when told to: for embedding.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: Config) -> Result<Self, StartError> {
        Self::run(config, RunOptions::default())
    }

    /// Starts a gateway.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn run(config: Config, options: RunOptions) -> Result<Self, StartError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = config.shards.map_or(cores, usize::from).max(1);
        let shards = listen::shards_that_fit(wanted, config.listen.len(), config.admin.is_some())?;
        if shards < wanted {
            let most = listen::SOCKETS_MAX;
            tracing::warn!(
                wanted,
                shards,
                most,
                "fewer shards: an upgrade hands over no more listening sockets than that"
            );
        }
        let (core, registry) = build(config, shards)?;
        let snapshot = core.snapshot.load_full();
        let mut server = Server::new_with_opt_and_conf(
            Opt { upgrade: options.upgrade, ..Opt::default() },
            server_conf(&snapshot.config),
        );
        server.bootstrap();
        let mut endpoints: Vec<Vec<Endpoint>> = (0..shards).map(|_| Vec::new()).collect();
        let mut listen = None;
        for &address in &snapshot.config.listen {
            let (bound, listeners) = bind(address, shards, options.upgrade)?;
            listen.get_or_insert(bound);
            for (shard, listener) in listeners.into_iter().enumerate() {
                let key = listen::key(address, &shard.to_string());
                endpoints[shard].push(Endpoint { key, address: bound, listener });
            }
        }
        let beacons = &snapshot.config.beacons;
        let readers = shards + usize::from(snapshot.config.admin.is_some());
        let (publishers, inboxes) = ring::rings(ingest::threads(beacons) + 1, readers, REPORTS_MAX);
        let mut inboxes = inboxes.into_iter();
        for ((index, endpoints), inbox) in endpoints.into_iter().enumerate().zip(&mut inboxes) {
            let shard = Shard::new(&core, index, shards, Arc::clone(&core.rings[index]), inbox);
            let pin = (shards == cores && shards > 1).then_some(index);
            let hearing = shard.hearing();
            server.add_service(OneThread::new(format!("shard-{index}"), shard, endpoints, pin).beside(hearing));
        }
        let mut admin = None;
        if let Some((address, inbox)) = snapshot.config.admin.zip(inboxes.next()) {
            let (bound, mut listeners) = bind(address, 1, options.upgrade)?;
            admin = Some(bound);
            let endpoint =
                Endpoint { key: listen::key(address, "admin"), address: bound, listener: listeners.pop().flatten() };
            let pages = Admin::new(&core, inbox);
            let hearing = pages.hearing();
            server.add_service(OneThread::new("admin".to_owned(), pages, vec![endpoint], None).beside(hearing));
        }
        let (control, inbox) = Control::new(Arc::clone(&core), registry, options.reload);
        let (stop, stopped) = oneshot::channel();
        let watch = Watch { core: Arc::clone(&core), stopped: Some(stopped).into(), signals: options.signals };
        let phases = server.watch_execution_phase();
        let news = control.news();
        core.plane.keys.store(Arc::new(ingest::read_keys(beacons)?));
        let control = spawn_control(Arc::new(control), inbox)?;
        // The control thread has told by now who speaks for whom.
        let opening = if options.upgrade { Opening::AfterThePrevious } else { Opening::AtOnce };
        let mut publishers = publishers.into_iter();
        let ingest = IngestThreads::start(&core, beacons, opening, &mut publishers, &news)?;
        let scrape = publishers.next().map(|publisher| ScrapeThread::start(&core, publisher)).transpose()?;
        let ingest = (ingest, scrape);
        if options.upgrade && snapshot.config.discovery.beacons {
            await_registrations(&core.clock);
        }
        let server = std::thread::Builder::new()
            .name("server".to_owned())
            .spawn(move || server.run(RunArgs { shutdown_signal: Box::new(watch) }))?;
        let listen = listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let (server, control, ingest, stop) = (Some(server), Some(control), Some(ingest), Some(stop));
        Ok(Self { core, listen, admin, server, control, ingest, phases, stop })
    }

    /// Where clients connect.
    #[must_use]
    pub const fn listen_addr(&self) -> SocketAddr {
        self.listen
    }

    /// Where the admin pages are.
    #[must_use]
    pub const fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// The shared state, to look at.
    #[must_use]
    pub const fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Blocks until the gateway has been told to stop and has: as soon as nothing is in flight, or when the drain time
    /// is over.
    pub fn wait(mut self) {
        self.wait_until_drained();
        // Pingora's thread sleeps through the whole grace period: nothing is left for it to do.
        drop(self.server.take());
    }

    fn wait_until_drained(&mut self) {
        let mut draining_since = None;
        loop {
            if self.server.as_ref().is_none_or(JoinHandle::is_finished) {
                return;
            }
            while let Ok(phase) = self.phases.try_recv() {
                if matches!(phase, ExecutionPhase::ShutdownGracePeriod) {
                    draining_since = Some(self.core.clock.now());
                }
            }
            if let Some(since) = draining_since {
                let (connections, requests) = self.core.open();
                let idle_long = self.core.clock.now().since(since) >= IDLE_CONNECTIONS_AT_STOP;
                if connections == 0 || (requests == 0 && idle_long) {
                    tracing::info!(connections, "drained");
                    return;
                }
            }
            std::thread::park_timeout(POLL);
        }
    }

    /// Stops at once: open requests are cut off. So does dropping it.
    pub fn stop(self) {
        drop(self);
    }

    fn stop_all(&mut self) {
        // A receiver that is gone has stopped already; a thread that panicked has too.
        if let Some(stop) = self.stop.take() {
            let _gone = stop.send(());
        }
        drop(self.ingest.take());
        if let Some((stop, thread)) = self.control.take() {
            let _gone = stop.send(());
            let _panicked = thread.join();
        }
        if let Some(server) = self.server.take() {
            let _panicked = server.join();
        }
    }
}

/// Replicas that register themselves say where they are once a second. The process before serves meanwhile.
fn await_registrations(clock: &Clock) {
    let started = clock.now();
    while clock.now().since(started) < REGISTER_AGAIN {
        std::thread::park_timeout(POLL);
    }
}

/// Builds the state that shards share.
fn build(config: Config, shards: usize) -> Result<(Arc<Core>, Registry), StartError> {
    let slots_max = slots_max(&config);
    let mut hash_key = [0; 32];
    getrandom::fill(&mut hash_key).map_err(std::io::Error::other)?;
    let shared = Shared::new(&SharedConfig {
        slots_max,
        index_bytes: config.index.memory_mib as usize * (1 << 20),
        hash_key,
        prior: Rates::prior(&config.policy),
    })?;
    // Before the first request: the first touch of a page is a hundred times the cost of a decision.
    shared.index.populate();
    let mut registry = Registry::new(slots_max);
    let (fleet, change) =
        registry.rebuild(&config.replicas, &config.models, &std::collections::HashMap::new(), |_| true)?;
    let snapshot = Snapshot::new(config, fleet, &PoolTraits::default());
    let clock = Clock::new();
    let now = clock.now();
    shared.apply(&change, &snapshot, now);
    check::welcome(&shared, &change, &snapshot.config, Arrival::AtStart, now);
    let core = Core::new(Arc::new(shared), snapshot, slots_max, shards, clock);
    Ok((Arc::new(core), registry))
}

/// Cells in every column: for the replicas that are configured, those that join later, and those that leave meanwhile.
fn slots_max(config: &Config) -> usize {
    let configured = config.replicas.len() * 2 + SLOTS_SPARE;
    let wanted = if config.discovery.is_on() { configured.max(SLOTS_DISCOVERED) } else { configured };
    wanted.min(ReplicaSlot::LIMIT)
}

type Bound = (SocketAddr, Vec<Option<std::net::TcpListener>>);

fn bind(address: SocketAddr, count: usize, upgrade: bool) -> Result<Bound, StartError> {
    if upgrade {
        return Ok((address, (0..count).map(|_| None).collect()));
    }
    let (bound, listeners) = listen::bind(address, count).map_err(|cause| StartError::Listen { address, cause })?;
    Ok((bound, listeners.into_iter().map(Some).collect()))
}

fn server_conf(config: &Config) -> ServerConf {
    let socket = config.process.upgrade_socket.clone().unwrap_or_else(|| {
        let port = config.listen.first().map_or(0, SocketAddr::port);
        std::env::temp_dir().join(format!("emberlane-{port}.upgrade.sock"))
    });
    ServerConf {
        threads: 1,
        work_stealing: false,
        grace_period_seconds: Some(config.process.drain.as_secs().max(1)),
        graceful_shutdown_timeout_seconds: Some(1),
        upgrade_sock: socket.to_string_lossy().into_owned(),
        ..ServerConf::default()
    }
}

/// Returns once the sources of replicas have been asked, or had the time to answer.
fn spawn_control(control: Arc<Control>, mut inbox: Inbox) -> std::io::Result<(oneshot::Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(control::THREADS_MAX)
        .build()?;
    runtime.block_on(control.find_first(&mut inbox));
    let checker = check::Checker::new(control.core());
    let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        runtime.spawn(checker.run());
        runtime.block_on(control.run(inbox, stopped));
        runtime.shutdown_background();
    })?;
    Ok((stop, thread))
}

/// Tells Pingora when to stop.
struct Watch {
    core: Arc<Core>,
    stopped: parking_lot::Mutex<Option<oneshot::Receiver<()>>>,
    signals: bool,
}

impl Watch {
    async fn told(&self) -> ShutdownSignal {
        let stopped = self.stopped.lock().take();
        match stopped {
            // Told, or the gateway was dropped: either way there is nobody left to serve for.
            Some(stopped) => {
                let _told = stopped.await;
                ShutdownSignal::FastShutdown
            }
            None => std::future::pending().await,
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Watch {
    async fn recv(&self) -> ShutdownSignal {
        let signal = if self.signals {
            let unix = UnixShutdownSignalWatch;
            tokio::select! {
                signal = unix.recv() => signal,
                signal = self.told() => signal,
            }
        } else {
            self.told().await
        };
        self.core.stopping.store(true, Relaxed);
        tracing::info!(?signal, "stopping");
        signal
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop_all();
    }
}
