//! Where a simulated engine keeps what it computed: a cache of blocks that all requests share, or slots that each keep
//! one request's tokens.

use super::cache::{Held, KvCache, Path};
use super::model::{EngineModel, Kind};
use super::slots::SlotCache;
use super::workload::Segment;

/// Tokens a step may be given where memory is no limit.
const PLENTY: u64 = 1 << 40;

/// An engine's memory.
#[derive(Clone, Debug)]
pub(super) enum Memory {
    /// Blocks, as vLLM has them.
    Blocks(KvCache),
    /// Slots, as llama.cpp has them.
    Slots(SlotCache),
}

/// What a request has of it while it runs.
#[derive(Debug, Default)]
pub(super) enum Grant {
    /// Nothing.
    #[default]
    None,
    /// Its blocks.
    Path(Path),
    /// Its slot.
    Slot(usize),
}

impl Memory {
    pub(super) fn new(model: &EngineModel) -> Self {
        match model.kind {
            Kind::Blocks => Self::Blocks(KvCache::new(model.kv_tokens, model.host_tokens, model.block_tokens)),
            Kind::Slots => {
                let narrow = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
                let slots = narrow(model.sequences_max as u64);
                Self::Slots(SlotCache::new(slots, narrow(model.kv_tokens), model.host_tokens))
            }
        }
    }

    /// Most output tokens that a prompt of so many tokens can have; zero: it can never run.
    pub(super) fn output_tokens_max(&self, model: &EngineModel, prompt_tokens: u32, output_tokens: u32) -> u32 {
        match self {
            Self::Blocks(_) if u64::from(prompt_tokens) + u64::from(output_tokens) > model.kv_tokens => 0,
            Self::Blocks(_) => output_tokens,
            Self::Slots(slots) => slots.output_tokens_max(prompt_tokens).min(output_tokens),
        }
    }

    /// How much of `prompt` could be reused now.
    pub(super) fn held(&self, prompt: &[Segment]) -> Held {
        match self {
            Self::Blocks(cache) => cache.held(prompt),
            Self::Slots(slots) => Held { device: slots.peek(prompt), host: 0 },
        }
    }

    /// Takes a request in that needs memory for all of its prompt: what it has, what it finds there, and the tokens that
    /// were set aside for it. `None`: there is no room now.
    pub(super) fn admit(&mut self, prompt: &[Segment], prompt_tokens: u32) -> Option<(Grant, Held, u64)> {
        match self {
            Self::Blocks(cache) => {
                let held = cache.held(prompt);
                let mut path = cache.acquire(prompt);
                let new = u64::from(prompt_tokens - held.device);
                if !cache.reserve(new) {
                    cache.release(&mut path);
                    return None;
                }
                Some((Grant::Path(path), held, new))
            }
            Self::Slots(slots) => {
                let grant = slots.admit(prompt)?;
                let host = grant.restored_tokens.min(grant.cached_tokens);
                Some((Grant::Slot(grant.slot), Held { device: grant.cached_tokens - host, host }, 0))
            }
        }
    }

    /// Tokens `from..to` of the prompt have been computed.
    pub(super) fn fill(&mut self, grant: &Grant, prompt: &[Segment], from: u32, to: u32) {
        if let (Self::Blocks(cache), Grant::Path(path)) = (self, grant) {
            cache.fill(path, prompt, from, to);
        }
    }

    /// Sets `tokens` aside for requests. False, and nothing is changed, when there are not enough.
    pub(super) fn reserve(&mut self, tokens: u64) -> bool {
        match self {
            Self::Blocks(cache) => cache.reserve(tokens),
            // A slot's share of the context is its own from the beginning.
            Self::Slots(_) => true,
        }
    }

    /// The request is over, with `output`; what it computed is kept for others.
    pub(super) fn release(&mut self, grant: Grant, reserved: u64, output: Option<Segment>) {
        match (self, grant) {
            (Self::Blocks(cache), Grant::Path(mut path)) => {
                // The last token was never fed back: it has no KV.
                let kept = output.map(|output| Segment { tokens: output.tokens.saturating_sub(1), ..output });
                let kept = kept.filter(|kept| kept.tokens > 0);
                cache.unreserve(reserved.saturating_sub(kept.map_or(0, |kept| u64::from(kept.tokens))));
                if let Some(kept) = kept {
                    cache.extend(&mut path, kept);
                }
                cache.release(&mut path);
            }
            (Self::Slots(slots), Grant::Slot(slot)) => {
                slots.release(slot, output.unwrap_or(Segment { id: 0, tokens: 0 }));
            }
            (Self::Blocks(cache), Grant::None) => cache.unreserve(reserved),
            (Self::Blocks(_), Grant::Slot(_)) | (Self::Slots(_), Grant::Path(_) | Grant::None) => {}
        }
    }

    /// Tokens that requests could still be given.
    pub(super) const fn available(&self) -> u64 {
        match self {
            Self::Blocks(cache) => cache.available(),
            Self::Slots(_) => PLENTY,
        }
    }

    /// Share that requests use.
    #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^52")]
    pub(super) fn usage(&self, model: &EngineModel) -> f64 {
        match self {
            Self::Blocks(cache) => cache.usage(),
            Self::Slots(slots) => (slots.held_tokens() as f64 / model.kv_tokens as f64).min(1.0),
        }
    }

    /// Tokens evicted so far; slots do not say.
    pub(super) const fn evicted(&self) -> u64 {
        match self {
            Self::Blocks(cache) => cache.evicted(),
            Self::Slots(_) => 0,
        }
    }
}
