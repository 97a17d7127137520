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

mod queue;

pub use self::queue::Prompt;

use self::queue::{Begin, Join, Newcomer, Room, Standing, play};
use crate::clock::Now;
use crate::id::ReplicaSlot;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
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

#[derive(Debug, Default)]
struct Place {
    /// When it is there, nanoseconds.
    arrives: AtomicU64,
    left: AtomicU32,
    before: AtomicU32,
}

#[derive(Debug)]
struct Cell {
    places: [Place; PLACES],
    taken: AtomicU64,
    /// Those without a place, and their microseconds.
    beyond: AtomicU32,
    beyond_us: AtomicU64,
    /// When a step began, and whether the engine was idle until then.
    began: AtomicU64,
    was_idle: AtomicBool,
    /// Requests that were ever placed here.
    came: AtomicU32,
    /// Answers under way, their prompts' tokens, and the sum of the times of their first tokens.
    decoding: AtomicU32,
    decoding_tokens: AtomicU64,
    first: AtomicU64,
    /// When a step was last seen to end, and what steps take by what they should (the bits of an `f32`; zero: unknown).
    token_at: AtomicU64,
    slowness: AtomicU32,
    /// What prompts take of the cache, by their tokens (the bits of an `f32`; zero: unknown): less than all, where several
    /// share some, and more, where others use it too.
    share: AtomicU32,
    /// When a step was last told of.
    told_at: AtomicU64,
    /// The pace by which the last request was placed (the bits of `f32`s).
    pace: [AtomicU32; 6],
    /// Seconds of prefill that came of late (the bits of an `f64`), as of a moment.
    lately_s: AtomicU64,
    lately_at: AtomicU64,
}

impl Default for Cell {
    fn default() -> Self {
        Self {
            places: std::array::from_fn(|_| Place::default()),
            taken: AtomicU64::new(0),
            beyond: AtomicU32::new(0),
            beyond_us: AtomicU64::new(0),
            began: AtomicU64::new(0),
            was_idle: AtomicBool::new(false),
            came: AtomicU32::new(0),
            decoding: AtomicU32::new(0),
            decoding_tokens: AtomicU64::new(0),
            first: AtomicU64::new(0),
            token_at: AtomicU64::new(0),
            slowness: AtomicU32::new(0),
            share: AtomicU32::new(0),
            told_at: AtomicU64::new(0),
            pace: std::array::from_fn(|_| AtomicU32::new(0)),
            lately_s: AtomicU64::new(0),
            lately_at: AtomicU64::new(0),
        }
    }
}

/// Answers under way at one replica.
#[derive(Clone, Copy, Debug)]
struct Decoding {
    answers: u32,
    /// Tokens of their prompts, and those they have generated.
    prompts: f32,
    generated: f32,
    step_s: f32,
}

/// The prompts standing at one replica, in the order of their arrival, and where each has its place.
struct Queue {
    standing: [Standing; PLACES],
    places: [u8; PLACES],
    len: usize,
}

impl Cell {
    /// What came of late. Two shards at once may lose one of two additions: it is an average.
    fn lately_s(&self, now: Now) -> f64 {
        let passed = now.seconds_since(Now(self.lately_at.load(Relaxed)));
        f64::from_bits(self.lately_s.load(Relaxed)) * (-passed / SHARE_OVER_S).exp()
    }

    /// The queue, with times from `from` on.
    fn queue(&self, from: Now) -> Queue {
        let mut queue = Queue { standing: [Standing::default(); PLACES], places: [0; PLACES], len: 0 };
        let mut taken = self.taken.load(Relaxed);
        while taken != 0 {
            let place = taken.trailing_zeros();
            taken &= taken - 1;
            let Some(cell) = self.places.get(place as usize) else { break };
            let float = |bits: &AtomicU32| f32::from_bits(bits.load(Relaxed));
            let arrives_s = signed_s(Now(cell.arrives.load(Relaxed)), from);
            queue.insert(Standing::new(arrives_s, float(&cell.left), float(&cell.before)), place);
        }
        queue
    }

    fn set_pace(&self, pace: &Pace) {
        let Pace { travel_s, token_s, pair_s, step_s, step_request_s, step_token_s } = *pace;
        for (cell, value) in self.pace.iter().zip([travel_s, token_s, pair_s, step_s, step_request_s, step_token_s]) {
            cell.store(value.to_bits(), Relaxed);
        }
    }

    fn pace(&self) -> Pace {
        let [travel_s, token_s, pair_s, step_s, step_request_s, step_token_s] =
            std::array::from_fn(|place| f32::from_bits(self.pace[place].load(Relaxed)));
        Pace { travel_s, token_s, pair_s, step_s, step_request_s, step_token_s }
    }

    /// What decodes here at `now`.
    #[expect(clippy::cast_precision_loss, reason = "counts of 7 digits")]
    fn decoding(&self, pace: &Pace, now: Now) -> Decoding {
        let answers = self.decoding.load(Relaxed);
        let count = answers as f32;
        let prompts = self.decoding_tokens.load(Relaxed) as f32;
        // The sum of how long each of them has been decoded; it wraps as the sum of first tokens does.
        let decoded = now.0.wrapping_mul(u64::from(answers)).wrapping_sub(self.first.load(Relaxed)).cast_signed();
        let decoded_s = Duration::from_nanos(u64::try_from(decoded).unwrap_or(0)).as_secs_f32();
        let seen = f32::from_bits(self.slowness.load(Relaxed));
        let is_old = now.since(Now(self.token_at.load(Relaxed))) > TOKENS_OLD;
        let slowness = if seen > 0.0 && !is_old { seen } else { 1.0 };
        // How much they have generated depends on what a step takes, and the other way round: as if they had none, first.
        let bare_s = pace.decode_s(count, prompts) * slowness;
        let generated = if bare_s > 0.0 { decoded_s / bare_s } else { 0.0 };
        let step_s = pace.decode_s(count, prompts + generated) * slowness;
        Decoding { answers, prompts, generated: if step_s > 0.0 { decoded_s / step_s } else { 0.0 }, step_s }
    }

    /// The first end of a decode step at or after `arrives`, where none of them computes prompts.
    fn step_end(&self, arrives: Now, step_s: f32, now: Now) -> Now {
        let seen = Now(self.token_at.load(Relaxed));
        let step_s = f64::from(step_s);
        if now.since(seen) > TOKENS_OLD || step_s <= 0.0 {
            return arrives.plus(seconds(step_s / 2.0));
        }
        let steps = (signed_s(arrives, seen) / step_s).ceil().max(0.0);
        seen.plus(seconds(steps * step_s))
    }

    /// A request comes; the first of those standing finds a step begin. Returns its place, if there is one.
    #[expect(clippy::cast_possible_truncation, reason = "one of 64")]
    fn stand(&self, task: &Task, pace: &Pace, now: Now) -> Option<u8> {
        let arrives = task.sent.plus(seconds(f64::from(pace.travel_s)));
        if self.taken.load(Relaxed) == 0 {
            let is_idle = self.decoding.load(Relaxed) == 0;
            let began = if is_idle { arrives } else { self.step_end(arrives, self.decoding(pace, now).step_s, now) };
            self.began.store(began.0, Relaxed);
            self.was_idle.store(is_idle, Relaxed);
        }
        let take = |taken: u64| (taken != u64::MAX).then(|| taken | (taken + 1));
        let before = self.taken.fetch_update(Relaxed, Relaxed, take).ok()?;
        let place = before.trailing_ones();
        let cell = self.places.get(place as usize)?;
        cell.arrives.store(arrives.0, Relaxed);
        let tokens = |count: f32, least: f32| count.clamp(least, TOKENS_MAX).max(least).to_bits();
        cell.left.store(tokens(task.new_tokens, 1.0), Relaxed);
        cell.before.store(tokens(task.cached_tokens, 0.0), Relaxed);
        Some(place as u8)
    }

    /// A first token has come: a step has ended, and those still standing have been computed in part.
    fn step_ended(&self, now: Now) {
        let began = Now(self.began.load(Relaxed));
        if now > began && self.taken.load(Relaxed) != 0 {
            let pace = self.pace();
            let step_s = self.decoding(&pace, now).step_s;
            let mut queue = self.queue(began);
            let until_s = signed_s(now, began);
            let standing = queue.standing.get_mut(..queue.len).unwrap_or_default();
            play(standing, self.begin(0.0), (&pace, step_s, Room::ANY), until_s, Newcomer::NONE);
            for (one, place) in queue.standing.iter().zip(&queue.places).take(queue.len) {
                // Those that should be done are waited for as they were.
                if let Some(cell) = self.places.get(usize::from(*place)).filter(|_| one.left > 0.0) {
                    cell.left.store(one.left.to_bits(), Relaxed);
                    cell.before.store(one.before.to_bits(), Relaxed);
                }
            }
        }
        self.began.store(now.0, Relaxed);
        self.was_idle.store(false, Relaxed);
        self.token_at.store(now.0, Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "requests of one replica")]
    fn begin(&self, at_s: f64) -> Begin {
        Begin { at_s, was_idle: self.was_idle.load(Relaxed), decoding: self.decoding.load(Relaxed) as f32 }
    }

    /// `times` steps were seen to take `seconds`, the last of them until `now`. Those that compute prompts too take longer:
    /// where any stand, it is no news that a step takes longer, and nothing is to be learned from that. The others are
    /// returned, now and then.
    #[expect(clippy::cast_precision_loss, reason = "answers of one replica")]
    fn step_seen(&self, seconds: f32, times: i32, now: Now) -> Option<Step> {
        let pace = self.pace();
        let Decoding { answers, prompts, generated, .. } = self.decoding(&pace, now);
        let step = Step { answers: answers as f32, tokens: prompts + generated, seconds };
        let seen = seconds / pace.decode_s(step.answers, step.tokens);
        if !SLOWNESS.contains(&seen) || answers == 0 {
            return None;
        }
        let before = f32::from_bits(self.slowness.load(Relaxed));
        let is_mixed = self.taken.load(Relaxed) != 0;
        let after = match () {
            () if before <= 0.0 => seen,
            () if seen <= before => (before * (1.0 - STEP_FOLLOWS).powi(times)).max(seen),
            () if is_mixed => before,
            () => (before * (1.0 + STEP_FOLLOWS).powi(times)).min(seen),
        };
        self.slowness.store(after.to_bits(), Relaxed);
        let is_due = now.since(Now(self.told_at.load(Relaxed))) >= TELL_EVERY;
        (!is_mixed && is_due).then(|| {
            self.told_at.store(now.0, Relaxed);
            step
        })
    }

    /// The engine was heard to use `tokens` of its cache.
    fn used(&self, tokens: f32, now: Now) {
        let Decoding { prompts, generated, .. } = self.decoding(&self.pace(), now);
        // Of prompts that stand it is not known whether they have their room.
        if self.taken.load(Relaxed) != 0 || prompts < TOKENS_TO_SHARE {
            return;
        }
        let share = ((tokens - generated) / prompts).clamp(*SHARE.start(), *SHARE.end());
        let before = self.share();
        self.share.store(SHARE_FOLLOWS.mul_add(share - before, before).to_bits(), Relaxed);
    }

    fn share(&self) -> f32 {
        let share = f32::from_bits(self.share.load(Relaxed));
        if share > 0.0 { share } else { 1.0 }
    }

    /// What a request with `prompt` that is sent at `sent` meets.
    fn read(&self, pace: &Pace, cache: &Cache, prompt: Prompt, sent: Now) -> Backlog {
        let taken = self.taken.load(Relaxed);
        let decoding = self.decoding(pace, sent);
        let Decoding { step_s, generated, .. } = decoding;
        let arrives = sent.plus(seconds(f64::from(pace.travel_s)));
        let room = room(cache, self.share(), &decoding, signed_s(sent, arrives));
        let is_roomy = room.fits(prompt);
        let (at_s, is_decoding) = match decoding.answers {
            0 => (0.0, false),
            _ => (signed_s(self.step_end(arrives, step_s, sent), arrives), true),
        };
        let join = match taken {
            0 if is_roomy => Join { at_s, work_s: 0.0, room: CHUNK_TOKENS, is_decoding, is_full: false },
            _ => self.join((pace, step_s, room), prompt, arrives, at_s),
        };
        let beyond_s = Duration::from_micros(self.beyond_us.load(Relaxed)).as_secs_f64();
        Backlog {
            prefills: taken.count_ones() + self.beyond.load(Relaxed),
            ahead_s: narrow(join.at_s.max(0.0) + join.work_s + beyond_s),
            room_tokens: join.room,
            step_s: if join.is_decoding { step_s } else { 0.0 },
            is_full: join.is_full,
            decoding: decoding.answers,
            generated_tokens: generated,
            prefill_share: narrow(self.lately_s(sent) / SHARE_OVER_S),
        }
    }

    /// When a `prompt` that is there at `arrives` has its turn; with nobody before it, a step begins at `at_s`.
    fn join(&self, engine: (&Pace, f32, Room), prompt: Prompt, arrives: Now, at_s: f64) -> Join {
        let mut queue = self.queue(arrives);
        let standing = queue.standing.get_mut(..queue.len).unwrap_or_default();
        let began_s = signed_s(Now(self.began.load(Relaxed)), arrives);
        let begin = self.begin(if standing.is_empty() { at_s } else { began_s });
        let newcomer = Newcomer { arrives_s: 0.0, prompt };
        let nothing = Join { at_s: 0.0, work_s: 0.0, room: CHUNK_TOKENS, is_decoding: false, is_full: false };
        play(standing, begin, engine, f64::INFINITY, newcomer).unwrap_or(nothing)
    }
}

/// The room beside answers under way, as of `now_s`.
#[expect(clippy::cast_precision_loss, reason = "answers of one replica")]
fn room(cache: &Cache, share: f32, decoding: &Decoding, now_s: f64) -> Room {
    if !cache.tokens.is_finite() || decoding.answers == 0 || cache.answer_s <= 0.0 {
        return Room::ANY;
    }
    let count = decoding.answers as f32;
    let used = decoding.prompts.mul_add(share, decoding.generated);
    Room {
        free: cache.tokens * (1.0 + CACHE_DOUBT) - used,
        each: used / count,
        each_s: f64::from(cache.answer_s / count),
        own_share: share.min(1.0),
        until_s: now_s,
    }
}

impl Queue {
    fn insert(&mut self, one: Standing, place: u32) {
        let mut at = self.len;
        while at > 0 && self.standing[at - 1].arrives_s > one.arrives_s {
            self.standing[at] = self.standing[at - 1];
            self.places[at] = self.places[at - 1];
            at -= 1;
        }
        self.standing[at] = one;
        self.places[at] = u8::try_from(place).unwrap_or(0);
        self.len += 1;
    }
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
            own.arrives.store(now.plus(seconds(f64::from(cell.pace().travel_s))).0, Relaxed);
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
fn signed_s(to: Now, from: Now) -> f64 {
    to.seconds_since(from) - from.seconds_since(to)
}

const fn bounded(seconds: f64) -> f64 {
    if seconds.is_finite() { seconds.clamp(0.0, WORK_S_MAX) } else { 0.0 }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(bounded(seconds))
}

#[expect(clippy::cast_possible_truncation, reason = "seconds of 7 digits")]
const fn narrow(seconds: f64) -> f32 {
    seconds as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: ReplicaSlot = ReplicaSlot(1);
    const PACE: Pace =
        Pace { travel_s: 0.01, token_s: 1e-4, pair_s: 0.0, step_s: 0.02, step_request_s: 0.0, step_token_s: 0.0 };

    fn at(ms: u64) -> Now {
        Now(ms * 1_000_000)
    }

    fn start(backlogs: &Arc<Backlogs>, tokens: f32, ms: u64) -> Work {
        let task = Task { new_tokens: tokens, cached_tokens: 0.0, sent: at(ms) };
        Work::start(backlogs, SLOT, &task, &PACE, at(ms))
    }

    fn ahead_ms(backlogs: &Backlogs, ms: u64) -> u128 {
        let found = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(ms));
        (Duration::from_secs_f32(found.ahead_s) + Duration::from_micros(500)).as_millis()
    }

    #[test]
    fn what_is_ahead_becomes_less_as_it_is_computed() {
        let backlogs = Arc::new(Backlogs::new(2));
        let mut first = start(&backlogs, 2000.0, 100);
        // It is there at 110 and computed at 310; who is sent at 150 is there at 160.
        assert_eq!(ahead_ms(&backlogs, 150), 150);
        let mut second = start(&backlogs, 3000.0, 150);
        assert_eq!(ahead_ms(&backlogs, 150), 150 + 300, "in the second's step, after it");
        first.prefilled(at(330));
        assert_eq!(ahead_ms(&backlogs, 330), 310, "it took longer: the second's step ends at 330 + 300 + 20");
        second.prefilled(at(650));
        let then = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(650));
        assert_eq!((then.prefills, then.decoding), (0, 2));
        assert_eq!((first.followers(), second.followers()), (1, 0));
        drop((first, second));
        assert_eq!(backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(660)).decoding, 0);
    }

    #[test]
    fn a_newcomer_waits_for_the_step_that_runs_when_it_is_there() {
        let backlogs = Arc::new(Backlogs::new(2));
        let mut work = start(&backlogs, 100.0, 0);
        work.prefilled(at(20));
        for token in 1..=100 {
            let _told = work.token(at(20 + 30 * token));
        }
        // A step of 30 ms ends at 3,020; who is sent at 3,025 is there at 3,035.
        let found = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(3025));
        assert!((found.step_s - 0.03).abs() < 1e-4 && (found.ahead_s - 0.015).abs() < 1e-4, "{found:?}");
        assert!((found.generated_tokens - 100.0).abs() < 1.0, "{found:?}");
        // Nothing was seen for long: half a step, as steps are held to be.
        let found = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(9000));
        assert!((found.ahead_s - 0.01).abs() < 1e-4, "{found:?}");
    }

    #[test]
    fn all_of_it_is_taken_back_however_a_request_ends() {
        let backlogs = Arc::new(Backlogs::new(2));
        for tokens in [0.0, f32::NAN, -1.0, f32::INFINITY, 1e9] {
            let task = Task { new_tokens: tokens, cached_tokens: tokens, sent: at(5) };
            let pace = Pace { travel_s: tokens, ..PACE };
            let work = Work::start(&backlogs, SLOT, &task, &pace, at(5));
            assert!(
                backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(5)).ahead_s.is_finite(),
                "{tokens}"
            );
            drop(work);
            assert_eq!(backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(5)).prefills, 0);
        }
        let mut many: Vec<Work> = (0..200).map(|_| start(&backlogs, 1000.0, 5)).collect();
        let full = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(5));
        assert!(full.prefills == 200 && (15.0..25.0).contains(&full.ahead_s), "{full:?}");
        many.iter_mut().skip(50).step_by(2).for_each(|work| work.prefilled(at(90)));
        drop(many);
        let empty = backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(100));
        assert_eq!((empty.prefills, empty.decoding, empty.ahead_s), (0, 0, 0.0));
        let _outside = Work::start(&backlogs, ReplicaSlot(9), &Task::default(), &PACE, at(5));
    }

    #[test]
    fn a_request_that_is_held_is_not_there_before_it_is_sent() {
        let backlogs = Arc::new(Backlogs::new(2));
        let _first = start(&backlogs, 1000.0, 0);
        let task = Task { new_tokens: 500.0, cached_tokens: 1000.0, sent: at(110) };
        let held = Work::start(&backlogs, SLOT, &task, &PACE, at(10));
        assert_eq!(ahead_ms(&backlogs, 50), 50, "who comes before it does not wait for it");
        held.sent(at(40));
        assert_eq!(ahead_ms(&backlogs, 50), 50 + 50);
    }

    #[test]
    fn the_share_of_prefill_is_what_came_lately() {
        let backlogs = Arc::new(Backlogs::new(2));
        for second in 0..100 {
            drop(start(&backlogs, 4000.0, 1000 * second));
        }
        let share = |ms| backlogs.read(SLOT, (&PACE, &Cache::default()), Prompt::default(), at(ms)).prefill_share;
        assert!((share(99_500) - 0.4).abs() < 0.05, "{}", share(99_500));
        assert!(share(130_000) < 0.03);
    }
}
