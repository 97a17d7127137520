//! Rows of the parser: a body into a request, and a stream's chunks.

use emberlane::parse::answer::AnswerReader;
use emberlane::parse::{Api, ParseLimits, Parser};
use serde_json::Value;

use crate::{
    bodies::chat,
    measure,
    row::{Options, Row},
};

/// Bodies that take turns.
const BODIES: usize = 8;
/// A typical chunk of a chat stream: one token.
const CHUNK: &str = r#"{"id":"chatcmpl-5f3a2b9112c04e6f","object":"chat.completion.chunk","created":1760000000,"model":"meta-llama/Llama-3.3-70B-Instruct","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}"#;

pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let mut parser = Parser::new(ParseLimits::default());
    let mut rows = Vec::new();
    for (label, bytes) in [("1K", 1 << 10), ("8K", 8 << 10), ("32K", 32 << 10), ("128K", 128 << 10)] {
        rows.extend(bodies(options, &mut parser, label, bytes));
    }
    rows.push(chunks(options));
    rows
}

fn bodies(options: &Options, parser: &mut Parser, label: &str, bytes: usize) -> [Row; 2] {
    let bodies: Vec<Vec<u8>> = (0..BODIES as u64).map(|seed| chat(bytes, seed)).collect();
    for body in &bodies {
        let request = parser.parse(Api::ChatCompletions, body).unwrap();
        let value: Value = serde_json::from_slice(body).unwrap();
        assert_eq!((request.model, request.user), (value["model"].as_str(), value["user"].as_str()));
        assert_eq!(Some(request.items as usize), value["messages"].as_array().map(Vec::len));
        let system = value["messages"][0]["content"].to_string();
        let as_sent = system.trim_matches('"').as_bytes();
        assert!(memchr::memmem::find(request.prompt.bytes(), as_sent).is_some(), "the system prompt is in the prompt");
    }
    let (ours, theirs) = measure::against(
        options.repeats(4000),
        ((32 << 10) / bytes).max(1),
        |call| parser.parse(Api::ChatCompletions, &bodies[call % BODIES]).unwrap().prompt.bytes().len(),
        |call| serde_json::from_slice::<Value>(&bodies[call % BODIES]).unwrap(),
    );
    [
        Row::new(format!("parse/{label}"), ours.p50() / 1e3, "µs").against("serde_json", theirs.p50() / 1e3),
        Row::ratio(format!("parse/{label}/ratio"), theirs.p50() / ours.p50(), "serde_json"),
    ]
}

fn chunks(options: &Options) -> Row {
    let event = format!("data: {CHUNK}\n\n");
    let mut reader = AnswerReader::for_stream(Api::ChatCompletions);
    let (ours, theirs) = measure::against(
        options.repeats(4000),
        64,
        |_| assert_eq!(reader.feed(event.as_bytes()).tokens, 1),
        |_| serde_json::from_str::<Value>(CHUNK).unwrap(),
    );
    Row::new("parse/chunk", ours.p50(), "ns").against("serde_json", theirs.p50())
}
