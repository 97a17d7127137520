//! What the index keeps: prompts that a replica has computed, and none that it has not.

use std::time::Duration;

use crate::support::backend::{Backend, chunk_event};
use crate::support::engine::Engine;
use crate::support::gateway::Setup;
use crate::support::http::Client;
use crate::support::time::wait_for;
use crate::support::{chat, chat_with_system, text};

const PATH: &str = "/v1/chat/completions";

#[test]
fn only_answers_leave_their_prompt_on_record() {
    let mut engine = Engine::mock(&[]);
    let gateway = Setup::new(&[engine.url()]).start();
    let body = chat(&text(1, 4_000));
    let send = |headers: &[(&str, &str)]| {
        let mut client = Client::connect(gateway.listen).unwrap();
        client.exchange("POST", PATH, headers, body.as_bytes()).unwrap().status()
    };
    assert_eq!(gateway.warm_tokens(&body), 0);
    for (name, value, status) in
        [("x-mock-status", "500", 500), ("x-mock-status", "429", 429), ("x-mock-close", "body", 502)]
    {
        assert_eq!(send(&[(name, value)]), status);
        assert_eq!(gateway.warm_tokens(&body), 0, "after {status}");
    }
    assert_eq!(send(&[]), 200);
    assert!(gateway.warm_tokens(&body) > 500, "{} of about 1,000 tokens", gateway.warm_tokens(&body));
    // A failure takes back what it had put on record itself, not what was there before.
    assert_eq!(send(&[("x-mock-status", "500")]), 500);
    assert!(gateway.warm_tokens(&body) > 500, "a failure took an older prefix off the record");
    // Nobody listens any more: the cache is gone with the process.
    engine.process.crash();
    assert_eq!(send(&[]), 502);
    let engine = Engine::mock_at(engine.address, &[]);
    assert_eq!(gateway.warm_tokens(&body), 0, "after a restart");
    assert_eq!(send(&[]), 200);
    assert!(gateway.warm_tokens(&body) > 500);
    assert_eq!(engine.stat("completed"), 1);
}

#[test]
fn a_failure_told_inside_a_stream_leaves_nothing_on_record() {
    let failing = Backend::start(|exchange| {
        exchange.start_events()?;
        exchange.event(r#"{"error": {"message": "CUDA out of memory", "type": "server_error", "code": 500}}"#)?;
        exchange.event("[DONE]")?;
        exchange.end_events()
    });
    let named = Backend::start(|exchange| {
        exchange.start_events()?;
        let event =
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"no\"}}\n\n";
        exchange.raw(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())?;
        exchange.end_events()
    });
    let good = Backend::start(|exchange| {
        exchange.start_events()?;
        exchange.event(&chunk_event("fine"))?;
        exchange.event("[DONE]")?;
        exchange.end_events()
    });
    let body = chat_with_system(&text(1, 4_000), "hello", true);
    for backend in [&failing, &named] {
        let gateway = Setup::new(&[backend.url()]).start();
        let answer = gateway.post(PATH, &body);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert!(answer.text().contains("error"), "{}", answer.text());
        wait_for("the prompt to be taken off the record", Duration::from_secs(2), || gateway.warm_tokens(&body) == 0);
    }
    let gateway = Setup::new(&[good.url()]).start();
    assert_eq!(gateway.post(PATH, &body).status(), 200);
    gateway.wait_idle();
    assert!(gateway.warm_tokens(&body) > 500);
}
