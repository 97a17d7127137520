//! Mock engines over their sockets.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::*;

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(20)))
        .build()
        .new_agent()
}

fn post(engine: &MockEngine, path: &str, body: &Value) -> (u16, String) {
    let mut response = agent()
        .post(format!("http://{}{path}", engine.addr()))
        .header("content-type", "application/json")
        .send(body.to_string())
        .unwrap();
    (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
}

fn post_json(engine: &MockEngine, path: &str, body: &Value) -> Value {
    let (status, text) = post(engine, path, body);
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn get(engine: &MockEngine, path: &str) -> String {
    let mut response = agent().get(format!("http://{}{path}", engine.addr())).call().unwrap();
    response.body_mut().read_to_string().unwrap()
}

fn chat(words: usize) -> Value {
    json!({"model": "mock", "max_tokens": 4, "messages": [{"role": "user", "content": "word ".repeat(words)}]})
}

/// Sends bytes as they are and reads until the engine closes.
fn raw(engine: &MockEngine, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(engine.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    // A reset after the bytes is as good an end as any.
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn raw_chat(extra: &str) -> Vec<u8> {
    let mut body = chat(100);
    body["stream"] = json!(true);
    body["max_tokens"] = json!(50);
    let body = body.to_string();
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{extra}content-length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// Waits until `done` holds of the engine's counters.
fn until(engine: &MockEngine, done: impl Fn(&MockStats) -> bool) -> MockStats {
    for _ in 0..2_000 {
        let stats = engine.stats();
        if done(&stats) {
            return stats;
        }
        // Another round trip through the engine's own runtime takes the place of a sleep.
        get(engine, "/health");
    }
    panic!("never: {:?}", engine.stats());
}

#[test]
fn the_second_time_the_prompt_is_cached_and_a_restart_forgets() {
    let engine = MockEngine::start(MockEngineConfig::default()).unwrap();
    let cached = |body: &Value| {
        let answer = post_json(&engine, "/v1/chat/completions", body);
        assert_eq!(answer["usage"]["completion_tokens"], 4);
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(&chat(400)), 0);
    let warm = cached(&chat(400));
    assert!((480..=512).contains(&warm), "{warm}");
    engine.restart();
    assert_eq!(cached(&chat(400)), 0);
    let stats = engine.stats();
    assert_eq!((stats.requests, stats.completed, stats.cached_tokens, stats.restarts), (3, 3, warm, 1));
    assert_eq!((stats.running, stats.waiting, stats.blocks_pinned), (0, 0, 0));
}

#[test]
fn a_conversation_finds_its_last_answer_in_the_cache() {
    let engine = MockEngine::start(MockEngineConfig::default()).unwrap();
    let mut body = chat(100);
    body["max_tokens"] = json!(160);
    let first = post_json(&engine, "/v1/chat/completions", &body);
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    let answer = first["choices"][0]["message"].clone();
    let messages = body["messages"].as_array_mut().unwrap();
    messages.extend([answer, json!({"role": "user", "content": "more"})]);
    let second = post_json(&engine, "/v1/chat/completions", &body);
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached >= prompt + 160 - 16, "{cached} of {prompt} + 160");
}

#[test]
fn every_route_answers_plain_and_streamed() {
    let engine = MockEngine::start(MockEngineConfig::default()).unwrap();
    let messages = json!([{"role": "user", "content": "hi"}]);
    for (path, body, has) in [
        ("/v1/completions", json!({"prompt": ["a", "b"], "max_tokens": 2}), "\"index\":1"),
        ("/v1/completions", json!({"prompt": [1, 2, 3]}), "text_completion"),
        ("/v1/completions", json!({"prompt": "a", "stream": true}), "data: [DONE]"),
        ("/v1/chat/completions", json!({"messages": messages, "stream": true}), "data: [DONE]"),
        ("/v1/responses", json!({"input": "hi"}), "output_text"),
        ("/v1/responses", json!({"input": "hi", "stream": true}), "event: response.completed"),
        ("/v1/embeddings", json!({"input": ["a", "b"]}), "\"index\":1"),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 3}), "cache_read_input_tokens"),
        ("/v1/messages", json!({"messages": messages, "stream": true}), "event: message_stop"),
        ("/v1/messages/count_tokens", json!({"messages": messages}), "input_tokens"),
        ("/v1/rerank", json!({"query": "q", "documents": ["a", {"text": "b"}]}), "relevance_score"),
        ("/tokenize", json!({"prompt": "abcdefgh"}), "\"count\":2"),
        ("/detokenize", json!({"tokens": [1_684_234_849]}), "abcd"),
    ] {
        let (status, text) = post(&engine, path, &body);
        assert_eq!(status, 200, "{path}: {text}");
        assert!(text.contains(has), "{path}: {text}");
    }
    assert!(get(&engine, "/v1/models").contains("\"mock\""));
    assert!(get(&engine, "/metrics").contains("vllm:num_requests_waiting{model_name=\"mock\"} 0"));
    assert_eq!(get(&engine, "/health"), "");
}

#[test]
fn errors_have_the_shape_of_the_api() {
    let engine = MockEngine::start(MockEngineConfig { kv_tokens: 64, ..MockEngineConfig::default() }).unwrap();
    let messages = json!([{"role": "user", "content": "hi"}]);
    let (status, text) = post(&engine, "/v1/chat/completions", &json!({"model": "no", "messages": messages}));
    assert_eq!((status, text.contains("model_not_found")), (404, true), "{text}");
    let (status, text) = post(&engine, "/v1/messages", &json!({"model": "no", "messages": messages}));
    assert_eq!((status, text.contains("not_found_error")), (404, true), "{text}");
    assert_eq!(post(&engine, "/v1/chat/completions", &json!({"messages": 1})).0, 400);
    assert_eq!(post(&engine, "/v1/chat/completions", &chat(100)).0, 400); // longer than the cache
    assert_eq!(post(&engine, "/v1/nothing", &json!({})).0, 404);
    assert_eq!(engine.stats().refused, 4);
}

#[test]
fn a_client_that_leaves_frees_its_slot_at_once() {
    let config = MockEngineConfig { slots: 1, decode_step: Duration::from_secs(3_600), ..MockEngineConfig::default() };
    let engine = MockEngine::start(config).unwrap();
    let mut leaving = TcpStream::connect(engine.addr()).unwrap();
    leaving.write_all(&raw_chat("")).unwrap();
    until(&engine, |stats| stats.running == 1);
    let mut queued = TcpStream::connect(engine.addr()).unwrap();
    queued.write_all(&raw_chat("")).unwrap();
    until(&engine, |stats| stats.waiting == 1);
    drop(leaving);
    until(&engine, |stats| stats.cancelled == 1 && stats.running == 1 && stats.waiting == 0);
    drop(queued);
    let stats = until(&engine, |stats| stats.cancelled == 2);
    assert_eq!((stats.running, stats.blocks_pinned), (0, 0));
}

#[test]
fn faults_are_what_was_asked() {
    let engine = MockEngine::start(MockEngineConfig::default()).unwrap();
    engine.set_faults(Faults { retry_after_s: Some(7), ..Faults::status(503, Some(1)) });
    let answer = String::from_utf8(raw(&engine, &raw_chat("connection: close\r\n"))).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.to_lowercase().contains("retry-after: 7"), "{answer}");
    assert_eq!(post(&engine, "/v1/chat/completions", &chat(9)).0, 200); // only once

    for at in [CloseAt::Head, CloseAt::Body] {
        engine.set_faults(Faults::close(at));
        assert_eq!(raw(&engine, &raw_chat("")), b"", "{at:?}");
    }
    engine.set_faults(Faults { close_after_chunks: 3, ..Faults::close(CloseAt::Mid) });
    let answer = String::from_utf8(raw(&engine, &raw_chat(""))).unwrap();
    assert_eq!(answer.matches("data: ").count(), 4, "{answer}"); // the role, and three words
    assert!(!answer.contains("[DONE]"));
    engine.set_faults(Faults { garbage: true, ..Faults::default() });
    assert!(raw(&engine, &raw_chat("")).starts_with(b"\x16\x03\x01"));
    engine.set_faults(Faults::default());
    let answer = raw(&engine, &raw_chat("x-mock-status: 429\r\nconnection: close\r\n"));
    assert!(answer.starts_with(b"HTTP/1.1 429"));
    assert_eq!(engine.stats().faulted, 6);

    let state = post_json(&engine, "/mock/faults", &json!({"status": 500}));
    assert_eq!(state["faults"]["status"], 500);
    assert_eq!(post(&engine, "/v1/chat/completions", &chat(9)).0, 500);
    assert_eq!(post(&engine, "/mock/faults", &json!({"statsu": 500})).0, 400);
    assert!(get(&engine, "/mock/stats").contains("\"faulted\":7"));
}

#[test]
fn the_echo_tells_what_arrived() {
    let engine = MockEngine::start(MockEngineConfig::default()).unwrap();
    let mut body = b"{\"model\":\"some\",\"pad\":\"".to_vec();
    body.resize((5 << 20) - 2, b'x');
    body.extend_from_slice(b"\"}");
    let mut response = agent()
        .post(format!("http://{}/v1/chat/completions", engine.addr()))
        .header("x-mock-echo", "1")
        .send(&body)
        .unwrap();
    assert!(response.headers().contains_key("x-mock-engine"));
    let echo: Value = serde_json::from_str(&response.body_mut().read_to_string().unwrap()).unwrap();
    assert_eq!((echo["len"].as_u64(), &echo["model"]), (Some(5 << 20), &json!("some")));
    let hash = body
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    assert_eq!(echo["fnv1a64"], format!("{hash:016x}"));
}

#[test]
fn chunked_and_expecting_bodies_arrive() {
    let engine = MockEngine::start(MockEngineConfig::default()).unwrap();
    let chunked = b"POST /x HTTP/1.1\r\nhost: x\r\nx-mock-echo: 1\r\nexpect: 100-continue\r\nconnection: close\r\n\
                    transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let answer = String::from_utf8(raw(&engine, chunked)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 100"), "{answer}");
    assert!(answer.contains("\"len\":11") && answer.contains("\"transfer_encoding\":\"chunked\""), "{answer}");
}

#[tokio::test]
async fn http_2_without_tls_is_taken_too() {
    let engine = MockEngine::start(MockEngineConfig::default()).unwrap();
    let stream = tokio::net::TcpStream::connect(engine.addr()).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}/v1/chat/completions", engine.addr())).body(()).unwrap();
    let mut client = client.ready().await.unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    let mut chat = chat(9);
    chat["stream"] = json!(true);
    body.send_data(chat.to_string().into(), true).unwrap();
    let mut answer = response.await.unwrap().into_body();
    let mut text = Vec::new();
    while let Some(chunk) = answer.data().await {
        text.extend_from_slice(&chunk.unwrap());
    }
    assert!(text.ends_with(b"data: [DONE]\n\n"));
}

#[test]
fn engines_come_and_go_on_one_address() {
    let mut listen = MockEngineConfig::default().listen;
    for _ in 0..20 {
        let engine = MockEngine::start(MockEngineConfig { listen, ..MockEngineConfig::default() }).unwrap();
        listen = engine.addr();
        assert_eq!(post(&engine, "/v1/chat/completions", &chat(3)).0, 200);
        engine.stop();
    }
    assert!(TcpStream::connect(listen).is_err());
}
