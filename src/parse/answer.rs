//! Answers → what they teach: tokens as they stream, how the stream ended, and the engine's own counts. Fed chunk by
//! chunk as the bytes pass; nothing is held back, and of a long answer only its head and tail are kept.

use crate::parse::Api;
use crate::parse::prompt::said::Said;
use crate::parse::sse::{Event, EventReader, Window};
use crate::parse::usage::{Counts, FINDERS, Usage, string_inside};

/// What a chunk of an answer held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkKind {
    /// Events with generated content that ended in this chunk. Most engines send one a token.
    pub tokens: u32,
    /// The event that ends a good stream was here: `[DONE]`, `message_stop`, `response.completed`.
    pub done: bool,
    /// An error event was here.
    pub failed: bool,
}

/// Reads one answer.
#[derive(Clone, Debug)]
pub struct AnswerReader {
    api: Api,
    body: Body,
    counts: Counts,
    said: Option<Said>,
    is_done: bool,
}

#[derive(Clone, Debug)]
enum Body {
    Stream(EventReader),
    Json(Window),
}

impl AnswerReader {
    /// For an answer of type `text/event-stream`.
    #[must_use]
    pub fn for_stream(api: Api) -> Self {
        Self { api, body: Body::Stream(EventReader::default()), counts: Counts::default(), said: None, is_done: false }
    }

    /// For a JSON answer.
    #[must_use]
    pub fn for_json(api: Api) -> Self {
        Self { api, body: Body::Json(Window::default()), counts: Counts::default(), said: None, is_done: false }
    }

    /// From now on it gives out what the answer says, too: see [`Self::feed_into`].
    #[must_use]
    pub fn telling(mut self) -> Self {
        self.said = Some(Said::new(self.api));
        self
    }

    /// Reads the next bytes of the answer's body, wherever they were cut.
    pub fn feed(&mut self, chunk: &[u8]) -> ChunkKind {
        self.feed_into(chunk, &mut |_| {})
    }

    /// As [`Self::feed`]; `out` gets the bytes with which the prompt of the conversation's next turn goes on, as
    /// [`crate::parse::Parser`] will lay it out, piece by piece. Only after [`Self::telling`].
    pub fn feed_into(&mut self, chunk: &[u8], out: &mut dyn FnMut(&[u8])) -> ChunkKind {
        let mut kind = ChunkKind::default();
        match &mut self.body {
            Body::Stream(events) => events.feed(chunk, |event| {
                read_event(self.api, event, &mut self.counts, &mut kind);
                if let Some(said) = &mut self.said {
                    said.event(&event, event_type(&event), out);
                }
            }),
            Body::Json(window) => window.push(chunk),
        }
        self.is_done |= kind.done;
        kind
    }

    /// The answer is over, or broke off: the counts seen so far.
    pub fn finish(&mut self) -> Usage {
        self.finish_into(&mut |_| {})
    }

    /// As [`Self::finish`]; `out` as in [`Self::feed_into`].
    pub fn finish_into(&mut self, out: &mut dyn FnMut(&[u8])) -> Usage {
        match &mut self.body {
            Body::Stream(events) => {
                let mut kind = ChunkKind::default();
                events.finish(|event| {
                    read_event(self.api, event, &mut self.counts, &mut kind);
                    if let Some(said) = &mut self.said {
                        said.event(&event, event_type(&event), out);
                    }
                });
                self.is_done |= kind.done;
            }
            Body::Json(window) => {
                let json = window.text();
                self.is_done = json.trim_ascii_end().ends_with(b"}");
                if let Some(said) = &mut self.said {
                    said.whole(json, out);
                }
                if self.counts.read_last(json) {
                    self.counts.read_timings(json);
                } else if self.api == Api::CountTokens {
                    self.counts.read_bare(json);
                }
            }
        }
        self.counts.usage()
    }

    /// Bytes of memory held: bounded whatever the answer's length.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        match &self.body {
            Body::Stream(events) => events.memory_bytes(),
            Body::Json(window) => window.memory_bytes(),
        }
    }

    /// A stream: its last event was seen. JSON: after [`Self::finish`], the body ends as an object does.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.is_done
    }
}

fn read_event(api: Api, event: Event<'_>, counts: &mut Counts, kind: &mut ChunkKind) {
    if event.data == b"[DONE]" {
        kind.done = true;
        return;
    }
    if event.name == b"error" || is_error(event.data) {
        kind.failed = true;
        return;
    }
    let has_content = match api {
        Api::Messages => {
            let name = event_type(&event);
            kind.done |= name == b"message_stop";
            kind.failed |= name == b"error";
            name == b"content_block_delta"
        }
        Api::Responses => {
            let name = event_type(&event);
            kind.done |= matches!(name, b"response.completed" | b"response.incomplete" | b"response.failed");
            kind.failed |= matches!(name, b"response.failed" | b"error");
            name.ends_with(b".delta")
        }
        Api::Completions => has_text(event.data),
        Api::ChatCompletions | Api::Embeddings | Api::CountTokens | Api::Rerank | Api::Tokenize | Api::Detokenize => {
            has_delta(event.data)
        }
    };
    kind.tokens += u32::from(has_content);
    counts.read_all(event.data, &FINDERS);
}

/// `{"error": …}` where the value is not null.
fn is_error(data: &[u8]) -> bool {
    data.strip_prefix(b"{\"error\"").is_some_and(|rest| {
        let value = rest.trim_ascii_start().strip_prefix(b":").unwrap_or_default().trim_ascii_start();
        !value.starts_with(b"null")
    })
}

/// The event's name, or the first `type` in its data.
fn event_type<'a>(event: &Event<'a>) -> &'a [u8] {
    if !event.name.is_empty() {
        return event.name;
    }
    let after_type = memchr::memmem::find(event.data, b"\"type\"").and_then(|at| event.data.get(at + 6..));
    after_type.and_then(member_value).and_then(|value| string_inside(value.strip_prefix(b"\"")?)).unwrap_or_default()
}

/// The value after a key: what follows the colon.
fn member_value(rest: &[u8]) -> Option<&[u8]> {
    Some(rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

/// A completions chunk with a `text` that is not empty.
fn has_text(data: &[u8]) -> bool {
    let mut texts = FINDERS.text.find_iter(data).filter_map(|at| member_value(data.get(at + 6..)?));
    texts.any(|value| value.starts_with(b"\"") && !value.starts_with(b"\"\""))
}

/// A chat chunk with a `delta` that holds something beside the role: text, reasoning or a tool call.
fn has_delta(data: &[u8]) -> bool {
    let mut deltas = FINDERS.delta.find_iter(data).filter_map(|at| member_value(data.get(at + 7..)?));
    deltas.any(|delta| delta.strip_prefix(b"{").is_some_and(holds_content))
}

/// Walks the members of a delta; `rest` is what follows its brace.
fn holds_content(mut rest: &[u8]) -> bool {
    loop {
        rest = rest.trim_ascii_start();
        rest = rest.strip_prefix(b",").unwrap_or(rest).trim_ascii_start();
        let Some(key) = rest.strip_prefix(b"\"").and_then(string_inside) else { return false };
        let Some(value) = rest.get(key.len() + 2..).and_then(member_value) else { return false };
        match value {
            [b'"', b'"', ..] => rest = value.get(2..).unwrap_or_default(),
            [b'"', inside @ ..] if key == b"role" => {
                let Some(role) = string_inside(inside) else { return false };
                rest = inside.get(role.len() + 1..).unwrap_or_default();
            }
            [b'"', ..] => return true,
            [b'[', b']', ..] | [b'{', b'}', ..] => rest = value.get(2..).unwrap_or_default(),
            [b'[' | b'{', ..] => return true,
            _ => {
                let Some(end) = memchr::memchr2(b',', b'}', value) else { return false };
                rest = value.get(end..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(api: Api, stream: &[u8], size: usize) -> (ChunkKind, Usage, bool) {
        let mut reader = AnswerReader::for_stream(api);
        let mut all = ChunkKind::default();
        for chunk in stream.chunks(size) {
            let kind = reader.feed(chunk);
            all.tokens += kind.tokens;
            all.done |= kind.done;
            all.failed |= kind.failed;
        }
        let usage = reader.finish();
        (all, usage, reader.is_complete())
    }

    fn usage(prompt: u64, cached: u64, output: u64) -> Usage {
        Usage { prompt_tokens: Some(prompt), cached_tokens: Some(cached), output_tokens: Some(output) }
    }

    const CHAT: &str = concat!(
        ": keep-alive\n\n",
        r#"data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
        "\n\n",
        r#"data: {"id":"c","choices":[{"index":0,"delta":{"content":"He said \"usage\": {"},"finish_reason":null}]}"#,
        "\n\n",
        r#"data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":"hm"}}]}"#,
        "\n\n",
        r#"data: {"id":"c","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}}]}"#,
        "\n\n",
        r#"data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        "\n\n",
        r#"data: {"id":"c","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}}"#,
        "\n\ndata: [DONE]\n\n"
    );

    const ANTHROPIC: &str = concat!(
        "event: message_start\n",
        r#"data: {"type":"message_start","message":{"id":"m","content":[],"usage":{"input_tokens":3,"cache_creation_input_tokens":2,"cache_read_input_tokens":5,"output_tokens":1}}}"#,
        "\n\nevent: content_block_start\n",
        r#"data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        "\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\nevent: content_block_delta\n",
        r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}"#,
        "\n\n",
        r#"data: {"type": "content_block_delta","index":0,"delta":{"type":"text_delta","text":"!"}}"#,
        "\n\nevent: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\nevent: message_delta\n",
        r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":0,"output_tokens":9}}"#,
        "\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
    );

    const RESPONSES: &str = concat!(
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n",
        "event: response.output_text.delta\r\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\r\n\r\n",
        "data: {\"type\":\"response.function_call_arguments.delta\",\"delta\":\"a\"}\n\n",
        "event: response.completed\n",
        r#"data: {"type":"response.completed","response":{"usage":{"input_tokens":10,"input_tokens_details":{"cached_tokens":8},"output_tokens":5}}}"#,
        "\n\n"
    );

    #[test]
    fn streams_of_every_api_at_every_chunk_size() {
        let done = |tokens| ChunkKind { tokens, done: true, failed: false };
        let completions = concat!(
            "data: {\"choices\":[{\"text\":\"\",\"index\":0}]}\n\ndata: {\"choices\":[{\"text\": \"a\"}]}\n\n",
            "data: {\"choices\":[{\"text\":\"b\"}],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":0}}}\n\ndata: [DONE]"
        );
        for size in 1..600 {
            assert_eq!(read(Api::ChatCompletions, CHAT.as_bytes(), size).0, done(3));
            assert_eq!(read(Api::ChatCompletions, CHAT.as_bytes(), size).1, usage(11, 8, 2));
            assert_eq!(read(Api::Messages, ANTHROPIC.as_bytes(), size), (done(2), usage(10, 5, 9), true));
            assert_eq!(read(Api::Responses, RESPONSES.as_bytes(), size), (done(2), usage(10, 8, 5), true));
            let (kind, counts, complete) = read(Api::Completions, completions.as_bytes(), size);
            assert_eq!((kind.tokens, counts, complete), (2, usage(4, 0, 2), true));
        }
    }

    #[test]
    fn errors_and_broken_streams() {
        for stream in [
            "data: {\"error\":{\"message\":\"x\"}}\n\n",
            "event: error\ndata: {\"type\":\"error\",\"error\":{}}\n\n",
            "error: {\"code\":500}\n\n",
        ] {
            let (kind, _, complete) = read(Api::ChatCompletions, stream.as_bytes(), 7);
            assert!(kind.failed && !kind.done && !complete, "{stream}");
        }
        let failed = b"event: response.failed\ndata: {\"type\":\"response.failed\"}\n\n";
        assert!(read(Api::Responses, failed, 5).0.failed);
        assert!(!read(Api::ChatCompletions, b"data: {\"error\": null,\"choices\":[]}\n\n", 5).0.failed);
        let (kind, _, complete) = read(Api::ChatCompletions, &CHAT.as_bytes()[..300], 64);
        assert!(kind.tokens >= 1 && !complete);
    }

    #[test]
    fn json_answers() {
        let mut long = br#"{"object":"list","usage":{"fake":1},"data":["#.to_vec();
        long.resize(10 << 20, b'1');
        long.extend_from_slice(
            br#"],"usage":{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":8}}}"#,
        );
        for size in [1 << 10, 1 << 16, 1 << 24] {
            let mut reader = AnswerReader::for_json(Api::Embeddings);
            for chunk in long.chunks(size) {
                assert_eq!(reader.feed(chunk), ChunkKind::default());
                assert!(reader.memory_bytes() < 400_000);
            }
            assert_eq!(reader.finish(), usage(10, 8, 5));
            assert!(reader.is_complete());
        }
        let mut first = AnswerReader::for_json(Api::Embeddings);
        first.feed(br#"{"usage":{"prompt_tokens":10},"data":["#);
        first.feed(&vec![b'1'; 1 << 20]);
        assert_eq!(first.finish().prompt_tokens, Some(10));
        assert!(!first.is_complete());
        let mut count = AnswerReader::for_json(Api::CountTokens);
        count.feed(b" {\"input_tokens\": 14}\n");
        assert_eq!(count.finish().prompt_tokens, Some(14));
    }

    #[test]
    fn any_bytes_in_any_cut_read_the_same() {
        bolero::check!().with_type::<(Vec<u8>, u16, u8, bool)>().for_each(|(noise, at, size, anthropic)| {
            let (api, sample) = if *anthropic { (Api::Messages, ANTHROPIC) } else { (Api::ChatCompletions, CHAT) };
            let mut stream = sample.as_bytes().to_vec();
            let at = usize::from(*at) % stream.len();
            let end = (at + noise.len()).min(stream.len());
            stream.splice(at..end, noise.iter().copied());
            assert_eq!(read(api, &stream, usize::from(*size) + 1), read(api, &stream, stream.len()));
        });
    }
}
