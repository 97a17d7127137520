//! How much each replica really remembers, learned.
//!
//! What is configured or said of a KV cache is where it starts. But other gateways' requests take room too, an engine may
//! keep what it gave up in host memory, and where nobody says anything the size is a guess. So each answer is evidence: of
//! a prompt that had been used at a replica, so many blocks ago, the engine found so much ([`Trail`]). A cache that gives
//! up what was used longest ago finds all that was used fewer blocks ago than it holds, and nothing older. The estimate
//! follows, as a share of what is assumed:
//!
//! - found, though older than the estimate: up, by a part of the gap;
//! - found within the last tenth of it: up a little, for only what is believed to be there is asked for;
//! - gone, though younger: down by a larger part of the gap. One step is small enough that a few answers which missed
//!   for another reason (two requests at once, a slot that was busy) cost little.
//!
//! Where somebody has said how large the cache is, that is believed as long as predictions come true on the whole; and
//! single answers weigh little then: it takes several in a row that say the same. What was taken to be smaller than was
//! said, and is found to hold more than that after all, is believed again in a few steps: what is gone may have gone for
//! many reasons, what is there was kept.
//!
//! An engine that counts its evictions is better than evidence: as long as it has evicted nothing it remembers all, and
//! what it holds at its first eviction is what it can hold. Where answers contradict that, answers are believed.

use crate::id::ReplicaSlot;
use crate::prefix::BLOCK_BYTES;
use crate::prefix::index::Trail;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The estimate stays between these multiples of what is assumed.
const FACTOR_MIN: f32 = 0.1;
const FACTOR_MAX: f32 = 4.0;
/// The least, where what is assumed is no more than a guess.
const FACTOR_MIN_GUESSED: f32 = 0.02;
/// Share of the gap (of logarithms) that a step takes, and the most that one step takes.
const DOWN: f32 = 0.5;
const DOWN_MAX: f32 = 0.15;
const UP: f32 = 0.25;
const UP_MAX: f32 = 0.05;
/// A hit beyond this share of the estimate moves it up by so much.
const EDGE: f32 = 0.9;
const EDGE_UP: f32 = 0.0015;
/// The most that one step takes where the size was said; as many times this as answers in a row say the same, up to so
/// many.
const STIFF_MAX: f32 = 0.02;
const STREAK_MAX: u8 = 8;
/// What is said is believed within this (of logarithms) of what is held at the first eviction.
const NEAR_SAID: f32 = 0.15;
/// What was said of the size is held to be right as long as what is predicted and what is found differ by less than this
/// share of all prompts.
const GAP_LEAST: f32 = 0.02;
/// What is told to the index moves when the estimate has moved by more than this share.
const STEP: f32 = 0.02;
/// Beyond the device's own size by this much, what is found must be in a host tier.
const HOST_SIGN: f32 = 1.15;
/// Share of a prompt's length by which its bytes may be unevenly spread over its tokens.
const UNEVEN: f32 = 0.15;
/// Tokens to an engine's block where it is not known.
const BLOCK_TOKENS_DEFAULT: f32 = 64.0;
/// Weight of what came before, for the shares that are shown.
const FADE: f32 = 0.99;
/// Answers that contradict a counter of evictions until it is not believed.
const DOUBTS_MAX: u8 = 3;
/// A miss that needs more of the cache than this share says that something was evicted.
const DOUBT_SHARE: f32 = 0.25;

/// What is configured or said of a replica's cache, in index blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Assumed {
    /// On the device.
    pub device_blocks: f32,
    /// In host memory beside it.
    pub host_blocks: f32,
    /// Somebody said so; else it is a guess.
    pub is_said: bool,
}

/// What the index is to be told that a replica holds, in its blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tiers {
    /// On the device.
    pub device: u64,
    /// In all.
    pub total: u64,
}

/// What one answer says of the cache it came from.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'t> {
    /// What had been used there of the prompt.
    pub trail: &'t Trail,
    /// Length of the prompt.
    pub prompt_bytes: f32,
    /// The same in tokens, as the engine counts.
    pub prompt_tokens: f32,
    /// Of these, found in the cache, as the engine says.
    pub cached_tokens: f32,
    /// Found, as was predicted.
    pub predicted_tokens: f32,
    /// The answer may be a sign that the cache was lost altogether: it says nothing of its size.
    pub is_surprise: bool,
}

/// What an engine says of its cache as it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Said {
    /// Blocks evicted since it started.
    pub evicted: Option<u64>,
    /// Share in use, 0 to 1.
    pub usage: Option<f32>,
    /// Tokens to a block.
    pub block_tokens: Option<u32>,
    /// Blocks there are.
    pub blocks: Option<u32>,
}

impl Said {
    /// Tokens that are in use, where all is said for that.
    #[must_use]
    pub fn used_tokens(&self) -> Option<f32> {
        Some(self.usage? * lossy_u32(self.blocks?) * lossy_u32(self.block_tokens?))
    }
}

/// What was learned of one replica, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Learned {
    /// Index blocks it is taken to hold.
    pub blocks: f32,
    /// The same as a multiple of what is configured, said or guessed.
    pub factor: f32,
    /// Of the prompt tokens of the last hundred answers or so, the share that was predicted to be found in its cache.
    pub predicted_share: f32,
    /// The share that was.
    pub cached_share: f32,
    /// Answers that said how much was found.
    pub samples: u32,
    /// It has evicted nothing since it started.
    pub is_untouched: bool,
}

/// One replica's estimate.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    assumed: Assumed,
    /// Logarithm of the estimate, as a multiple of what is assumed.
    log_factor: f32,
    told: Tiers,
    predicted: f32,
    cached: f32,
    prompt: f32,
    samples: u32,
    is_untouched: bool,
    doubts: u8,
    /// Answers in a row that said there is more, or less (negative), than was believed.
    streak: i8,
}

/// All replicas' estimates. Locks are not waited for where requests are decided or answered: who finds one taken learns
/// nothing from its answer.
#[derive(Debug)]
pub struct Memories {
    cells: Box<[Mutex<Memory>]>,
    /// Tokens to an engine's block, as it said; 0: it did not.
    block_tokens: Box<[AtomicU32]>,
}

impl Memories {
    /// Of `slots_max` replicas of which nothing is known.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self {
            cells: (0..slots_max).map(|_| Mutex::default()).collect(),
            block_tokens: (0..slots_max).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// `slot` has changed hands.
    pub fn reset(&self, slot: ReplicaSlot) {
        if let Some(cell) = self.cells.get(slot.index()) {
            let mut memory = cell.lock();
            *memory = Memory { told: memory.told, ..Memory::default() };
        }
        if let Some(cell) = self.block_tokens.get(slot.index()) {
            cell.store(0, Relaxed);
        }
    }

    /// Takes up what is configured or said. Returns what the index is to be told, if that is news.
    #[must_use]
    pub fn assume(&self, slot: ReplicaSlot, assumed: Assumed) -> Option<Tiers> {
        let mut memory = self.cells.get(slot.index())?.try_lock()?;
        memory.assumed = assumed;
        memory.news()
    }

    /// Learns from an answer. Returns what the index is to be told, if that is news.
    #[must_use]
    pub fn learn(&self, slot: ReplicaSlot, evidence: &Evidence<'_>) -> Option<Tiers> {
        let block_tokens = self.block_tokens(slot);
        let mut memory = self.cells.get(slot.index())?.try_lock()?;
        memory.learn(evidence, block_tokens);
        memory.news()
    }

    /// Takes up what an engine says of its cache, when the index believes it to hold `resident` blocks. Returns what the
    /// index is to be told, if that is news.
    #[must_use]
    pub fn hear(&self, slot: ReplicaSlot, said: Said, resident: impl FnOnce() -> u64) -> Option<Tiers> {
        if let Some((cell, tokens)) = self.block_tokens.get(slot.index()).zip(said.block_tokens) {
            cell.store(tokens, Relaxed);
        }
        let evicted = said.evicted?;
        let mut memory = self.cells.get(slot.index())?.try_lock()?;
        memory.hear(evicted, said.usage, resident);
        memory.news()
    }

    /// The engine at `slot` is another, or has emptied its cache: what its counters said is void.
    pub fn emptied(&self, slot: ReplicaSlot) {
        if let Some(cell) = self.cells.get(slot.index()) {
            let mut memory = cell.lock();
            (memory.is_untouched, memory.doubts) = (false, 0);
        }
    }

    /// Tokens to a block of the engine at `slot`; `None` when it did not say.
    #[must_use]
    pub fn block_tokens(&self, slot: ReplicaSlot) -> Option<u32> {
        let tokens = self.block_tokens.get(slot.index())?.load(Relaxed);
        (tokens > 0).then_some(tokens)
    }

    /// What was learned of `slot`.
    #[must_use]
    pub fn learned(&self, slot: ReplicaSlot) -> Learned {
        self.cells.get(slot.index()).map_or_else(Learned::default, |cell| cell.lock().learned())
    }

    /// Index blocks that `slot` is taken to hold; infinite where that cannot be read now.
    #[must_use]
    pub fn blocks(&self, slot: ReplicaSlot) -> f32 {
        let memory = self.cells.get(slot.index()).and_then(Mutex::try_lock);
        memory.map_or(f32::INFINITY, |memory| memory.blocks())
    }
}

impl Memory {
    fn assumed_blocks(&self) -> f32 {
        (self.assumed.device_blocks + self.assumed.host_blocks).max(1.0)
    }

    fn factor(&self) -> f32 {
        if self.is_untouched { FACTOR_MAX } else { self.log_factor.exp() }
    }

    /// The estimate.
    fn blocks(&self) -> f32 {
        self.assumed_blocks() * self.factor()
    }

    const fn factor_min(&self) -> f32 {
        if self.assumed.is_said { FACTOR_MIN } else { FACTOR_MIN_GUESSED }
    }

    fn learned(&self) -> Learned {
        let prompt = self.prompt.max(1.0);
        Learned {
            blocks: self.blocks(),
            factor: self.factor(),
            predicted_share: self.predicted / prompt,
            cached_share: self.cached / prompt,
            samples: self.samples,
            is_untouched: self.is_untouched,
        }
    }

    /// What the index is to be told, if it differs enough from what it was told last.
    fn news(&mut self) -> Option<Tiers> {
        let total = self.blocks();
        let (device, assumed) = (self.assumed.device_blocks, &self.assumed);
        let has_host = assumed.host_blocks > 0.0 || assumed.is_said && !self.is_untouched && total > device * HOST_SIGN;
        let device = if has_host { device.min(total) } else { total };
        let tiers = Tiers { device: whole(device), total: whole(total) };
        let is_near = |new: u64, old: u64| lossy(new.abs_diff(old)) <= lossy(old) * STEP;
        if is_near(tiers.total, self.told.total) && is_near(tiers.device, self.told.device) {
            return None;
        }
        self.told = tiers;
        Some(tiers)
    }

    fn hear(&mut self, evicted: u64, usage: Option<f32>, resident: impl FnOnce() -> u64) {
        let was_untouched = self.is_untouched;
        self.is_untouched = evicted == 0 && usage.is_none_or(|usage| usage < 1.0) && self.doubts < DOUBTS_MAX;
        // A host tier keeps what the device evicts.
        if was_untouched && evicted > 0 && self.assumed.host_blocks <= 0.0 {
            let held = (lossy(resident()).max(1.0) / self.assumed_blocks()).ln();
            self.log_factor = if self.assumed.is_said && held.abs() < NEAR_SAID { 0.0 } else { held };
            self.clamp();
        }
    }

    fn learn(&mut self, evidence: &Evidence<'_>, block_tokens: Option<u32>) {
        let Evidence { trail, prompt_bytes, prompt_tokens, cached_tokens, .. } = *evidence;
        if prompt_tokens <= 0.0 {
            return;
        }
        self.predicted = self.predicted.mul_add(FADE, evidence.predicted_tokens.min(prompt_tokens));
        self.cached = self.cached.mul_add(FADE, cached_tokens);
        self.prompt = self.prompt.mul_add(FADE, prompt_tokens);
        self.samples = self.samples.saturating_add(1);
        if evidence.is_surprise {
            return;
        }
        let blocks_per_token = prompt_bytes / prompt_tokens / BLOCK_BYTES as f32;
        let found = cached_tokens * blocks_per_token;
        let rounding = 1.0 + block_tokens.map_or(BLOCK_TOKENS_DEFAULT, lossy_u32) * blocks_per_token;
        for run in trail.runs() {
            let (from, to, since) = (lossy_u32(run.from), lossy_u32(run.to), lossy_u32(run.since));
            if found + rounding >= to {
                self.found(since + to - from);
                continue;
            }
            if found + rounding + UNEVEN * to < to {
                // Deepest blocks go first: of a run that was found in part, what was found is the young end.
                let kept = (found - from).max(0.0);
                if kept > rounding {
                    self.found(since + kept);
                }
                self.gone(since + kept);
            }
            return;
        }
    }

    /// A cache of `distance` blocks would be enough for what was found.
    fn found(&mut self, distance: f32) {
        let (estimate, distance) = (self.blocks(), distance.max(1.0));
        if self.is_untouched {
            return;
        }
        if self.assumed.is_said && self.log_factor < 0.0 && distance > estimate {
            let most = (-self.log_factor).min(DOWN_MAX);
            self.log_factor += ((distance / estimate).ln() * DOWN).min(most);
            self.streak = self.streak.max(0);
            return;
        }
        if self.comes_true(-1.0) {
            self.streak = self.streak.min(0);
            return;
        }
        if distance > estimate {
            let most = self.most(1, UP_MAX);
            self.log_factor += ((distance / estimate).ln() * UP).min(most);
        } else if distance > estimate * EDGE {
            self.log_factor += EDGE_UP;
        }
        self.clamp();
    }

    /// A cache of `distance` blocks was not enough.
    fn gone(&mut self, distance: f32) {
        if self.is_untouched {
            if distance > self.assumed_blocks() * DOUBT_SHARE {
                self.doubts = self.doubts.saturating_add(1);
                self.is_untouched = self.doubts < DOUBTS_MAX;
            }
            return;
        }
        let estimate = self.blocks();
        if self.comes_true(1.0) {
            self.streak = self.streak.max(0);
            return;
        }
        // What was used just now is gone for another reason.
        if distance >= estimate || distance < self.assumed_blocks() * self.factor_min() {
            return;
        }
        let most = self.most(-1, DOWN_MAX);
        self.log_factor -= ((estimate / distance).ln() * DOWN).min(most);
        self.clamp();
    }

    /// What was said of the size is not seen to be too little (`direction` below zero) or too much.
    fn comes_true(&self, direction: f32) -> bool {
        self.assumed.is_said && direction * (self.predicted - self.cached) < GAP_LEAST * self.prompt
    }

    /// The most that a step in `direction` may take; `free` where nobody has said how large the cache is.
    fn most(&mut self, direction: i8, free: f32) -> f32 {
        self.streak = if self.streak.signum() == direction { self.streak.saturating_add(direction) } else { direction };
        if !self.assumed.is_said {
            return free;
        }
        (STIFF_MAX * f32::from(self.streak.unsigned_abs().min(STREAK_MAX))).min(free)
    }

    fn clamp(&mut self) {
        self.log_factor = self.log_factor.clamp(self.factor_min().ln(), FACTOR_MAX.ln());
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; saturates")]
const fn whole(blocks: f32) -> u64 {
    blocks as u64
}

#[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
const fn lossy(count: u64) -> f32 {
    count as f32
}

#[expect(clippy::cast_precision_loss, reason = "good to 7 digits")]
const fn lossy_u32(count: u32) -> f32 {
    count as f32
}

#[cfg(test)]
mod tests;
