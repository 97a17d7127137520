//! The threads of ingest: one for each address and each of `beacons.threads`. They begin as soon as the address can be
//! had (in an upgrade that is when the process before lets go of it), and end, closing their sockets, when the process is
//! told to stop, so that the next may have them.

use super::Ingest;
use crate::clock::Clock;
use crate::config::BeaconConfig;
use crate::discovery::News;
use crate::load::plane::ReceiverStatus;
use crate::load::receive::{Counters, ReceiveConfig, ReceiveError, Receiver, Waker};
use crate::load::ring::Publisher;
use crate::proxy::Core;
use crate::wire::key::{Keys, KeysFault};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a thread waits for a datagram before it looks around.
const IDLE: Duration = Duration::from_millis(200);
/// How often counters are taken up, and the bypass is looked at.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Batches that are dropped after a pause: more than the socket's buffer holds.
const WAITED_BATCHES_MAX: u32 = 1024;
/// How often an address that another process still has is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// How addresses are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Opening {
    /// At once, or it is an error.
    AtOnce,
    /// When the process before lets go of them.
    AfterThePrevious,
}

/// The running threads. Dropping them stops them.
#[derive(Debug)]
pub(in super::super) struct IngestThreads {
    stop: Arc<AtomicBool>,
    wakers: Arc<Mutex<Vec<Waker>>>,
    threads: Vec<JoinHandle<()>>,
}

/// How many publishers ingest needs: one a thread.
pub(in super::super) fn threads(config: &BeaconConfig) -> usize {
    config.listen.len() * usize::from(config.threads.max(1))
}

/// The keys in force; none without a key file.
///
/// # Errors
/// The file cannot be read, or what it says is not keys. No key is in the message.
pub(in super::super) fn read_keys(config: &BeaconConfig) -> Result<Keys, IngestError> {
    let Some(path) = &config.keys else { return Ok(Keys::default()) };
    let text =
        std::fs::read_to_string(path).map_err(|error| IngestError::KeysUnreadable { path: path.clone(), error })?;
    Keys::parse(&text).map_err(|fault| IngestError::Keys { path: path.clone(), fault })
}

impl IngestThreads {
    /// Opens every address of `config` and starts its threads, each with one of `publishers` (see [`threads`]).
    ///
    /// # Errors
    /// An address that cannot be had, or a thread.
    pub(in super::super) fn start(
        core: &Arc<Core>,
        config: &BeaconConfig,
        opening: Opening,
        publishers: &mut impl Iterator<Item = Publisher>,
        news: &mpsc::Sender<News>,
    ) -> Result<Self, IngestError> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut started = Self { stop, wakers: Arc::default(), threads: Vec::new() };
        let threads = usize::from(config.threads.max(1));
        for &listen in &config.listen {
            let open = ReceiveConfig {
                listen,
                interface: config.interface.clone(),
                bypass: config.bypass,
                busy_poll: config.busy_poll,
            };
            let ingests: Vec<_> = publishers
                .by_ref()
                .take(threads)
                .map(|publisher| Ingest::new(Arc::clone(core), publisher, news.clone()))
                .collect();
            match opening {
                Opening::AtOnce => {
                    let receivers = Receiver::open(&open, threads)?;
                    let looks = Looks { stop: Arc::clone(&started.stop), wakers: Arc::clone(&started.wakers) };
                    started.threads.extend(run_all(ingests, receivers, &looks)?);
                }
                Opening::AfterThePrevious => {
                    let looks = Looks { stop: Arc::clone(&started.stop), wakers: Arc::clone(&started.wakers) };
                    let opener = std::thread::Builder::new().name("ingest-open".to_owned());
                    started.threads.push(opener.spawn(move || open_later(&open, threads, ingests, &looks))?);
                }
            }
        }
        Ok(started)
    }
}

impl Drop for IngestThreads {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.wakers.lock().iter().for_each(Waker::wake);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // One that panicked has said so already.
            let _panicked = thread.join();
        }
    }
}

/// Why ingest cannot start.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// An address cannot be had.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The key file cannot be read.
    #[error("beacons.keys: cannot read {}: {error}", path.display())]
    KeysUnreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The key file says no keys.
    #[error("beacons.keys: {}: {fault}", path.display())]
    Keys {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        fault: KeysFault,
    },
    /// A thread cannot be had.
    #[error("cannot start a thread for beacons: {0}")]
    Thread(#[from] std::io::Error),
}

/// What a thread looks at to know that it is over, and what wakes it.
#[derive(Clone, Debug)]
struct Looks {
    stop: Arc<AtomicBool>,
    wakers: Arc<Mutex<Vec<Waker>>>,
}

fn run_all(ingests: Vec<Ingest>, receivers: Vec<Receiver>, looks: &Looks) -> std::io::Result<Vec<JoinHandle<()>>> {
    let threads = ingests.into_iter().zip(receivers).enumerate().map(|(index, (ingest, receiver))| {
        looks.wakers.lock().push(receiver.waker());
        let stop = Arc::clone(&looks.stop);
        let thread = std::thread::Builder::new().name(format!("ingest-{index}"));
        thread.spawn(move || ingest.run(receiver, &stop))
    });
    threads.collect()
}

/// Opens when the process before has let go.
fn open_later(open: &ReceiveConfig, threads: usize, ingests: Vec<Ingest>, looks: &Looks) {
    let mut is_said = false;
    let receivers = loop {
        match Receiver::open(open, threads) {
            Ok(receivers) => break receivers,
            Err(_) if looks.stop.load(Relaxed) => return,
            Err(error) => {
                if !is_said {
                    tracing::info!(%error, "beacons are not received yet: the address is tried again and again");
                    is_said = true;
                }
                std::thread::park_timeout(TRY_AGAIN);
            }
        }
    };
    match run_all(ingests, receivers, looks) {
        Ok(running) => running.into_iter().for_each(|thread| {
            let _panicked = thread.join();
        }),
        Err(error) => tracing::error!(%error, "beacons are not received: no thread can be had"),
    }
}

impl Ingest {
    /// Receives until `stop` is set or the process is stopping: then the next process may have the address.
    fn run(mut self, mut receiver: Receiver, stop: &AtomicBool) {
        let (mut counted, mut counters) = (self.core.clock.now(), Counters::default());
        self.show(&receiver);
        while !stop.load(Relaxed) && !self.core.stopping.load(Relaxed) {
            let (now, unix_ns) = (self.core.clock.now(), Clock::unix_ns());
            let received = receiver.receive(|from, datagram| self.hear(from, datagram, unix_ns, now));
            let waited = match received {
                Ok(0) => receiver.wait(IDLE),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = waited {
                tracing::error!(%error, address = %receiver.local_addr(), "beacons cannot be received");
                std::thread::park_timeout(IDLE);
            }
            let now = self.core.clock.now();
            if let Some(pause) = self.window.pause(now) {
                self.core.metrics.load.floods.inc();
                self.rest(&mut receiver, pause);
            }
            if now.since(counted) >= COUNT_EVERY {
                counted = now;
                receiver.check();
                counters = self.count(&receiver, counters);
                if let Some(why) = receiver.loss() {
                    tracing::warn!(why, "kernel bypass has ended; plain sockets serve from now on");
                    self.show(&receiver);
                }
            }
        }
    }

    /// Sleeps through a flood. The kernel drops what comes meanwhile; what had come before is read and not looked at.
    fn rest(&self, receiver: &mut Receiver, pause: Duration) {
        let is_deaf = receiver.set_deaf(true).is_ok();
        std::thread::park_timeout(pause);
        self.drop_what_waited(receiver);
        if is_deaf && let Err(error) = receiver.set_deaf(false) {
            tracing::error!(%error, address = %receiver.local_addr(), "the socket stays deaf: no beacon comes through it");
        }
    }

    /// Reads what waits, and looks at none of it.
    fn drop_what_waited(&self, receiver: &mut Receiver) {
        let mut dropped = 0;
        for _ in 0..WAITED_BATCHES_MAX {
            match receiver.receive(|_from, _datagram| dropped += 1) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        self.core.metrics.load.lost.with_label_values(&["flood"]).inc_by(dropped);
    }

    /// Shows people how beacons come in.
    fn show(&self, receiver: &Receiver) {
        let (address, mode) = (receiver.local_addr(), receiver.mode().as_str());
        let fallback = receiver.fallback().map(str::to_owned);
        tracing::info!(%address, mode, fallback, "beacons are received");
        let mut receivers = self.core.plane.receivers.lock();
        receivers.retain(|receiver| receiver.address != address);
        receivers.push(ReceiverStatus { address, mode, fallback });
    }

    /// Takes up what `receiver` has counted since `before`.
    fn count(&self, receiver: &Receiver, before: Counters) -> Counters {
        let now = receiver.counters();
        let lost = &self.core.metrics.load.lost;
        for (place, now, before) in [
            ("socket_buffer", now.socket_drops, before.socket_drops),
            ("bad_frame", now.bad_frames, before.bad_frames),
            ("xdp_dropped", now.frame_drops, before.frame_drops),
            ("xdp_ring_full", now.ring_full, before.ring_full),
            ("xdp_fill_empty", now.fill_empty, before.fill_empty),
        ] {
            lost.with_label_values(&[place]).inc_by(now.saturating_sub(before));
        }
        let received = &self.core.metrics.load.received;
        received.with_label_values(&["bypass"]).inc_by(now.bypassed.saturating_sub(before.bypassed));
        received.with_label_values(&["socket"]).inc_by(now.through_socket.saturating_sub(before.through_socket));
        now
    }
}
