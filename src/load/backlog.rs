//! What the gateway has standing before each replica: prompts that are not computed yet, and answers under way; and how
//! long a newcomer has to wait for its turn.
//!
//! Tokens alone do not say how long there is to wait: what one costs depends on what stands before it, of a prompt that
//! was sent a while ago much has been computed, and a step of the engine ends for all that are in it at once. So what was
//! sent is gone through as the engine goes through it ([`queue`]), from the last moment at which a step is known to have
//! begun: when a first token came, for then a step had just ended. All times are as the gateway sees them, so that the way
//! back is part of the way there.
//!
//! Further tokens tell when steps end and how long they take: while answers are under way, a newcomer waits for the end of
//! the step that is running when it arrives.
//!
//! A place for each of [`PLACES`] prompts, taken and given back by one bit, and no lock: who reads while others write may
//! see a prompt in part, and is a little wrong once. Beyond that, only the seconds that the others take are kept.

mod cell;
mod queue;

pub use self::queue::Prompt;

use self::cell::Cell;
use crate::clock::Now;
use crate::id::ReplicaSlot;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Prompt tokens that an engine computes in one step, at most: the default of vLLM, SGLang and TensorRT-LLM on large GPUs.
pub const CHUNK_TOKENS: f32 = 8192.0;
/// Prompts that are followed one by one at each replica.
pub const PLACES: usize = 64;
/// Prefill is spread over about this many seconds to say what share of its time a replica spends on it.
const SHARE_OVER_S: f64 = 10.0;
/// Most tokens of a prompt.
const TOKENS_MAX: f32 = 1e8;
/// Most seconds that one request may bring.
const WORK_S_MAX: f64 = 600.0;
/// Tokens of one step come within this time, at least.
const STEP_LEAST: Duration = Duration::from_micros(500);
/// Without a token for so long, nothing is known of when steps end.
const TOKENS_OLD: Duration = Duration::from_secs(2);
/// The step's time follows the median of what is seen, by this share each time.
const STEP_FOLLOWS: f32 = 0.06;
/// Time between two steps that are told of.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// How exactly it is known what of a cache is in use, as a share of all.
const CACHE_DOUBT: f32 = 0.01;
/// The share of prompts that takes room follows what is heard by so much each time; from so many tokens on, and within
/// these bounds.
const SHARE_FOLLOWS: f32 = 0.1;
const TOKENS_TO_SHARE: f32 = 1024.0;
const SHARE: std::ops::RangeInclusive<f32> = 0.05..=8.0;
/// Steps that take more, or less, than so many times what they should are none.
const SLOWNESS: std::ops::Range<f32> = 0.01..100.0;

/// How fast a replica is held to be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// From sending a request until it is there and, once computed, its token is back.
    pub travel_s: f32,
    /// For each prompt token to compute.
    pub token_s: f32,
    /// For each pair of a token to compute and one before it.
    pub pair_s: f32,
    /// For a step that decodes.
    pub step_s: f32,
    /// More of it for each answer.
    pub step_request_s: f32,
    /// More of it for each token of their prompts and of themselves.
    pub step_token_s: f32,
}

impl Pace {
    /// Seconds for a step that decodes so many answers, with so many tokens of prompts and of themselves.
    #[must_use]
    pub fn decode_s(&self, answers: f32, tokens: f32) -> f32 {
        self.step_token_s.mul_add(tokens, self.step_request_s.mul_add(answers, self.step_s))
    }

    /// Seconds for `new` prompt tokens after `before` others.
    #[must_use]
    pub fn prefill_s(&self, new: f32, before: f32) -> f32 {
        new * (self.token_s + self.pair_s * (before + 0.5 * new))
    }
}

/// A prompt on its way to a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Task {
    /// Tokens to compute.
    pub new_tokens: f32,
    /// Tokens that are there.
    pub cached_tokens: f32,
    /// When it is sent, as far as is known.
    pub sent: Now,
}

/// A replica's KV cache, as far as requests wait for room in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cache {
    /// Tokens it holds; infinite when unknown.
    pub tokens: f32,
    /// Seconds that an answer takes after its first token, in the mean; zero when unknown.
    pub answer_s: f32,
}

impl Default for Cache {
    fn default() -> Self {
        Self { tokens: f32::INFINITY, answer_s: 0.0 }
    }
}

/// A step that was seen, and that decoded alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Answers that got a token.
    pub answers: f32,
    /// Tokens of their prompts and of themselves.
    pub tokens: f32,
    /// What it took.
    pub seconds: f32,
}

/// What a newcomer meets at one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Requests whose prefill is not over.
    pub prefills: u32,
    /// From when it is there until its own prefill begins, seconds.
    pub ahead_s: f32,
    /// Prompt tokens for which there is room in the step in which that is.
    pub room_tokens: f32,
    /// What a decode step takes then, seconds; zero when nothing is decoded.
    pub step_s: f32,
    /// The cache has no room until answers end.
    pub is_full: bool,
    /// Answers under way now.
    pub decoding: u32,
    /// Tokens generated so far by these, about.
    pub generated_tokens: f32,
    /// Share of the last ten seconds or so that new prefill takes; above one when it comes faster than it is computed.
    pub prefill_share: f32,
}

/// Backlogs by replica, shared by all shards.
#[derive(Debug)]
pub struct Backlogs {
    cells: Box<[Cell]>,
}

impl Backlogs {
    /// Of `slots_max` replicas, all empty.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self { cells: (0..slots_max).map(|_| Cell::default()).collect() }
    }

    /// What a request with `prompt` meets at `slot` that is sent there at `sent`.
    #[inline]
    #[must_use]
    pub fn read(&self, slot: ReplicaSlot, (pace, cache): (&Pace, &Cache), prompt: Prompt, sent: Now) -> Backlog {
        self.cells.get(slot.index()).map_or_else(Backlog::default, |cell| cell.read(pace, cache, prompt, sent))
    }

    /// Share of the last ten seconds or so that new prefill takes at `slot`; above one when it comes faster than it is
    /// computed.
    #[must_use]
    pub fn prefill_share(&self, slot: ReplicaSlot, now: Now) -> f32 {
        self.cells.get(slot.index()).map_or(0.0, |cell| narrow(cell.lately_s(now) / SHARE_OVER_S))
    }

    /// `slot` has changed hands: how fast the replica was and how it shared its cache says nothing of the next. What is
    /// under way there takes itself back.
    pub fn reset(&self, slot: ReplicaSlot) {
        if let Some(cell) = self.cells.get(slot.index()) {
            cell.slowness.store(0, Relaxed);
            cell.share.store(0, Relaxed);
        }
    }

    /// A step of `slot` was seen to end at `at`.
    pub fn step_ended(&self, slot: ReplicaSlot, at: Now) {
        if let Some(cell) = self.cells.get(slot.index()) {
            cell.token_at.store(at.0, Relaxed);
        }
    }

    /// The engine at `slot` was heard to use `tokens` of its cache.
    pub fn used(&self, slot: ReplicaSlot, tokens: f32, now: Now) {
        if let Some(cell) = self.cells.get(slot.index()) {
            cell.used(tokens, now);
        }
    }

    /// `times` steps of `slot` took `seconds` each, the last of them until `now`. Returns one to be learned from, now and
    /// then.
    pub fn steps_seen(&self, slot: ReplicaSlot, seconds: f32, times: u32, now: Now) -> Option<Step> {
        let cell = self.cells.get(slot.index())?;
        cell.step_seen(seconds, i32::try_from(times.min(64)).unwrap_or(64), now)
    }
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Standing,
    /// Its first token came at this time.
    Decoding(Now),
    Over,
}

/// One request's part of a backlog. Dropping it takes it back.
#[derive(Debug)]
pub struct Work {
    backlogs: Arc<Backlogs>,
    slot: ReplicaSlot,
    place: Option<u8>,
    work_us: u64,
    tokens: u64,
    stage: Stage,
    last_token: Now,
    /// Requests that had come before it, and that came between it and its first token.
    came: u32,
    followers: u32,
}

impl Work {
    /// A request comes to `slot` at `now`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    pub fn start(backlogs: &Arc<Backlogs>, slot: ReplicaSlot, task: &Task, pace: &Pace, now: Now) -> Self {
        let work_s = bounded(f64::from(pace.prefill_s(task.new_tokens, task.cached_tokens)));
        let work_us = (work_s * 1e6) as u64;
        let tokens = (task.new_tokens + task.cached_tokens).clamp(0.0, TOKENS_MAX) as u64;
        let (mut place, mut came) = (None, 0);
        if let Some(cell) = backlogs.cells.get(slot.index()) {
            let lately_s = cell.lately_s(now) + work_s;
            cell.lately_s.store(lately_s.to_bits(), Relaxed);
            cell.lately_at.store(now.0, Relaxed);
            cell.set_pace(pace);
            place = cell.stand(task, pace, now);
            if place.is_none() {
                cell.beyond.fetch_add(1, Relaxed);
                cell.beyond_us.fetch_add(work_us, Relaxed);
            }
            came = cell.came.fetch_add(1, Relaxed).wrapping_add(1);
        }
        let backlogs = Arc::clone(backlogs);
        Self { backlogs, slot, place, work_us, tokens, stage: Stage::Standing, last_token: now, came, followers: 0 }
    }

    /// It is sent only now: it was held.
    pub fn sent(&self, now: Now) {
        if let (Some(cell), Some(place)) = (self.backlogs.cells.get(self.slot.index()), self.place)
            && let Some(own) = cell.places.get(usize::from(place))
        {
            own.arrives.store(later(now, f64::from(cell.pace().travel_s)).0, Relaxed);
        }
    }

    /// Its first token is there: its prefill is over, and so is a step.
    pub fn prefilled(&mut self, now: Now) {
        let Some(cell) = self.backlogs.cells.get(self.slot.index()).filter(|_| self.stage == Stage::Standing) else {
            return;
        };
        self.followers = cell.came.load(Relaxed).wrapping_sub(self.came);
        cell.step_ended(now);
        self.leave(cell);
        cell.decoding.fetch_add(1, Relaxed);
        cell.decoding_tokens.fetch_add(self.tokens, Relaxed);
        cell.first.fetch_add(now.0, Relaxed);
        self.stage = Stage::Decoding(now);
        self.last_token = now;
    }

    /// A further token is there. Returns a step to be learned from, now and then.
    pub fn token(&mut self, now: Now) -> Option<Step> {
        let is_decoding = matches!(self.stage, Stage::Decoding(_));
        let cell = self.backlogs.cells.get(self.slot.index()).filter(|_| is_decoding)?;
        let gap = now.since(std::mem::replace(&mut self.last_token, now));
        // Of the tokens that one step makes, the first to come counts.
        if now.since(Now(cell.token_at.load(Relaxed))) < (gap / 2).max(STEP_LEAST) {
            return None;
        }
        cell.token_at.store(now.0, Relaxed);
        cell.step_seen(gap.as_secs_f32(), 1, now)
    }

    /// It is over.
    pub fn ended(&mut self) {
        let Some(cell) = self.backlogs.cells.get(self.slot.index()) else { return };
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Standing => self.leave(cell),
            Stage::Decoding(first) => {
                cell.decoding.fetch_sub(1, Relaxed);
                cell.decoding_tokens.fetch_sub(self.tokens, Relaxed);
                cell.first.fetch_sub(first.0, Relaxed);
            }
            Stage::Over => {}
        }
    }

    /// Where it is.
    #[must_use]
    pub const fn slot(&self) -> ReplicaSlot {
        self.slot
    }

    /// Requests that came after it and before its first token did: what they were given may have cost it time.
    #[must_use]
    pub const fn followers(&self) -> u32 {
        self.followers
    }

    /// Gives its place back.
    fn leave(&self, cell: &Cell) {
        match self.place {
            Some(place) => {
                cell.taken.fetch_and(!(1 << place), Relaxed);
            }
            None => {
                cell.beyond.fetch_sub(1, Relaxed);
                cell.beyond_us.fetch_sub(self.work_us, Relaxed);
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.ended();
    }
}

/// Seconds from `from` to `to`, which may be before it.
#[expect(clippy::cast_precision_loss, reason = "exact for a hundred days")]
const fn signed_s(to: Now, from: Now) -> f64 {
    to.0.wrapping_sub(from.0).cast_signed() as f64 / 1e9
}

const fn bounded(seconds: f64) -> f64 {
    if seconds.is_finite() { seconds.clamp(0.0, WORK_S_MAX) } else { 0.0 }
}

/// The time `seconds` after `now`, to the nearest nanosecond.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
const fn later(now: Now, seconds: f64) -> Now {
    Now(now.0.saturating_add((bounded(seconds) * 1e9 + 0.5) as u64))
}

#[expect(clippy::cast_possible_truncation, reason = "seconds of 7 digits")]
const fn narrow(seconds: f64) -> f32 {
    seconds as f32
}

#[cfg(test)]
mod tests;
