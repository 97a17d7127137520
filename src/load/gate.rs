//! The gate: which datagrams are beacons to be believed, of which replica, and what is new in them. Pure: datagrams,
//! clocks and keys are arguments; who receives them is not its concern. What it asks, in its order, is in the
//! specification ([`crate::wire::beacon`], *What a receiver drops*).
//!
//! Several threads may ask it at once. A beacon costs a look-up in a directory that is swapped as a whole, a MAC, and a
//! lock that only beacons of the same replica share. Nothing is allocated.
//!
//! # What is promised
//! - No beacon is admitted twice, and none after a later one of its sender, for as long as the gate lives; see
//!   [`order`] for why. A gate that has just been made has heard nothing yet: what was recorded before can be played to
//!   it once, in order, until its time of sending is out of the clock's bound. The same is true of a sender that was out
//!   of the directory, and of a stranger whose place another has taken.
//! - No clock that was wrong for a while, of sender, engine or gateway, mutes a replica for longer than three of its
//!   periods and the clock's bound after it is right again.
//! - Without the secret of a key that the gate knows, nothing is changed in it, but what [`Gate::refused_last`] says.
//!
//! Without keys, the address a datagram came from is all there is to go by: who receives must not let packets with a
//! loopback source in from a network. Kernels see to that; who reads frames past the kernel must himself.

mod order;
mod refusal;
mod strangers;
#[cfg(test)]
mod tests;
mod track;

pub use refusal::Refusal;
pub use strangers::STRANGERS_MAX;

use crate::clock::Now;
use crate::id::ReplicaSlot;
use crate::wire::beacon::{Beacon, Sealed, SenderId};
use crate::wire::key::Keys;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use strangers::Strangers;
use track::{Change, Track};

/// What is asked of beacons, besides being well formed.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'k> {
    /// Keys that are accepted. Without any, loopback senders are, and no others.
    pub keys: &'k Keys,
    /// How far a time of sending may be from the gateway's clock.
    pub clock_skew: Duration,
    /// Whether signed beacons of unknown replicas that say their URL are of interest.
    pub registration: bool,
}

/// A beacon to be believed.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "four independent things that may be new")]
pub struct Heard<'d> {
    /// What it says.
    pub beacon: Beacon<'d>,
    /// Whose it is.
    pub who: Who,
    /// The first of this replica in this slot, or of this stranger. Then the next two are false.
    pub is_first: bool,
    /// The engine is another than at the beacon before: whatever its cache held is gone.
    pub is_restart: bool,
    /// The engine has emptied its cache since the beacon before, without a restart.
    pub is_cache_reset: bool,
    /// It carries facts, and these are not those that were said last.
    pub are_facts_new: bool,
}

/// Whose a beacon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A replica's that the directory has.
    Replica(ReplicaSlot),
    /// Another's, which would like to register.
    Stranger(SenderId),
}

/// One sender of the directory.
#[derive(Debug)]
struct Member {
    slot: ReplicaSlot,
    track: Mutex<Track>,
    /// The last refusal of a beacon that says it is this sender's, as [`Refusal::pack`] writes it; 0: none.
    refused: AtomicU64,
}

/// Which sender speaks for which slot. Replaced as a whole; the members stay the same from one to the next, so that a
/// thread which still reads the one before counts in the right place.
#[derive(Debug, Default)]
struct Directory {
    members: Vec<Arc<Member>>,
    by_sender: HashMap<SenderId, Arc<Member>>,
}

/// See the module.
#[derive(Debug)]
pub struct Gate {
    slots_max: usize,
    directory: ArcSwap<Directory>,
    strangers: Mutex<Strangers>,
    /// Held while the directory is replaced.
    writer: Mutex<()>,
}

impl Gate {
    /// A gate that knows no replica. Slots from `slots_max` on are never in its directory.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self {
            slots_max,
            directory: ArcSwap::default(),
            strangers: Mutex::new(Strangers::new()),
            writer: Mutex::new(()),
        }
    }

    /// Replaces the directory. Senders that stay where they are go on as they were; one that comes anew or to another
    /// slot is first heard there with its next beacon. Of a sender that is named twice, the first entry stands.
    pub fn set_directory(&self, entries: Vec<(SenderId, ReplicaSlot)>) {
        let _one_at_a_time = self.writer.lock();
        let old = self.directory.load();
        let mut directory = Directory::default();
        for (sender, slot) in entries {
            if slot.index() >= self.slots_max || directory.by_sender.contains_key(&sender) {
                continue;
            }
            let member = match old.by_sender.get(&sender) {
                Some(member) if member.slot == slot => Arc::clone(member),
                Some(elsewhere) => Member::new(slot, elsewhere.track.lock().order()),
                None => Member::new(slot, self.strangers.lock().remove(sender)),
            };
            directory.members.push(Arc::clone(&member));
            directory.by_sender.insert(sender, member);
        }
        drop(old);
        self.directory.store(Arc::new(directory));
    }

    /// Another replica takes `slot`: the next beacon for it is its first.
    pub fn forget(&self, slot: ReplicaSlot) {
        for member in self.directory.load().members.iter().filter(|member| member.slot == slot) {
            let mut track = member.track.lock();
            *track = Track::after(track.order());
            member.refused.store(0, Relaxed);
        }
    }

    /// Why and when the last beacon was refused that said it was of the replica in `slot`. Whether it truly was is not
    /// known where the cause is its key or its MAC. For people: it looks through the whole directory.
    #[must_use]
    pub fn refused_last(&self, slot: ReplicaSlot) -> Option<(Refusal, Now)> {
        let directory = self.directory.load();
        let of_slot = directory.members.iter().filter(|member| member.slot == slot);
        of_slot.filter_map(|member| Refusal::unpack(member.refused.load(Relaxed))).max_by_key(|(_, at)| *at)
    }

    /// Reads `datagram`, received at `now` from `from`, when the gateway's clock said `unix_ns`.
    ///
    /// # Errors
    /// It is not to be believed, or of no use.
    pub fn admit<'d>(
        &self,
        datagram: &'d [u8],
        from: IpAddr,
        rules: &Rules<'_>,
        unix_ns: u64,
        now: Now,
    ) -> Result<Heard<'d>, Refusal> {
        let sealed = Sealed::read(datagram)?;
        let directory = self.directory.load();
        let member = directory.by_sender.get(&sealed.sender());
        let heard = authenticate(&sealed, from, rules).and_then(|()| {
            let beacon = sealed.open()?;
            self.place(beacon, member.map(|member| &**member), rules, unix_ns, now)
        });
        if let (Err(refusal), Some(member)) = (&heard, member) {
            member.refused.store(refusal.pack(now), Relaxed);
        }
        heard
    }

    /// Whose an authentic beacon is, and whether it comes in its order.
    fn place<'d>(
        &self,
        beacon: Beacon<'d>,
        member: Option<&Member>,
        rules: &Rules<'_>,
        unix_ns: u64,
        now: Now,
    ) -> Result<Heard<'d>, Refusal> {
        let head = beacon.head();
        let is_welcome = || rules.registration && beacon.key_id() != 0 && beacon.url().is_some();
        if member.is_none() && !is_welcome() {
            return Err(Refusal::UnknownSender);
        }
        if u128::from(head.sent_unix_ns.abs_diff(unix_ns)) > rules.clock_skew.as_nanos() {
            return Err(Refusal::Clock);
        }
        let (who, change) = match member {
            Some(member) => (Who::Replica(member.slot), member.track.lock().admit(&beacon, now)?),
            None => (Who::Stranger(head.sender), self.strangers.lock().admit(&beacon, now)?),
        };
        let Change { is_first, is_restart, is_cache_reset, are_facts_new } = change;
        Ok(Heard { beacon, who, is_first, is_restart, is_cache_reset, are_facts_new })
    }
}

impl Member {
    fn new(slot: ReplicaSlot, order: Option<order::Order>) -> Arc<Self> {
        Arc::new(Self { slot, track: Mutex::new(Track::after(order)), refused: AtomicU64::new(0) })
    }
}

/// Whether it is known who sent it.
fn authenticate(sealed: &Sealed<'_>, from: IpAddr, rules: &Rules<'_>) -> Result<(), Refusal> {
    match sealed.key_id() {
        0 if !rules.keys.is_empty() => Err(Refusal::NotSigned),
        0 if !from.to_canonical().is_loopback() => Err(Refusal::NotLoopback),
        0 => Ok(()),
        id => {
            let key = rules.keys.get(id).ok_or(Refusal::UnknownKey)?;
            if sealed.is_signed_by(key) { Ok(()) } else { Err(Refusal::WrongMac) }
        }
    }
}
