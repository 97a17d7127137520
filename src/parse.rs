//! Body → request. One pass of simd-json over a pooled copy, borrowed spans out; the client's own bytes stay untouched
//! for forwarding. Parse, don't validate: what comes out is all that routing needs, and cannot be malformed.

use std::ops::Range;

/// Which API a request speaks. Decides how the prompt is found, how answers are read, and the shape of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/messages` (Anthropic)
    Messages,
    /// `POST /v1/messages/count_tokens` (Anthropic)
    CountTokens,
    /// `POST /v1/rerank`
    Rerank,
    /// `POST /tokenize`
    Tokenize,
    /// `POST /detokenize`
    Detokenize,
}

impl Api {
    /// The API served at `path` (no query string), if any.
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::ChatCompletions,
            "/v1/completions" => Self::Completions,
            "/v1/responses" => Self::Responses,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens" => Self::CountTokens,
            "/v1/rerank" => Self::Rerank,
            "/tokenize" => Self::Tokenize,
            "/detokenize" => Self::Detokenize,
            _ => return None,
        })
    }

    /// True for the routes whose errors have Anthropic's shape.
    #[must_use]
    pub const fn is_anthropic(self) -> bool {
        matches!(self, Self::Messages | Self::CountTokens)
    }
}

/// What the prompt is made of: its fingerprint is taken over these bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt<'p> {
    /// Text in template order (tools, system, messages with role delimiters), unescaped.
    Text(&'p [u8]),
    /// Token ids, each four little-endian bytes.
    Tokens(&'p [u8]),
}

impl<'p> Prompt<'p> {
    /// The bytes to hash.
    #[must_use]
    pub const fn bytes(self) -> &'p [u8] {
        match self {
            Self::Text(bytes) | Self::Tokens(bytes) => bytes,
        }
    }
}

/// A body, read. Strings are unescaped and borrow from the parser's scratch memory.
#[derive(Clone, Debug)]
pub struct Request<'p> {
    /// Route it came by.
    pub api: Api,
    /// Model the client named; `None` when the body has no `model`.
    pub model: Option<&'p str>,
    /// Where the model's name stands in the original body, between its quotes (escapes as sent).
    pub model_span: Range<u32>,
    /// The client wants server-sent events.
    pub stream: bool,
    /// Most output tokens the client wants (`max_tokens`, `max_completion_tokens`, `max_output_tokens`).
    pub output_tokens_max: Option<u32>,
    /// `user` (OpenAI) or `metadata.user_id` (Anthropic).
    pub user: Option<&'p str>,
    /// `cache_salt` (vLLM): separates caches; enters the first hash.
    pub cache_salt: Option<&'p str>,
    /// LoRA adapter (`lora_path`, `lora_name`, `adapter`); enters the first hash.
    pub adapter: Option<&'p str>,
    /// Session hint in the body (`prompt_cache_key`, `previous_response_id`, `conversation`, `session_id`, …).
    pub session: Option<&'p str>,
    /// Messages (chat, messages), inputs or documents.
    pub items: u32,
    /// The prompt in template order.
    pub prompt: Prompt<'p>,
}

/// Bounds on what a body may be; past them it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseLimits {
    /// Deepest nesting.
    pub depth: u16,
    /// Most JSON values (array elements, object members): bounds the parser's memory.
    pub elements: u32,
}

impl Default for ParseLimits {
    fn default() -> Self {
        Self { depth: 128, elements: 4_000_000 }
    }
}
