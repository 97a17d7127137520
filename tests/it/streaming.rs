//! Event streams: each piece passes at once, a client that leaves frees the engine at once, a stream that breaks says
//! so in the client's dialect, and the counters come back to zero.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use crate::support::backend::{Backend, chunk_event};
use crate::support::engine::{Engine, urls};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::{Client, events};
use crate::support::time::{now, wait_for};
use crate::support::{chat, chat_stream, h2c, text};

const OPENAI: &str = "/v1/chat/completions";
const ANTHROPIC: &str = "/v1/messages";

/// A replica that sends one event for each word it is given, and ends when the sender is dropped.
fn paced() -> (Backend, Sender<String>) {
    let (sender, receiver): (Sender<String>, Receiver<String>) = channel();
    let receiver = Mutex::new(receiver);
    let backend = Backend::start(move |exchange| {
        exchange.start_events()?;
        let receiver = receiver.lock();
        while let Ok(word) = receiver.recv_timeout(Duration::from_secs(20)) {
            exchange.event(&chunk_event(&word))?;
        }
        exchange.event("[DONE]")?;
        exchange.end_events()
    });
    (backend, sender)
}

/// Opens a stream and reads its head.
#[track_caller]
fn open(gateway: &Gateway, path: &str) -> Client {
    let mut client = Client::connect(gateway.listen).unwrap();
    client.send_request("POST", path, &[], chat_stream("tell me").as_bytes()).unwrap();
    let head = client.read_head().unwrap();
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    client
}

/// Reads until `needle` has come.
#[track_caller]
fn read_until(client: &mut Client, needle: &str) {
    let mut seen = String::new();
    while !seen.contains(needle) {
        match client.read_chunk() {
            Ok(Some(chunk)) => seen.push_str(&String::from_utf8_lossy(&chunk)),
            other => panic!("waiting for {needle:?}, had {seen:?}, got {other:?}"),
        }
    }
}

/// Reads what is left of a stream, however it ends.
fn read_rest(client: &mut Client) -> (Vec<u8>, io::Result<()>) {
    let mut body = Vec::new();
    loop {
        match client.read_chunk() {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return (body, Ok(())),
            Err(error) => return (body, Err(error)),
        }
    }
}

#[test]
fn each_event_passes_before_the_next_is_sent() {
    let (backend, words) = paced();
    let gateway = Setup::new(&[backend.url()]).start();
    words.send("word-0".to_owned()).unwrap();
    let mut client = open(&gateway, OPENAI);
    for turn in 0..20 {
        read_until(&mut client, &format!("word-{turn}\""));
        words.send(format!("word-{}", turn + 1)).unwrap();
    }
    assert_eq!(gateway.in_flight(), 1);
    drop(words);
    let (rest, end) = read_rest(&mut client);
    end.unwrap();
    assert_eq!(events(&rest).last().map(String::as_str), Some("[DONE]"));
    gateway.wait_idle();
}

/// Engines send a stream's head before they have computed anything: until the first bytes behind it have come, the
/// client has seen nothing, and the request may still go elsewhere.
#[test]
fn a_replica_that_dies_between_head_and_first_event_costs_no_request() {
    let turn = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let start = || {
        let turn = std::sync::Arc::clone(&turn);
        Backend::start(move |exchange| {
            exchange.start_events()?;
            if turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 {
                exchange.close();
                return Ok(());
            }
            exchange.event(&chunk_event("alive"))?;
            exchange.event("[DONE]")?;
            exchange.end_events()
        })
    };
    let backends = [start(), start()];
    let gateway = Setup::new(&[backends[0].url(), backends[1].url()]).start();
    let mut client = open(&gateway, OPENAI);
    let (body, end) = read_rest(&mut client);
    end.unwrap();
    assert!(String::from_utf8_lossy(&body).contains("alive"));
    assert_eq!(backends.iter().map(Backend::posts).sum::<usize>(), 2);
    gateway.wait_idle();
}

#[test]
fn a_client_that_leaves_frees_the_replica_at_once() {
    let (sender, left) = channel();
    let sender = Mutex::new(sender);
    let backend = Backend::start(move |exchange| {
        exchange.start_events()?;
        exchange.event(&chunk_event("one"))?;
        exchange.peer_leaves_within(Duration::from_secs(5));
        let _ = sender.lock().send(now());
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[backend.url()]).start();
    for _ in 0..5 {
        let mut client = open(&gateway, OPENAI);
        read_until(&mut client, "one");
        let start = now();
        client.leave();
        let noticed = left.recv_timeout(Duration::from_secs(8)).unwrap().saturating_duration_since(start);
        assert!(noticed < Duration::from_millis(200), "the replica was freed only after {noticed:?}");
    }
    gateway.wait_idle();
}

#[test]
fn a_client_that_leaves_before_the_answer_frees_the_replica_at_once() {
    let (sender, left) = channel();
    let sender = Mutex::new(sender);
    let backend = Backend::start(move |exchange| {
        exchange.peer_leaves_within(Duration::from_secs(5));
        let _ = sender.lock().send(now());
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[backend.url()]).start();
    for turn in 1..=5 {
        let mut client = Client::connect(gateway.listen).unwrap();
        client.send_request("POST", OPENAI, &[], chat("hello").as_bytes()).unwrap();
        wait_for("the request to arrive", Duration::from_secs(5), || backend.posts() == turn);
        let start = now();
        client.leave();
        let noticed = left.recv_timeout(Duration::from_secs(8)).unwrap().saturating_duration_since(start);
        assert!(noticed < Duration::from_millis(200), "the replica was freed only after {noticed:?}");
    }
    gateway.wait_idle();
    assert_eq!(backend.posts(), 5, "a request whose client had left was retried");
}

#[test]
fn a_stream_reset_over_http2_frees_the_replica_at_once() {
    let (sender, left) = channel();
    let sender = Mutex::new(sender);
    let backend = Backend::start(move |exchange| {
        exchange.start_events()?;
        exchange.event(&chunk_event("one"))?;
        exchange.peer_leaves_within(Duration::from_secs(5));
        let _ = sender.lock().send(now());
        exchange.close();
        Ok(())
    });
    let gateway = Setup::new(&[backend.url()]).start();
    h2c::run(Duration::from_secs(20), async {
        let client = h2c::connect(gateway.listen).await;
        let mut stream = h2c::open(&client, OPENAI, Bytes::from(chat_stream("tell me"))).await.unwrap();
        let first = stream.data().await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&first).contains("one"));
        let start = now();
        drop(stream); // the connection stays
        let wait = tokio::task::spawn_blocking(move || left.recv_timeout(Duration::from_secs(8)));
        let noticed = wait.await.unwrap().unwrap().saturating_duration_since(start);
        assert!(noticed < Duration::from_millis(200), "the replica was freed only after {noticed:?}");
    });
    gateway.wait_idle();
}

#[test]
fn a_client_that_does_not_read_holds_the_replica_back() {
    const WHOLE: usize = 200 << 20;
    let backend = Backend::start(|exchange| {
        exchange.start_events()?;
        let event = chunk_event(&"x".repeat(64 * 1024));
        for _ in 0..WHOLE / event.len() {
            exchange.event(&event)?;
        }
        exchange.end_events()
    });
    let gateway = Setup::new(&[backend.url()]).start();
    let before = gateway.resident_kib();
    let mut client = open(&gateway, OPENAI);
    read_until(&mut client, "xxx");
    // It would be through in well under a second; what it may fill are the sockets' buffers.
    let done = crate::support::time::holds_within(Duration::from_secs(2), || backend.running() == 0);
    assert!(!done, "200 MB went into a client that does not read");
    let held = gateway.resident_kib().saturating_sub(before);
    assert!(held < 32 * 1024, "{held} KiB held for one slow client");
    client.leave();
    wait_for("the replica to be freed", Duration::from_secs(5), || backend.running() == 0);
    gateway.wait_idle();
}

/// A replica that sends two events and then breaks off.
fn breaking() -> Backend {
    Backend::start(|exchange| {
        exchange.start_events()?;
        exchange.event(&chunk_event("one"))?;
        exchange.event(&chunk_event("two"))?;
        exchange.raw(b"40\r\ndata: {\"half\":")?; // a chunk that never ends
        exchange.close();
        Ok(())
    })
}

#[test]
fn a_broken_stream_ends_with_a_typed_error_for_openai_clients() {
    let backend = breaking();
    let gateway = Setup::new(&[backend.url()]).start();
    let mut client = open(&gateway, OPENAI);
    let (body, _) = read_rest(&mut client);
    let events = events(&body);
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap_or_else(|_| panic!("{events:?}"));
    assert!(last["error"]["message"].is_string() && last["error"]["code"].is_string(), "{last}");
    assert!(!events.iter().any(|event| event == "[DONE]"), "a broken stream claims to be whole");
    assert_eq!(backend.posts(), 1, "a request was retried after its stream had begun");
    gateway.wait_idle();
}

#[test]
fn a_broken_stream_ends_with_a_typed_error_for_anthropic_clients() {
    let backend = breaking();
    let gateway = Setup::new(&[backend.url()]).start();
    let mut client = open(&gateway, ANTHROPIC);
    let (body, _) = read_rest(&mut client);
    let text = String::from_utf8_lossy(&body).into_owned();
    let last: Value = serde_json::from_str(events(&body).last().unwrap()).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!(last["type"], "error", "{text}");
    assert!(last["error"]["type"].is_string() && last["error"]["message"].is_string(), "{last}");
    assert!(text.lines().any(|line| line == "event: error"), "{text}");
    gateway.wait_idle();
}

/// One client of the storm: leaves early, stays, or meets a fault, by its number.
fn one_of_the_storm(address: std::net::SocketAddr, number: u64) {
    let body = chat_stream(&text(number, 2_000));
    let fault: &[(&str, &str)] = match number % 5 {
        3 => &[("x-mock-status", "500")],
        4 => &[("x-mock-close", "mid")],
        _ => &[],
    };
    let Ok(mut client) = Client::connect(address) else { return };
    if client.send_request("POST", OPENAI, fault, body.as_bytes()).is_err() {
        return;
    }
    match number % 5 {
        0 => client.leave(), // before the head
        1 => {
            let _ = client.read_head();
            let _ = client.read_chunk();
            client.leave(); // inside the stream
        }
        _ => {
            let _ = client.read_answer();
        }
    }
}

#[test]
fn counters_return_to_zero_after_a_storm() {
    let engines = Engine::mocks(
        3,
        &["--slots", "8", "--kv-tokens", "100000", "--prefill-tokens-per-s", "20000", "--decode-step-ms", "2"],
    );
    let gateway = Setup::new(&urls(&engines)).start();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let address = gateway.listen;
            scope.spawn(move || (0..40).for_each(|turn| one_of_the_storm(address, thread * 40 + turn)));
        }
    });
    gateway.wait_idle();
    for engine in &engines {
        wait_for("an engine to be idle", Duration::from_secs(5), || engine.stat("running") == 0);
    }
    assert!(engines.iter().map(|engine| engine.stat("cancelled")).sum::<u64>() > 0, "no cancel reached an engine");
    gateway.assert_serves();
}
