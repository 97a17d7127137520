//! Requests that are decided but not placed yet, and what they wait for.

use super::candidates::Known;
use super::{Decider, Hints, Placement, Shared, Snapshot};
use crate::admission::{Place, Ticket};
use crate::clock::Now;
use crate::parse::Api;
use crate::policy::{Standing, View};
use crate::reject::Reject;
use std::time::Duration;

/// The first in line look for a replica so often, whatever happens: as time goes by, caches grow colder.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Why a request is not placed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Its slot would cost more than waiting does. `again`: when to look again if no slot becomes free before.
    Slot {
        /// See above.
        again: Now,
    },
    /// No replica has time for it that would not lose what is needed: it stands in line ([`crate::admission`]).
    Line {
        /// When it is due; who is due first stands first.
        due: Now,
        /// When to look again if it is not called before; `None`: others are before it.
        again: Option<Now>,
    },
}

/// Whether a request may be made to stand in line at all that was picked `place` of `view`. Who has an objective may not:
/// what meets it was chosen as of now. Where prompts are kept in slots, it is slots that are waited for.
fn may_stand(snapshot: &Snapshot, view: &View, place: usize, placement: &Placement) -> bool {
    let is_slotted = snapshot.limits(view.slots[place]).is_slotted;
    placement.attempts <= 1 && !is_slotted && placement.wish.slo.is_none()
}

/// Whether the policy has the request wait that was picked `place` of `view`.
pub(super) fn in_line(known: Known<'_>, view: &View, place: usize, placement: &Placement) -> Option<Hold> {
    let Known { shared, snapshot, now, .. } = known;
    if !may_stand(snapshot, view, place, placement) {
        return None;
    }
    let pool = placement.decision.pool;
    let due = match &placement.ticket {
        Some(ticket) => ticket.place().due,
        None => due(snapshot, view, place, placement.decision.at),
    };
    let is_first = shared.room.looks(pool, due);
    let is_spent = shared.room.regeneration(pool).is_spent(now);
    let standing = Standing { ahead_s: placement.features.ahead_s, is_first, is_spent };
    let again = is_first.then(|| now.plus(LOOK_AGAIN));
    snapshot.policy.waits(view, place, standing).then_some(Hold::Line { due, again })
}

/// When a request is due that was `asked` for then: it may wait for so many times its own prefill, and for three quarters of
/// the time after which it is refused.
fn due(snapshot: &Snapshot, view: &View, place: usize, asked: Now) -> Now {
    let config = &snapshot.config;
    let prefill_s = view.latency.prefill_s(place, view.uncached_tokens(place), view.warm_tokens[place]);
    let wait = Duration::try_from_secs_f64(f64::from(prefill_s) * config.policy.patience).unwrap_or(Duration::MAX);
    asked.plus(wait.min(config.timeouts.wait / 4 * 3))
}

/// A request was placed at `place` of `view`: what it pushes out will be computed again.
pub(super) fn spend(shared: &Shared, snapshot: &Snapshot, view: &View, place: usize, placement: &Placement, now: Now) {
    let spends_s = f64::from(snapshot.policy.spends_s(view, place));
    if spends_s > 0.0 && may_stand(snapshot, view, place, placement) {
        let engines = view.len() - view.barred.len();
        let allowed = snapshot.config.policy.regeneration_max * engines as f64;
        shared.room.regeneration(placement.decision.pool).spend(spends_s, allowed, now);
    }
}

/// Takes a place in line for a request that is to have one, and gives it up for one that is placed.
///
/// # Errors
/// [`Reject::LineFull`].
pub(super) fn stand(shared: &Shared, snapshot: &Snapshot, placement: &mut Placement) -> Result<(), Reject> {
    match placement.hold {
        Some(Hold::Line { due, .. }) if placement.ticket.is_none() => {
            let most = snapshot.config.limits.waiting as usize;
            placement.ticket = Some(shared.room.join(placement.decision.pool, due, most).ok_or(Reject::LineFull)?);
        }
        Some(_) => {}
        None => placement.ticket = None,
    }
    Ok(())
}

impl Placement {
    /// Where it stands in line, while it does.
    #[must_use]
    pub fn place_in_line(&self) -> Option<Place> {
        self.ticket.as_ref().map(Ticket::place)
    }

    /// It is the decision on a request that has waited with `former` until `now`, and has its place in line.
    fn succeed(&mut self, former: &mut Self, now: Now) {
        self.decision.at = former.decision.at;
        self.decision.held_s = now.since(self.decision.at).as_secs_f32();
        if former.decision.pool == self.decision.pool {
            self.ticket = former.ticket.take();
        }
    }
}

impl Decider {
    /// Prices a request anew that is held back; by then it may be placed.
    ///
    /// # Errors
    /// [`Reject::NoReplica`] when none is left.
    pub fn look_again(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        placement: &mut Placement,
        now: Now,
    ) -> Result<(), Reject> {
        placement.attempts = 0;
        shared.index.set_now(now);
        placement.decision.held_s = now.since(placement.decision.at).as_secs_f32();
        self.place_again(shared, snapshot, placement, now)
    }

    /// Decides anew on a request that has waited with `former`, where replicas have come or gone meanwhile. It keeps its
    /// place in line.
    ///
    /// # Errors
    /// As [`Decider::decide`].
    pub fn decide_anew(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        asked: Asked<'_>,
        former: &mut Placement,
        now: Now,
    ) -> Result<Placement, Reject> {
        let mut placement = self.consider(shared, snapshot, asked.api, asked.body, asked.hints, now)?;
        placement.succeed(former, now);
        self.look_again(shared, snapshot, &mut placement, now)?;
        Ok(placement)
    }
}

/// What a client sent.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What it speaks.
    pub api: Api,
    /// The body.
    pub body: &'a [u8],
    /// What its headers say.
    pub hints: Hints<'a>,
}

#[cfg(test)]
mod tests;
