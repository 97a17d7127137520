//! Requests that wait at the gateway before they are placed, told what the edge would tell them: that something was freed,
//! that it is time to look again, that they have waited for as long as they may.

use super::gateway::{Held, Placing};
use super::{Event, Live, Run};
use crate::admission::{LOOKING, Place};
use crate::clock::Now;
use crate::pipeline::Hold;
use std::collections::BTreeMap;

/// Those who wait, by number.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// In line, in its order.
    line: BTreeMap<Place, u32>,
    /// For slots.
    slots: Vec<u32>,
}

impl Run<'_> {
    /// The gateway has decided on a request that came just now.
    pub(super) fn decided(&mut self, request: u32, live: Live, placing: Placing) {
        if let Placing::Waits(placement) = &placing {
            match placement.place_in_line() {
                Some(place) => drop(self.waiting.line.insert(place, request)),
                None => self.waiting.slots.push(request),
            }
            self.at(live.arrived.plus(self.gateway.wait_max()), Event::LookAgain { request });
        }
        self.act(request, live, placing);
    }

    fn act(&mut self, request: u32, live: Live, placing: Placing) {
        let place = request as usize;
        match placing {
            Placing::Placed { slot, placed, held } => {
                self.history.placed(&live.prompt, slot.index(), &self.engines, self.now);
                self.live[place] = Some(Live { slot, placed: Some(*placed), admitted: self.now, ..live });
                match held {
                    Held::No => self.send(request),
                    Held::Until(until) => self.at(until, Event::HeldLongEnough { request }),
                }
            }
            Placing::Waits(placement) => {
                let again = match placement.hold() {
                    Some(Hold::Slot { again }) => Some(again),
                    Some(Hold::Line { again, .. }) => again,
                    None => None,
                };
                if let Some(again) = again {
                    self.at(again, Event::LookAgain { request });
                }
                let waiting = Some((placement, again.unwrap_or(Now(u64::MAX))));
                self.live[place] = Some(Live { waiting, ..live });
            }
            Placing::Refused => {
                self.live[place] = Some(live);
                self.finished(request, false);
            }
        }
    }

    /// Something has become free: the first in line and all who wait for slots look again.
    pub(super) fn freed(&mut self) {
        for request in self.waiting.slots.clone() {
            self.look(request);
        }
        let first: Vec<u32> = self.waiting.line.values().take(LOOKING).copied().collect();
        first.into_iter().for_each(|request| self.look(request));
    }

    /// It is time for a request to look again, if it still waits and has not looked since.
    pub(super) fn look_again(&mut self, request: u32) {
        let Some(live) = self.live.get(request as usize).and_then(Option::as_ref) else { return };
        let last = live.arrived.plus(self.gateway.wait_max());
        if live.waiting.as_ref().is_some_and(|(_, again)| *again <= self.now) || self.now >= last {
            self.look(request);
        }
    }

    fn look(&mut self, request: u32) {
        let Some(mut live) =
            self.live.get_mut(request as usize).and_then(|live| live.take_if(|one| one.waiting.is_some()))
        else {
            return;
        };
        let Some((placement, _)) = live.waiting.take() else { return };
        let stood = placement.place_in_line();
        let placing = if self.now.since(live.arrived) >= self.gateway.wait_max() {
            self.gateway.give_up(*placement)
        } else {
            self.gateway.look_again(request, *placement, &live, &self.engines, self.now)
        };
        if !matches!(placing, Placing::Waits(_)) {
            let was_looking =
                stood.is_some_and(|place| self.waiting.line.keys().take(LOOKING).any(|one| *one == place));
            if let Some(place) = stood {
                self.waiting.line.remove(&place);
            }
            self.waiting.slots.retain(|other| *other != request);
            // Whoever is one of the first now is called.
            if was_looking && let Some(&next) = self.waiting.line.values().nth(LOOKING - 1) {
                self.call(next);
            }
        }
        self.act(request, live, placing);
    }

    fn call(&mut self, request: u32) {
        if let Some((_, again)) =
            self.live.get_mut(request as usize).and_then(Option::as_mut).and_then(|live| live.waiting.as_mut())
        {
            *again = self.now;
            self.at(self.now, Event::LookAgain { request });
        }
    }
}
