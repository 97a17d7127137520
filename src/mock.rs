//! Mock engines: replicas in this process that speak the OpenAI and Anthropic APIs over real loopback sockets, with a
//! real block cache, real prefill and decode delays, and faults on demand. They are what the demo, the tests and the
//! benches stand the gateway in front of.
//!
//! Each engine has a thread with a single-threaded runtime of its own; any number can start and stop in one process.
//!
//! ```
//! use emberlane::mock::{MockEngine, MockEngineConfig};
//!
//! let engine = MockEngine::start(MockEngineConfig { slots: 8, ..MockEngineConfig::default() })?;
//! println!("http://{}/v1/chat/completions", engine.addr());
//! assert_eq!(engine.stats().requests, 0);
//! engine.stop();
//! # Ok::<(), std::io::Error>(())
//! ```

mod answer;
mod cache;
mod engine;
mod faults;
mod metrics;
mod prompt;
mod server;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use pingora_core::apps::ServerApp;
use pingora_core::protocols::l4::stream::Stream;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;

pub use self::faults::{CloseAt, FaultError, Faults};

use self::engine::Engine;
use self::faults::Dealer;
use self::server::App;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1_024;

/// What a mock engine is like. The default answers at once: no delays, 256 slots, 400,000 tokens of cache.
#[derive(Clone, Debug, PartialEq)]
pub struct MockEngineConfig {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Name in the response header `x-mock-engine`; empty is the address.
    pub id: String,
    /// Models it serves; empty takes any name.
    pub models: Vec<String>,
    /// Requests it runs at once; more wait.
    pub slots: u32,
    /// Tokens its cache holds. Longer prompts are refused.
    pub kv_tokens: u64,
    /// Tokens of one cache block.
    pub block_tokens: u32,
    /// Tokens it prefills a second, one request at a time; 0 takes no time.
    pub prefill_tokens_per_s: f64,
    /// Time each prefill takes beside that.
    pub prefill_base: Duration,
    /// Time of one output token, alone.
    pub decode_step: Duration,
    /// Time each running request adds to an output token.
    pub decode_per_request: Duration,
    /// Length of a token; the demo's and tests' notion of a tokenizer.
    pub bytes_per_token: f64,
    /// Streams send their head before the prefill instead of with the first token.
    pub is_head_early: bool,
    /// What it does wrong.
    pub faults: Faults,
}

impl Default for MockEngineConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            id: String::new(),
            models: vec!["mock".to_owned()],
            slots: 256,
            kv_tokens: 400_000,
            block_tokens: 16,
            prefill_tokens_per_s: 0.0,
            prefill_base: Duration::ZERO,
            decode_step: Duration::ZERO,
            decode_per_request: Duration::ZERO,
            bytes_per_token: 4.0,
            is_head_early: false,
            faults: Faults::default(),
        }
    }
}

/// Counters since the start, and gauges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MockStats {
    /// Inference requests and echoes that arrived.
    pub requests: u64,
    /// Answered whole.
    pub completed: u64,
    /// Ended because the client left (one for each prompt of the request).
    pub cancelled: u64,
    /// Refused: bad body, unknown model, prompt too long.
    pub refused: u64,
    /// Met a fault.
    pub faulted: u64,
    /// In prefill or decode now.
    pub running: u64,
    /// Waiting for a slot or for the prefill of others, now.
    pub waiting: u64,
    /// Prompt tokens of requests that began to run.
    pub prompt_tokens: u64,
    /// Those of them that were in the cache.
    pub cached_tokens: u64,
    /// Output tokens of requests answered whole.
    pub output_tokens: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Times the cache was forgotten.
    pub restarts: u64,
    /// Blocks the cache can hold.
    pub blocks_total: u64,
    /// Blocks it holds.
    pub blocks_held: u64,
    /// Blocks of running requests.
    pub blocks_pinned: u64,
    /// Blocks given up for others.
    pub blocks_evicted: u64,
}

/// A running mock engine. Dropping it stops it.
#[derive(Debug)]
pub struct MockEngine {
    addr: SocketAddr,
    app: Arc<App>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl MockEngine {
    /// Binds and serves. Connections are taken from the moment this returns.
    ///
    /// # Errors
    /// The address cannot be bound, or no thread or runtime can be had.
    pub fn start(config: MockEngineConfig) -> io::Result<Self> {
        let listener = listen(config.listen)?;
        let addr = listener.local_addr()?;
        let id = if config.id.is_empty() { addr.to_string() } else { config.id.clone() };
        let app = Arc::new(App::new(Engine::new(config), id));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let served = Arc::clone(&app);
        let thread = std::thread::Builder::new().name("mock-engine".to_owned()).spawn(move || {
            runtime.block_on(accept(listener, served, stopped));
            // Connections still open end with their tasks, which end with the runtime.
            runtime.shutdown_background();
        })?;
        Ok(Self { addr, app, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Counters and gauges as they stand.
    #[must_use]
    pub fn stats(&self) -> MockStats {
        self.app.engine.stats()
    }

    /// Changes what it does wrong from the next request on; [`Faults::default`] makes it well.
    pub fn set_faults(&self, faults: Faults) {
        *self.app.faults.lock() = Dealer::new(faults);
    }

    /// Forgets the cache, as an engine that was restarted has.
    pub fn restart(&self) {
        self.app.engine.clear_cache();
    }

    /// Stops listening and closes all connections, in flight or not.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for MockEngine {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn accept(listener: TcpListener, app: Arc<App>, mut stopped: watch::Receiver<bool>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let shutdown = stopped.clone();
    loop {
        let accepted = tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _peer)) = accepted else {
            // Out of file descriptors, most likely: let some connections end.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // Without it only latency suffers.
        let _ = stream.set_nodelay(true);
        app.engine.count(|stats| stats.connections += 1);
        let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
        tokio::spawn(async move {
            let mut next = app.process_new(Box::new(Stream::from(stream)), &shutdown).await;
            while let Some(stream) = next {
                next = app.process_new(stream, &shutdown).await;
            }
        });
    }
}

#[cfg(test)]
mod tests;
