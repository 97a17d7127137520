//! The agent: the sidecar beside one engine. It looks at the engine's metrics page some twenty times a second and tells
//! every gateway what it saw, in beacons; it listens to the engine's KV events where there are some.
//!
//! One thread looks at the page and sends; it blocks where it waits, so that a look takes four system calls. Another asks
//! what the engine serves, a third looks gateways' names up if there are any, and the first of all waits for signals and
//! listens to KV events (`kv`). What they know is in one place, behind one lock that nobody holds while waiting. Each
//! successful look sends one beacon; nothing is ever sent twice, so that what gateways hear is as old as it looks.
//!
//! | the engine | beacons |
//! |------------|---------|
//! | answers | one a look, ready unless it sleeps |
//! | does not answer, or with a status of 500 and up | not ready, at the configured rate; it is looked at at least every second |
//! | answers with what cannot be read, or 404 | none: its load is not known, and gateways are to say that it is stale. The log is loud |
//! | - (SIGTERM) | three that say it is draining, then the agent ends |

mod compose;
pub mod config;
mod http;
mod kv;
mod link;
mod once;
mod restart;
mod scrape;
mod send;
mod status;
mod watcher;

use std::io;
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use self::compose::{Composer, Times};
use self::config::AgentConfig;
use self::http::HttpFault;
use self::kv::KvNews;
pub use self::once::once;
use self::restart::{Incarnation, Sight, started_from_uptime};
use self::scrape::{Asker, Look, LookFault, Pace, Scraper, Served, is_stopped, uptime_us};
use self::send::{MulticastRoute, Sent, Targets};
use self::status::{Complaint, Minute};
pub(crate) use self::watcher::{Seen, Unseen, Watcher};
use crate::clock::Clock;
use crate::engine::{Engine, Reading};
use crate::wire::beacon::{Facts, Load, SenderId};
use crate::wire::key::{Keys, KeysFault};

/// Events that wait to be handled; who tells more waits.
const EVENTS_MAX: usize = 64;
/// Between two look-ups of gateways' names.
const LOOK_UP_EVERY: Duration = Duration::from_secs(30);
/// Between two lines that say how things go.
const STATUS_EVERY: Duration = Duration::from_secs(60);
/// Beacons that say goodbye, and between them.
const GOODBYES: u32 = 3;
/// See [`GOODBYES`].
const GOODBYE_GAP: Duration = Duration::from_millis(20);

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The key file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key file is wrong.
    #[error("{}: {source}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KeysFault,
    },
    /// The system refused something every program needs.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    /// The engine's page, for `--once`.
    #[error("{url}: {why}")]
    Look {
        /// The page.
        url: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What is told of KV events.
#[derive(Debug)]
enum Event {
    Heard(KvNews),
    Joined { endpoint: String },
    Gone { endpoint: String, why: String },
}

/// The agent as its threads share it.
type Shared = Mutex<Agent>;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start: see [`AgentError`]. Once it runs, nothing ends it but a signal.
pub fn run(config: AgentConfig) -> Result<(), AgentError> {
    let keys = read_keys(config.key_file.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
    let endpoints = config.kv_events.clone();
    let agent = Agent::new(config, keys);
    agent.announce();
    runtime.block_on(async {
        let signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        };
        let threads = start_threads(agent)?;
        let agent = &threads.agent;
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        for endpoint in endpoints {
            tokio::spawn(kv::listen(endpoint, sender.clone()));
        }
        drop(sender);
        wait(agent, events, signals).await;
        agent.lock().state = State::Leaving;
        tracing::info!("draining: told the gateways, and out");
        for _ in 0..GOODBYES {
            agent.lock().say_goodbye();
            tokio::time::sleep(GOODBYE_GAP).await;
        }
        Ok(())
    })
}

/// What runs beside the first thread. The threads that look, and look names up, end when this is dropped, the one that
/// asks with the process. None is waited for: one may be in the middle of a look at an engine that does not answer.
struct Threads {
    agent: Arc<Shared>,
    _stops: [SyncSender<()>; 2],
}

/// What a thread does.
type Work = Box<dyn FnOnce(&Shared) + Send>;

fn start_threads(mut agent: Agent) -> io::Result<Threads> {
    let (ask, asked) = sync_channel(1);
    let (stop, stopped) = sync_channel(1);
    agent.ask_again = Some(ask);
    let (period, clock, names) = (agent.config.period, agent.clock, agent.targets.names());
    let scraper = Scraper::new(&agent.config, clock);
    let asker = Asker::new(&agent.config.api, clock);
    let agent = Arc::new(Mutex::new(agent));
    let (stop_names, names_stopped) = sync_channel(1);
    let spawn = |name: &str, work: Work| {
        let agent = Arc::clone(&agent);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&agent)).map(drop)
    };
    spawn("look", Box::new(move |agent| scraper.run(period, agent, &stopped)))?;
    spawn("ask", Box::new(move |agent| asker.run(agent, &asked)))?;
    if !names.is_empty() {
        spawn("names", Box::new(move |agent| look_up(&names, agent, &names_stopped)))?;
    }
    Ok(Threads { agent, _stops: [stop, stop_names] })
}

/// Waits for a signal to end; handles all else that comes in the meantime.
async fn wait(agent: &Shared, mut events: mpsc::Receiver<Event>, mut signals: Signals) {
    let mut status = tokio::time::interval(STATUS_EVERY);
    loop {
        tokio::select! {
            Some(event) = events.recv() => agent.lock().handle(event),
            _ = status.tick() => agent.lock().tell_status(),
            _ = signals.hang_up.recv() => agent.lock().reload_keys(),
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
        }
    }
}

fn read_keys(path: Option<&Path>) -> Result<Keys, AgentError> {
    let Some(path) = path else { return Ok(Keys::default()) };
    let text =
        std::fs::read_to_string(path).map_err(|source| AgentError::Unreadable { path: path.to_owned(), source })?;
    Keys::parse(&text).map_err(|source| AgentError::Keys { path: path.to_owned(), source })
}

#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

/// How the engine answered last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has not been looked at.
    Unseen,
    /// Well.
    Answers,
    /// Not at all.
    Down,
    /// With something else than its load.
    Unreadable,
    /// Nobody asks any more.
    Leaving,
}

/// What KV events came to.
#[derive(Clone, Copy, Debug, Default)]
struct KvTotals {
    /// Since the engine started, or the agent if that was later.
    evicted: u64,
    /// Since the agent started.
    resets: u32,
    lost: u64,
    broken: u64,
}

#[derive(Debug, Default)]
struct Complaints {
    look: Complaint,
    send: Complaint,
    names: Complaint,
    events: Complaint,
    lost: Complaint,
}

#[derive(Debug)]
struct Agent {
    config: AgentConfig,
    keys: Keys,
    clock: Clock,
    composer: Composer,
    incarnation: Incarnation,
    mark: Mark,
    targets: Targets,
    pace: Pace,
    state: State,
    reading: Option<Reading>,
    served: Served,
    kv: KvTotals,
    minute: Minute,
    complaints: Complaints,
    datagram: Vec<u8>,
    /// Tells the asker to ask at once.
    ask_again: Option<SyncSender<()>>,
}

impl Agent {
    fn new(config: AgentConfig, keys: Keys) -> Self {
        let unix_us = Clock::unix_ns() / 1_000;
        let route = MulticastRoute { interface: config.interface.clone(), ttl: config.ttl };
        let mut agent = Self {
            keys,
            clock: Clock::new(),
            composer: Composer::new(SenderId::of(&config.sender_text()), unix_us),
            incarnation: Incarnation::new(unix_us),
            mark: None,
            targets: Targets::new(config.gateways.clone(), route),
            pace: Pace::new(config.period),
            state: State::Unseen,
            reading: None,
            served: Served::default(),
            kv: KvTotals::default(),
            minute: Minute::default(),
            complaints: Complaints::default(),
            datagram: Vec::new(),
            ask_again: None,
            config,
        };
        agent.composer.set_facts(agent.facts());
        agent
    }

    /// Says what it does.
    fn announce(&self) {
        let gateways: Vec<String> = self.config.gateways.iter().map(ToString::to_string).collect();
        tracing::info!(
            metrics = %self.config.metrics,
            replica = %self.config.replica_url,
            id = self.config.sender_text(),
            gateways = gateways.join(","),
            period_ms = self.config.period.as_secs_f64() * 1e3,
            signed = !self.keys.is_empty(),
            "agent"
        );
        if self.keys.is_empty() && (self.targets.is_remote() || self.targets.has_names()) {
            tracing::warn!("beacons are not signed: only gateways on this host take them; give a key_file");
        }
    }

    /// Which engine it is, once it has been seen.
    fn engine(&self) -> Option<Engine> {
        self.reading.as_ref().map(|reading| reading.engine)
    }

    fn serves(&mut self, served: Served) {
        if served != self.served {
            tracing::info!(models = served.models.join(","), slots = served.slots, "the engine serves");
            self.served = served;
            self.composer.set_facts(self.facts());
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Heard(news) => self.hear(news),
            Event::Joined { endpoint } => {
                self.complaints.events.settle();
                tracing::info!(endpoint, "listening to KV events");
            }
            Event::Gone { endpoint, why } => {
                if let Some(times) = self.complaints.events.raise(&why, self.clock.now()) {
                    tracing::warn!(endpoint, why, times, "no KV events: evictions are not seen");
                }
            }
        }
    }

    /// What a gateway's name stands for.
    fn found(&mut self, gateway: usize, name: &str, addresses: io::Result<std::vec::IntoIter<std::net::SocketAddr>>) {
        match addresses {
            Ok(addresses) => {
                self.complaints.names.settle();
                if self.targets.set(gateway, addresses.collect()) {
                    let all: Vec<String> = self.targets.addresses().map(|address| address.to_string()).collect();
                    tracing::info!(addresses = all.join(","), "gateways");
                }
            }
            Err(error) => {
                if let Some(times) = self.complaints.names.raise(name, self.clock.now()) {
                    tracing::warn!(gateway = name, %error, times, "cannot look the gateway up; its last addresses stay");
                }
            }
        }
    }

    fn looked(&mut self, look: Look) {
        if self.state == State::Leaving {
            return;
        }
        let unix_us = Clock::unix_ns() / 1_000;
        let sight = sight(&look, unix_us, &mut self.mark);
        let restarted = self.incarnation.see(sight, unix_us);
        let is_first = self.reading.is_none();
        if is_first || restarted {
            self.tell_found(&look, restarted);
            // One that is told already needs no second word.
            let _told = self.ask_again.as_ref().map(|asker| asker.try_send(()));
        }
        if restarted {
            self.kv.evicted = 0;
            self.composer.repeat_facts();
        } else if self.complaints.look.settle() && !is_first {
            tracing::info!("the engine answers again");
        }
        self.reading = Some(look.reading);
        self.state = State::Answers;
        self.composer.set_facts(self.facts());
        self.beacon();
    }

    fn not_looked(&mut self, fault: &LookFault) {
        if self.state == State::Leaving {
            return;
        }
        let is_settings = fault.is_settings();
        if matches!(fault, LookFault::Http(HttpFault::Refused)) {
            self.incarnation.gone();
        }
        if let Some(times) = self.complaints.look.raise(&fault.to_string(), self.clock.now()) {
            let metrics = self.config.metrics.as_str();
            if is_settings {
                tracing::error!(metrics, error = %fault, times, "the load cannot be read: no beacons are sent");
            } else {
                tracing::warn!(metrics, error = %fault, times, "the engine does not answer: it is said not to be ready");
            }
        }
        self.state = if is_settings { State::Unreadable } else { State::Down };
        self.tell_not_ready();
    }

    /// Says that the engine is not ready, if it is so.
    fn tell_not_ready(&mut self) {
        if self.state == State::Down {
            self.beacon();
        }
    }

    fn say_goodbye(&mut self) {
        self.send(Load { draining: true, ..self.load() });
    }

    fn hear(&mut self, news: KvNews) {
        self.kv.evicted = self.kv.evicted.saturating_add(news.batch.evicted);
        self.kv.resets = self.kv.resets.wrapping_add(news.batch.cleared);
        self.kv.lost = self.kv.lost.saturating_add(news.lost);
        self.kv.broken = self.kv.broken.saturating_add(u64::from(news.broken));
        if (news.lost > 0 || news.broken > 0)
            && let Some(times) = self.complaints.lost.raise("lost", self.clock.now())
        {
            let (lost, broken) = (self.kv.lost, self.kv.broken);
            tracing::warn!(lost, broken, times, "KV events were lost: evictions are undercounted");
        }
        if news.batch.cleared > 0 {
            tracing::info!(resets = self.kv.resets, "the engine has emptied its cache");
        }
    }

    /// The load to tell now.
    fn load(&self) -> Load {
        let load = match (&self.reading, self.state) {
            (Some(reading), State::Answers | State::Leaving) => reading.load(),
            _ => Load::default(),
        };
        let heard = (!self.config.kv_events.is_empty()).then_some(self.kv.evicted);
        Load { cache_resets: self.kv.resets, blocks_evicted: load.blocks_evicted.or(heard), ..load }
    }

    /// The facts to tell from now on.
    fn facts(&self) -> Facts {
        facts(&self.config, self.reading.as_ref(), &self.served)
    }

    fn beacon(&mut self) {
        self.pace.beat(self.clock.now());
        self.send(self.load());
    }

    fn send(&mut self, load: Load) {
        let times = Times {
            now: self.clock.now(),
            unix_ns: Clock::unix_ns(),
            incarnation: self.incarnation.current(),
            period_us: self.pace.period_us(),
        };
        let message = self.composer.next(load, times);
        if let Err(oversize) = message.encode(self.keys.signing(), &mut self.datagram) {
            // Facts are cut to fit when they are set.
            tracing::error!(%oversize, "a beacon was left out");
            return;
        }
        let Sent { datagrams, failure } = self.targets.send(&self.datagram);
        self.minute.beacons += u64::from(datagrams);
        match failure {
            None => {
                self.complaints.send.settle();
            }
            Some((address, error)) => {
                if let Some(times) = self.complaints.send.raise(&error.to_string(), times.now) {
                    tracing::warn!(%address, %error, times, "beacons cannot be sent");
                }
            }
        }
    }

    fn tell_found(&self, look: &Look, restarted: bool) {
        let reading = &look.reading;
        tracing::info!(
            engine = reading.engine.as_str(),
            models = reading.models.join(","),
            running = reading.running,
            waiting = reading.waiting,
            kv_blocks = reading.kv_blocks,
            kv_block_tokens = reading.kv_block_tokens,
            incarnation = self.incarnation.current(),
            lines_broken = reading.lines_broken,
            took_us = u64::try_from(look.took.as_micros()).unwrap_or(u64::MAX),
            "{}",
            if restarted { "the engine has restarted" } else { "found the engine" }
        );
    }

    fn tell_status(&mut self) {
        let load = self.load();
        let Some(rates) = self.minute.rates(&load, self.clock.now()) else { return };
        tracing::info!(
            beacons_per_s = rates.beacons,
            running = load.running,
            waiting = load.waiting,
            kv_usage = load.kv_usage,
            prefix_tokens_queried_per_s = rates.queried,
            prefix_hit_share = rates.hit_share,
            blocks_evicted_per_s = rates.evicted,
            kv_events_lost = self.kv.lost,
            "status"
        );
    }

    fn reload_keys(&mut self) {
        match read_keys(self.config.key_file.as_deref()) {
            Ok(keys) => {
                self.keys = keys;
                tracing::info!(signs = self.keys.signing().map(|key| key.id()), "keys read again");
            }
            Err(error) => tracing::error!(%error, "keys could not be read again: the old ones stay"),
        }
    }
}

/// A mark of a process, and the time it stands for, worked out once.
type Mark = Option<(u64, Option<u64>)>;

/// What a look says of the engine's start; `mark` is that of the look before.
fn sight(look: &Look, unix_us: u64, mark: &mut Mark) -> Sight {
    let reading = &look.reading;
    if look.start_mark != mark.map(|(mark, _)| mark) {
        // llama.cpp's is microseconds of the machine's monotonic clock (`ggml_time_us`); others' may be anything.
        let started = |mark| match reading.engine {
            Engine::LlamaCpp => started_from_uptime(mark, uptime_us()?, unix_us),
            Engine::Auto | Engine::Vllm | Engine::Sglang | Engine::Trtllm | Engine::Triton | Engine::Custom => None,
        };
        *mark = look.start_mark.map(|mark| (mark, started(mark)));
    }
    Sight {
        started: reading.started_unix_us,
        mark: look.start_mark,
        mark_started: mark.and_then(|(_, started)| started),
        counters: [reading.prefix_tokens_queried, reading.prefix_tokens_hit, reading.blocks_evicted],
    }
}

fn facts(config: &AgentConfig, reading: Option<&Reading>, served: &Served) -> Facts {
    let seen = reading.map(Reading::facts).unwrap_or_default();
    let configured = (config.engine != Engine::Auto).then(|| config.engine.as_str().to_owned());
    Facts {
        url: Some(format!("http://{}", http::peer(&config.replica_url))),
        engine: seen.engine.or(configured),
        slots: seen.slots.or(served.slots),
        models: if served.models.is_empty() { seen.models } else { served.models.clone() },
        adapters_loaded: seen.adapters_loaded,
        adapters_waiting: seen.adapters_waiting,
        labels: config.labels.clone(),
    }
}

/// Looks gateways' names up until `stop` is closed.
fn look_up(names: &[(usize, String)], agent: &Shared, stop: &Receiver<()>) {
    loop {
        for (gateway, name) in names {
            let addresses = name.to_socket_addrs();
            agent.lock().found(*gateway, name, addresses);
        }
        if is_stopped(stop, LOOK_UP_EVERY) {
            return;
        }
    }
}
