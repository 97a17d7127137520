//! The demo: two fleets of mock engines, two gateways that differ in their policy alone, one stream of traffic sent to
//! both, and a board that shows what the difference is worth.
//!
//! The gateway itself comes in as a function, so that this module needs nothing of the proxy but that it runs.

mod board;
mod client;
mod histogram;
mod traffic;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use self::board::Board;
use self::client::Client;
use self::histogram::Histogram;
use self::traffic::{Session, Traffic};
use crate::clock::Clock;
use crate::config::{Config, IndexConfig, LogConfig, PolicyConfig, PolicyName, ProcessConfig, ReplicaConfig};
use crate::mock::{MockEngine, MockEngineConfig, MockStats};

pub use self::board::FleetReport;

/// The model the demo's engines serve.
const MODEL: &str = "demo";
/// Teams with a shared prompt, for each replica.
const GROUPS_PER_REPLICA: usize = 6;
/// Most conversations open at one gateway.
const SESSIONS_LIMIT: usize = 512;

/// A gateway that serves until it is dropped.
pub trait RunningGateway: Send {
    /// Where clients connect.
    fn listen_addr(&self) -> SocketAddr;
    /// Where metrics and decisions are, if anywhere.
    fn admin_addr(&self) -> Option<SocketAddr>;
}

/// Starts a gateway, or says why it cannot.
pub type StartGateway<'f> = dyn Fn(Config) -> Result<Box<dyn RunningGateway>, String> + 'f;

/// What to run.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoOptions {
    /// Replicas behind each gateway.
    pub replicas: u16,
    /// Where the gateway with `policy` listens. The baseline takes a free port.
    pub listen: SocketAddr,
    /// Its admin listener.
    pub admin: SocketAddr,
    /// How long; `None` is until SIGINT or SIGTERM.
    pub duration: Option<Duration>,
    /// Compared with round robin.
    pub policy: PolicyName,
    /// New conversations a second, for each replica.
    pub sessions_per_s: f64,
    /// The traffic's seed.
    pub seed: u64,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self {
            replicas: 4,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            duration: Some(Duration::from_secs(20)),
            policy: PolicyName::Price,
            sessions_per_s: 1.6,
            seed: 1,
        }
    }
}

/// Why the demo could not run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// An engine could not start, or the output is closed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A gateway could not start.
    #[error("the gateway does not start: {0}; is the port taken? --listen 127.0.0.1:0 takes a free one")]
    Gateway(String),
}

/// Runs the demo to its end. Returns the fleet with the chosen policy first, then the baseline.
///
/// # Errors
/// [`DemoError`] when engines or gateways do not start or `out` cannot be written.
pub fn run(
    options: &DemoOptions,
    start: &StartGateway<'_>,
    out: &mut dyn Write,
    is_terminal: bool,
) -> Result<Vec<FleetReport>, DemoError> {
    let clock = Clock::new();
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let fleets = [
        Fleet::start(options, options.policy, options.listen, Some(options.admin), start, clock)?,
        Fleet::start(options, PolicyName::RoundRobin, free, None, start, clock)?,
    ];
    let mut board = Board::new(out, is_terminal);
    board.say(&introduction(options, &fleets))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let elapsed = runtime.block_on(drive(options, &fleets, &mut board))?;
    // Conversations cut short end here, so that what is reported stands still.
    runtime.shutdown_background();
    let reports: Vec<FleetReport> = fleets.iter().map(Fleet::report).collect();
    board.close(elapsed, &reports)?;
    board.say(&conclusion(&reports))?;
    Ok(reports)
}

/// One gateway, its engines, and what its clients measured. The gateway is dropped first.
struct Fleet {
    gateway: Box<dyn RunningGateway>,
    policy: PolicyName,
    engines: Vec<MockEngine>,
    client: Arc<Client>,
    meter: Arc<Mutex<Meter>>,
    sessions: Arc<Semaphore>,
}

struct Meter {
    answered: u64,
    failed: u64,
    ttft: Histogram,
}

impl Fleet {
    fn start(
        options: &DemoOptions,
        policy: PolicyName,
        listen: SocketAddr,
        admin: Option<SocketAddr>,
        start: &StartGateway<'_>,
        clock: Clock,
    ) -> Result<Self, DemoError> {
        let engines: Vec<MockEngine> =
            (1..=options.replicas).map(|number| MockEngine::start(engine_config(number))).collect::<io::Result<_>>()?;
        let config = gateway_config(listen, admin, policy, &engines).map_err(DemoError::Gateway)?;
        let gateway = start(config).map_err(DemoError::Gateway)?;
        let client = Arc::new(Client::new(gateway.listen_addr(), clock));
        let meter = Arc::new(Mutex::new(Meter { answered: 0, failed: 0, ttft: Histogram::new() }));
        let sessions = Arc::new(Semaphore::new(SESSIONS_LIMIT));
        Ok(Self { gateway, policy, engines, client, meter, sessions })
    }

    /// Holds the conversation in a task of its own, if not too many are open.
    fn converse(&self, tasks: &mut JoinSet<()>, session: Session) {
        let Ok(permit) = Arc::clone(&self.sessions).try_acquire_owned() else {
            self.meter.lock().failed += 1;
            return;
        };
        let (client, meter) = (Arc::clone(&self.client), Arc::clone(&self.meter));
        tasks.spawn(async move {
            converse(&client, &meter, session).await;
            drop(permit);
        });
    }

    fn report(&self) -> FleetReport {
        let stats: Vec<MockStats> = self.engines.iter().map(MockEngine::stats).collect();
        let sum = |field: fn(&MockStats) -> u64| stats.iter().map(field).sum();
        let meter = self.meter.lock();
        FleetReport {
            policy: self.policy.as_str(),
            requests: meter.answered,
            failures: meter.failed,
            prompt_tokens: sum(|stats| stats.prompt_tokens),
            cached_tokens: sum(|stats| stats.cached_tokens),
            ttft_p50: meter.ttft.quantile(0.5).unwrap_or_default(),
            ttft_p95: meter.ttft.quantile(0.95).unwrap_or_default(),
            waiting: sum(|stats| stats.waiting),
            by_replica: stats.iter().map(|stats| stats.requests).collect(),
        }
    }
}

/// One conversation, turn by turn; ends early at the first failure.
async fn converse(client: &Client, meter: &Mutex<Meter>, mut session: Session) {
    for turn in std::mem::take(&mut session.turns) {
        let body = session.say(&turn, MODEL);
        let reply = client.chat(Bytes::from(body)).await;
        {
            let mut meter = meter.lock();
            match &reply {
                Ok(reply) if reply.status == 200 => {
                    meter.answered += 1;
                    if session.is_stream {
                        meter.ttft.record(reply.ttft);
                    }
                }
                Ok(_) | Err(_) => meter.failed += 1,
            }
        }
        match reply {
            Ok(reply) if reply.status == 200 => session.hear(&reply.text),
            Ok(_) | Err(_) => return,
        }
        sleep(turn.think).await;
    }
}

/// Sends the same sessions to all fleets and draws, until the time is up or a signal comes. Returns the time it took.
async fn drive(options: &DemoOptions, fleets: &[Fleet], board: &mut Board<'_>) -> io::Result<Duration> {
    let replicas = usize::from(options.replicas);
    let rate = options.sessions_per_s * f64::from(options.replicas);
    let mut traffic = Traffic::new(options.seed, replicas * GROUPS_PER_REPLICA, rate);
    let mut tasks = JoinSet::new();
    let begin = Instant::now();
    let end = options.duration.map(|duration| begin + duration);
    let mut frames = interval(Duration::from_secs(1));
    frames.set_missed_tick_behavior(MissedTickBehavior::Skip);
    frames.tick().await; // the first one is due at once
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut session = traffic.session();
    let mut due = begin + session.gap;
    loop {
        tokio::select! {
            () = sleep_until(due) => {
                let next = traffic.session();
                due += next.gap;
                let session = std::mem::replace(&mut session, next);
                for fleet in fleets {
                    fleet.converse(&mut tasks, session.clone());
                }
            }
            Some(_ended) = tasks.join_next() => {}
            _ = frames.tick() => {
                let reports: Vec<FleetReport> = fleets.iter().map(Fleet::report).collect();
                board.draw(begin.elapsed(), &reports)?;
            }
            () = at(end) => break,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    Ok(begin.elapsed())
}

async fn at(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// A small engine: prefill is what costs, and the cache holds a third of what all teams and their chats need.
fn engine_config(number: u16) -> MockEngineConfig {
    MockEngineConfig {
        id: format!("r{number}"),
        models: vec![MODEL.to_owned()],
        slots: 16,
        kv_tokens: 24_000,
        prefill_tokens_per_s: 10_000.0,
        prefill_base: Duration::from_millis(4),
        decode_step: Duration::from_millis(6),
        decode_per_request: Duration::from_micros(500),
        ..MockEngineConfig::default()
    }
}

/// Both gateways' configuration: alike but for where they listen, their policy and their engines.
fn gateway_config(
    listen: SocketAddr,
    admin: Option<SocketAddr>,
    policy: PolicyName,
    engines: &[MockEngine],
) -> Result<Config, String> {
    let replicas = engines.iter().enumerate().map(|(at, engine)| {
        let url = url::Url::parse(&format!("http://{}", engine.addr())).map_err(|error| error.to_string())?;
        Ok(ReplicaConfig {
            models: vec![MODEL.to_owned()],
            slots: Some(16),
            kv_tokens: Some(24_000),
            ..ReplicaConfig::new(format!("r{}", at + 1), url)
        })
    });
    Ok(Config {
        listen: vec![listen],
        admin,
        shards: Some(1),
        process: ProcessConfig { drain: Duration::from_secs(1), ..ProcessConfig::default() },
        replicas: replicas.collect::<Result<_, String>>()?,
        policy: PolicyConfig { name: policy, ..PolicyConfig::default() },
        index: IndexConfig { memory_mib: 16, ..IndexConfig::default() },
        log: LogConfig { level: "warn".to_owned(), ..LogConfig::default() },
        ..Config::default()
    })
}

fn introduction(options: &DemoOptions, fleets: &[Fleet]) -> String {
    let mut text = format!(
        "emberlane demo: 2 x {} mock engines; the same traffic ({} teams with a shared prompt, growing chats, one-off \
         prompts)\ngoes to both gateways.\n",
        options.replicas,
        usize::from(options.replicas) * GROUPS_PER_REPLICA
    );
    for fleet in fleets {
        text.push_str(&format!("  {:<12} http://{}\n", fleet.policy.as_str(), fleet.gateway.listen_addr()));
    }
    if let Some(first) = fleets.first() {
        text.push_str("Meanwhile, in another terminal:\n");
        if let Some(admin) = first.gateway.admin_addr() {
            text.push_str(&format!("  curl http://{admin}/decisions\n  curl http://{admin}/metrics\n"));
        }
        text.push_str(&format!(
            "  curl http://{}/v1/chat/completions -H 'content-type: application/json' -H 'x-emberlane-explain: 1' -i \\\n\
             \x20   -d '{{\"model\":\"{MODEL}\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'\n",
            first.gateway.listen_addr()
        ));
    }
    text
}

fn conclusion(reports: &[FleetReport]) -> String {
    let verdict = match reports {
        [chosen, baseline] if chosen.ttft_p50 > Duration::ZERO => format!(
            "{} prefilled {:.0} % of the prompt tokens, {} {:.0} %; its median TTFT was {:.2}x that of {}.\n",
            chosen.policy,
            100.0 * (1.0 - chosen.reused()),
            baseline.policy,
            100.0 * (1.0 - baseline.reused()),
            chosen.ttft_p50.as_secs_f64() / baseline.ttft_p50.as_secs_f64().max(1e-9),
            baseline.policy,
        ),
        _ => String::new(),
    };
    format!(
        "\n{verdict}Next:\n  emberlane demo --seconds 0               keep it running until Ctrl-C\n  \
         emberlane demo --policy least_request    compare another policy\n  \
         emberlane serve --listen 127.0.0.1:8080 --admin 127.0.0.1:9090 --replica http://HOST:PORT ...\n  \
         \x20                                        put it in front of your engines"
    )
}

#[cfg(test)]
mod tests;
