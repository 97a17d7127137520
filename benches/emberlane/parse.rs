//! Body → request against serde_json's `Value`, and reading a stream's chunks. Every run checks its answers.

use std::hint::black_box;
use std::time::Instant;

use emberlane::parse::answer::AnswerReader;
use emberlane::parse::{Api, ParseLimits, Parser};

use crate::bodies::chat;

/// A figure and its rival's, ns at the median.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// What was read: body bytes, or 0 for a stream's chunk.
    pub bytes: usize,
    /// Ours.
    pub ours_ns: f64,
    /// `serde_json::from_slice::<Value>` of the same bodies.
    pub rival_ns: f64,
}

/// Parses chats of 1 KiB to 128 KiB; eight different bodies of each size take turns.
pub fn parse() -> Vec<Measured> {
    let mut parser = Parser::new(ParseLimits::default());
    [1 << 10, 8 << 10, 32 << 10, 128 << 10].map(|bytes| measure(&mut parser, bytes)).into()
}

fn measure(parser: &mut Parser, bytes: usize) -> Measured {
    let bodies: Vec<Vec<u8>> = (0..8).map(|seed| chat(bytes, seed)).collect();
    let rounds = (200_000_000 / bytes).clamp(2_000, 40_000);
    let (mut ours, mut rival) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds / 4));
    for round in 0..rounds {
        let body = &bodies[round % bodies.len()];
        let start = now();
        let request = parser.parse(Api::ChatCompletions, black_box(body)).expect("a valid chat");
        black_box(request.prompt.bytes().len());
        ours.push(start.elapsed().as_nanos());
        assert!(request.stream && request.model == Some("meta-llama/Llama-3.3-70B-Instruct"));
        if round % 4 == 0 {
            let start = now();
            let value: serde_json::Value = serde_json::from_slice(black_box(body)).expect("a valid chat");
            rival.push(start.elapsed().as_nanos());
            assert_eq!(value["user"].as_str(), request.user);
        }
    }
    Measured { bytes, ours_ns: median(ours), rival_ns: median(rival) }
}

/// Reads a typical chunk of a chat stream, one token; the rival parses its JSON.
pub fn stream_chunk() -> Measured {
    let json = r#"{"id":"chatcmpl-5f3a2b9112c04e6f","object":"chat.completion.chunk","created":1760000000,"model":"meta-llama/Llama-3.3-70B-Instruct","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}"#;
    let chunk = format!("data: {json}\n\n");
    let mut reader = AnswerReader::for_stream(Api::ChatCompletions);
    let (mut ours, mut rival) = (Vec::new(), Vec::new());
    for _ in 0..2_000 {
        let start = now();
        for _ in 0..64 {
            assert_eq!(reader.feed(black_box(chunk.as_bytes())).tokens, 1);
        }
        ours.push(start.elapsed().as_nanos() / 64);
        let start = now();
        for _ in 0..64 {
            black_box(serde_json::from_str::<serde_json::Value>(black_box(json)).expect("valid"));
        }
        rival.push(start.elapsed().as_nanos() / 64);
    }
    Measured { bytes: 0, ours_ns: median(ours), rival_ns: median(rival) }
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn now() -> Instant {
    Instant::now()
}

fn median(mut times: Vec<u128>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2] as f64
}
