//! Body → request. One pass of simd-json over a pooled copy, borrowed spans out; the client's own bytes stay untouched
//! for forwarding. Parse, don't validate: what comes out is all that routing needs, and cannot be malformed.
//!
//! Four steps: stage 1 finds the tokens ([`scan`]), one walk checks the grammar and the limits and notes where the known
//! fields stand ([`document`]), the routing fields are read ([`fields`]), and the prompt is laid out ([`prompt`]). The
//! other direction, answers → usage, is in [`answer`].

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use crate::reject::{BodyFault, Reject};

pub mod answer;
mod document;
mod fields;
mod prompt;
mod scan;
pub mod sse;
#[cfg(test)]
mod tests;
mod text;
pub mod usage;

/// A parser keeps at most about this much memory between bodies.
pub const KEEP_BYTES: usize = 8 << 20;

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

    /// How many there are.
    pub const COUNT: usize = 9;

    /// Its place among all, below [`Api::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name in metrics, records and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat_completions",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Embeddings => "embeddings",
            Self::Messages => "messages",
            Self::CountTokens => "count_tokens",
            Self::Rerank => "rerank",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
        }
    }

    /// True for the routes whose prompts leave KV blocks that a later request can reuse.
    #[must_use]
    pub const fn leaves_cache(self) -> bool {
        matches!(self, Self::ChatCompletions | Self::Completions | Self::Responses | Self::Messages)
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
    /// Text in template order (tools, system, messages with role delimiters), escapes as sent.
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

/// A body, read. Strings (but not the prompt) are unescaped; all borrow from the parser's scratch memory.
#[derive(Clone, Debug)]
pub struct Request<'p> {
    /// Route it came by.
    pub api: Api,
    /// Model the client named; `None` when the body has no `model`.
    pub model: Option<&'p str>,
    /// Where the model's name stands in the original body, between its quotes (escapes as sent); `0..0` without one.
    /// See [`splice_model`].
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
    /// The prompt in template order. Batches are one prompt; see [`Parser::parse`].
    pub prompt: Prompt<'p>,
}

impl Request<'_> {
    /// True when a later prompt may begin with this one and its answer.
    #[must_use]
    pub const fn goes_on(&self) -> bool {
        matches!(self.prompt, Prompt::Text(_))
            && match self.api {
                Api::ChatCompletions | Api::Responses | Api::Messages => true,
                Api::Completions => self.items == 1,
                Api::Embeddings | Api::CountTokens | Api::Rerank | Api::Tokenize | Api::Detokenize => false,
            }
    }
}

/// Bounds on what a body may be; past them it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseLimits {
    /// Deepest nesting of objects and arrays; the outermost object is level 1.
    pub depth: u16,
    /// Most JSON values (array elements, object members): bounds the parser's memory, which is at most about 60 bytes
    /// a value beside two copies of the body, until the next body.
    pub elements: u32,
}

impl Default for ParseLimits {
    fn default() -> Self {
        Self { depth: 128, elements: 4_000_000 }
    }
}

/// Reads bodies. Holds the memory it works in: in steady state a parse allocates nothing. One for each shard.
pub struct Parser {
    limits: ParseLimits,
    scanner: scan::Scanner,
    /// Scratch memory of the document: where containers end.
    ends: Vec<u32>,
    prompt: text::Staging,
    /// The routing fields' texts, unescaped.
    side: text::Staging,
}

impl Parser {
    /// A parser that refuses what is past `limits`.
    #[must_use]
    pub fn new(limits: ParseLimits) -> Self {
        Self {
            limits,
            scanner: scan::Scanner::new(),
            ends: Vec::new(),
            prompt: text::Staging::default(),
            side: text::Staging::default(),
        }
    }

    /// Reads `body` as a request to `api`.
    ///
    /// Strict where parsers differ: a known field that stands twice, text that is not UTF-8 (escaped halves of characters
    /// too) and anything that is not JSON is refused. Unknown fields may hold any JSON, numbers of any size too.
    ///
    /// Batched prompts make one prompt, set apart by delimiters: a batch shares a prefix with another batch that starts
    /// with the same members.
    ///
    /// # Errors
    /// [`Reject::Body`] with the cause; [`Reject::BodyTooLarge`] from 4 GiB.
    pub fn parse<'p>(&'p mut self, api: Api, body: &[u8]) -> Result<Request<'p>, Reject> {
        if self.memory_bytes() > KEEP_BYTES {
            self.shrink();
        }
        self.scanner.scan(body, self.limits)?;
        let Self { limits, scanner, ends, prompt, side, .. } = self;
        prompt.clear();
        side.clear();
        let mut fields = fields::Fields::new();
        let note = |key: &[u8], value| fields.note(key, value);
        let doc = document::Document::check(scanner.text(), scanner.marks(), ends, *limits, note)?;
        text::check_escapes(doc.text())?;
        let routing = fields::Routing::read(api, doc, &fields, side)?;
        let built = prompt::build(api, doc, &fields, prompt)?;
        assemble(api, routing, built, prompt.written(), side.written())
    }

    /// Gives back the memory. Happens by itself before the next body when a large one left more than [`KEEP_BYTES`].
    pub fn shrink(&mut self) {
        *self = Self::new(self.limits);
    }

    /// Bytes of memory kept between bodies, without address space that was never written.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.scanner.capacity() + size_of_val(self.ends.as_slice()) + self.prompt.capacity() + self.side.capacity()
    }
}

impl std::fmt::Debug for Parser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parser").field("limits", &self.limits).field("memory_bytes", &self.memory_bytes()).finish()
    }
}

fn assemble<'p>(
    api: Api,
    routing: fields::Routing,
    built: prompt::Built,
    prompt: &'p [u8],
    side: &'p [u8],
) -> Result<Request<'p>, Reject> {
    let text = |range: Option<Range<usize>>| match range.and_then(|range| side.get(range)) {
        Some(bytes) => str::from_utf8(bytes).map(Some).map_err(|_invalid| BodyFault::Utf8),
        None => Ok(None),
    };
    Ok(Request {
        api,
        model: text(routing.model)?,
        model_span: routing.model_span,
        stream: routing.stream,
        output_tokens_max: routing.output_tokens_max,
        user: text(routing.user)?,
        cache_salt: text(routing.cache_salt)?,
        adapter: text(routing.adapter)?,
        session: text(routing.session)?,
        items: built.items,
        prompt: if built.tokens { Prompt::Tokens(prompt) } else { Prompt::Text(prompt) },
    })
}

/// `body` with the model's name replaced: all other bytes stay as sent. `span` is [`Request::model_span`]; when the body
/// names no model (a span at 0), the name is added as the first field. One allocation.
#[must_use]
pub fn splice_model(body: &[u8], span: Range<u32>, name: &str) -> Bytes {
    let (before, after, adds) = if span.start == 0 {
        let brace = memchr::memchr(b'{', body).map_or(0, |at| at + 1);
        (brace, brace, true)
    } else {
        (span.start as usize, span.end as usize, false)
    };
    let (head, tail) = (body.get(..before).unwrap_or_default(), body.get(after..).unwrap_or_default());
    let mut out = BytesMut::with_capacity(head.len() + 6 * name.len() + 12 + tail.len());
    out.put_slice(head);
    if adds {
        out.put_slice(b"\"model\":\"");
    }
    for byte in name.bytes() {
        match byte {
            b'"' | b'\\' => out.put_slice(&[b'\\', byte]),
            0..=0x1F => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.put_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
            _ => out.put_u8(byte),
        }
    }
    if adds {
        out.put_slice(b"\",");
    }
    out.put_slice(tail);
    out.freeze()
}
