//! What stands before one replica, and what decodes there.

use super::queue::{Begin, Join, Newcomer, Prompt, Room, Standing, play};
use super::{
    Backlog, CACHE_DOUBT, CHUNK_TOKENS, Cache, PLACES, Pace, SHARE, SHARE_FOLLOWS, SHARE_OVER_S, SLOWNESS,
    STEP_FOLLOWS, Step, TELL_EVERY, TOKENS_MAX, TOKENS_OLD, TOKENS_TO_SHARE, Task, later, narrow, signed_s,
};
use crate::clock::Now;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Prompts standing at one replica that are few.
const FEW: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Place {
    /// When it is there, nanoseconds.
    pub(super) arrives: AtomicU64,
    pub(super) left: AtomicU32,
    pub(super) before: AtomicU32,
}

/// One replica's. What is read of all of them, whatever stands there, is the first cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Cell {
    /// Which of `places` are taken, a bit each.
    pub(super) taken: AtomicU64,
    /// Those without a place, and their microseconds.
    pub(super) beyond_us: AtomicU64,
    pub(super) beyond: AtomicU32,
    /// Answers under way, their prompts' tokens, and the sum of the times of their first tokens.
    pub(super) decoding: AtomicU32,
    pub(super) decoding_tokens: AtomicU64,
    pub(super) first: AtomicU64,
    /// Seconds of prefill that came of late (the bits of an `f64`), as of a moment.
    pub(super) lately_s: AtomicU64,
    pub(super) lately_at: AtomicU64,
    /// When a step was last seen to end, and what steps take by what they should (the bits of an `f32`; zero: unknown).
    pub(super) token_at: AtomicU64,
    pub(super) slowness: AtomicU32,
    /// What prompts take of the cache, by their tokens (the bits of an `f32`; zero: unknown): less than all, where several
    /// share some, and more, where others use it too.
    pub(super) share: AtomicU32,
    /// When a step began, and whether the engine was idle until then.
    pub(super) began: AtomicU64,
    pub(super) was_idle: AtomicBool,
    /// Requests that were ever placed here.
    pub(super) came: AtomicU32,
    /// When a step was last told of.
    pub(super) told_at: AtomicU64,
    /// The pace by which the last request was placed (the bits of `f32`s).
    pub(super) pace: [AtomicU32; 6],
    /// Prompts that stand; elsewhere, for they take ten times as much as all of the rest.
    pub(super) places: Box<[Place; PLACES]>,
}

impl Default for Cell {
    fn default() -> Self {
        Self {
            places: Box::new(std::array::from_fn(|_| Place::default())),
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
pub(super) struct Decoding {
    pub(super) answers: u32,
    /// Tokens of their prompts, and those they have generated.
    pub(super) prompts: f32,
    pub(super) generated: f32,
    pub(super) step_s: f32,
}

/// The prompts standing at one replica, `N` at most, in the order of their arrival, and where each has its place.
struct Queue<const N: usize> {
    standing: [Standing; N],
    places: [u8; N],
    len: usize,
}

impl Cell {
    /// What came of late. Two shards at once may lose one of two additions: it is an average.
    pub(super) fn lately_s(&self, now: Now) -> f64 {
        let lately_s = f64::from_bits(self.lately_s.load(Relaxed));
        if lately_s <= 0.0 {
            return 0.0;
        }
        let passed = now.seconds_since(Now(self.lately_at.load(Relaxed)));
        lately_s * (-passed / SHARE_OVER_S).exp()
    }

    /// The queue, with times from `from` on.
    fn queue<const N: usize>(&self, from: Now) -> Queue<N> {
        let mut queue = Queue { standing: [Standing::default(); N], places: [0; N], len: 0 };
        let mut taken = self.taken.load(Relaxed);
        while taken != 0 && queue.len < N {
            let place = taken.trailing_zeros();
            taken &= taken - 1;
            let Some(cell) = self.places.get(place as usize) else { break };
            let float = |bits: &AtomicU32| f32::from_bits(bits.load(Relaxed));
            let arrives_s = signed_s(Now(cell.arrives.load(Relaxed)), from);
            queue.insert(Standing::new(arrives_s, float(&cell.left), float(&cell.before)), place);
        }
        queue
    }

    pub(super) fn set_pace(&self, pace: &Pace) {
        let Pace { travel_s, token_s, pair_s, step_s, step_request_s, step_token_s } = *pace;
        for (cell, value) in self.pace.iter().zip([travel_s, token_s, pair_s, step_s, step_request_s, step_token_s]) {
            cell.store(value.to_bits(), Relaxed);
        }
    }

    pub(super) fn pace(&self) -> Pace {
        let [travel_s, token_s, pair_s, step_s, step_request_s, step_token_s] =
            std::array::from_fn(|place| f32::from_bits(self.pace[place].load(Relaxed)));
        Pace { travel_s, token_s, pair_s, step_s, step_request_s, step_token_s }
    }

    /// What decodes here at `now`.
    #[expect(clippy::cast_precision_loss, reason = "counts of 7 digits")]
    pub(super) fn decoding(&self, pace: &Pace, now: Now) -> Decoding {
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
    pub(super) fn step_end(&self, arrives: Now, step_s: f32, now: Now) -> Now {
        let seen = Now(self.token_at.load(Relaxed));
        let step_s = f64::from(step_s);
        if now.since(seen) > TOKENS_OLD || step_s <= 0.0 {
            return later(arrives, step_s / 2.0);
        }
        let steps = (signed_s(arrives, seen) / step_s).ceil().max(0.0);
        later(seen, steps * step_s)
    }

    /// A request comes; the first of those standing finds a step begin. Returns its place, if there is one.
    #[expect(clippy::cast_possible_truncation, reason = "one of 64")]
    pub(super) fn stand(&self, task: &Task, pace: &Pace, now: Now) -> Option<u8> {
        let arrives = later(task.sent, f64::from(pace.travel_s));
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
    pub(super) fn step_ended(&self, now: Now) {
        let began = Now(self.began.load(Relaxed));
        if now > began && self.taken.load(Relaxed) != 0 {
            let pace = self.pace();
            let step_s = self.decoding(&pace, now).step_s;
            let mut queue = self.queue::<PLACES>(began);
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
    pub(super) fn begin(&self, at_s: f64) -> Begin {
        Begin { at_s, was_idle: self.was_idle.load(Relaxed), decoding: self.decoding.load(Relaxed) as f32 }
    }

    /// `times` steps were seen to take `seconds`, the last of them until `now`. Those that compute prompts too take longer:
    /// where any stand, it is no news that a step takes longer, and nothing is to be learned from that. The others are
    /// returned, now and then.
    #[expect(clippy::cast_precision_loss, reason = "answers of one replica")]
    pub(super) fn step_seen(&self, seconds: f32, times: i32, now: Now) -> Option<Step> {
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
    pub(super) fn used(&self, tokens: f32, now: Now) {
        let Decoding { prompts, generated, .. } = self.decoding(&self.pace(), now);
        // Of prompts that stand it is not known whether they have their room.
        if self.taken.load(Relaxed) != 0 || prompts < TOKENS_TO_SHARE {
            return;
        }
        let share = ((tokens - generated) / prompts).clamp(*SHARE.start(), *SHARE.end());
        let before = self.share();
        self.share.store(SHARE_FOLLOWS.mul_add(share - before, before).to_bits(), Relaxed);
    }

    pub(super) fn share(&self) -> f32 {
        let share = f32::from_bits(self.share.load(Relaxed));
        if share > 0.0 { share } else { 1.0 }
    }

    /// What a request with `prompt` that is sent at `sent` meets.
    pub(super) fn read(&self, pace: &Pace, cache: &Cache, prompt: Prompt, sent: Now) -> Backlog {
        let taken = self.taken.load(Relaxed);
        let beyond_s = Duration::from_micros(self.beyond_us.load(Relaxed)).as_secs_f64();
        let prefills = taken.count_ones() + self.beyond.load(Relaxed);
        let prefill_share = narrow(self.lately_s(sent) / SHARE_OVER_S);
        if taken == 0 && self.decoding.load(Relaxed) == 0 {
            let ahead_s = narrow(beyond_s);
            return Backlog { prefills, ahead_s, room_tokens: CHUNK_TOKENS, prefill_share, ..Backlog::default() };
        }
        let decoding = self.decoding(pace, sent);
        let Decoding { step_s, generated, .. } = decoding;
        let arrives = later(sent, f64::from(pace.travel_s));
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
        Backlog {
            prefills,
            ahead_s: narrow(join.at_s.max(0.0) + join.work_s + beyond_s),
            room_tokens: join.room,
            step_s: if join.is_decoding { step_s } else { 0.0 },
            is_full: join.is_full,
            decoding: decoding.answers,
            generated_tokens: generated,
            prefill_share,
        }
    }

    /// When a `prompt` that is there at `arrives` has its turn; with nobody before it, a step begins at `at_s`.
    pub(super) fn join(&self, engine: (&Pace, f32, Room), prompt: Prompt, arrives: Now, at_s: f64) -> Join {
        // To make a queue takes as long as it has room for: seldom do more than a few stand.
        match self.taken.load(Relaxed).count_ones() as usize {
            0..=FEW => self.join_among::<FEW>(engine, prompt, arrives, at_s),
            _ => self.join_among::<PLACES>(engine, prompt, arrives, at_s),
        }
    }

    fn join_among<const N: usize>(&self, engine: (&Pace, f32, Room), prompt: Prompt, arrives: Now, at_s: f64) -> Join {
        let mut queue = self.queue::<N>(arrives);
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

impl<const N: usize> Queue<N> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_or_many_stand_the_same() {
        let pace = Pace { token_s: 1e-4, step_s: 0.01, ..Pace::default() };
        let (cell, prompt) = (Cell::default(), Prompt { new: 100.0, cached: 50.0 });
        let mut rng = fastrand::Rng::with_seed(8);
        for standing in 0..3 * FEW {
            let engine = (&pace, 0.01, Room::ANY);
            let arrives = Now(10_000_000);
            let wanted = cell.join_among::<PLACES>(engine, prompt, arrives, 0.0);
            assert_eq!(cell.join(engine, prompt, arrives, 0.0), wanted, "{standing}");
            let task = Task { new_tokens: 3000.0 * rng.f32(), cached_tokens: 10.0, sent: Now(rng.u64(..10_000_000)) };
            assert!(cell.stand(&task, &pace, Now(0)).is_some());
        }
    }
}
