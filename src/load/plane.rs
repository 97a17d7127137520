//! What the load plane knows beside the columns: who is believed (the gate and its keys), who was heard last, and how
//! beacons come in. One for the process; threads that receive write it, the control thread and the admin pages read it.

use super::gate::Gate;
use super::heard::LastHeard;
use crate::wire::key::Keys;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::net::SocketAddr;

/// The load plane's shared state.
#[derive(Debug)]
pub struct LoadPlane {
    /// Which datagrams are beacons to be believed.
    pub gate: Gate,
    /// When each replica was last heard.
    pub heard: LastHeard,
    /// The keys in force.
    pub keys: ArcSwap<Keys>,
    /// How beacons come in, for people; written when it changes.
    pub receivers: Mutex<Vec<ReceiverStatus>>,
}

/// How beacons come in at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverStatus {
    /// Where.
    pub address: SocketAddr,
    /// `native`, `skb` or `socket`.
    pub mode: &'static str,
    /// Why a better mode could not be had, if so.
    pub fallback: Option<String>,
}

impl LoadPlane {
    /// A plane that has heard nothing.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self {
            gate: Gate::new(slots_max),
            heard: LastHeard::new(slots_max),
            keys: ArcSwap::default(),
            receivers: Mutex::default(),
        }
    }
}
