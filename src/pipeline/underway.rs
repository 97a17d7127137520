//! A placed request while it is at its replica: counted as in flight, announced as a prefill that others may build on,
//! and, where its own warm prefix is still being computed, told to wait for that.

use super::{Placement, Shared, Snapshot, slotted};
use crate::admission::WaitingRoom;
use crate::clock::Now;
use crate::id::{BlockHash, PoolId, ReplicaSlot};
use crate::load::Flight;
use crate::load::backlog::{Task, Work};
use crate::parse::Api;
use crate::prefix::pending::{Announcement, Awaited, Claim};
use crate::prefix::slots::{Ending, Stay};
use std::sync::Arc;
use std::time::Duration;

/// Prefills of fewer blocks are not announced: computing them again costs less than waiting.
const ANNOUNCED_BLOCKS_MIN: usize = 4;
/// Nor are prefills that take less, seconds, at engines that compute several prompts in one step: those that share a step
/// are both done at its end, and who waited would be done one later.
const ANNOUNCED_PREFILL_MIN_S: f32 = 0.1;
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
    /// What it holds on to of its replica's cache.
    in_use: Option<InUse>,
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
        let awaited = await_prefix(shared, snapshot, placement, chain, now);
        let mut announcement = None;
        if may_wait(snapshot, chain) && is_worth_waiting_for(snapshot, placement) {
            let claim = match chain.get(held) {
                _ if is_slotted => Some(Claim::Slot(chain.into())),
                Some(first) if chain.len() - held >= ANNOUNCED_BLOCKS_MIN => {
                    Some(Claim::Prefill { depth: held, hash: *first })
                }
                _ => None,
            };
            let expected = now.plus(Duration::from_secs_f32(chosen.predicted.ttft_p50_s.clamp(0.0, 3600.0)));
            announcement =
                claim.and_then(|claim| shared.pending.announce(chosen.slot, claim, expected.min(until), until));
        }
        // Who waits for blocks that another request has computed will find them: only its own end is work.
        let uncached = chosen.uncached_tokens();
        let counted = if awaited.is_some() { uncached.min(AWAITED_TOKENS) } else { uncached };
        let context = placement.decision.whole_prompt_tokens();
        // What a view follows is the flight: it comes second.
        let pace = shared.rates.coefficients(chosen.slot).pace();
        let sent = awaited.as_ref().map_or(now, |awaited| awaited.expected.max(now));
        let (new_tokens, cached_tokens) = (placement.features.uncached_tokens, placement.features.cached_tokens);
        let new_tokens = if awaited.is_some() { new_tokens.min(lossy(AWAITED_TOKENS)) } else { new_tokens };
        let task = Task { new_tokens, cached_tokens, sent };
        let work = (context > 0).then(|| Work::start(&shared.backlogs, chosen.slot, &task, &pace, now));
        let flight = Some(Flight::start(&shared.load, chosen.slot, counted, context, now));
        Self {
            flight,
            work,
            announcement,
            stay: None,
            awaited,
            room: (Arc::clone(&shared.room), placement.decision.pool),
            is_slotted,
            in_use: Some(InUse::begin(shared, placement)),
            prefilled_by: (!placement.stream).then_some(until),
            until,
            is_over: false,
        }
    }

    /// It leaves for its replica now: from here on it has a slot there, or waits for one.
    pub fn sent(&mut self, shared: &Shared, placement: &Placement, now: Now) {
        if let Some(work) = &self.work {
            work.sent(now);
        }
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

    /// A token after the first has come: what it says of the replica's steps is learned, now and then.
    pub fn token(&mut self, shared: &Shared, now: Now) {
        if let Some(work) = &mut self.work
            && let Some(step) = work.token(now)
        {
            shared.rates.learn_step(work.slot(), &step);
        }
    }

    /// Others came to its replica between it and its first token.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.followers() > 0)
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
        self.in_use = None;
        if let Some(work) = &mut self.work {
            work.ended();
        }
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

/// Whether a prefill of `chain` may wait for others', and others for it.
fn may_wait(snapshot: &Snapshot, chain: &[BlockHash]) -> bool {
    snapshot.policy.is_priced() && chain.len() >= ANNOUNCED_BLOCKS_MIN
}

/// Whether it takes long enough for that.
fn is_worth_waiting_for(snapshot: &Snapshot, placement: &Placement) -> bool {
    let chosen = &placement.decision.chosen;
    chosen.prefill_s >= ANNOUNCED_PREFILL_MIN_S || snapshot.limits(chosen.slot).is_slotted
}

/// The prefill under way that `placement`, with its `chain`, has to wait for.
fn await_prefix(
    shared: &Shared,
    snapshot: &Snapshot,
    placement: &Placement,
    chain: &[BlockHash],
    now: Now,
) -> Option<Awaited> {
    let chosen = &placement.decision.chosen;
    let is_slotted = snapshot.limits(chosen.slot).is_slotted;
    if !may_wait(snapshot, chain) || is_slotted && chosen.prefix_wait_s <= 0.0 {
        return None;
    }
    let held = if is_slotted { placement.warm_blocks } else { placement.held_blocks };
    shared.pending.find(chosen.slot, chain, held, now)
}

/// When the prefill should be over that [`await_prefix`] finds.
pub(super) fn awaited(
    shared: &Shared,
    snapshot: &Snapshot,
    placement: &Placement,
    chain: &[BlockHash],
    now: Now,
) -> Option<Now> {
    await_prefix(shared, snapshot, placement, chain, now).map(|awaited| awaited.expected)
}

/// What a request uses of its replica's cache is not given up before the request is over, however it ends.
#[derive(Debug)]
struct InUse {
    shared: Arc<Shared>,
    slot: ReplicaSlot,
    clock: u32,
}

impl InUse {
    fn begin(shared: &Arc<Shared>, placement: &Placement) -> Self {
        let (slot, clock) = (placement.decision.chosen.slot, placement.clock);
        shared.index.hold(slot, clock);
        Self { shared: Arc::clone(shared), slot, clock }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.shared.index.release(self.slot, self.clock);
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
