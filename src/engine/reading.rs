//! What one look at an engine's page gave, and what of it a beacon says.

use super::Engine;
use crate::wire::beacon::{Facts, Load};

/// One look at an engine's metrics page.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Whose page it is; never [`Engine::Auto`].
    pub engine: Engine,
    /// False when the engine says that it sleeps (vLLM's sleep mode).
    pub is_awake: bool,
    /// Requests it runs.
    pub running: u32,
    /// Requests in its queue.
    pub waiting: u32,
    /// Requests it can run at once.
    pub slots: Option<u32>,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<f32>,
    /// Blocks of the KV cache.
    pub kv_blocks: Option<u32>,
    /// Tokens to a block.
    pub kv_block_tokens: Option<u32>,
    /// Prompt tokens that wait for their prefill.
    pub prefill_tokens: Option<u32>,
    /// Blocks evicted since the engine started.
    pub blocks_evicted: Option<u64>,
    /// Prompt tokens looked up in the prefix cache since the engine started.
    pub prefix_tokens_queried: Option<u64>,
    /// Of these, found.
    pub prefix_tokens_hit: Option<u64>,
    /// When the engine's process started, microseconds of Unix time.
    pub started_unix_us: Option<u64>,
    /// Names of models, as far as the page tells them.
    pub models: Vec<String>,
    /// Adapters of requests that run; `None` when the page does not speak of adapters.
    pub adapters_loaded: Option<Vec<String>>,
    /// Adapters of requests that wait.
    pub adapters_waiting: Option<Vec<String>>,
    /// Lines of the page that could not be read.
    pub lines_broken: u32,
}

impl Reading {
    /// A reading of nothing.
    #[must_use]
    pub const fn new(engine: Engine) -> Self {
        Self {
            engine,
            is_awake: true,
            running: 0,
            waiting: 0,
            slots: None,
            kv_usage: None,
            kv_blocks: None,
            kv_block_tokens: None,
            prefill_tokens: None,
            blocks_evicted: None,
            prefix_tokens_queried: None,
            prefix_tokens_hit: None,
            started_unix_us: None,
            models: Vec::new(),
            adapters_loaded: None,
            adapters_waiting: None,
            lines_broken: 0,
        }
    }

    /// The load as a beacon says it: ready when the engine is awake, not draining, its cache never reset.
    #[must_use]
    pub const fn load(&self) -> Load {
        Load {
            ready: self.is_awake,
            draining: false,
            running: self.running,
            waiting: self.waiting,
            kv_usage: self.kv_usage,
            kv_blocks: self.kv_blocks,
            kv_block_tokens: self.kv_block_tokens,
            prefill_tokens: self.prefill_tokens,
            cache_resets: 0,
            blocks_evicted: self.blocks_evicted,
            prefix_tokens_queried: self.prefix_tokens_queried,
            prefix_tokens_hit: self.prefix_tokens_hit,
        }
    }

    /// The facts as a beacon says them. Lists of adapters that are known to be empty say so (see [`Facts`]).
    #[must_use]
    pub fn facts(&self) -> Facts {
        let said = |list: &Option<Vec<String>>| match list {
            None => Vec::new(),
            Some(names) if names.is_empty() => vec![String::new()],
            Some(names) => names.clone(),
        };
        Facts {
            url: None,
            engine: Some(self.engine.as_str().to_owned()),
            slots: self.slots,
            models: self.models.clone(),
            adapters_loaded: said(&self.adapters_loaded),
            adapters_waiting: said(&self.adapters_waiting),
            labels: Vec::new(),
        }
    }
}
