//! How an engine goes through the prompts before it: first come, first served, in steps that compute a chunk of prompt
//! tokens and one token of each answer under way. Prompts that come while a step runs wait for the next; a step ends for
//! all that are in it at once. A prompt begins only when the cache has room for all of it; until answers end and give
//! theirs back, those behind it wait, too.

use super::{CHUNK_TOKENS, Pace};

/// Steps played, at most: two million prompt tokens.
const STEPS_MAX: usize = 256;
/// Times that differ by less are one, seconds.
const MOMENT_S: f64 = 1e-6;

/// A prompt that is not computed yet. Times are seconds from any one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Standing {
    /// When it is there.
    pub(super) arrives_s: f64,
    /// Tokens to compute.
    pub(super) left: f32,
    /// Tokens before these: found in the cache, or computed.
    pub(super) before: f32,
    /// Tokens of it in the step under way.
    chunk: f32,
    /// It has room in the cache.
    is_in: bool,
}

impl Standing {
    pub(super) const fn new(arrives_s: f64, left: f32, before: f32) -> Self {
        Self { arrives_s, left, before, chunk: 0.0, is_in: false }
    }
}

/// The room in an engine's cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Tokens that prompts may still take.
    pub(super) free: f32,
    /// Tokens that an answer gives back when it ends, and the seconds until the next one does.
    pub(super) each: f32,
    pub(super) each_s: f64,
    /// Share of what is cached of a prompt that no other request uses.
    pub(super) own_share: f32,
    /// So far nothing has ended.
    pub(super) until_s: f64,
}

impl Room {
    /// Without end.
    pub(super) const ANY: Self = Self { free: f32::INFINITY, each: 0.0, each_s: 0.0, own_share: 1.0, until_s: 0.0 };

    /// Time has come to `at_s`: some have ended.
    fn pass(&mut self, at_s: f64) {
        if at_s > self.until_s && self.each_s > 0.0 {
            self.free += narrow((at_s - self.until_s) / self.each_s) * self.each;
            self.until_s = at_s;
        }
    }

    /// Tokens for which a prompt needs room: what others have of it is there already.
    fn needed(&self, prompt: Prompt) -> f32 {
        prompt.cached.mul_add(self.own_share, prompt.new)
    }

    /// True when there is room for a prompt.
    pub(super) fn fits(&self, prompt: Prompt) -> bool {
        self.needed(prompt) <= self.free || self.each_s <= 0.0
    }

    /// Takes room for a prompt; false when there is not enough.
    fn take(&mut self, prompt: Prompt) -> bool {
        let tokens = self.needed(prompt);
        let is_enough = self.fits(prompt);
        self.free -= if is_enough { tokens } else { 0.0 };
        is_enough
    }

    /// When there is room for a prompt that has none at `at_s`: whole answers end, and whether soon or late is chance, so
    /// that in half of the cases so many have ended by then.
    fn frees_s(&self, prompt: Prompt, at_s: f64) -> f64 {
        let ends = ((self.needed(prompt) - self.free) / self.each.max(1.0)).ceil().clamp(1.0, ENDS_MAX);
        at_s.max(self.until_s) + (f64::from(ends) - MEDIAN_BEFORE_MEAN) * self.each_s
    }
}

/// What a prompt takes of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prompt {
    /// Tokens to compute.
    pub new: f32,
    /// Tokens that are there.
    pub cached: f32,
}

/// The median of the time in which so many answers end that end at random is by this part of one less than the mean (of
/// Erlang's distribution).
const MEDIAN_BEFORE_MEAN: f64 = 0.31;
/// Answers waited for, at most.
const ENDS_MAX: f32 = 1e4;

#[expect(clippy::cast_possible_truncation, reason = "counts of 7 digits")]
const fn narrow(count: f64) -> f32 {
    count as f32
}

/// A prompt that comes after all that stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newcomer {
    pub(super) arrives_s: f64,
    pub(super) prompt: Prompt,
}

impl Newcomer {
    /// Nobody.
    pub(super) const NONE: Self = Self { arrives_s: f64::INFINITY, prompt: Prompt { new: 0.0, cached: 0.0 } };
}

/// Where the engine is: a step begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    pub(super) at_s: f64,
    /// It was idle: it begins with the first that comes, and waits for no other.
    pub(super) was_idle: bool,
    /// Answers under way.
    pub(super) decoding: f32,
}

/// The step in which a newcomer's prefill begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Join {
    pub(super) at_s: f64,
    /// Seconds of others' prefill before its own in that step.
    pub(super) work_s: f64,
    /// Prompt tokens for which the step has room then.
    pub(super) room: f32,
    /// Answers are under way then.
    pub(super) is_decoding: bool,
    /// It, or somebody before it, had to wait for room in the cache.
    pub(super) is_full: bool,
}

/// Goes on from `begin`, with decode steps of `step_s`, until `until_s`, or until the step in which `newcomer`, behind
/// all of `standing` that are there by then, has its turn. `standing` is in the order of arrival.
pub(super) fn play(
    standing: &mut [Standing],
    begin: Begin,
    (pace, step_s, room): (&Pace, f32, Room),
    until_s: f64,
    newcomer: Newcomer,
) -> Option<Join> {
    let mut engine = Engine { begin, room, is_full: false };
    for _ in 0..STEPS_MAX {
        let plan = engine.plan(standing, pace);
        let Engine { begin, .. } = engine;
        let is_decoding = begin.decoding > 0.0;
        let step_s = if is_decoding { f64::from(step_s) } else { 0.0 };
        let is_shut = plan.needs.is_some() || plan.chunk_room <= 0.0 || (begin.was_idle && plan.is_any);
        let mut needs = plan.needs;
        if newcomer.arrives_s <= begin.at_s + MOMENT_S && !is_shut {
            if engine.room.take(newcomer.prompt) {
                let Engine { is_full, .. } = engine;
                let Plan { work_s, chunk_room: room, .. } = plan;
                return Some(Join { at_s: begin.at_s, work_s, room, is_decoding, is_full });
            }
            needs = Some(newcomer.prompt);
        }
        engine.is_full |= needs.is_some();
        let next_s = if plan.is_any {
            begin.at_s + plan.work_s + step_s
        } else {
            let comes_s = standing.iter().filter(|one| one.left > 0.0).map(|one| one.arrives_s);
            let next_s = match needs {
                Some(prompt) => engine.room.frees_s(prompt, begin.at_s),
                None => comes_s.fold(newcomer.arrives_s, f64::min),
            };
            if !next_s.is_finite() {
                return None;
            }
            // Steps that only decode go on until somebody can begin.
            let steps = if step_s > 0.0 { ((next_s - begin.at_s - MOMENT_S) / step_s).ceil().max(0.0) } else { 0.0 };
            if step_s > 0.0 { begin.at_s + steps * step_s } else { begin.at_s.max(next_s) }
        };
        if next_s > until_s + MOMENT_S {
            return None;
        }
        engine.begin.was_idle = !plan.is_any && !is_decoding;
        engine.go_on(standing, next_s);
        if let (Some(prompt), false) = (needs, plan.is_any) {
            // That was waited for.
            engine.room.free = engine.room.free.max(engine.room.needed(prompt));
        }
    }
    let Engine { begin, is_full, .. } = engine;
    let is_decoding = begin.decoding > 0.0;
    let join = Join { at_s: begin.at_s, work_s: 0.0, room: CHUNK_TOKENS, is_decoding, is_full };
    newcomer.arrives_s.is_finite().then_some(join)
}

#[derive(Clone, Copy, Debug)]
struct Engine {
    begin: Begin,
    room: Room,
    is_full: bool,
}

/// What a step computes.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Seconds that takes.
    work_s: f64,
    /// Prompt tokens for which it has room still.
    chunk_room: f32,
    /// There is anything to compute.
    is_any: bool,
    /// The prompt that the cache has no room for; those behind it wait.
    needs: Option<Prompt>,
}

impl Engine {
    /// Gives each its chunk of the step that begins.
    fn plan(&mut self, standing: &mut [Standing], pace: &Pace) -> Plan {
        let Self { begin, room, .. } = self;
        let chunk_room = CHUNK_TOKENS - begin.decoding;
        let mut plan = Plan { work_s: 0.0, chunk_room, is_any: false, needs: None };
        for one in standing.iter_mut() {
            one.chunk = 0.0;
            let is_there = one.left > 0.0 && one.arrives_s <= begin.at_s + MOMENT_S;
            let is_shut = plan.chunk_room <= 0.0 || plan.needs.is_some() || (begin.was_idle && plan.is_any);
            if !is_there || is_shut {
                continue;
            }
            let prompt = Prompt { new: one.left, cached: one.before };
            if !one.is_in && !room.take(prompt) {
                plan.needs = Some(prompt);
                continue;
            }
            one.is_in = true;
            one.chunk = one.left.min(plan.chunk_room);
            plan.work_s += f64::from(pace.prefill_s(one.chunk, one.before));
            plan.chunk_room -= one.chunk;
            plan.is_any = true;
        }
        plan
    }

    /// The step is over at `at_s`.
    fn go_on(&mut self, standing: &mut [Standing], at_s: f64) {
        self.begin.at_s = at_s;
        self.room.pass(at_s);
        for one in standing.iter_mut().filter(|one| one.chunk > 0.0) {
            one.left -= one.chunk;
            one.before += one.chunk;
            self.begin.decoding += if one.left <= 0.0 { 1.0 } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace =
        Pace { travel_s: 0.0, token_s: 1e-4, pair_s: 0.0, step_s: 0.0, step_request_s: 0.0, step_token_s: 0.0 };
    const STEP_S: f32 = 0.01;

    fn join(standing: &[Standing], decoding: f32, was_idle: bool, arrives_s: f64) -> Join {
        let from = Begin { at_s: 0.0, was_idle, decoding };
        let newcomer = Newcomer { arrives_s, prompt: Prompt::default() };
        play(&mut standing.to_vec(), from, (&PACE, STEP_S, Room::ANY), f64::INFINITY, newcomer).unwrap()
    }

    fn near(join: Join, at_s: f64, work_s: f64, room: f32) -> bool {
        (join.at_s - at_s).abs() < 1e-5 && (join.work_s - work_s).abs() < 1e-5 && (join.room - room).abs() < 1.0
    }

    #[test]
    fn who_comes_while_a_step_runs_waits_for_the_next() {
        let first = Standing::new(0.0, 1000.0, 0.0);
        // It runs alone for 0.1 s; whoever comes meanwhile begins when it is over.
        for arrives_s in [0.0, 0.05, 0.0999] {
            assert!(near(join(&[first], 0.0, true, arrives_s), 0.1, 0.0, 8191.0), "{arrives_s}");
        }
        // Nobody decoded before: now the first does, and steps take their time.
        assert!(near(join(&[first], 0.0, true, 0.105), 0.11, 0.0, 8191.0));
        // Where others decode, those that are there when a step begins share it.
        assert!(near(join(&[first], 5.0, false, 0.0), 0.0, 0.1, 7187.0));
        assert!(near(join(&[first], 5.0, false, 0.01), 0.11, 0.0, 8186.0));
        let second = Standing::new(0.02, 500.0, 0.0);
        assert!(near(join(&[first, second], 5.0, false, 0.03), 0.11, 0.05, 7686.0));
    }

    #[test]
    fn a_long_prompt_is_computed_in_chunks_and_the_last_has_room_for_others() {
        let long = Standing::new(0.0, 20_000.0, 0.0);
        let found = join(&[long], 0.0, true, 0.1);
        assert!(near(found, 2.0 * 0.8192, 0.3616, 8192.0 - 3616.0), "{found:?}");
        let mut standing = [long, Standing::new(0.5, 100.0, 0.0)];
        let from = Begin { at_s: 0.0, was_idle: true, decoding: 0.0 };
        assert_eq!(play(&mut standing, from, (&PACE, STEP_S, Room::ANY), 1.0, Newcomer::NONE), None);
        assert_eq!((standing[0].left, standing[0].before, standing[1].left), (20_000.0 - 8192.0, 8192.0, 100.0));
    }

    #[test]
    fn an_idle_engine_begins_at_once_and_a_busy_one_with_its_next_step() {
        assert!(near(join(&[], 0.0, false, 3.0), 3.0, 0.0, 8192.0));
        assert!(near(join(&[], 2.0, false, 3.003), 3.01, 0.0, 8190.0));
    }

    #[test]
    fn who_finds_no_room_in_the_cache_waits_until_answers_end_and_so_do_those_behind() {
        let begin = Begin { at_s: 0.0, was_idle: false, decoding: 4.0 };
        // Four answers of 10,000 tokens; one ends each half second.
        let room = Room { free: 3000.0, each: 10_000.0, each_s: 0.5, ..Room::ANY };
        let at = |standing: &[Standing], tokens| {
            let newcomer = Newcomer { arrives_s: 0.0, prompt: Prompt { new: tokens, cached: 0.0 } };
            let found = play(&mut standing.to_vec(), begin, (&PACE, STEP_S, room), f64::INFINITY, newcomer).unwrap();
            ((found.at_s * 100.0).round() / 100.0, found.is_full)
        };
        assert_eq!(at(&[], 2000.0), (0.0, false));
        assert_eq!(at(&[], 12_000.0), (0.35, true));
        assert_eq!(at(&[], 14_000.0), (0.85, true));
        // It would fit, but for the one before it.
        assert_eq!(at(&[Standing::new(0.0, 100.0, 8_000.0)], 2000.0), (0.37, true));
    }

    #[test]
    fn any_queue_is_gone_through_in_a_bounded_number_of_steps() {
        bolero::check!().with_type::<(Vec<(u16, u32, u32)>, u16, u8, bool, [u16; 3])>().for_each(
            |(standing, arrives, decoding, was_idle, [free, each, each_ms])| {
                let mut standing: Vec<Standing> = standing
                    .iter()
                    .take(64)
                    .map(|(at, left, before)| Standing::new(f64::from(*at) / 1e3, *left as f32, *before as f32))
                    .collect();
                standing.sort_by(|a, b| a.arrives_s.total_cmp(&b.arrives_s));
                let from = Begin { at_s: 0.0, was_idle: *was_idle, decoding: f32::from(*decoding) };
                let newcomer =
                    Newcomer { arrives_s: f64::from(*arrives) / 1e3, prompt: Prompt { new: 5e3, cached: 0.0 } };
                let (free, each, each_s) = (f32::from(*free), f32::from(*each), f64::from(*each_ms) / 1e3);
                let room = Room { free, each, each_s, ..Room::ANY };
                let found = play(&mut standing, from, (&PACE, STEP_S, room), f64::INFINITY, newcomer).unwrap();
                assert!(found.at_s.is_finite() && found.work_s >= 0.0 && found.room > 0.0, "{found:?}");
            },
        );
    }
}
