//! What all shards and the control thread share: the clock, the pipeline's state, the snapshot in force, metrics, and how
//! much is open.

use crate::clock::Clock;
use crate::discovery::DiscoveryStatus;
use crate::load::plane::LoadPlane;
use crate::pipeline::{Shared, Snapshot};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::record::Ring;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// The process's shared state.
#[derive(Debug)]
pub struct Core {
    /// The one clock.
    pub clock: Clock,
    /// Who is believed of what replicas report, and who was heard when.
    pub plane: LoadPlane,
    /// The pipeline's columns and index.
    pub shared: Arc<Shared>,
    /// What is in force; read once a request.
    pub snapshot: ArcSwap<Snapshot>,
    /// Metrics.
    pub metrics: Metrics,
    /// The last decisions of each shard.
    pub rings: Vec<Arc<Ring>>,
    /// Cells in every column.
    pub slots_max: usize,
    /// True once every replica has been asked what it serves, or has had the time to say: `/readyz` waits for that.
    pub asked: AtomicBool,
    /// True once the health of every replica has been checked, or could have been: `/readyz` waits for that too.
    pub checked: AtomicBool,
    /// True once the process is stopping: `/readyz` says so.
    pub stopping: AtomicBool,
    /// The last reload's error, for `/config`.
    pub reload_error: ArcSwap<Option<String>>,
    /// Where replicas come from, for `/config` and `/replicas`.
    pub discovery: ArcSwap<DiscoveryStatus>,
    connections: AtomicU64,
    requests: AtomicU64,
}

/// Counts something as open until it is dropped.
#[derive(Debug)]
pub struct Open<'c>(&'c AtomicU64);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Core {
    /// Puts the pieces together.
    #[must_use]
    pub fn new(shared: Arc<Shared>, snapshot: Snapshot, slots_max: usize, shards: usize, clock: Clock) -> Self {
        Self {
            clock,
            plane: LoadPlane::new(slots_max),
            metrics: Metrics::new(),
            rings: (0..shards).map(|_| Arc::new(Ring::default())).collect(),
            snapshot: ArcSwap::from_pointee(snapshot),
            reload_error: ArcSwap::default(),
            discovery: ArcSwap::default(),
            shared,
            slots_max,
            asked: AtomicBool::new(false),
            checked: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }
    }

    /// Counts a client connection as open.
    pub fn open_connection(&self) -> Open<'_> {
        self.connections.fetch_add(1, Relaxed);
        Open(&self.connections)
    }

    /// Counts a request as open.
    pub fn open_request(&self) -> Open<'_> {
        self.requests.fetch_add(1, Relaxed);
        Open(&self.requests)
    }

    /// Client connections and requests open now.
    #[must_use]
    pub fn open(&self) -> (u64, u64) {
        (self.connections.load(Relaxed), self.requests.load(Relaxed))
    }
}
