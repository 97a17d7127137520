//! Body → work: what a mock engine has to prefill and how much it should answer. The chat template is a plain one
//! (role markers around each turn), so that a conversation's next turn starts with the bytes of the turn before it,
//! the answer included.

use std::hash::{DefaultHasher, Hasher};

use serde_json::Value;

use crate::parse::Api;

/// Output tokens when the request names no limit.
const MAX_TOKENS_DEFAULT: u32 = 16;
/// Most output tokens of one answer, whatever the request says.
const MAX_TOKENS_LIMIT: u32 = 65_536;
/// Most prompts or documents in one request.
const PROMPTS_LIMIT: usize = 2_048;

/// A text as tokens: each is `bytes_per_token` bytes long, rounded so that the mean comes out right.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tokens {
    bytes: Vec<u8>,
    bytes_per_token: f64,
}

impl Tokens {
    /// The tokens of `bytes`.
    pub(super) fn new(bytes: Vec<u8>, bytes_per_token: f64) -> Self {
        Self { bytes, bytes_per_token: if bytes_per_token >= 1.0 { bytes_per_token } else { 1.0 } }
    }

    /// How many; the last one may be short.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length divided by at least 1")]
    #[expect(clippy::cast_precision_loss, reason = "bodies are far below 2^52 bytes")]
    pub(super) fn len(&self) -> u64 {
        (self.bytes.len() as f64 / self.bytes_per_token).ceil() as u64
    }

    /// Where token `at` starts.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and checked by get()")]
    #[expect(clippy::cast_precision_loss, reason = "bodies are far below 2^52 bytes")]
    fn start(&self, at: u64) -> usize {
        (at as f64 * self.bytes_per_token) as usize
    }

    /// Hashes of the full blocks of `block_tokens`, each over all that comes before it.
    pub(super) fn chain(&self, block_tokens: u32) -> Vec<u64> {
        let block_tokens = u64::from(block_tokens.max(1));
        let mut hasher = DefaultHasher::new();
        let mut chain = Vec::new();
        let (mut from, mut token) = (0, block_tokens);
        loop {
            let to = self.start(token);
            let Some(block) = self.bytes.get(from..to) else { return chain };
            hasher.write(block);
            chain.push(hasher.finish());
            (from, token) = (to, token + block_tokens);
        }
    }

    /// Seeds the answer: the same prompt gets the same words.
    pub(super) fn seed(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_usize(self.bytes.len());
        hasher.write(self.bytes.get(self.bytes.len().saturating_sub(256)..).unwrap_or_default());
        hasher.finish()
    }

    /// Appends text, as decoding does.
    pub(super) fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// Token ids: the token's bytes themselves for those of at most four bytes, so that ids and text are one prompt.
    pub(super) fn ids(&self) -> Vec<u32> {
        (0..self.len())
            .map(|at| {
                let end = self.start(at + 1).min(self.bytes.len());
                let bytes = self.bytes.get(self.start(at)..end).unwrap_or_default();
                bytes.iter().take(4).rev().fold(0, |id, byte| (id << 8) | u32::from(*byte))
            })
            .collect()
    }

    /// The prompt that `ids` stand for.
    pub(super) fn from_ids(ids: &[u32], bytes_per_token: f64) -> Self {
        let bytes = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Self { bytes, bytes_per_token: if bytes_per_token > 4.0 { bytes_per_token } else { 4.0 } }
    }

    /// The text, without the padding of short tokens.
    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().filter(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A request, read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Work {
    pub(super) api: Api,
    pub(super) model: Option<String>,
    /// One for chats; one for each input, prompt or document otherwise.
    pub(super) prompts: Vec<Tokens>,
    pub(super) max_tokens: u32,
    /// The request named a limit, so the answer ends by it.
    pub(super) is_limited: bool,
    pub(super) is_stream: bool,
    pub(super) include_usage: bool,
}

/// Why a body is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadBody {
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    #[error("the field {0:?} is missing or has the wrong type")]
    Field(&'static str),
}

impl Work {
    /// Reads `body` as a request of `api`.
    ///
    /// # Errors
    /// [`BadBody`] when the body is not JSON or lacks its prompt.
    pub(super) fn parse(api: Api, body: &[u8], bytes_per_token: f64) -> Result<Self, BadBody> {
        let json: Value = serde_json::from_slice(body).map_err(|error| BadBody::NotJson(error.to_string()))?;
        if !json.is_object() {
            return Err(BadBody::NotJson("an object is expected".to_owned()));
        }
        let limit = ["max_completion_tokens", "max_tokens", "max_output_tokens"]
            .into_iter()
            .find_map(|field| json.get(field).and_then(Value::as_u64));
        Ok(Self {
            api,
            model: json.get("model").and_then(Value::as_str).map(str::to_owned),
            prompts: prompts(api, &json, bytes_per_token)?,
            max_tokens: limit
                .map_or(MAX_TOKENS_DEFAULT, |n| u32::try_from(n).unwrap_or(u32::MAX).clamp(1, MAX_TOKENS_LIMIT)),
            is_limited: limit.is_some(),
            is_stream: json.get("stream").and_then(Value::as_bool).unwrap_or(false),
            include_usage: json.pointer("/stream_options/include_usage").and_then(Value::as_bool).unwrap_or(false),
        })
    }
}

fn prompts(api: Api, json: &Value, bytes_per_token: f64) -> Result<Vec<Tokens>, BadBody> {
    let one = |text: String| vec![Tokens::new(text.into_bytes(), bytes_per_token)];
    match api {
        Api::ChatCompletions | Api::Messages | Api::CountTokens => {
            let messages = json.get("messages").and_then(Value::as_array).ok_or(BadBody::Field("messages"))?;
            Ok(one(chat(json, messages)))
        }
        Api::Responses => {
            let input = json.get("input").ok_or(BadBody::Field("input"))?;
            let text = input.as_str().map(|_| std::slice::from_ref(input));
            let items = text.or_else(|| input.as_array().map(Vec::as_slice)).ok_or(BadBody::Field("input"))?;
            Ok(one(chat(json, items)))
        }
        Api::Completions => inputs(json.get("prompt").ok_or(BadBody::Field("prompt"))?, "prompt", bytes_per_token),
        Api::Embeddings => inputs(json.get("input").ok_or(BadBody::Field("input"))?, "input", bytes_per_token),
        Api::Rerank => {
            let query = json.get("query").and_then(Value::as_str).ok_or(BadBody::Field("query"))?;
            let documents = json.get("documents").and_then(Value::as_array).ok_or(BadBody::Field("documents"))?;
            if documents.len() > PROMPTS_LIMIT {
                return Err(BadBody::Field("documents"));
            }
            Ok(documents.iter().flat_map(|document| one(format!("{query}\n{}", content(document)))).collect())
        }
        Api::Tokenize => match (json.get("prompt"), json.get("messages").and_then(Value::as_array)) {
            (Some(Value::String(prompt)), _) => Ok(one(prompt.clone())),
            (None, Some(messages)) => Ok(one(chat(json, messages))),
            _ => Err(BadBody::Field("prompt")),
        },
        Api::Detokenize => {
            let ids = json.get("tokens").and_then(token_ids).ok_or(BadBody::Field("tokens"))?;
            Ok(vec![Tokens::from_ids(&ids, bytes_per_token)])
        }
    }
}

/// A string, token ids, or a list of either.
fn inputs(value: &Value, field: &'static str, bytes_per_token: f64) -> Result<Vec<Tokens>, BadBody> {
    let one = |value: &Value| {
        let text = value.as_str().map(|text| Tokens::new(text.as_bytes().to_vec(), bytes_per_token));
        text.or_else(|| token_ids(value).map(|ids| Tokens::from_ids(&ids, bytes_per_token)))
    };
    if let Some(tokens) = one(value) {
        return Ok(vec![tokens]);
    }
    let list = value.as_array().filter(|list| list.len() <= PROMPTS_LIMIT).ok_or(BadBody::Field(field))?;
    list.iter().map(|value| one(value).ok_or(BadBody::Field(field))).collect()
}

/// A list of token ids that is not empty.
fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let list = value.as_array().filter(|list| !list.is_empty())?;
    list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// The chat template.
fn chat(json: &Value, messages: &[Value]) -> String {
    let mut text = String::new();
    if let Some(tools) = json.get("tools").filter(|tools| !tools.is_null()) {
        turn(&mut text, "tools", &tools.to_string());
    }
    for field in ["system", "instructions"] {
        if let Some(system) = json.get(field).filter(|system| !system.is_null()) {
            turn(&mut text, "system", &content(system));
        }
    }
    for message in messages {
        let role = message.get("role").and_then(Value::as_str).unwrap_or("user");
        let mut said = message.get("content").map_or_else(|| content(message), content);
        if let Some(calls) = message.get("tool_calls") {
            said.push_str(&calls.to_string());
        }
        turn(&mut text, role, &said);
    }
    text.push_str("<|im_start|>assistant\n");
    text
}

fn turn(text: &mut String, role: &str, said: &str) {
    for part in ["<|im_start|>", role, "\n", said, "<|im_end|>\n"] {
        text.push_str(part);
    }
}

/// A string as it is; parts by their text, others as JSON.
fn content(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(content).collect(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            value.get("text").and_then(Value::as_str).map_or_else(|| value.to_string(), str::to_owned)
        }
    }
}

/// The word that is output token `at` of an answer: a space and letters, about `bytes_per_token` bytes in all.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 2..=16")]
pub(super) fn word(seed: u64, at: u32, bytes_per_token: f64) -> String {
    let letters = bytes_per_token.round().clamp(2.0, 16.0) as usize - 1;
    let mut random = fastrand::Rng::with_seed(seed ^ (u64::from(at) << 32));
    let mut word = String::with_capacity(letters + 1);
    word.push(' ');
    for place in 0..letters {
        let sounds: &[u8] = if place % 2 == 0 { b"bdfgklmnprstvz" } else { b"aeiou" };
        word.push(char::from(sounds.get(random.usize(..sounds.len())).copied().unwrap_or(b'x')));
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(api: Api, body: &Value) -> Result<Work, BadBody> {
        Work::parse(api, body.to_string().as_bytes(), 4.0)
    }

    #[test]
    fn the_next_turn_starts_with_this_one_and_its_answer() {
        let first = serde_json::json!({"messages": [{"role": "user", "content": "hello there"}]});
        let mut tokens = parse(Api::ChatCompletions, &first).unwrap().prompts.remove(0);
        let answer: String = (0..9).map(|at| word(7, at, 4.0)).collect();
        tokens.push(&answer);
        let next = serde_json::json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "hello there"}]},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "go on"},
        ]});
        let next = parse(Api::ChatCompletions, &next).unwrap().prompts.remove(0);
        assert!(next.bytes.starts_with(&tokens.bytes));
        assert!(next.chain(4).starts_with(&tokens.chain(4)));
    }

    #[test]
    fn tokens_ids_and_text_are_one_prompt() {
        let tokens = Tokens::new(b"some text, not of whole tokens".to_vec(), 4.0);
        assert_eq!(tokens.len(), 8);
        assert_eq!(tokens.chain(2).len(), 3);
        let again = Tokens::from_ids(&tokens.ids(), 4.0);
        assert_eq!(again.chain(1)[..7], tokens.chain(1)[..7]);
        assert_eq!(again.text(), "some text, not of whole tokens");
        let ids = parse(Api::Completions, &serde_json::json!({"prompt": tokens.ids()})).unwrap();
        assert_eq!(ids.prompts, [again]);
        assert_eq!(Tokens::new(vec![b'a'; 70], 3.5).len(), 20);
    }

    #[test]
    fn bodies_without_their_prompt_are_refused() {
        for (api, body, field) in [
            (Api::ChatCompletions, serde_json::json!({"model": "m"}), "messages"),
            (Api::Completions, serde_json::json!({"prompt": [1, "x"]}), "prompt"),
            (Api::Embeddings, serde_json::json!({"input": {}}), "input"),
            (Api::Responses, serde_json::json!({"input": 3}), "input"),
            (Api::Rerank, serde_json::json!({"query": "q"}), "documents"),
            (Api::Detokenize, serde_json::json!({"tokens": [-1]}), "tokens"),
        ] {
            assert_eq!(parse(api, &body).unwrap_err(), BadBody::Field(field));
        }
        assert!(matches!(Work::parse(Api::Messages, b"{\"a\"", 4.0), Err(BadBody::NotJson(_))));
        assert!(matches!(Work::parse(Api::Messages, b"[]", 4.0), Err(BadBody::NotJson(_))));
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        bolero::check!().for_each(|bytes| {
            for api in [Api::ChatCompletions, Api::Responses, Api::Completions, Api::Rerank] {
                if let Ok(work) = Work::parse(api, bytes, 4.0) {
                    assert!(work.max_tokens <= MAX_TOKENS_LIMIT);
                }
            }
        });
    }

    #[test]
    fn words_have_the_length_of_a_token() {
        for (bytes_per_token, length) in [(2.0, 2), (4.0, 4), (5.3, 5)] {
            assert!((0..100).all(|at| word(1, at, bytes_per_token).len() == length));
        }
        assert_eq!(word(1, 2, 4.0), word(1, 2, 4.0));
    }
}
