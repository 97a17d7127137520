//! Replicas that misbehave: the client gets a typed error in bounded time, other replicas take over, and the counters
//! stay true.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::backend::{Backend, COMPLETION};
use crate::support::chat;
use crate::support::gateway::Setup;
use crate::support::http::{self, Answer};
use crate::support::time::{now, wait_for};

const OPENAI: &str = "/v1/chat/completions";
const ANTHROPIC: &str = "/v1/messages";

#[track_caller]
fn assert_error(path: &str, answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status(), status, "{}", answer.text());
    let body = answer.json();
    if path == ANTHROPIC {
        assert_eq!(body["type"], "error", "{body}");
        assert!(body["error"]["type"].is_string() && body["error"]["message"].is_string(), "{body}");
    } else {
        assert_eq!(body["error"]["code"], code, "{body}");
    }
}

#[test]
fn garbage_from_the_replica_is_a_bad_gateway() {
    let backend = Backend::start(|exchange| {
        exchange.close();
        exchange.raw(b"\x00\x01\x02 this is not HTTP at all\r\n\r\n")
    });
    let gateway = Setup::new(&[backend.url()]).start();
    for path in [OPENAI, ANTHROPIC] {
        assert_error(path, &gateway.post(path, &chat("hi")), 502, "upstream_invalid");
    }
    gateway.wait_idle();
}

#[test]
fn a_replica_that_hangs_is_a_gateway_timeout() {
    let backend = Backend::start(|exchange| {
        exchange.peer_leaves_within(Duration::from_secs(10));
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[backend.url()]).yaml("timeouts:\n  first_byte: 500ms").start();
    for path in [OPENAI, ANTHROPIC] {
        let start = now();
        assert_error(path, &gateway.post(path, &chat("hi")), 504, "upstream_timeout");
        assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    }
    wait_for("the hung request to be dropped", Duration::from_secs(2), || backend.running() == 0);
    gateway.wait_idle();
}

#[test]
fn a_replica_that_closes_is_a_bad_gateway() {
    let backend = Backend::start(|exchange| {
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[backend.url()]).start();
    for path in [OPENAI, ANTHROPIC] {
        assert_error(path, &gateway.post(path, &chat("hi")), 502, "upstream_closed");
    }
    gateway.wait_idle();
}

#[test]
fn an_answer_cut_short_never_looks_whole() {
    let backend = Backend::start(|exchange| {
        exchange.close();
        exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"id\":")
    });
    let gateway = Setup::new(&[backend.url()]).start();
    match http::post(gateway.listen, OPENAI, &chat("hi")) {
        Err(_) => {}
        Ok(answer) => assert_eq!(answer.status(), 502, "{}", answer.text()),
    }
    gateway.wait_idle();
}

#[test]
fn a_failing_replica_is_left_out_and_comes_back() {
    let sick = Arc::new(AtomicBool::new(true));
    let unstable = Backend::start({
        let sick = Arc::clone(&sick);
        move |exchange| {
            if sick.load(Ordering::SeqCst) { exchange.json(500, "{}") } else { exchange.json(200, COMPLETION) }
        }
    });
    let healthy = Backend::completing();
    let gateway = Setup::new(&[unstable.url(), healthy.url()])
        .policy("round_robin")
        .yaml("ejection:\n  base: 500ms\nretry:\n  budget_floor_per_s: 1000")
        .start();
    for turn in 0..40 {
        let answer = gateway.post(OPENAI, &chat("hi"));
        assert_eq!(answer.status(), 200, "turn {turn}: {}", answer.text());
    }
    let asked = unstable.posts();
    assert!((3..20).contains(&asked), "a failing replica was asked {asked} times in 40 requests");
    sick.store(false, Ordering::SeqCst);
    wait_for("the replica to be used again", Duration::from_secs(10), || {
        gateway.assert_serves();
        unstable.posts() > asked + 5
    });
}

#[test]
fn client_errors_do_not_count_against_a_replica() {
    let backends = [
        Backend::start(|exchange| exchange.json(400, r#"{"error":{"message":"no such tool"}}"#)),
        Backend::start(|exchange| exchange.json(422, r#"{"error":{"message":"no such tool"}}"#)),
    ];
    let urls: Vec<String> = backends.iter().map(Backend::url).collect();
    let gateway = Setup::new(&urls).policy("round_robin").start();
    for _ in 0..40 {
        let answer = gateway.post(OPENAI, &chat("hi"));
        assert!([400, 422].contains(&answer.status()), "{} {}", answer.status(), answer.text());
        assert!(answer.text().contains("no such tool"), "the replica's own words were lost: {}", answer.text());
    }
    assert_eq!(backends.iter().map(Backend::posts).sum::<usize>(), 40, "a client error was retried");
    for backend in &backends {
        assert!(backend.posts() >= 15, "a replica was left out because of client errors");
    }
}

#[test]
fn a_dead_replica_costs_no_request() {
    let healthy = Backend::completing();
    let dead = format!("http://{}", crate::support::free_address());
    let gateway = Setup::new(&[dead, healthy.url()]).policy("round_robin").start();
    for turn in 0..30 {
        let answer = gateway.post(OPENAI, &chat("hi"));
        assert_eq!(answer.status(), 200, "turn {turn}: {}", answer.text());
    }
    gateway.wait_idle();
}

#[test]
fn a_connection_that_the_engine_closed_while_idle_costs_no_request() {
    let backend = Backend::start(|exchange| {
        exchange.completion()?;
        exchange.close(); // without saying `connection: close`
        Ok(())
    });
    let gateway = Setup::new(&[backend.url()]).start();
    let mut client = http::Client::connect(gateway.listen).unwrap();
    for turn in 0..50 {
        let answer = client.exchange("POST", OPENAI, &[], chat("hi").as_bytes()).unwrap();
        assert_eq!(answer.status(), 200, "turn {turn}: {}", answer.text());
    }
}
