//! A placed request while it is at its replica: counted as in flight, announced as a prefill that others may build on,
//! and, where its own warm prefix is still being computed, told to wait for that.

use super::{Placement, Shared, Snapshot, slotted};
use crate::admission::WaitingRoom;
use crate::clock::Now;
use crate::id::PoolId;
use crate::load::Flight;
use crate::load::backlog::Work;
use crate::parse::Api;
use crate::prefix::pending::{Announcement, Awaited, Claim};
use crate::prefix::slots::{Ending, Stay};
use std::sync::Arc;
use std::time::Duration;

/// Prefills of fewer blocks are not announced: computing them again costs less than waiting.
const ANNOUNCED_BLOCKS_MIN: usize = 4;
/// How far an expected time may be off: once rates are learned, and before.
const SLACK_LEARNED: f64 = 1.5;
const SLACK_UNKNOWN: f64 = 4.0;
const SLACK_LEAST: Duration = Duration::from_millis(50);
/// Silence beyond what was expected that makes a replica suspect.
const OVERDUE: Duration = Duration::from_secs(10);
/// Uncached tokens counted, at most, of a request that waits for another's.
const AWAITED_TOKENS: u64 = 256;
/// Output tokens allowed for when an answer comes all at once, and its prefill is over only when the answer is there.
const OUTPUT_TOKENS_SHORT: u32 = 32;

/// One request at one replica. Dropping it, however it ends, takes all of it back.
#[derive(Debug)]
pub struct Underway {
    flight: Option<Flight>,
    work: Option<Work>,
    announcement: Option<Announcement>,
    /// Its slot, at a replica of such.
    stay: Option<Stay>,
    awaited: Option<Awaited>,
    /// Whom its end concerns.
    room: (Arc<WaitingRoom>, PoolId),
    /// What it uses stays in use until it ends.
    is_slotted: bool,
    prefilled_by: Option<Now>,
    /// When the prefill should be over, with some slack.
    until: Now,
    is_over: bool,
}

impl Underway {
    /// Counts and announces `placement` where it was placed.
    #[must_use]
    pub fn begin(shared: &Arc<Shared>, snapshot: &Snapshot, placement: &Placement, now: Now) -> Self {
        let chosen = &placement.decision.chosen;
        let until = expected_end(shared, placement, now);
        let (chain, held) = (placement.chain.as_slice(), placement.held_blocks);
        let is_slotted = snapshot.limits(chosen.slot).is_slotted;
        let (mut awaited, mut announcement) = (None, None);
        if snapshot.policy.is_priced() && chain.len() >= ANNOUNCED_BLOCKS_MIN {
            if !is_slotted || chosen.prefix_wait_s > 0.0 {
                awaited =
                    shared.pending.find(chosen.slot, chain, if is_slotted { placement.warm_blocks } else { held }, now);
            }
            let claim = match chain.get(held) {
                _ if is_slotted => Some(Claim::Slot(chain.into())),
                Some(first) if chain.len() - held >= ANNOUNCED_BLOCKS_MIN => {
                    Some(Claim::Prefill { depth: held, hash: *first })
                }
                _ => None,
            };
            announcement = claim.and_then(|claim| shared.pending.announce(chosen.slot, claim, until));
        }
        // Who waits for blocks that another request has computed will find them: only its own end is work.
        let uncached = chosen.uncached_tokens();
        let cached = placement.decision.prompt_tokens - lossy(uncached);
        let counted = if awaited.is_some() { uncached.min(AWAITED_TOKENS) } else { uncached };
        let context = placement.decision.whole_prompt_tokens();
        // What a view follows is the flight: it comes second.
        let learned = shared.rates.coefficients(chosen.slot);
        let takes = (f64::from(learned.base_s), f64::from(learned.prefill_s(lossy(counted), cached.max(0.0))));
        let work = (counted > 0).then(|| Work::start(&shared.backlogs, chosen.slot, takes, now));
        let flight = Some(Flight::start(&shared.load, chosen.slot, counted, context));
        Self {
            flight,
            work,
            announcement,
            stay: None,
            awaited,
            room: (Arc::clone(&shared.room), placement.decision.pool),
            is_slotted,
            prefilled_by: (!placement.stream).then_some(until),
            until,
            is_over: false,
        }
    }

    /// It leaves for its replica now: from here on it has a slot there, or waits for one.
    pub fn sent(&mut self, shared: &Shared, placement: &Placement, now: Now) {
        if self.is_slotted && placement.decision.api.is_some_and(Api::leaves_cache) {
            self.stay = shared.slots.admit(placement.decision.chosen.slot, &slotted::asked_of(placement), now);
        }
    }

    /// The replica has refused it, or never had it.
    pub fn refused(&mut self, now: Now) {
        self.leave(Ending::Refused, now);
    }

    fn leave(&mut self, ending: Ending, now: Now) {
        if let Some(mut stay) = self.stay.take() {
            stay.end(ending, now);
        }
    }

    /// The prefill under way that this request should wait for, once.
    pub const fn take_awaited(&mut self) -> Option<Awaited> {
        self.awaited.take()
    }

    /// When the prefill is held to be over although nothing has been heard: for answers that come all at once.
    #[must_use]
    pub const fn prefilled_by(&self) -> Option<Now> {
        self.prefilled_by
    }

    /// The prefill is over, for all that is known at `now`.
    #[must_use]
    pub fn is_prefilled(&self, now: Now) -> bool {
        self.is_over || now >= self.until
    }

    /// At `now` nothing has been heard for far longer than was expected.
    #[must_use]
    pub fn is_overdue(&self, now: Now) -> bool {
        !self.is_over && now > self.until.plus(OVERDUE)
    }

    /// The replica is done with it, though the client may not have all of its answer yet.
    pub fn ended(&mut self, now: Now) {
        self.prefilled(now);
        self.leave(Ending::Whole, now);
        self.announcement = None;
        self.flight = None;
    }

    /// The prefill is over: its tokens no longer stand before others, and those who waited for it go on.
    pub fn prefilled(&mut self, now: Now) {
        if let Some(work) = &mut self.work {
            work.prefilled(now);
        }
        if let Some(flight) = &mut self.flight {
            flight.prefilled();
        }
        if let Some(stay) = &mut self.stay {
            stay.computed();
        }
        self.is_over = true;
        self.prefilled_by = None;
        if !self.is_slotted {
            self.announcement = None;
        }
        self.room.0.call(self.room.1);
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        // However it ended, its replica has less to do; what is counted of it is taken back first.
        (self.work, self.flight) = (None, None);
        self.room.0.call(self.room.1);
    }
}

/// When the prefill should be over, with some slack.
fn expected_end(shared: &Shared, placement: &Placement, now: Now) -> Now {
    let chosen = &placement.decision.chosen;
    let rates = shared.rates.rates(chosen.slot);
    let output_tokens = if placement.stream {
        1
    } else {
        placement.output_tokens_max.unwrap_or(OUTPUT_TOKENS_SHORT).min(OUTPUT_TOKENS_SHORT)
    };
    let expected = f64::from(chosen.wait_s)
        + f64::from(chosen.prefill_s)
        + f64::from(output_tokens) * f64::from(rates.decode_s_per_token);
    let slack = if shared.rates.is_learned(chosen.slot) { SLACK_LEARNED } else { SLACK_UNKNOWN };
    now.plus(Duration::from_secs_f64((expected * slack).clamp(0.0, 60.0)) + SLACK_LEAST)
}

#[expect(clippy::cast_precision_loss, reason = "tokens need no more than 7 digits")]
const fn lossy(tokens: u64) -> f32 {
    tokens as f32
}
