//! What a time to first token, and a time per output token, depend on.
//!
//! The features are the terms of how engines with continuous batching and chunked prefill spend their time: prefill of
//! `n` new tokens after `p` cached takes `a + b·n + c·n·(p + n/2)`, a decode step `w + k·batch + m·Σcontext`, and a step
//! with both takes both. What is ahead of a prompt is known in seconds ([`crate::load::backlog`]), and so is what a decode
//! step takes.

use super::recursive::Vector;
use crate::load::backlog::CHUNK_TOKENS;

/// Coefficients of a time to first token.
pub(super) const TTFT_TERMS: usize = 5;
/// Coefficients of a time per output token.
pub(super) const TPOT_TERMS: usize = 4;
/// Coefficients of a step that decodes.
pub(super) const STEP_TERMS: usize = 3;

/// Units in which the fits' coefficients are about the same size: thousands of tokens, hundreds of millions of pairs of
/// tokens, millions of context tokens, tens of requests.
pub(super) const TOKENS: f64 = 1e3;
pub(super) const PAIRS: f64 = 1e8;
pub(super) const CONTEXT: f64 = 1e6;
pub(super) const REQUESTS: f64 = 10.0;

/// What a request meets, as far as it makes times uncertain in ways of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Band {
    /// Nothing: it begins at once.
    #[default]
    Idle,
    /// Answers under way: it begins with the next step.
    Decoding,
    /// Other prompts before it.
    Queued,
    /// It is held back at the gateway until a prefix has been computed.
    Held,
    /// The cache has no room for it, or for somebody before it, until answers end.
    Full,
}

impl Band {
    /// How many there are.
    pub const COUNT: usize = 5;
}

/// A request and the load of its replica, as of the decision.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Features {
    /// Prompt tokens to compute.
    pub uncached_tokens: f32,
    /// Prompt tokens that are there.
    pub cached_tokens: f32,
    /// Of these, those that are held to be there beyond the last whole block of the index.
    pub tail_tokens: f32,
    /// Seconds until it is sent.
    pub held_s: f32,
    /// Seconds from when it is there until its own prefill begins.
    pub ahead_s: f32,
    /// Prompt tokens for which there is room in the step in which that is.
    pub room_tokens: f32,
    /// What a decode step takes then, seconds; zero when nothing is decoded.
    pub step_s: f32,
    /// What kind of times these are.
    pub band: Band,
    /// Requests there.
    pub requests: f32,
    /// Tokens of all that are there: their prompts, and what they have generated.
    pub context_tokens: f32,
    /// Share of its time that the replica spends on prefill.
    pub prefill_share: f32,
}

impl Features {
    /// The same, with what the engine says it found of the prompt.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "tokens need no more than 7 digits")]
    pub const fn corrected(self, prompt_tokens: u64, cached_tokens: u64) -> Self {
        let cached = if cached_tokens < prompt_tokens { cached_tokens } else { prompt_tokens };
        Self { uncached_tokens: (prompt_tokens - cached) as f32, cached_tokens: cached as f32, ..self }
    }

    /// It is sent only in `seconds`.
    pub const fn hold(&mut self, seconds: f32) {
        (self.held_s, self.band) = (seconds, Band::Held);
    }

    /// Seconds that the steps in which its prompt is computed spend on the answers under way.
    #[must_use]
    pub fn steps_s(&self) -> f32 {
        self.step_s * steps(self.uncached_tokens, self.room_tokens)
    }

    pub(super) fn ttft(&self) -> Vector<TTFT_TERMS> {
        let (new, cached) = (f64::from(self.uncached_tokens), f64::from(self.cached_tokens));
        // What an idle engine does first.
        let first = if self.step_s > 0.0 { 0.0 } else { 1.0 };
        let pairs = new * (cached + new / 2.0) / PAIRS;
        [first, new / TOKENS, pairs, f64::from(self.ahead_s), f64::from(self.steps_s())]
    }

    pub(super) fn tpot(&self) -> Vector<TPOT_TERMS> {
        let own = f64::from(self.uncached_tokens) + f64::from(self.cached_tokens);
        [
            1.0,
            (f64::from(self.requests) + 1.0) / REQUESTS,
            (f64::from(self.context_tokens) + own) / CONTEXT,
            f64::from(self.prefill_share).min(1.0),
        ]
    }
}

/// Steps that `new_tokens` of a prompt take where the first has room for `room_tokens`.
#[inline(always)]
#[must_use]
pub fn steps(new_tokens: f32, room_tokens: f32) -> f32 {
    let over = new_tokens - room_tokens;
    1.0 + if over > 0.0 { (over * (1.0 / CHUNK_TOKENS)).ceil() } else { 0.0 }
}
