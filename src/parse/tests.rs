//! Bodies good and bad against the parser: strictness, limits, what enters the prompt, and serde_json as the oracle.

use serde_json::{Value, json};

use super::*;

mod prompt_bytes;

#[path = "../../benches/emberlane/bodies.rs"]
mod bodies;

const APIS: [Api; 9] = [
    Api::ChatCompletions,
    Api::Completions,
    Api::Responses,
    Api::Embeddings,
    Api::Messages,
    Api::CountTokens,
    Api::Rerank,
    Api::Tokenize,
    Api::Detokenize,
];

fn parser() -> Parser {
    Parser::new(ParseLimits::default())
}

/// The fault `body` gets, if any.
fn fault(api: Api, body: impl AsRef<[u8]>) -> Option<BodyFault> {
    match parser().parse(api, body.as_ref()) {
        Ok(_) => None,
        Err(Reject::Body(fault)) => Some(fault),
        Err(other) => panic!("{other}"),
    }
}

fn chat_fault(body: &str) -> Option<BodyFault> {
    fault(Api::ChatCompletions, body)
}

/// The prompt's bytes.
fn prompt(api: Api, body: &str) -> Vec<u8> {
    parser().parse(api, body.as_bytes()).unwrap_or_else(|reject| panic!("{reject}: {body}")).prompt.bytes().to_vec()
}

fn chat_prompt(messages: &Value) -> Vec<u8> {
    prompt(Api::ChatCompletions, &json!({ "messages": messages }).to_string())
}

/// One good body for each API, with every field the parser reads somewhere.
fn samples() -> Vec<(Api, String)> {
    let tool =
        json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}});
    vec![
        (Api::ChatCompletions, json!({
            "model": "m", "stream": true, "max_tokens": 3, "user": "u", "tools": [tool], "cache_salt": "s",
            "messages": [
                {"role": "system", "content": "be \"brief\"\n"},
                {"role": "user", "name": "n", "content": [{"type": "text", "text": "é🚀"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}]},
                {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
                {"role": "tool", "tool_call_id": "1", "content": "42"},
                {"role": "assistant", "content": "", "refusal": "no", "function_call": {"name": "g", "arguments": ""}},
            ],
            "vendor": {"big": 1.5, "deep": [[[{}]]]}
        }).to_string()),
        (Api::Completions, json!({"model": "m", "prompt": ["a", "b"], "suffix": "z", "lora_path": "l"}).to_string()),
        (Api::Responses, json!({
            "model": "m", "instructions": "i", "max_output_tokens": 9, "previous_response_id": "r", "tools": [tool],
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "reasoning", "id": "x", "summary": []},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "1"}]
        }).to_string()),
        (Api::Embeddings, json!({"model": "m", "input": [[1, 2], [3]], "user": null}).to_string()),
        (Api::Messages, json!({
            "model": "m", "max_tokens": 5, "metadata": {"user_id": "user_1_session_9"}, "stream": false,
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {}}],
            "messages": [{"role": "user", "content": "q"},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "zzz"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"x": [1, null]}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [
                    {"type": "text", "text": "r"}, {"type": "image", "source": {"type": "base64", "data": "AA"}}]}]}]
        }).to_string()),
        (Api::CountTokens, json!({"model": "m", "messages": [{"role": "user", "content": "q"}]}).to_string()),
        (Api::Rerank, json!({"model": "m", "query": "q", "documents": ["a", {"text": "b"}]}).to_string()),
        (Api::Tokenize, json!({"model": "m", "prompt": "text"}).to_string()),
        (Api::Detokenize, json!({"model": "m", "tokens": [1, 2, 3]}).to_string()),
    ]
}

// -- what is read

#[test]
fn routing_fields_are_read() {
    let samples = samples();
    let mut parser = parser();
    let chat = parser.parse(Api::ChatCompletions, samples[0].1.as_bytes()).unwrap();
    assert_eq!((chat.model, chat.stream, chat.output_tokens_max), (Some("m"), true, Some(3)));
    assert_eq!((chat.user, chat.cache_salt, chat.items), (Some("u"), Some("s"), 5));
    let completions = parser.parse(Api::Completions, samples[1].1.as_bytes()).unwrap();
    assert_eq!((completions.adapter, completions.items), (Some("l"), 2));
    let responses = parser.parse(Api::Responses, samples[2].1.as_bytes()).unwrap();
    assert_eq!((responses.session, responses.output_tokens_max, responses.items), (Some("r"), Some(9), 4));
    let embeddings = parser.parse(Api::Embeddings, samples[3].1.as_bytes()).unwrap();
    let tokens: Vec<u8> = [1, 2, u32::MAX, 3].iter().flat_map(|id: &u32| id.to_le_bytes()).collect();
    assert_eq!((embeddings.prompt, embeddings.items, embeddings.user), (Prompt::Tokens(&tokens), 2, None));
    let messages = parser.parse(Api::Messages, samples[4].1.as_bytes()).unwrap();
    assert_eq!((messages.user, messages.session), (Some("user_1_session_9"), Some("9")));
    assert_eq!(messages.items, 3);
    let rerank = parser.parse(Api::Rerank, samples[6].1.as_bytes()).unwrap();
    assert_eq!(rerank.items, 2);
}

#[test]
fn session_hints() {
    let session = |api, fields: &str| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":""}}],{fields}}}"#);
        parser().parse(api, body.as_bytes()).unwrap().session.map(str::to_owned)
    };
    let chat = Api::ChatCompletions;
    assert_eq!(session(chat, r#""conversation":{"id":"c"},"session_id":"s""#).as_deref(), Some("c"));
    assert_eq!(session(chat, r#""conversation":"c","prompt_cache_key":"k""#).as_deref(), Some("c"));
    assert_eq!(session(chat, r#""session_id":7,"prompt_cache_key":"k""#).as_deref(), Some("k"));
    let user = r#""metadata":{"user_id":"{\"device_id\":\"d\",\"session_id\":\"s-1\"}"}"#;
    assert_eq!(session(Api::Messages, user).as_deref(), Some("s-1"));
    assert_eq!(session(Api::Messages, r#""metadata":{"user_id":"plain"}"#), None);
}

#[test]
fn the_model_is_spliced_and_nothing_else_moves() {
    for model in ["m", "", "org/name-7B", "a\\\"b", "caf\\u00e9", "\\\\", "x\\n"] {
        let body =
            format!(r#" {{"a":"\"model\":\"x\"","model" : "{model}" ,"messages":[{{"role":"user","content":"q"}}]}}"#);
        let mut parser = parser();
        let request = parser.parse(Api::ChatCompletions, body.as_bytes()).unwrap();
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(request.model, value["model"].as_str());
        let span = request.model_span.clone();
        assert_eq!(body.get(span.start as usize..span.end as usize), Some(model));
        for name in ["new", "q\"uo\\te", "tab\t\u{1}", "é🚀", ""] {
            let spliced = splice_model(body.as_bytes(), span.clone(), name);
            let mut expected = value.clone();
            expected["model"] = name.into();
            assert_eq!(serde_json::from_slice::<Value>(&spliced).unwrap(), expected);
            let escaped = serde_json::to_string(name).unwrap().len() - 2 + name.matches('\t').count() * 4;
            assert_eq!(spliced.len(), body.len() - model.len() + escaped);
        }
    }
    let bare = br#"{"messages":[{"role":"user","content":"q"}]}"#;
    let mut parser = parser();
    let request = parser.parse(Api::ChatCompletions, bare).unwrap();
    assert_eq!((request.model, request.model_span.clone()), (None, 0..0));
    assert_eq!(&splice_model(bare, 0..0, "m")[..], br#"{"model":"m","messages":[{"role":"user","content":"q"}]}"#);
}

// -- strictness

#[test]
fn what_is_not_json_is_refused() {
    let syntax = |body: &str| matches!(chat_fault(body), Some(BodyFault::Syntax { .. }));
    let good = r#"{"messages":[{"role":"user","content":"q"}],"v":"#;
    for value in [
        "NaN",
        "Infinity",
        "-Infinity",
        "01",
        "1.",
        ".5",
        "1e",
        "+1",
        "nul",
        "truex",
        "tru",
        "'a'",
        "\"a",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"\t\"",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{1:2}",
        "{\"a\" 1}",
        "[",
        "[}",
        "\\\"a\\\"",
        "1\\",
        "\"a\"\\",
        "\u{c}1",
        "\"a\"x",
        "true\"a\"",
        "1//",
        "\u{feff}1",
    ] {
        assert!(syntax(&format!("{good}{value}}}")), "{value}: {:?}", chat_fault(&format!("{good}{value}}}")));
    }
    for after in ["x", "{}", "]", "}", "\u{0}", "\""] {
        assert!(syntax(&format!("{good}1}}{after}")), "{after}");
    }
    assert!(syntax(&format!("\u{feff}{good}1}}")));
    assert!(syntax("{") && syntax("}") && syntax("x") && syntax("{]") && syntax("{\"a\":1"));
    assert_eq!(chat_fault(&format!("{good}1}} \r\n\t")), None);
    assert_eq!(chat_fault(""), Some(BodyFault::Empty));
    assert_eq!(chat_fault(" \n"), Some(BodyFault::Empty));
    for scalar in ["[]", "1", "\"a\"", "null", "true"] {
        assert_eq!(chat_fault(scalar), Some(BodyFault::NotAnObject), "{scalar}");
    }
    assert_eq!(chat_fault("{\"a\":1 \"b\"}"), Some(BodyFault::Syntax { offset: Some(7) }));
}

#[test]
fn numbers_of_any_size_pass_in_vendor_fields() {
    for number in ["1e400", "-1e400", "18446744073709551616", "123456789012345678901234567890.5e-77", "-0", "0.0"] {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"q"}}],"vendor":[{number}],"seed":{number}}}"#);
        assert_eq!(chat_fault(&body), None, "{number}");
    }
}

#[test]
fn text_that_is_not_utf8_is_refused_wherever_it_stands() {
    for place in 0..4 {
        let spot = |at: usize, text: &'static [u8]| if at == place { text } else { b"x" };
        for bad in
            [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\\ud800", b"\\udc00x", b"\\ud83d\\u0041"]
        {
            let body = [
                br#"{"messages":[{"role":"user","content":""#,
                spot(0, bad),
                br#"","vendor":""#,
                spot(1, bad),
                br#""}],""#,
                spot(2, bad),
                br#"":{"a":[""#,
                spot(3, bad),
                br#""]}}"#,
            ]
            .concat();
            assert_eq!(fault(Api::ChatCompletions, &body), Some(BodyFault::Utf8), "{place} {bad:?}");
        }
    }
}

#[test]
fn known_fields_may_stand_only_once() {
    let base = r#""messages":[{"role":"user","content":"q"}]"#;
    for (twice, key) in [
        (r#""model":"a","model":"a""#, "model"),
        (r#""model":null,"model":"a""#, "model"),
        (r#""stream":true,"x":{"stream":1},"stream":false"#, "stream"),
        (r#""user":"a","us\u0065r":"b""#, "user"),
        (r#""cache_salt":"a","\u0063ache_salt":"b""#, "cache_salt"),
        (r#""max_tokens":1,"max_tokens":1"#, "max_tokens"),
        (r#""messages":[]"#, "messages"),
    ] {
        assert_eq!(chat_fault(&format!("{{{base},{twice}}}")), Some(BodyFault::Duplicate { key }));
    }
    for (message, key) in [
        (r#"{"role":"user","role":"system","content":""}"#, "messages[].role"),
        (r#"{"role":"user","content":"","conten\u0074":"x"}"#, "messages[].content"),
    ] {
        assert_eq!(chat_fault(&format!(r#"{{"messages":[{message}]}}"#)), Some(BodyFault::Duplicate { key }));
    }
    let user_id = r#""metadata":{"user_id":"a","user_id":"b"}"#;
    let key = "metadata.user_id";
    assert_eq!(fault(Api::Messages, format!("{{{base},{user_id}}}")), Some(BodyFault::Duplicate { key }));
    assert_eq!(chat_fault(&format!(r#"{{{base},"vendor":1,"vendor":2,"x":{{"model":1,"model":2}}}}"#)), None);
}

#[test]
fn wrong_types_name_the_field() {
    let base = r#""messages":[{"role":"user","content":"q"}]"#;
    for (field, bad) in [
        ("model", "1"),
        ("stream", "\"true\""),
        ("stream", "1"),
        ("max_tokens", "1.5"),
        ("max_tokens", "\"1\""),
        ("max_tokens", "1e3"),
        ("user", "{}"),
        ("cache_salt", "[]"),
        ("tools", "{}"),
    ] {
        match chat_fault(&format!("{{{base},\"{field}\":{bad}}}")) {
            Some(BodyFault::Type { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    for bad in ["-1", "4294967296", "99999999999999999999999"] {
        let body = format!("{{{base},\"max_tokens\":{bad}}}");
        assert_eq!(chat_fault(&body), Some(BodyFault::Range { field: "max_tokens" }));
    }
    let nulls = r#""model":null,"stream":null,"max_tokens":null,"user":null,"tools":null,"cache_salt":null"#;
    assert_eq!(chat_fault(&format!("{{{base},{nulls}}}")), None);
    for (messages, field) in [
        ("{}", "messages"),
        ("\"x\"", "messages"),
        ("[1]", "messages[]"),
        ("[{\"role\":1}]", "messages[].role"),
        ("[{\"role\":\"user\",\"content\":1}]", "messages[].content"),
        ("[{\"role\":\"user\",\"content\":[1]}]", "messages[].content[]"),
        ("[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":1}]}]", "messages[].content[].text"),
    ] {
        match chat_fault(&format!("{{\"messages\":{messages}}}")) {
            Some(BodyFault::Type { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{messages}: {other:?}"),
        }
    }
}

#[test]
fn what_must_be_there() {
    let missing = |field| Some(BodyFault::Missing { field });
    assert_eq!(chat_fault("{}"), missing("messages"));
    assert_eq!(chat_fault("{\"messages\":null}"), missing("messages"));
    assert_eq!(chat_fault("{\"messages\":[{}]}"), missing("messages[].role"));
    assert_eq!(chat_fault("{\"messages\":[]}"), Some(BodyFault::NoItems { field: "messages" }));
    for (api, field) in [
        (Api::Completions, "prompt"),
        (Api::Responses, "input"),
        (Api::Embeddings, "input"),
        (Api::Messages, "messages"),
        (Api::Rerank, "query"),
        (Api::Tokenize, "prompt"),
        (Api::Detokenize, "tokens"),
    ] {
        assert_eq!(fault(api, "{}"), missing(field));
    }
    assert_eq!(fault(Api::Completions, r#"{"prompt":[]}"#), Some(BodyFault::NoItems { field: "prompt" }));
    assert_eq!(fault(Api::Completions, r#"{"prompt":[[]]}"#), Some(BodyFault::NoItems { field: "prompt" }));
    assert_eq!(fault(Api::Completions, r#"{"prompt":[-1]}"#), Some(BodyFault::Range { field: "prompt" }));
    for mixed in [r#"[1,"a"]"#, r#"["a",1]"#, r#"[[1],2]"#, "[null]", "[1.5]", "[{}]", "true"] {
        let found = fault(Api::Completions, format!(r#"{{"prompt":{mixed}}}"#));
        assert!(matches!(found, Some(BodyFault::Type { field: "prompt", .. })), "{mixed} {found:?}");
    }
}

// -- limits

#[test]
fn depth_is_exact_everywhere_and_cheap() {
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
        format!(r#"{{"messages":[{{"role":"user","content":"q"}}],"vendor":{open}{close}}}"#)
    };
    assert_eq!(chat_fault(&nested(128)), None);
    assert_eq!(chat_fault(&nested(129)), Some(BodyFault::Depth { limit: 128 }));
    assert_eq!(chat_fault(&nested(100_000)), Some(BodyFault::Depth { limit: 128 }));
    assert_eq!(chat_fault(&"[".repeat(100_000)), Some(BodyFault::NotAnObject));
    assert_eq!(chat_fault(&"{\"a\":".repeat(100_000)), Some(BodyFault::Depth { limit: 128 }));
    let mut deep = Parser::new(ParseLimits { depth: u16::MAX, elements: 1_000_000 });
    assert!(deep.parse(Api::ChatCompletions, nested(60_000).as_bytes()).is_ok());
}

#[test]
fn elements_are_counted_and_text_is_not() {
    let limits = ParseLimits { depth: 128, elements: 100 };
    let check = |body: String| match Parser::new(limits).parse(Api::ChatCompletions, body.as_bytes()) {
        Ok(_) => None,
        Err(Reject::Body(fault)) => Some(fault),
        Err(other) => panic!("{other}"),
    };
    let vendor = |value: String| format!(r#"{{"messages":[{{"role":"user","content":"q"}}],"v":{value}}}"#);
    // messages, its element, that one's two members, and `v` are five.
    assert_eq!(check(vendor(format!("[{}0]", "0,".repeat(94)))), None);
    assert_eq!(check(vendor(format!("[{}0]", "0,".repeat(95)))), Some(BodyFault::Elements { limit: 100 }));
    for dense in ["0,", "[],", "{},", "\"\",", "[[]],"] {
        assert_eq!(check(vendor(format!("[{}0]", dense.repeat(100_000)))), Some(BodyFault::Elements { limit: 100 }));
    }
    let text = "let x = [[1, 2], {3: 4}]; // \\\"quoted, [\\\" \\\\".repeat(10_000);
    assert_eq!(check(vendor(format!("\"{text}\""))), None);
}

#[test]
fn a_huge_body_does_not_leave_its_memory_behind() {
    let mut parser = parser();
    let huge = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "word, ".repeat(3_000_000));
    parser.parse(Api::ChatCompletions, huge.as_bytes()).unwrap();
    assert!(parser.memory_bytes() > 2 * huge.len());
    let small = bodies::chat(8192, 1);
    parser.parse(Api::ChatCompletions, &small).unwrap();
    let kept = parser.memory_bytes();
    assert!(kept < 100_000, "{kept}");
    for seed in 0..50 {
        parser.parse(Api::ChatCompletions, &bodies::chat(8192, seed % 2)).unwrap();
    }
    assert!(parser.memory_bytes() < 2 * kept);
}

// -- any bytes

#[test]
fn every_truncation_is_refused() {
    for (api, body) in samples() {
        assert_eq!(fault(api, &body), None, "{body}");
        for length in 0..body.len() {
            assert!(fault(api, &body.as_bytes()[..length]).is_some(), "{length} of {body}");
        }
    }
}

#[test]
fn every_body_agrees_with_serde_json() {
    let samples = samples();
    let alphabet = b"{}[]:,\"\\ \n0123456789-+.eEtrufalsn\xc3\xa9\xff/d8";
    bolero::check!().with_type::<(u8, Vec<(u16, u8, u8)>)>().for_each(|(pick, edits)| {
        let (api, sample) = &samples[usize::from(*pick) % samples.len()];
        let mut body = sample.clone().into_bytes();
        for (at, kind, byte) in edits.iter().take(6) {
            let at = usize::from(*at) % body.len().max(1);
            let byte = alphabet[usize::from(*byte) % alphabet.len()];
            match kind % 3 {
                0 if !body.is_empty() => body[at] = byte,
                1 if !body.is_empty() => drop(body.remove(at)),
                _ => body.insert(at, byte),
            }
        }
        compare(*api, &body);
    });
}

#[test]
fn arbitrary_bytes_agree_with_serde_json() {
    bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(api, bytes)| {
        compare(APIS[usize::from(*api) % APIS.len()], bytes);
        compare(Api::ChatCompletions, &[b"{\"messages\":", bytes.as_slice(), b"}"].concat());
        let words =
            ["{", "}", "[", "]", ",", ":", "\"a\"", "1", "true", "null", "\"\\n\"", " ", "\"model\"", "\"role\""];
        let text: String = bytes.iter().map(|byte| words[usize::from(*byte) % words.len()]).collect();
        compare(Api::Completions, text.as_bytes());
    });
}

/// Holds the parser against serde_json: what it takes, serde_json takes, and the fields are equal; what it refuses
/// although serde_json takes it has a reason other than its form.
fn compare(api: Api, body: &[u8]) {
    let theirs = serde_json::from_slice::<Value>(body);
    let mut parser = parser();
    let ours = parser.parse(api, body);
    match (ours, theirs) {
        (Ok(request), Ok(value)) => {
            assert_eq!(request.model, value["model"].as_str());
            assert_eq!(request.stream, value["stream"].as_bool().unwrap_or(false));
            let newest = ["max_output_tokens", "max_completion_tokens", "max_tokens"].map(|name| value[name].as_u64());
            assert_eq!(request.output_tokens_max.map(u64::from), newest.into_iter().flatten().next());
            if !api.is_anthropic() {
                let user = value["user"].as_str().or_else(|| value["safety_identifier"].as_str());
                assert_eq!(request.user, user);
            }
        }
        // serde_json holds numbers to the range of f64.
        (Ok(_), Err(error)) => assert!(error.to_string().contains("number out of range"), "{error} {body:?}"),
        (Err(reject), Ok(value)) => {
            let form = matches!(reject, Reject::Body(BodyFault::Syntax { .. } | BodyFault::Utf8 | BodyFault::Empty));
            assert!(!form, "{reject}: {}", String::from_utf8_lossy(body));
            assert!(reject != Reject::Body(BodyFault::NotAnObject) || !value.is_object());
        }
        (Err(_), Err(_)) => {}
    }
}

#[test]
fn realistic_chats_of_every_size() {
    let mut parser = parser();
    for bytes in [1, 100, 500, 1024, 8192, 40_000, 200_000] {
        for seed in 0..4 {
            let body = bodies::chat(bytes, seed);
            let value: Value = serde_json::from_slice(&body).unwrap();
            let request = parser.parse(Api::ChatCompletions, &body).unwrap();
            assert_eq!(request.items as usize, value["messages"].as_array().unwrap().len());
            let (last, text) = (value["messages"].as_array().unwrap().last().unwrap(), request.prompt.bytes());
            let last = last["content"].as_str().or_else(|| last["content"][0]["text"].as_str()).unwrap();
            let quoted = serde_json::to_string(last).unwrap();
            assert!(text.ends_with(&quoted.as_bytes()[1..quoted.len() - 1]));
        }
    }
}
