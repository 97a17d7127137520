//! Bad bodies get a clear error in the caller's own dialect, and the gateway serves on.

use std::time::Duration;

use serde_json::Value;

use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::{Answer, Client};
use crate::support::time::wait_for;
use crate::support::{chat, free_address};

const OPENAI: &str = "/v1/chat/completions";
const ANTHROPIC: &str = "/v1/messages";

/// The error's code and parameter, after its shape was checked.
#[track_caller]
fn error_of(path: &str, answer: &Answer) -> (String, Value) {
    let body = answer.json();
    let error = &body["error"];
    assert!(error["message"].as_str().is_some_and(|message| message.len() > 5), "no message: {body}");
    assert!(error["type"].is_string(), "no type: {body}");
    if path == ANTHROPIC {
        assert_eq!(body["type"], "error", "{body}");
    } else {
        let fields = error.as_object().unwrap();
        assert!(fields.contains_key("param") && error["code"].is_string(), "not OpenAI's shape: {body}");
    }
    (error["code"].as_str().unwrap_or_default().to_owned(), error["param"].clone())
}

/// A running gateway that knows its one replica serves model `m` alone.
fn serving(backend: &Backend, yaml: &str) -> Gateway {
    let setup = Setup::new(&[backend.url()]);
    let gateway = if yaml.is_empty() { setup.start() } else { setup.yaml(yaml).start() };
    wait_for("the replica's models to be known", Duration::from_secs(10), || {
        gateway.replicas()[0]["models"].as_array().is_some_and(|models| models.iter().any(|model| model == "m"))
    });
    gateway
}

/// A name for people, a body, and the code it must get (empty: any 400 code).
type BadBody = (&'static str, Vec<u8>, &'static str);

/// Bodies that cannot be read as a request.
fn bad_bodies() -> Vec<BadBody> {
    let mut bodies = bodies_that_are_not_json();
    bodies.extend(bodies_that_are_no_request());
    bodies
}

/// A chat request whose one message has this raw content.
fn with(content: &str) -> Vec<u8> {
    format!("{{\"model\":\"m\",\"max_tokens\":4,\"messages\":[{{\"role\":\"user\",\"content\":{content}}}]}}")
        .into_bytes()
}

fn own(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn bodies_that_are_not_json() -> Vec<BadBody> {
    let deep = |open: &str, close: &str, depth: usize| {
        format!(
            "{{\"model\":\"m\",\"max_tokens\":4,\"messages\":[{{\"role\":\"user\",\"content\":\"a\"}}],\"x\":{}1{}}}",
            open.repeat(depth),
            close.repeat(depth)
        )
        .into_bytes()
    };
    let mut not_utf8 = br#"{"model":"m","max_tokens":4,"messages":[{"role":"user","content":""#.to_vec();
    not_utf8.extend_from_slice(&[0xff, 0xfe, 0xc0, 0xaf]);
    not_utf8.extend_from_slice(br#""}]}"#);
    vec![
        ("empty", Vec::new(), "body_empty"),
        ("white space", own("  \n\t "), ""),
        ("truncated", own(r#"{"model":"m","messages":[{"role":"user","content":"hel"#), "body_not_json"),
        ("truncated number", own(r#"{"model":"m","max_tokens":"#), "body_not_json"),
        ("not JSON", own("model=m&messages=hello"), "body_not_json"),
        ("two documents", own("{}{}"), ""),
        ("trailing comma", own(r#"{"model":"m","messages":[],}"#), "body_not_json"),
        ("byte order mark", own("\u{feff}{}"), ""),
        ("a list", own("[1,2]"), "body_not_an_object"),
        ("a string", own("\"hello\""), "body_not_an_object"),
        ("null", own("null"), "body_not_an_object"),
        ("nested lists", deep("[", "]", 5_000), "body_too_deep"),
        ("nested objects", deep("{\"a\":", "}", 5_000), "body_too_deep"),
        ("100k open brackets", vec![b'['; 100_000], ""),
        ("100k open objects", br#"{"a":"#.repeat(100_000), ""),
        ("invalid UTF-8", not_utf8, "body_not_utf8"),
        ("lone high surrogate", with(r#""\ud800""#), ""),
        ("lone low surrogate", with(r#""\udc00 x""#), ""),
        ("half a pair", with(r#""\ud83d\u0041""#), ""),
        ("raw control character", with("\"a\u{1}b\""), ""),
    ]
}

fn bodies_that_are_no_request() -> Vec<BadBody> {
    vec![
        (
            "model twice",
            own(r#"{"model":"m","model":"n","max_tokens":4,"messages":[{"role":"user","content":"a"}]}"#),
            "duplicate_field",
        ),
        (
            "model twice, escaped",
            own(r#"{"model":"m","mod\u0065l":"n","max_tokens":4,"messages":[{"role":"user","content":"a"}]}"#),
            "duplicate_field",
        ),
        (
            "messages twice",
            own(r#"{"model":"m","max_tokens":4,"messages":[{"role":"user","content":"a"}],"messages":[]}"#),
            "duplicate_field",
        ),
        (
            "stream twice",
            own(
                r#"{"model":"m","stream":false,"stream":true,"max_tokens":4,"messages":[{"role":"user","content":"a"}]}"#,
            ),
            "duplicate_field",
        ),
        ("number past f64", own(r#"{"model":"m","max_tokens":1e400,"messages":[{"role":"user","content":"a"}]}"#), ""),
        (
            "number past u64",
            own(r#"{"model":"m","max_tokens":184467440737095516160,"messages":[{"role":"user","content":"a"}]}"#),
            "",
        ),
        (
            "model is a number",
            own(r#"{"model":5,"max_tokens":4,"messages":[{"role":"user","content":"a"}]}"#),
            "invalid_type",
        ),
        ("messages is a string", own(r#"{"model":"m","max_tokens":4,"messages":"hello"}"#), "invalid_type"),
        ("a message is a number", own(r#"{"model":"m","max_tokens":4,"messages":[5]}"#), "invalid_type"),
        (
            "stream is a string",
            own(r#"{"model":"m","stream":"yes","max_tokens":4,"messages":[{"role":"user","content":"a"}]}"#),
            "invalid_type",
        ),
        ("content is a number", with("5"), "invalid_type"),
        ("no messages", own(r#"{"model":"m","max_tokens":4}"#), "missing_field"),
        ("empty messages", own(r#"{"model":"m","max_tokens":4,"messages":[]}"#), "empty_field"),
    ]
}

/// Sends every bad body to `path` over one connection after another; what was wrong with the answers.
fn findings(gateway: &Gateway, path: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, body, code) in bad_bodies() {
        let mut client = Client::connect(gateway.listen).unwrap();
        let headers: &[(&str, &str)] = if path == ANTHROPIC { &[("anthropic-version", "2023-06-01")] } else { &[] };
        match client.exchange("POST", path, headers, &body) {
            Ok(answer) if answer.status() == 400 => {
                let (told, _) = error_of(path, &answer);
                if path == OPENAI && !code.is_empty() && told != code {
                    findings.push(format!("{name}: code {told}, not {code}"));
                }
            }
            Ok(answer) => findings.push(format!("{name}: {} {}", answer.status(), answer.text())),
            Err(error) => findings.push(format!("{name}: {error}")),
        }
    }
    findings
}

#[test]
fn bad_bodies_are_refused_in_openai_shape() {
    let backend = Backend::completing();
    let gateway = serving(&backend, "");
    assert_eq!(findings(&gateway, OPENAI), Vec::<String>::new());
    assert_eq!(backend.posts(), 0, "a bad body reached the replica");
    gateway.assert_serves();
    gateway.wait_idle();
}

#[test]
fn bad_bodies_are_refused_in_anthropic_shape() {
    let backend = Backend::completing();
    let gateway = serving(&backend, "");
    assert_eq!(findings(&gateway, ANTHROPIC), Vec::<String>::new());
    assert_eq!(backend.posts(), 0, "a bad body reached the replica");
    gateway.assert_serves();
}

#[test]
fn a_body_past_the_limit_is_refused_by_its_length() {
    let backend = Backend::completing();
    let gateway = serving(&backend, "");
    for path in [OPENAI, ANTHROPIC] {
        let mut client = Client::connect(gateway.listen).unwrap();
        // The announced length is enough: nothing of the body is sent.
        client.send(format!("POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 68157440\r\n\r\n").as_bytes()).unwrap();
        let answer = client.read_answer().unwrap();
        assert_eq!(answer.status(), 413, "{}", answer.text());
        error_of(path, &answer);
    }
    gateway.assert_serves();
}

#[test]
fn a_body_past_the_limit_is_refused_as_it_arrives() {
    let backend = Backend::completing();
    let gateway = serving(&backend, "");
    let before = gateway.resident_kib();
    let body = chat(&"a".repeat(65 << 20));
    for path in [OPENAI, ANTHROPIC] {
        let mut client = Client::connect(gateway.listen).unwrap();
        let _ = client.send_chunked(path, &[], body.as_bytes(), 1 << 20); // it may close before all is sent
        let answer = client.read_answer().unwrap();
        assert_eq!(answer.status(), 413, "{}", answer.text());
        error_of(path, &answer);
    }
    gateway.assert_serves();
    let kept = gateway.resident_kib().saturating_sub(before);
    assert!(kept < 160 * 1024, "{kept} KiB kept after two refused bodies");
}

#[test]
fn a_body_that_does_not_arrive_is_given_up() {
    let backend = Backend::completing();
    let gateway = serving(&backend, "timeouts:\n  body: 1s");
    for path in [OPENAI, ANTHROPIC] {
        let mut client = Client::connect(gateway.listen).unwrap();
        client
            .send(format!("POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 500\r\n\r\n{{\"model\":").as_bytes())
            .unwrap();
        let answer = client.read_answer().unwrap();
        assert_eq!(answer.status(), 408, "{}", answer.text());
        error_of(path, &answer);
        assert!(client.closes_within(Duration::from_secs(3)), "the connection was kept");
    }
    gateway.assert_serves();
}

#[test]
fn a_body_that_drips_is_given_up_in_all() {
    let backend = Backend::completing();
    let gateway = serving(&backend, "timeouts:\n  body: 1s");
    let mut client = Client::connect(gateway.listen).unwrap();
    client.send(format!("POST {OPENAI} HTTP/1.1\r\nhost: h\r\ncontent-length: 500\r\n\r\n").as_bytes()).unwrap();
    client.set_read_limit(Duration::from_millis(100));
    let start = crate::support::time::now();
    let mut status = None;
    while status.is_none() && start.elapsed() < Duration::from_secs(8) {
        let _ = client.send(b" "); // each byte comes well before any limit on one read
        status = client.read_head().ok().map(|head| head.status);
    }
    assert_eq!(status, Some(408), "after {:?}", start.elapsed());
    gateway.assert_serves();
}

/// What a client announces is not memory yet: such connections must not use up the room for bodies.
#[test]
fn announced_bodies_that_never_come_do_not_keep_others_out() {
    let backend = Backend::completing();
    let gateway = serving(&backend, "");
    let announce = |turn: usize| {
        let mut client = Client::connect(gateway.listen).unwrap();
        client
            .send(format!("POST {OPENAI} HTTP/1.1\r\nhost: h\r\ncontent-length: 67108864\r\n\r\n").as_bytes())
            .unwrap();
        if turn % 2 == 1 {
            client.send(b"{").unwrap();
        }
        client
    };
    let _idle: Vec<Client> = (0..64).map(announce).collect();
    wait_for("the requests to have begun", Duration::from_secs(5), || {
        gateway.admin_get("/metrics").text().lines().any(|line| line == "emberlane_requests_in_flight 64")
    });
    for turn in 0..20 {
        let answer = gateway.post(OPENAI, &chat(&crate::support::text(turn, 20_000)));
        assert_eq!(answer.status(), 200, "turn {turn}: {}", answer.text());
    }
}

#[test]
fn fields_of_engines_that_the_gateway_does_not_know_pass_untouched() {
    let backend = Backend::completing();
    let gateway = serving(&backend, "");
    let body = r#"{"guided_json":{"type":"object","properties":{"a":{"type":["string","null"]}}},"min_p":0.05,
        "chat_template_kwargs":{"enable_thinking":false},"vllm_xargs":[1e-9,-0.0,null],"":"","模型":"m",
        "a\u0000b":1,"stream_options":{"include_usage":true,"continuous_usage_stats":false},"top_k":-1,"n_probs":0,
        "model":"m","max_tokens":4,"messages":[{"role":"user","content":"hi","name":null,"weight":0.5}]}"#;
    let answer = gateway.post(OPENAI, body);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(String::from_utf8_lossy(&backend.received()[0].body), body);
}

#[test]
fn large_documents_of_one_piece_and_of_very_many_are_served() {
    let backend = Backend::completing();
    let gateway = serving(&backend, "");
    let message = r#"{"role":"user","content":"x"}"#;
    let many = vec![message; 100_000].join(",");
    let bodies = [
        ("1 MB in one string", chat(&"a".repeat(1_000_000))),
        ("1 MB of escapes", chat(&"\"\\\n".repeat(170_000))),
        ("100k messages", format!("{{\"model\":\"m\",\"max_tokens\":4,\"messages\":[{many}]}}")),
    ];
    for (turn, (name, body)) in bodies.iter().enumerate() {
        let answer = gateway.post(OPENAI, body);
        assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
        assert_eq!(backend.received()[turn].body.len(), body.len(), "{name}");
    }
    // Past the limit on JSON values the client is told so, before a replica sees any of it.
    let numbers = vec!["1"; 4_100_000].join(",");
    let body = chat("hi").replacen('{', &format!("{{\"x\":[{numbers}],"), 1);
    let answer = gateway.post(OPENAI, &body);
    assert_eq!(answer.status(), 400, "{}", answer.text());
    error_of(OPENAI, &answer);
    assert_eq!(backend.posts(), bodies.len());
    gateway.assert_serves();
}

#[test]
fn an_unknown_model_is_not_found() {
    let backend = Backend::completing();
    let gateway = serving(&backend, "");
    let body = chat("hi").replace("\"m\"", "\"nobody-serves-this\"");
    for path in [OPENAI, ANTHROPIC] {
        let answer = gateway.post(path, &body);
        assert_eq!(answer.status(), 404, "{}", answer.text());
        let (code, param) = error_of(path, &answer);
        if path == OPENAI {
            assert_eq!((code.as_str(), param.as_str()), ("model_not_found", Some("model")));
        } else {
            assert_eq!(answer.json()["error"]["type"], "not_found_error");
        }
    }
    assert_eq!(backend.posts(), 0);
}

#[test]
fn unknown_paths_and_methods_are_told_so() {
    let backend = Backend::completing();
    let gateway = serving(&backend, "");
    let answer = gateway.post("/v1/nothing/here", "{}");
    assert_eq!(answer.status(), 404, "{}", answer.text());
    error_of("/v1/nothing/here", &answer);
    let answer = crate::support::http::get(gateway.listen, OPENAI).unwrap();
    assert_eq!(answer.status(), 405, "{}", answer.text());
}

#[test]
fn without_a_replica_the_client_is_told_when_to_come_back() {
    let gateway = Setup::new(&[format!("http://{}", free_address())]).start_unready();
    for path in [OPENAI, ANTHROPIC] {
        let answer = gateway.post(path, &chat("hi"));
        // 502 while the replica is only now found to refuse, 503 once that is known.
        assert!([502, 503].contains(&answer.status()), "{} {}", answer.status(), answer.text());
        error_of(path, &answer);
        let seconds: u32 = answer.head.header("retry-after").expect("no Retry-After").parse().unwrap();
        assert!(seconds >= 1);
    }
    gateway.wait_idle();
}
