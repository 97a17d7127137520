//! Active health checks, and the eye on health as a whole: each replica is asked on time, what time alone changes is
//! noted, and each transition is logged once, with its reason.
//!
//! It runs on the control thread, like all that changes the fleet: a slot never changes hands in the middle of a look.
//! Each check opens a connection of its own. That is what a request may need, an idle connection would hide that a
//! replica no longer accepts any, and some engines give each open connection a thread of a small pool.

use crate::clock::Now;
use crate::config::{Config, HealthConfig};
use crate::fleet::{Membership, Replica};
use crate::health::{Arrival, CheckFault, Description, HealthState};
use crate::id::ReplicaSlot;
use crate::pipeline::{Shared, Snapshot};
use crate::proxy::Core;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_error::{Error, ErrorType};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_load_balancing::health_check::{HealthCheck, HttpHealthCheck};
use pingora_load_balancing::{Backend, Extensions};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;

/// How often it looks who is due.
const LOOK: Duration = Duration::from_millis(50);
/// How often those are checked that have given no good sign yet, if that is more often.
const STARTING: Duration = Duration::from_millis(250);
/// Checks at once. When all of 4,096 replicas hang for the default second, a round takes 8 s.
const AT_ONCE: usize = 512;
/// How long readiness waits for the first checks.
const FIRST_ROUND: Duration = Duration::from_secs(1);

/// Tells the columns who is new: those are to be checked before they take requests, or trusted where nobody checks.
pub(super) fn welcome(shared: &Shared, change: &Membership, config: &Config, arrival: Arrival, now: Now) {
    shared.health.set_warm_up_time(config.warm_up.map(|warm_up| warm_up.time));
    for &slot in &change.joined {
        shared.health.joined(slot, arrival, now);
        if config.health.is_none() {
            shared.health.trusted(slot, now);
        }
    }
}

/// What is known of the replica at a slot.
struct Place {
    replica: Arc<Replica>,
    due: Now,
    is_being_checked: bool,
    was_checked: bool,
    /// What was last logged.
    told: Description,
}

/// A check that ended.
struct Checked {
    replica: Arc<Replica>,
    result: Result<(), CheckFault>,
}

/// Checks replicas, one after the other and many at once.
pub(super) struct Checker {
    core: Arc<Core>,
    /// By slot.
    places: Vec<Option<Place>>,
    running: JoinSet<Checked>,
    /// Which snapshot `places` shows.
    generation: Option<u64>,
    /// Whose turn it is when there are more than may be checked at once.
    turn: usize,
    started: Now,
    rng: fastrand::Rng,
}

impl Checker {
    pub(super) fn new(core: Arc<Core>) -> Self {
        let places = (0..core.slots_max).map(|_| None).collect();
        let (started, rng) = (core.clock.now(), fastrand::Rng::new());
        Self { core, places, running: JoinSet::new(), generation: None, turn: 0, started, rng }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => self.look(),
                Some(done) = self.running.join_next() => self.take_down(done),
            }
        }
    }

    fn look(&mut self) {
        let snapshot = self.core.snapshot.load_full();
        let now = self.core.clock.now();
        if self.generation != Some(snapshot.generation()) {
            self.follow(&snapshot, now);
        }
        let health = &self.core.shared.health;
        let mut next_check = None;
        for (index, place) in self.places.iter_mut().enumerate() {
            let Some(place) = place else {
                // The last requests of one that left may have been held against it.
                ReplicaSlot::from_index(index).into_iter().for_each(|slot| health.forget_unless_plain(slot));
                continue;
            };
            let slot = place.replica.slot;
            if !self.core.stopping.load(Relaxed) {
                health.sweep(slot, now);
            }
            if snapshot.config.health.is_none() {
                health.trusted(slot, now);
            }
            if health.take_check_now(slot) {
                place.due = now;
            }
            let found = health.describe(slot, now);
            tell(place, found);
            if found.state != HealthState::Healthy {
                next_check = next_check.map_or(Some(place.due), |next: Now| Some(next.min(place.due)));
            }
        }
        health.set_next_check(next_check.unwrap_or(now));
        if let Some(rules) = &snapshot.config.health {
            self.start_due(rules, now);
        }
        self.note_first_round(&snapshot, now);
    }

    /// Takes up who joined and who left.
    fn follow(&mut self, snapshot: &Snapshot, now: Now) {
        self.generation = Some(snapshot.generation());
        for (index, place) in self.places.iter_mut().enumerate() {
            let Some(slot) = ReplicaSlot::from_index(index) else { continue };
            match (snapshot.fleet.replica(slot), &mut *place) {
                (None, _) => *place = None,
                (Some(replica), Some(known)) if known.replica.is_same(replica) => known.replica = Arc::clone(replica),
                (Some(replica), _) => {
                    let told = self.core.shared.health.describe(slot, now);
                    let told = Description { state: HealthState::Starting, ..told };
                    let replica = Arc::clone(replica);
                    *place = Some(Place { replica, due: now, is_being_checked: false, was_checked: false, told });
                }
            }
        }
    }

    /// Starts the checks that are due, as many as may run at once; the next look goes on behind the last.
    fn start_due(&mut self, rules: &HealthConfig, now: Now) {
        let count = self.places.len();
        let turn = self.turn;
        for index in (turn..count).chain(0..turn) {
            if self.running.len() >= AT_ONCE {
                self.turn = index;
                return;
            }
            let Some(place) = self.places.get_mut(index).and_then(Option::as_mut) else { continue };
            if place.is_being_checked || now < place.due {
                continue;
            }
            place.is_being_checked = true;
            let (replica, rules) = (Arc::clone(&place.replica), rules.clone());
            self.running.spawn(async move {
                let result = match replica.address() {
                    Some(address) => check(address, &replica.authority, &rules).await,
                    None => Err(CheckFault::NoAddress),
                };
                Checked { replica, result }
            });
        }
    }

    /// Takes down how a check ended, if the replica is still there.
    fn take_down(&mut self, done: Result<Checked, JoinError>) {
        let Checked { replica, result } = match done {
            Ok(checked) => checked,
            Err(error) => {
                // Nobody knows whose it was: all are free to be checked again.
                tracing::error!(%error, "a health check broke off");
                self.places.iter_mut().flatten().for_each(|place| place.is_being_checked = false);
                return;
            }
        };
        self.core.metrics.load.checks.with_label_values(&[result.map_or_else(CheckFault::as_str, |()| "ok")]).inc();
        let snapshot = self.core.snapshot.load();
        let is_there = snapshot.fleet.replica(replica.slot).is_some_and(|there| there.is_same(&replica));
        let place = self.places.get_mut(replica.slot.index()).and_then(Option::as_mut);
        let Some(place) = place.filter(|place| place.replica.is_same(&replica)) else { return };
        place.is_being_checked = false;
        place.was_checked = true;
        let Some(rules) = snapshot.config.health.as_ref().filter(|_| is_there) else { return };
        let (health, now) = (&self.core.shared.health, self.core.clock.now());
        health.checked(replica.slot, result, rules.failures, now);
        let found = health.describe(replica.slot, now);
        tell(place, found);
        let wait = if found.state == HealthState::Starting { rules.interval.min(STARTING) } else { rules.interval };
        // Checks that all start together would otherwise stay together.
        place.due = now.plus(wait.mul_f64(0.9 + 0.2 * self.rng.f64()));
    }

    /// The gateway is ready when everybody has been asked, or has had the time to answer.
    fn note_first_round(&self, snapshot: &Snapshot, now: Now) {
        let is_over = snapshot.config.health.is_none()
            || (!snapshot.fleet.replicas.is_empty() && self.places.iter().flatten().all(|place| place.was_checked))
            || now.since(self.started) >= FIRST_ROUND;
        if is_over {
            self.core.checked.store(true, Relaxed);
        }
    }
}

/// Logs what is new of a replica.
fn tell(place: &mut Place, found: Description) {
    let (replica, before) = (place.replica.config.id.as_str(), place.told);
    if found.state != before.state {
        let (from, to, why) = (before.state.as_str(), found.state.as_str(), found.why);
        match found.state {
            HealthState::Ejected | HealthState::Down => {
                tracing::warn!(replica, from, to, %why, "replica takes no requests");
            }
            HealthState::Starting => tracing::info!(replica, from, to, %why, "replica is not known to be well"),
            HealthState::Probation => tracing::info!(replica, from, to, %why, "replica takes one request at a time"),
            HealthState::Healthy => tracing::info!(replica, from, to, %why, "replica takes requests"),
        }
    }
    if found.drains != before.drains {
        let causes: Vec<_> = found.drains.causes().map(|cause| cause.as_str()).collect();
        match causes.as_slice() {
            [] => tracing::info!(replica, "replica no longer drains"),
            _ => tracing::info!(replica, ?causes, "replica drains: no new requests"),
        }
    }
    if found.is_warming != before.is_warming {
        let is_over = before.is_warming;
        tracing::info!(replica, is_over, "replica warms up");
    }
    place.told = found;
}

/// Asks `authority`, which is at `address`, once.
async fn check(address: SocketAddr, authority: &str, rules: &HealthConfig) -> Result<(), CheckFault> {
    let mut check = HttpHealthCheck::new(authority, false);
    check.req = request(authority, &rules.path).map_err(|_unsendable| CheckFault::Broken)?;
    check.peer_template.options.connection_timeout = Some(rules.timeout);
    check.peer_template.options.read_timeout = Some(rules.timeout);
    check.validator = Some(Box::new(validate));
    let backend = Backend { addr: PeerAddr::Inet(address), weight: 1, ext: Extensions::new() };
    match tokio::time::timeout(rules.timeout, check.check(&backend)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(fault(&error)),
        Err(_elapsed) => Err(CheckFault::TimedOut),
    }
}

fn request(authority: &str, path: &str) -> pingora_error::Result<RequestHeader> {
    let mut request = RequestHeader::build("GET", path.as_bytes(), Some(4))?;
    request.insert_header("host", authority)?;
    request.insert_header("user-agent", concat!("emberlane/", env!("CARGO_PKG_VERSION")))?;
    request.insert_header("connection", "close")?;
    Ok(request)
}

/// Any answer is a sign of life, even that there is no such path; but not the replica's own word that it is unwell.
fn validate(head: &ResponseHeader) -> pingora_error::Result<()> {
    match head.status.as_u16() {
        status @ (408 | 500..) => Error::e_explain(ErrorType::CustomCode("status", status), "health check"),
        _ => Ok(()),
    }
}

fn fault(error: &Error) -> CheckFault {
    let kind = error.etype();
    if let ErrorType::CustomCode(_, status) = kind {
        return CheckFault::Status(*status);
    }
    let slow = [ErrorType::ConnectTimedout, ErrorType::ReadTimedout, ErrorType::WriteTimedout];
    if slow.contains(kind) {
        CheckFault::TimedOut
    } else if *kind == ErrorType::ConnectRefused {
        CheckFault::Refused
    } else {
        CheckFault::Broken
    }
}
