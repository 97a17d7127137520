//! The prefix cache of llama.cpp's server: not blocks, but slots that each keep the tokens of one request.
//!
//! A request runs in one slot, and while it runs nobody else can use what is there. What the server does, as its source
//! says (`tools/server/server-context.cpp`: `get_available_slot`, `update_slots`; builds of 2026):
//!
//! - **Slot.** Among the idle slots that hold anything, the one whose tokens begin most like the prompt, if they are alike
//!   in more than a tenth of the prompt (`--slot-prompt-similarity 0.1`); of equals the first. Else the one that has been
//!   idle for the longest; of those never used the last. So a prompt that shares its first tenth with a conversation
//!   takes that conversation's slot and cuts it off there, be other slots empty or not.
//! - **Reuse.** What the slot's tokens and the prompt have in common from their start, less one token when that is all of
//!   the prompt: the last must be computed to have something to sample from. This is `cached_tokens`, and the rest of
//!   what the slot held is gone.
//! - **After.** The slot keeps the prompt and the output but for its last token, which is sampled and never computed. An
//!   output that comes back in the next prompt is reused.
//! - **Room.** Each slot has an equal share of the context (unless `--kv-unified`), whoever needs it: a prompt that does
//!   not fit into one is refused with 400, and an output ends where the share does. Short prompts leave the rest unused,
//!   and so the cache holds as many conversations as there are slots, however short.
//! - **Queue.** With all slots busy a request waits; each release takes the one that has waited longest, which then
//!   chooses among the slots that are idle at that moment: mostly the one just released, whatever it holds.
//! - **Host cache** (`--cache-ram`, on by default). Idle slots are copied to the host's memory whenever a request starts,
//!   and a slot before it is taken from a prompt less than half alike. Who takes it that way is then given the copy that
//!   is alike in a larger share of itself (a quarter at least) *and* of the prompt than the slot was. The copy moves: it
//!   is in the host no more. The oldest copies go first when the memory is full.
//!
//! Nothing in here takes time or reads a clock; the order of calls is the order of time.

use super::workload::Segment;
use std::collections::VecDeque;

/// `--slot-prompt-similarity`: the part of a prompt that a slot must hold to be chosen for what it holds.
const SIMILARITY_MIN: f32 = 0.1;
/// A slot's share of the context is rounded up to a multiple of this.
const CONTEXT_STEP: u32 = 256;
/// A slot that keeps less of its tokens than this is copied to the host before.
const KEEP_WITHOUT_COPY: f32 = 0.5;
/// A copy of which less than this would be used stays where it is.
const KEEP_OF_COPY_MIN: f32 = 0.25;

/// Tokens in a slot or in a copy of one, from the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    segments: Vec<Segment>,
    /// Of the segments' tokens, how many are there: the last one may not be whole.
    tokens: u32,
}

impl Held {
    /// Tokens that it and `prompt` have in common from their start.
    fn common(&self, prompt: &[Segment]) -> u32 {
        let alike = self.segments.iter().zip(prompt).take_while(|(own, other)| own.id == other.id);
        // The shorter of the two where one was cut short.
        alike.map(|(own, other)| own.tokens.min(other.tokens)).sum::<u32>().min(self.tokens)
    }

    /// Which part of it that is; of nothing, less than of anything.
    fn kept(&self, common: u32) -> f32 {
        if self.tokens == 0 { -1.0 } else { share(common, self.tokens) }
    }
}

#[expect(clippy::cast_precision_loss, reason = "llama.cpp computes it in single precision, too")]
fn share(part: u32, whole: u32) -> f32 {
    part as f32 / whole.max(1) as f32
}

#[derive(Clone, Debug, Default)]
struct Slot {
    held: Held,
    /// Number of the release that last made it idle; zero: never used.
    released: u64,
    is_busy: bool,
}

/// What a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotGrant {
    /// Its slot, until [`SlotCache::release`].
    pub slot: usize,
    /// Tokens of its prompt that need not be computed: `usage.prompt_tokens_details.cached_tokens`.
    pub cached_tokens: u32,
    /// Tokens that were copied back from the host for it; zero without a host cache.
    pub restored_tokens: u32,
}

/// The slots of one server.
#[derive(Clone, Debug)]
pub struct SlotCache {
    slots: Vec<Slot>,
    /// Each slot's share of the context.
    slot_tokens: u32,
    releases: u64,
    /// Copies in the host's memory, oldest first.
    host: VecDeque<Held>,
    host_tokens_max: u64,
}

impl SlotCache {
    /// The server's `slots` (`--parallel`), at least one, that share a context of `context_tokens` (`--ctx-size`);
    /// `host_tokens_max` tokens go into the host cache (`--cache-ram` by what a token's keys and values take), zero for
    /// none.
    #[must_use]
    pub fn new(slots: u32, context_tokens: u32, host_tokens_max: u64) -> Self {
        let slots = slots.max(1);
        Self {
            slots: (0..slots).map(|_| Slot::default()).collect(),
            slot_tokens: (context_tokens / slots).next_multiple_of(CONTEXT_STEP),
            releases: 0,
            host: VecDeque::new(),
            host_tokens_max,
        }
    }

    /// Most output tokens that a prompt of so many tokens can have; zero: it is refused.
    #[must_use]
    pub const fn output_tokens_max(&self, prompt_tokens: u32) -> u32 {
        self.slot_tokens.saturating_sub(prompt_tokens)
    }

    /// Requests that run.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_busy).count()
    }

    /// Tokens in all slots: `KV usage` by the context.
    #[must_use]
    pub fn held_tokens(&self) -> u64 {
        self.slots.iter().map(|slot| u64::from(slot.held.tokens)).sum()
    }

    /// What a request with `prompt` would find cached if it came now; nothing with all slots busy.
    #[must_use]
    pub fn peek(&self, prompt: &[Segment]) -> u32 {
        let tokens = tokens_of(prompt);
        let slot = self.most_alike(prompt, tokens).or_else(|| self.longest_idle()).and_then(|at| self.slots.get(at));
        slot.map_or(0, |slot| slot.held.common(prompt).min(tokens.saturating_sub(1)))
    }

    /// Gives a request with `prompt` a slot, and cuts what is there to what the two have in common. `None` while all slots
    /// are busy.
    pub fn admit(&mut self, prompt: &[Segment]) -> Option<SlotGrant> {
        let tokens = tokens_of(prompt);
        let alike = self.most_alike(prompt, tokens);
        let at = alike.or_else(|| self.longest_idle())?;
        let mut restored_tokens = 0;
        if self.host_tokens_max > 0 {
            let held = &self.slots.get(at)?.held;
            if alike.is_none() || held.kept(held.common(prompt)) < KEEP_WITHOUT_COPY {
                self.copy_to_host(at);
                restored_tokens = self.restore(at, prompt, tokens);
            }
        }
        let slot = self.slots.get_mut(at)?;
        let cached_tokens = slot.held.common(prompt).min(tokens.saturating_sub(1));
        slot.held = Held { segments: prompt.to_vec(), tokens };
        slot.is_busy = true;
        if self.host_tokens_max > 0 {
            for idle in 0..self.slots.len() {
                self.copy_to_host(idle);
            }
        }
        Some(SlotGrant { slot: at, cached_tokens, restored_tokens })
    }

    /// The request in `slot` has ended, with `output`; of one that was cut short, with what there was of it.
    pub fn release(&mut self, slot: usize, output: Segment) {
        let Some(slot) = self.slots.get_mut(slot).filter(|slot| slot.is_busy) else { return };
        self.releases += 1;
        (slot.is_busy, slot.released) = (false, self.releases);
        slot.held.segments.push(output);
        slot.held.tokens += output.tokens.saturating_sub(1);
    }

    /// Forgets everything, as a server that starts again.
    pub fn clear(&mut self) {
        self.slots.fill_with(Slot::default);
        self.host.clear();
        self.releases = 0;
    }

    /// The idle slot that holds most of the prompt, if that is enough.
    fn most_alike(&self, prompt: &[Segment], tokens: u32) -> Option<usize> {
        let (mut best, mut most) = (None, SIMILARITY_MIN);
        for (at, slot) in self.slots.iter().enumerate().filter(|(_, slot)| !slot.is_busy) {
            let alike = share(slot.held.common(prompt), tokens);
            if alike > most {
                (best, most) = (Some(at), alike);
            }
        }
        best
    }

    fn longest_idle(&self) -> Option<usize> {
        let idle = self.slots.iter().enumerate().rev().filter(|(_, slot)| !slot.is_busy);
        // The first of the least, from the last slot on.
        idle.min_by_key(|(_, slot)| slot.released).map(|(at, _)| at)
    }

    /// Copies what an idle slot holds to the host, unless it is there; drops copies that it contains.
    fn copy_to_host(&mut self, at: usize) {
        let Some(slot) = self.slots.get(at).filter(|slot| !slot.is_busy && slot.held.tokens > 0) else { return };
        let held = &slot.held;
        if self.host.iter().any(|copy| copy.common(&held.segments) >= held.tokens)
            || u64::from(held.tokens) > self.host_tokens_max
        {
            return;
        }
        self.host.retain(|copy| copy.common(&held.segments).min(held.tokens) < copy.tokens);
        let mut room = self.host_tokens_max - u64::from(held.tokens);
        let fitting = self.host.iter().rev().take_while(|copy| {
            let fits = u64::from(copy.tokens) <= room;
            room = room.saturating_sub(u64::from(copy.tokens));
            fits
        });
        let kept = fitting.count();
        self.host.drain(..self.host.len() - kept);
        self.host.push_back(held.clone());
    }

    /// Puts the best copy into an idle slot, if one is better than what is there. Returns its tokens, else zero.
    fn restore(&mut self, at: usize, prompt: &[Segment], tokens: u32) -> u32 {
        let Some(slot) = self.slots.get_mut(at) else { return 0 };
        let own = slot.held.common(prompt);
        let (mut best, mut kept, mut alike) = (None, slot.held.kept(own), share(own, tokens));
        for (place, copy) in self.host.iter().enumerate() {
            let common = copy.common(prompt);
            let (copy_kept, copy_alike) = (copy.kept(common), share(common, tokens));
            if copy_kept >= KEEP_OF_COPY_MIN && copy_kept > kept && copy_alike > alike {
                (best, kept, alike) = (Some(place), copy_kept, copy_alike);
            }
        }
        let Some(copy) = best.and_then(|place| self.host.remove(place)) else { return 0 };
        slot.held = copy;
        slot.held.tokens
    }
}

fn tokens_of(prompt: &[Segment]) -> u32 {
    prompt.iter().map(|segment| segment.tokens).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(segments: &[(u64, u32)]) -> Vec<Segment> {
        segments.iter().map(|(id, tokens)| Segment { id: *id, tokens: *tokens }).collect()
    }

    /// Runs one request on its own: which slot it got, and what was cached.
    fn run(cache: &mut SlotCache, asked: &[(u64, u32)], output: (u64, u32)) -> (usize, u32) {
        let grant = cache.admit(&prompt(asked)).unwrap();
        cache.release(grant.slot, Segment { id: output.0, tokens: output.1 });
        (grant.slot, grant.cached_tokens)
    }

    #[test]
    fn unused_slots_are_taken_from_the_last_then_the_longest_idle() {
        let mut cache = SlotCache::new(3, 3000, 0);
        assert_eq!(run(&mut cache, &[(1, 100)], (0, 5)), (2, 0));
        assert_eq!(run(&mut cache, &[(2, 100)], (0, 5)), (1, 0));
        assert_eq!(run(&mut cache, &[(3, 100)], (0, 5)), (0, 0));
        assert_eq!(run(&mut cache, &[(4, 100)], (0, 5)), (2, 0), "the first used");
        assert_eq!(run(&mut cache, &[(2, 100), (5, 20)], (0, 5)), (1, 100));
        assert_eq!(run(&mut cache, &[(1, 100)], (0, 5)), (0, 0), "pushed out of the last, and it was used since");
    }

    #[test]
    fn the_output_but_for_its_last_token_is_reused_and_all_of_a_prompt_never_is() {
        let mut cache = SlotCache::new(2, 2000, 0);
        run(&mut cache, &[(1, 100)], (2, 30));
        assert_eq!(run(&mut cache, &[(1, 100), (2, 30), (3, 10)], (4, 5)), (1, 129));
        assert_eq!(run(&mut cache, &[(1, 100), (2, 30), (3, 10)], (4, 5)), (1, 139));
        assert_eq!(run(&mut cache, &[(1, 100), (9, 10)], (0, 1)), (1, 100), "what came after is cut off");
        assert_eq!(run(&mut cache, &[(1, 100), (2, 30), (3, 10)], (4, 5)), (1, 100));
    }

    #[test]
    fn who_shares_a_tenth_takes_the_slot_though_others_are_empty() {
        let mut cache = SlotCache::new(4, 4000, 0);
        run(&mut cache, &[(7, 100), (1, 700)], (0, 2));
        assert_eq!(run(&mut cache, &[(7, 100), (2, 800)], (0, 2)), (3, 100));
        assert_eq!(run(&mut cache, &[(7, 100), (1, 700)], (0, 2)), (3, 100), "the conversation is gone");
        // At a tenth and below, another slot: nothing is reused, nothing lost.
        assert_eq!(run(&mut cache, &[(7, 100), (3, 900)], (0, 2)), (2, 0));
        assert_eq!(run(&mut cache, &[(7, 100), (1, 700)], (0, 2)), (3, 799));
    }

    #[test]
    fn the_slot_that_is_most_alike_is_taken_and_of_equals_the_first() {
        let mut cache = SlotCache::new(3, 3000, 0);
        let ask = |cache: &mut SlotCache, of: &[u64]| {
            let of: Vec<_> = of.iter().map(|id| (*id, 100)).collect();
            cache.admit(&prompt(&of)).unwrap().slot
        };
        assert_eq!([ask(&mut cache, &[1, 2]), ask(&mut cache, &[1]), ask(&mut cache, &[1, 2])], [2, 1, 0]);
        for slot in 0..3 {
            cache.release(slot, Segment { id: 0, tokens: 1 });
        }
        assert_eq!(ask(&mut cache, &[1, 2, 3]), 0);
        assert_eq!(ask(&mut cache, &[1, 2, 3]), 2);
        assert_eq!(ask(&mut cache, &[1, 2, 3]), 1);
        assert_eq!((cache.busy(), cache.admit(&prompt(&[(1, 100)]))), (3, None));
    }

    #[test]
    fn a_slot_in_use_is_of_no_use_to_others() {
        let mut cache = SlotCache::new(2, 2000, 0);
        run(&mut cache, &[(1, 500)], (0, 2));
        let first = cache.admit(&prompt(&[(1, 500), (2, 10)])).unwrap();
        assert_eq!((first.slot, first.cached_tokens), (1, 500));
        assert_eq!(cache.peek(&prompt(&[(1, 500), (3, 10)])), 0);
        assert_eq!(cache.admit(&prompt(&[(1, 500), (3, 10)])).unwrap().cached_tokens, 0);
        cache.release(first.slot, Segment { id: 4, tokens: 10 });
        assert_eq!(cache.peek(&prompt(&[(1, 500), (2, 10), (4, 10)])), 519);
    }

    #[test]
    fn the_context_is_shared_out_evenly() {
        let cache = SlotCache::new(4, 4096, 0);
        assert_eq!((cache.output_tokens_max(1000), cache.output_tokens_max(1024)), (24, 0));
    }

    #[test]
    fn what_leaves_a_slot_comes_back_from_the_host() {
        let mut cache = SlotCache::new(1, 4000, 10_000);
        for session in 1..=3 {
            assert_eq!(run(&mut cache, &[(session, 1000)], (session + 10, 11)), (0, 0));
        }
        let grant = cache.admit(&prompt(&[(1, 1000), (11, 11), (21, 50)])).unwrap();
        assert_eq!(grant, SlotGrant { slot: 0, cached_tokens: 1010, restored_tokens: 1010 });
        cache.release(0, Segment { id: 31, tokens: 1 });
        assert_eq!(run(&mut cache, &[(1, 1000), (11, 11), (21, 50), (41, 9)], (0, 1)), (0, 1061), "where it was");
        assert_eq!(run(&mut cache, &[(3, 1000), (13, 11)], (0, 1)).1, 1010);
    }

    #[test]
    fn the_host_forgets_its_oldest_copies() {
        let mut cache = SlotCache::new(1, 4000, 2500);
        for session in 1..=4 {
            run(&mut cache, &[(session, 1000)], (0, 1));
        }
        // The slot holds 4, the host 2 and 3; bringing 1 in pushes 2 out for 4.
        assert_eq!(run(&mut cache, &[(1, 1000), (5, 10)], (0, 1)).1, 0);
        assert_eq!(cache.peek(&prompt(&[(1, 1000), (5, 10)])), 1009);
        let copies: Vec<_> = cache.host.iter().map(|copy| copy.segments[0].id).collect();
        assert_eq!(copies, [3, 4]);
        cache.clear();
        assert_eq!((cache.held_tokens(), cache.host.len()), (0, 0));
    }

    /// A path in a tree: an id stands for all before it.
    fn path(dice: &mut fastrand::Rng) -> Vec<Segment> {
        let (mut id, steps) = (0, dice.u32(1..7));
        let step = |_| {
            id = id * 4 + dice.u64(1..4);
            Segment { id, tokens: 10 + u32::try_from(id % 90).unwrap() }
        };
        (0..steps).map(step).collect()
    }

    /// The slot that a request gets beside those that are `running`, if any is idle.
    fn admitted(cache: &mut SlotCache, asked: &[Segment], running: &[usize]) -> Option<usize> {
        let most = cache.slots.iter().map(|slot| slot.held.common(asked)).max().unwrap();
        let grant = cache.admit(asked);
        assert_eq!(grant.is_none(), running.len() == cache.slots.len());
        let grant = grant?;
        assert!(!running.contains(&grant.slot));
        assert!(grant.cached_tokens < tokens_of(asked));
        assert!(grant.cached_tokens <= most || grant.restored_tokens > 0);
        Some(grant.slot)
    }

    #[test]
    fn whatever_comes_the_books_balance() {
        for seed in 0..50 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let host_tokens_max = if dice.bool() { 0 } else { dice.u64(1..5000) };
            let mut cache = SlotCache::new(dice.u32(1..5), 8000, host_tokens_max);
            let mut running: Vec<usize> = Vec::new();
            for _ in 0..300 {
                if dice.bool() {
                    running.extend(admitted(&mut cache, &path(&mut dice), &running));
                } else if !running.is_empty() {
                    let slot = running.swap_remove(dice.usize(..running.len()));
                    cache.release(slot, Segment { id: 0, tokens: dice.u32(1..50) });
                }
                assert_eq!(cache.busy(), running.len());
                assert!(cache.host.iter().map(|copy| u64::from(copy.tokens)).sum::<u64>() <= host_tokens_max);
            }
        }
    }
}
