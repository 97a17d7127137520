//! What a simulated engine takes for its work: step times fitted to real engines on real accelerators.

/// How one kind of replica computes. Times are seconds.
///
/// Prefill of `n` new tokens after `p` cached ones takes `a + b·n + c·n·(p + n/2)`; a decode step takes
/// `w + k·batch + m·Σcontext`; a step that does both takes `w`, the prefill's terms without `a`, and the decode's. Fitted
/// to AIConfigurator 0.12 for vLLM in BF16 on H100; residuals mostly within 7 %.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineModel {
    /// Name on the command line and in results.
    pub name: &'static str,
    /// Before a prefill.
    pub prefill_base_s: f64,
    /// For each new token.
    pub prefill_s_per_token: f64,
    /// For each new token and token it attends to.
    pub attention_s_per_token_pair: f64,
    /// For each decode step.
    pub decode_base_s: f64,
    /// For each sequence in it.
    pub decode_s_per_sequence: f64,
    /// For each token of their contexts.
    pub decode_s_per_context_token: f64,
    /// Tokens its KV cache holds.
    pub kv_tokens: u64,
    /// Tokens of a block: what is cached is whole blocks.
    pub block_tokens: u32,
    /// Sequences it runs at once, at most.
    pub sequences_max: usize,
    /// Tokens it computes in one step, at most: longer prefills are cut into chunks.
    pub step_tokens_max: u32,
    /// From a request's arrival to the engine's queue: parsing, tokenising, scheduling.
    pub overhead_s: f64,
    /// Of an answer, for each output token, after it was computed.
    pub overhead_s_per_output_token: f64,
    /// To bring one token's KV back from the host's memory: 26 ms a GB.
    pub restore_s_per_token: f64,
    /// Bytes of one token's KV.
    pub kv_bytes_per_token: u64,
    /// Tokens that fit in the host's memory beside the engine's.
    pub host_tokens: u64,
    /// How it keeps what it computed.
    pub kind: Kind,
    /// Whether the gateway is configured to know how much fits; else it learns that.
    pub is_configured: bool,
}

/// How an engine keeps what it computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// One cache of blocks for all requests, as vLLM has it.
    #[default]
    Blocks,
    /// A slot for each of `sequences_max` requests with an equal share of `kv_tokens`, as llama.cpp has them
    /// ([`super::slots`]).
    Slots,
}

/// To bring a gigabyte back from the host's memory, seconds.
const RESTORE_S_PER_GB: f64 = 0.026;

impl EngineModel {
    /// The models that there are.
    #[must_use]
    pub fn all() -> [Self; 4] {
        let base = |name, kv_tokens, kv_bytes_per_token: u32| Self {
            name,
            prefill_base_s: 0.0,
            prefill_s_per_token: 0.0,
            attention_s_per_token_pair: 0.0,
            decode_base_s: 0.0,
            decode_s_per_sequence: 0.0,
            decode_s_per_context_token: 0.0,
            kv_tokens,
            block_tokens: 16,
            sequences_max: 256,
            step_tokens_max: 8_192,
            overhead_s: 15.6e-3,
            overhead_s_per_output_token: 0.046e-3,
            restore_s_per_token: f64::from(kv_bytes_per_token) * RESTORE_S_PER_GB / 1e9,
            kv_bytes_per_token: u64::from(kv_bytes_per_token),
            host_tokens: 0,
            kind: Kind::Blocks,
            is_configured: true,
        };
        [
            // One H100: 32 layers, 8 KV heads of 128.
            Self {
                prefill_base_s: 1.5e-3,
                prefill_s_per_token: 0.0207e-3,
                attention_s_per_token_pair: 8.0e-10,
                decode_base_s: 6.1e-3,
                decode_s_per_sequence: 0.004e-3,
                decode_s_per_context_token: 4.2e-8,
                ..base("llama-3.1-8b", 421_000, 131_072)
            },
            // Two H100: 64 layers, 8 KV heads of 128.
            Self {
                prefill_base_s: 4.4e-3,
                prefill_s_per_token: 0.0502e-3,
                attention_s_per_token_pair: 1.6e-9,
                decode_base_s: 13.3e-3,
                decode_s_per_sequence: 0.028e-3,
                decode_s_per_context_token: 4.3e-8,
                ..base("qwen3-32b", 305_000, 262_144)
            },
            // Four H100: 80 layers, 8 KV heads of 128.
            Self {
                prefill_base_s: 6.3e-3,
                prefill_s_per_token: 0.0605e-3,
                attention_s_per_token_pair: 1.02e-9,
                decode_base_s: 14.8e-3,
                decode_s_per_sequence: 0.031e-3,
                decode_s_per_context_token: 2.8e-8,
                ..base("llama-3.1-70b", 433_000, 327_680)
            },
            // llama.cpp's server with a model of 13 MB (two layers, 2 KV heads of 64, in 32 bits) on one core: slots and not
            // blocks. Fitted to the server that tests run; `speed` makes it another.
            Self {
                prefill_base_s: 1.0e-3,
                prefill_s_per_token: 0.052e-3,
                attention_s_per_token_pair: 8.5e-8,
                decode_base_s: 0.27e-3,
                decode_s_per_sequence: 0.02e-3,
                decode_s_per_context_token: 3.5e-7,
                block_tokens: 1,
                sequences_max: 4,
                step_tokens_max: 2_048,
                overhead_s: 4.0e-3,
                overhead_s_per_output_token: 0.02e-3,
                kind: Kind::Slots,
                ..base("llama.cpp", 16_384, 2_048)
            },
        ]
    }

    /// The model of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|model| model.name == name)
    }

    /// The same, computing `speed` times as fast. What does not depend on the accelerator takes as long as before: the
    /// server's overhead, and bringing KV back from the host.
    #[must_use]
    pub fn at_speed(self, speed: f64) -> Self {
        Self {
            prefill_base_s: self.prefill_base_s / speed,
            prefill_s_per_token: self.prefill_s_per_token / speed,
            attention_s_per_token_pair: self.attention_s_per_token_pair / speed,
            decode_base_s: self.decode_base_s / speed,
            decode_s_per_sequence: self.decode_s_per_sequence / speed,
            decode_s_per_context_token: self.decode_s_per_context_token / speed,
            ..self
        }
    }

    /// The same with so many GB of host memory for what the device evicts.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "bounded")]
    pub fn with_host_tier_gb(self, gb: f64) -> Self {
        Self { host_tokens: (gb * 1e9 / self.kv_bytes_per_token as f64) as u64, ..self }
    }

    /// Seconds for `new` prompt tokens after `before` others, without what a prefill takes before anything else.
    #[must_use]
    pub fn prefill_s(&self, new: f64, before: f64) -> f64 {
        new * (self.prefill_s_per_token + self.attention_s_per_token_pair * (before + new / 2.0))
    }

    /// Seconds for one token of each of `batch` sequences with `context` tokens together, without the step's base.
    #[must_use]
    pub fn decode_s(&self, batch: f64, context: f64) -> f64 {
        batch * self.decode_s_per_sequence + context * self.decode_s_per_context_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefill_rates_are_those_that_were_fitted() {
        for (model, tokens_per_s) in EngineModel::all().iter().zip([41_000.0, 17_200.0, 14_200.0]) {
            let rate = 8_192.0 / (model.prefill_base_s + model.prefill_s(8_192.0, 0.0));
            assert!((rate / tokens_per_s - 1.0_f64).abs() < 0.08, "{}: {rate}", model.name);
            assert_eq!(EngineModel::by_name(model.name).as_ref(), Some(model));
        }
    }

    /// Dynamo's mocker has times of its own, from another fit: `4.21e-7·x² + 0.01518·x + 16.5` ms for a prompt of `x`
    /// tokens, the server's overhead included, and `max(1, −25.74·p² + 54.01·p + 5.74)` ms for a decode step with the
    /// share `p` of the KV cache in use.
    #[test]
    fn times_are_of_the_order_of_dynamos() {
        let model = EngineModel::by_name("llama-3.1-8b").unwrap();
        for tokens in [1_000.0, 2_000.0, 4_000.0, 8_000.0, 16_000.0, 32_000.0_f64] {
            let chunks = (tokens / f64::from(model.step_tokens_max)).ceil();
            let own_s = model.overhead_s + chunks * model.prefill_base_s + model.prefill_s(tokens, 0.0);
            let theirs_s = (4.21e-7 * tokens * tokens + 0.015_18 * tokens + 16.5) / 1e3;
            assert!((0.8..1.3).contains(&(own_s / theirs_s)), "{tokens}: {own_s} {theirs_s}");
        }
        for share in [0.0, 0.1, 0.25, 0.5, 0.75, 0.9_f64] {
            let context = share * model.kv_tokens as f64;
            // Contexts of 2,000 tokens each.
            let own_s = model.decode_base_s + model.decode_s(context / 2_000.0, context);
            let theirs_s = (-25.74 * share * share + 54.01 * share + 5.74).max(1.0) / 1e3;
            assert!((0.5..1.1).contains(&(own_s / theirs_s)), "{share}: {own_s} {theirs_s}");
        }
    }
}
