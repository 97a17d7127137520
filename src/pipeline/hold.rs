//! Requests that are decided but not placed yet, and what they wait for.

use super::candidates::Known;
use super::{Decider, Placement, Shared, Snapshot};
use crate::clock::Now;
use crate::policy::{Turn, View};
use crate::reject::Reject;
use std::time::Duration;

/// The first in line look for a replica so often, whatever happens: as time goes by, caches grow colder.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Why a request is not placed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Its slot would cost more than waiting does. `again`: when to look again if no slot becomes free before.
    Slot {
        /// See above.
        again: Now,
    },
    /// No replica has time for it that would not lose what is needed: it stands in line ([`crate::admission`]). `again`:
    /// when to look again if it is not called before; `None`: others are before it.
    Line {
        /// See above.
        again: Option<Now>,
    },
}

/// Whether the policy has the request wait that was picked `place` of `view`. Who has an objective does not: what meets it
/// was chosen as of now. Where prompts are kept in slots, it is
/// slots that are waited for.
pub(super) fn in_line(known: Known<'_>, view: &View, place: usize, placement: &Placement) -> Option<Hold> {
    let is_slotted = known.snapshot.limits(view.slots[place]).is_slotted;
    if placement.attempts > 1
        || is_slotted
        || !placement.wish.slo.is_none()
        || !known.snapshot.policy.waits(view, place, placement.features.ahead_s)
    {
        return None;
    }
    Some(Hold::Line { again: (view.turn == Turn::Own).then(|| known.now.plus(LOOK_AGAIN)) })
}

/// Whose turn it is to be placed.
pub(super) fn turn(shared: &Shared, placement: &Placement) -> Turn {
    let is_own = match &placement.ticket {
        Some(ticket) => ticket.looks(),
        None => shared.room.is_short(placement.decision.pool),
    };
    if is_own { Turn::Own } else { Turn::Others }
}

/// Takes a place in line for a request that is to have one, and gives it up for one that is placed.
///
/// # Errors
/// [`Reject::LineFull`].
pub(super) fn stand(shared: &Shared, snapshot: &Snapshot, placement: &mut Placement) -> Result<(), Reject> {
    match placement.hold {
        Some(Hold::Line { .. }) if placement.ticket.is_none() => {
            let most = snapshot.config.limits.waiting as usize;
            placement.ticket = Some(shared.room.join(placement.decision.pool, most).ok_or(Reject::LineFull)?);
        }
        Some(_) => {}
        None => placement.ticket = None,
    }
    Ok(())
}

impl Placement {
    /// It is the decision on a request that has waited with `former` until `now`, and has its place in line.
    pub fn succeed(&mut self, mut former: Self, now: Now) {
        self.decision.at = former.decision.at;
        self.decision.held_s = now.since(self.decision.at).as_secs_f32();
        if self.ticket.is_some() && former.decision.pool == self.decision.pool {
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
}
