//! What was learned of the prompts of each pool: it belongs to the model, not to a replica, and outlives reloads.

use crate::fleet::Fleet;
use crate::id::PoolId;
use crate::learn::TokenRatio;
use crate::prefix::reuse::ReuseAges;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Share of an answer in the mean of their tokens.
const ANSWER_STEP: f32 = 0.01;
/// More tokens than this of one answer do not count.
const ANSWER_TOKENS_MAX: u64 = 32 * 1024;

/// What was learned of one pool's prompts.
#[derive(Debug, Default)]
pub struct PromptTraits {
    /// Bytes to a token.
    pub ratio: TokenRatio,
    /// How soon blocks are used again.
    pub reuse: ReuseAges,
    /// Mean output tokens of an answer (the bits of an `f32`; zero: none yet).
    answer_tokens: AtomicU32,
}

impl PromptTraits {
    /// Mean output tokens of the last hundred answers or so; zero until there was one.
    #[must_use]
    pub fn answer_tokens(&self) -> f32 {
        f32::from_bits(self.answer_tokens.load(Relaxed))
    }

    /// An answer had `tokens`.
    #[expect(clippy::cast_precision_loss, reason = "tokens need no more than 7 digits")]
    pub fn learn_answer(&self, tokens: u64) {
        let before = self.answer_tokens();
        let tokens = tokens.min(ANSWER_TOKENS_MAX) as f32;
        let after = if before == 0.0 { tokens } else { ANSWER_STEP.mul_add(tokens - before, before) };
        // Two shards at once may lose one of two answers.
        self.answer_tokens.store(after.to_bits(), Relaxed);
    }
}

/// The same of every pool of one snapshot.
#[derive(Clone, Debug, Default)]
pub struct PoolTraits {
    by_pool: Vec<Arc<PromptTraits>>,
    by_model: HashMap<String, Arc<PromptTraits>>,
}

impl PoolTraits {
    /// Those of the pools of `fleet`, taking over what `self` learned of the same models.
    #[must_use]
    pub fn rebuilt(&self, fleet: &Fleet) -> Self {
        let mut next = Self::default();
        for pool in &fleet.pools {
            let traits = self.by_model.get(&pool.model).cloned().unwrap_or_default();
            next.by_pool.push(Arc::clone(&traits));
            next.by_model.insert(pool.model.clone(), traits);
        }
        next
    }

    /// Those of `pool`.
    #[must_use]
    pub fn get(&self, pool: PoolId) -> Option<&PromptTraits> {
        self.by_pool.get(usize::from(pool.0)).map(AsRef::as_ref)
    }

    /// Tokens that `bytes` of prompt make in `pool`, estimated.
    #[must_use]
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate of 7 digits")]
    pub fn tokens(&self, pool: PoolId, bytes: usize) -> f32 {
        let ratio = self.get(pool).map_or(4.0, |traits| traits.ratio.bytes_per_token());
        (bytes as f64 / ratio) as f32
    }
}
