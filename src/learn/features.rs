//! What a time to first token, and a time per output token, depend on.
//!
//! The features are the terms of how engines with continuous batching and chunked prefill spend their time: prefill of
//! `n` new tokens after `p` cached takes `a + b·n + c·n·(p + n/2)`, a decode step `w + k·batch + m·Σcontext`, and a step
//! with both takes both. What the prefill ahead still takes is known in seconds ([`crate::load::backlog`]).

use super::recursive::Vector;

/// Coefficients of a time to first token.
pub(super) const TTFT_TERMS: usize = 6;
/// Coefficients of a time per output token.
pub(super) const TPOT_TERMS: usize = 4;

/// Units in which the fits' coefficients are about the same size: thousands of tokens, hundreds of millions of pairs of
/// tokens, millions of context tokens, tens of requests.
pub(super) const TOKENS: f64 = 1e3;
pub(super) const PAIRS: f64 = 1e8;
pub(super) const CONTEXT: f64 = 1e6;
pub(super) const REQUESTS: f64 = 10.0;

/// A request and the load of its replica, as of the decision.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Features {
    /// Prompt tokens to compute.
    pub uncached_tokens: f32,
    /// Prompt tokens that are there.
    pub cached_tokens: f32,
    /// Seconds until the prefill ahead is over.
    pub ahead_s: f32,
    /// Something is ahead, or should have been over by now: what then happens is less certain.
    pub is_queued: bool,
    /// Others have their first token already, and are being decoded.
    pub is_decoding: bool,
    /// Requests there.
    pub requests: f32,
    /// Prompt tokens of all that are there.
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

    pub(super) fn ttft(&self) -> Vector<TTFT_TERMS> {
        let (new, cached) = (f64::from(self.uncached_tokens), f64::from(self.cached_tokens));
        [
            1.0,
            new / TOKENS,
            new * (cached + new / 2.0) / PAIRS,
            f64::from(self.ahead_s),
            if self.is_decoding { 1.0 } else { 0.0 },
            f64::from(self.context_tokens) / CONTEXT,
        ]
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
