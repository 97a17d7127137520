//! What answers say, held against what the parser makes of the next turn.

use super::*;
use crate::parse::answer::AnswerReader;
use crate::parse::{ParseLimits, Parser};
use serde_json::{Value, json};

fn prompt(api: Api, body: &Value) -> Vec<u8> {
    let mut parser = Parser::new(ParseLimits::default());
    parser.parse(api, body.to_string().as_bytes()).unwrap().prompt.bytes().to_vec()
}

/// What is told of a stream (of its events' data, with names where the API has them), cut by `size`.
fn told_of_stream(api: Api, events: &[(&str, Value)], size: usize) -> Vec<u8> {
    let stream: String = events
        .iter()
        .map(
            |(name, data)| {
                if name.is_empty() { format!("data: {data}\n\n") } else { format!("event: {name}\ndata: {data}\n\n") }
            },
        )
        .collect();
    let (mut told, mut reader) = (Vec::new(), AnswerReader::for_stream(api).telling());
    for chunk in stream.as_bytes().chunks(size.max(1)) {
        reader.feed_into(chunk, &mut |bytes| told.extend_from_slice(bytes));
    }
    reader.finish_into(&mut |bytes| told.extend_from_slice(bytes));
    told
}

fn told_of_json(api: Api, answer: &Value) -> Vec<u8> {
    let (mut told, mut reader) = (Vec::new(), AnswerReader::for_json(api).telling());
    for chunk in serde_json::to_string_pretty(answer).unwrap().as_bytes().chunks(77) {
        reader.feed_into(chunk, &mut |_| panic!("nothing is said before the end"));
    }
    reader.finish_into(&mut |bytes| told.extend_from_slice(bytes));
    told
}

/// The next turn's prompt is the last one, what was told, and then the user's next words.
fn goes_on(api: Api, first: &Value, told: &[u8], next: &Value) {
    let (first, next) = (prompt(api, first), prompt(api, next));
    let expected = [first, told.to_vec()].concat();
    assert!(
        next.starts_with(&expected),
        "{:?}\n{:?}",
        String::from_utf8_lossy(&expected),
        String::from_utf8_lossy(&next)
    );
    assert!(next[expected.len()..].starts_with(b"\xFFuser\xFEt"), "{:?}", String::from_utf8_lossy(&next));
}

fn delta(delta: &Value) -> (&'static str, Value) {
    ("", json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]}))
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// Words that need every kind of escape.
const WORDS: [&str; 5] = ["Hel", "lo \"you\"\n", "\\ \t tab", " caf\u{e9} \u{1F600}", "\u{1} end"];

#[test]
fn chats_go_on_with_text_and_calls() {
    let arguments = ["{\"path\": \"a", "\\\\b.rs\", \"n\"", ": 3}"];
    let call = |name: &str| json!({"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments.concat()}});
    for (has_text, calls) in [(true, 0), (true, 1), (false, 2)] {
        let text: String = if has_text { WORDS.concat() } else { String::new() };
        let mut events = vec![delta(&json!({"role": "assistant", "content": ""}))];
        events.extend(WORDS.iter().filter(|_| has_text).map(|word| delta(&json!({"content": word}))));
        // What others of several choices say is nobody's next turn.
        events.push(("", json!({"choices": [{"index": 1, "delta": {"content": "another"}}]})));
        let mut message = json!({"role": "assistant", "content": has_text.then_some(&text), "reasoning_content": null});
        let mut listed = Vec::new();
        for number in 0..calls {
            let head = json!({"index": number, "id": "c1", "function": {"name": "read", "arguments": ""}});
            events.push(delta(&json!({"tool_calls": [head]})));
            for piece in arguments {
                events.push(delta(&json!({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})));
            }
            listed.push(call("read"));
        }
        message["tool_calls"] = if listed.is_empty() { Value::Null } else { json!(listed) };
        events.push(("", json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})));
        let first = json!({"messages": [{"role": "system", "content": "s"}, user("hi")]});
        let next = json!({"messages": [{"role": "system", "content": "s"}, user("hi"), message, user("more")]});
        for size in [1, 3, 64, 100_000] {
            goes_on(Api::ChatCompletions, &first, &told_of_stream(Api::ChatCompletions, &events, size), &next);
        }
        let answer = json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}, {"index": 1, "message": user("x")}]});
        goes_on(Api::ChatCompletions, &first, &told_of_json(Api::ChatCompletions, &answer), &next);
    }
}

#[test]
fn what_was_thought_is_not_followed() {
    let thought = [delta(&json!({"reasoning_content": "hm"})), delta(&json!({"content": "text"}))];
    assert!(told_of_stream(Api::ChatCompletions, &thought, 50).is_empty());
    let answer = json!({"choices": [{"message": {"role": "assistant", "content": "text", "reasoning": "hm"}}]});
    assert!(told_of_json(Api::ChatCompletions, &answer).is_empty());
}

#[test]
fn completions_go_on_where_they_stopped() {
    let text = WORDS.concat();
    let events: Vec<_> = WORDS.map(|word| ("", json!({"choices": [{"index": 0, "text": word}]}))).into();
    let answer = json!({"choices": [{"text": text, "index": 0}], "usage": {}});
    let next = prompt(Api::Completions, &json!({"prompt": format!("once {text}")}));
    for told in [told_of_stream(Api::Completions, &events, 9), told_of_json(Api::Completions, &answer)] {
        assert_eq!([prompt(Api::Completions, &json!({"prompt": "once "})), told].concat(), next);
    }
}

#[test]
fn messages_go_on_with_blocks() {
    let input = json!({"path": "a b\\c", "list": [1, {"x": null}], "text": "é \"quoted\"\nline"});
    let spaced = serde_json::to_string_pretty(&input).unwrap();
    let text = WORDS.concat();
    let blocks = json!([
        {"type": "text", "text": text},
        {"type": "tool_use", "id": "t1", "name": "edit", "input": input},
        {"type": "tool_use", "id": "t2", "name": "stop", "input": {}},
    ]);
    let start = |index: u32, block: Value| {
        ("content_block_start", json!({"type": "content_block_start", "index": index, "content_block": block}))
    };
    let more =
        |delta: Value| ("content_block_delta", json!({"type": "content_block_delta", "index": 0, "delta": delta}));
    let stop = || ("content_block_stop", json!({"type": "content_block_stop", "index": 0}));
    let mut events = vec![("message_start", json!({"type": "message_start", "message": {"content": []}}))];
    events.push(start(0, json!({"type": "text", "text": ""})));
    events.extend(WORDS.map(|word| more(json!({"type": "text_delta", "text": word}))));
    events.push(stop());
    events.push(start(1, json!({"type": "tool_use", "id": "t1", "name": "edit", "input": {}})));
    let characters: Vec<char> = spaced.chars().collect();
    events.extend(
        characters
            .chunks(5)
            .map(|piece| more(json!({"type": "input_json_delta", "partial_json": piece.iter().collect::<String>()}))),
    );
    events.push(stop());
    events.push(start(2, json!({"type": "tool_use", "id": "t2", "name": "stop", "input": {}})));
    events.extend([stop(), ("message_stop", json!({"type": "message_stop"}))]);
    let first = json!({"system": "s", "messages": [user("hi")]});
    let assistant = json!({"role": "assistant", "content": blocks});
    let next = json!({"system": "s", "messages": [user("hi"), assistant, user("more")]});
    for size in [1, 7, 100_000] {
        goes_on(Api::Messages, &first, &told_of_stream(Api::Messages, &events, size), &next);
    }
    let answer = json!({"type": "message", "role": "assistant", "content": blocks, "usage": {"input_tokens": 1}});
    goes_on(Api::Messages, &first, &told_of_json(Api::Messages, &answer), &next);
}

#[test]
fn responses_go_on_with_text() {
    let text = WORDS.concat();
    let item = json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]});
    let mut events = vec![("response.output_item.added", json!({"item": {"type": "message", "content": []}}))];
    events.extend(WORDS.map(|word| ("response.output_text.delta", json!({"delta": word}))));
    events.push(("response.output_item.added", json!({"item": {"type": "function_call", "name": "f"}})));
    events.push(("response.output_text.delta", json!({"delta": "not followed"})));
    let first = json!({"input": "hi"});
    let next = json!({"input": [user("hi"), item, user("more")]});
    goes_on(Api::Responses, &first, &told_of_stream(Api::Responses, &events, 11), &next);
    let answer = json!({"output": [item, {"type": "reasoning"}], "usage": {}});
    goes_on(Api::Responses, &first, &told_of_json(Api::Responses, &answer), &next);
}

#[test]
fn any_text_of_a_chat_goes_on() {
    bolero::check!().with_type::<(String, u8)>().for_each(|(text, size)| {
        if text.is_empty() {
            return;
        }
        let first = json!({"messages": [user("hi")]});
        let next = json!({"messages": [user("hi"), {"role": "assistant", "content": text}, user("more")]});
        let told = told_of_stream(Api::ChatCompletions, &[delta(&json!({"content": text}))], usize::from(*size));
        goes_on(Api::ChatCompletions, &first, &told, &next);
    });
}

#[test]
fn any_bytes_are_survived() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        for api in [Api::ChatCompletions, Api::Completions, Api::Messages, Api::Responses] {
            let mut reader = Said::new(api);
            for name in [&b"content_block_start"[..], b"content_block_delta", b"response.output_text.delta"] {
                reader.event(&Event { name, data: bytes }, name, &mut |_| {});
            }
            for head in
                ["{\"choices\":[{\"message\":", "{\"content\":[", "{\"output\":[{\"type\":\"message\",\"content\":"]
            {
                Said::new(api).whole(&[head.as_bytes(), bytes].concat(), &mut |_| {});
            }
        }
    });
}
