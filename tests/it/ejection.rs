//! Replicas that fail again and again are left out, once and for as long as configured, and the others take over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::backend::{Backend, Exchange, chunk_event};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::{self, events};
use crate::support::time::{holds_within, now, wait_for};
use crate::support::{chat, chat_stream};

const PATH: &str = "/v1/chat/completions";

/// A whole stream of two events.
fn stream(exchange: &mut Exchange<'_>) -> std::io::Result<()> {
    exchange.start_events()?;
    exchange.event(&chunk_event("whole"))?;
    exchange.event("[DONE]")?;
    exchange.end_events()
}

/// The value of a counter without labels.
#[track_caller]
fn counter(gateway: &Gateway, name: &str) -> u64 {
    let text = gateway.admin_get("/metrics").text();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_replica_that_breaks_every_stream_is_left_out() {
    let breaking = Backend::start(|exchange| {
        exchange.start_events()?;
        exchange.event(&chunk_event("half"))?;
        exchange.raw(b"40\r\ndata: {\"cut\":")?; // inside a chunk
        exchange.close();
        Ok(())
    });
    let healthy = [Backend::start(stream), Backend::start(stream)];
    let gateway = Setup::new(&[breaking.url(), healthy[0].url(), healthy[1].url()])
        .policy("round_robin")
        .yaml("ejection:\n  consecutive_failures: 3\n  base: 60s")
        .start();
    let is_whole = || {
        let answer = gateway.post(PATH, &chat_stream("hello"));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        events(&answer.body).last().is_some_and(|last| last == "[DONE]")
    };
    let broken = (0..12).filter(|_| !is_whole()).count();
    assert!((3..=4).contains(&broken), "{broken} of 12 streams broke, though three in a row are enough");
    wait_for("the replica to be left out", Duration::from_secs(2), || gateway.states()[0] == "ejected");
    assert_eq!(gateway.states(), ["ejected", "healthy", "healthy"]);
    for turn in 0..12 {
        assert!(is_whole(), "turn {turn}: a stream broke after its replica had been left out");
    }
    assert_eq!(breaking.posts(), broken);
    gateway.wait_idle();
}

/// Six requests fail at the same moment. That is one reason to leave the replica out, not six, each of which would
/// double its time.
#[test]
fn failures_at_the_same_moment_eject_once() {
    const AT_ONCE: usize = 6;
    static ARRIVED: AtomicUsize = AtomicUsize::new(0);
    let failing = Backend::start(|exchange| {
        ARRIVED.fetch_add(1, Ordering::SeqCst);
        holds_within(Duration::from_secs(10), || ARRIVED.load(Ordering::SeqCst) >= AT_ONCE);
        exchange.json(500, "{}")
    });
    let healthy = Backend::completing();
    let gateway = Setup::new(&[failing.url(), healthy.url()])
        .policy("round_robin")
        .yaml("ejection:\n  consecutive_failures: 1\n  base: 1s\nretry:\n  budget_floor_per_s: 1000")
        .start();
    std::thread::scope(|scope| {
        for _ in 0..2 * AT_ONCE {
            scope.spawn(|| {
                let answer = gateway.post(PATH, &chat("hello"));
                assert_eq!(answer.status(), 200, "{}", answer.text());
            });
        }
    });
    let start = now();
    assert_eq!(failing.posts(), AT_ONCE);
    assert_eq!(counter(&gateway, "emberlane_ejections_total"), 1);
    // Counted six times it would be out for 32 s.
    wait_for("the replica to be on probation", Duration::from_secs(5), || gateway.states()[0] == "probation");
    assert!(start.elapsed() < Duration::from_secs(3), "out for {:?}", start.elapsed());
    assert_eq!(gateway.states(), ["probation", "healthy"]);
}

/// A stream without length whose connection ends: whole only if the stream itself said so.
#[test]
fn a_stream_that_ends_with_its_connection_is_whole_only_behind_its_last_event() {
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        "HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
    ] {
        let sends = |tail: &'static str| {
            Backend::start(move |exchange| {
                exchange.raw(format!("{head}data: {}\n\n{tail}", chunk_event("one")).as_bytes())?;
                exchange.close();
                Ok(())
            })
        };
        let (cut, whole) = (sends(""), sends("data: [DONE]\n\n"));
        let gateway = Setup::new(&[cut.url(), whole.url()])
            .policy("round_robin")
            .yaml("ejection:\n  consecutive_failures: 3\n  base: 60s")
            .start();
        for turn in 0..12 {
            let (before, answer) = (whole.posts(), gateway.post(PATH, &chat_stream("hello")));
            assert_eq!(answer.status(), 200, "{}", answer.text());
            let events = events(&answer.body);
            let last = events.last().unwrap();
            if whole.posts() > before {
                assert_eq!((events.len(), last.as_str()), (2, "[DONE]"), "turn {turn}: {events:?}");
            } else {
                let error: serde_json::Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("{events:?}"));
                assert_eq!(error["error"]["code"], "upstream_closed", "turn {turn}: {events:?}");
            }
        }
        assert!(cut.posts() >= 3 && whole.posts() >= 6, "{} and {}", cut.posts(), whole.posts());
        wait_for("the breaking replica to be left out", Duration::from_secs(2), || gateway.states()[0] == "ejected");
        assert_eq!(gateway.states(), ["ejected", "healthy"]);
        let code = |decision: &serde_json::Value| decision["outcome"]["code"].clone();
        assert_eq!(gateway.decisions().iter().filter(|one| code(one) == "upstream_closed").count(), cut.posts());
    }
}

/// The client is told a length that the replica does not keep: what comes next on that connection would be taken for the
/// rest of the answer.
#[test]
fn an_answer_shorter_than_announced_ends_the_clients_connection() {
    for kind in ["text/event-stream", "application/json"] {
        let backend = Backend::start(move |exchange| {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: 1000\r\n\r\n");
            exchange.raw(format!("{head}data: {}\n\n", chunk_event("one")).as_bytes())?;
            exchange.close();
            Ok(())
        });
        let gateway = Setup::new(&[backend.url()]).start();
        let mut client = http::Client::connect(gateway.listen).unwrap();
        client.send_request("POST", PATH, &[], chat_stream("hello").as_bytes()).unwrap();
        let head = client.read_head().unwrap();
        assert_eq!((head.status, head.header("content-length")), (200, Some("1000")));
        let _ = client.send_request("POST", PATH, &[], chat_stream("hello").as_bytes()); // it may be closed already
        let rest = client.read_until_closed(Duration::from_secs(3));
        let rest = rest.unwrap_or_else(|| panic!("{kind}: the connection was kept"));
        assert!(rest.len() < 1000, "{kind}: {} bytes", rest.len());
        assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"), "{kind}: a second answer inside the first");
        gateway.wait_idle();
    }
}
