//! Senders that are in no directory, but might be soon: a short list, in which the one not heard for longest makes room.

use super::Refusal;
use super::order::Order;
use super::track::{Change, Track};
use crate::clock::Now;
use crate::wire::beacon::{Beacon, SenderId};

/// Most strangers that are remembered.
pub const STRANGERS_MAX: usize = 1024;

/// Strangers with a key. They are few and seldom asked for: what one look through them takes is of no matter.
#[derive(Debug)]
pub(super) struct Strangers {
    senders: Vec<SenderId>,
    tracks: Vec<(Now, Track)>,
}

impl Strangers {
    /// Room for all, so that none is made later.
    pub(super) fn new() -> Self {
        Self { senders: Vec::with_capacity(STRANGERS_MAX), tracks: Vec::with_capacity(STRANGERS_MAX) }
    }

    /// Whether a stranger's beacon comes in its order, and what is new in it.
    pub(super) fn admit(&mut self, beacon: &Beacon<'_>, now: Now) -> Result<Change, Refusal> {
        let at = self.place(beacon.head().sender);
        match self.tracks.get_mut(at) {
            Some((heard, track)) => {
                let change = track.admit(beacon, now)?;
                *heard = now;
                Ok(change)
            }
            None => Err(Refusal::UnknownSender), // never: `place` has made sure of it
        }
    }

    /// Takes a stranger off the list: it is none any more. Its order so far.
    pub(super) fn remove(&mut self, sender: SenderId) -> Option<Order> {
        let at = self.senders.iter().position(|known| *known == sender)?;
        self.senders.swap_remove(at);
        self.tracks.swap_remove(at).1.order()
    }

    /// Where `sender` is in the list, from now on.
    fn place(&mut self, sender: SenderId) -> usize {
        if let Some(at) = self.senders.iter().position(|known| *known == sender) {
            return at;
        }
        if self.senders.len() == STRANGERS_MAX {
            let oldest = self.tracks.iter().enumerate().min_by_key(|(_, (heard, _))| *heard);
            let at = oldest.map_or(0, |(at, _)| at);
            self.senders.swap_remove(at);
            self.tracks.swap_remove(at);
        }
        self.senders.push(sender);
        self.tracks.push((Now::default(), Track::after(None)));
        self.senders.len() - 1
    }
}
