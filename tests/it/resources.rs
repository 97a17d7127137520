//! Memory: at rest, with many streams open, and over very many unique prompts. Run by `./x soak`, alone on the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::backend::{Backend, chunk_event};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::Client;
use crate::support::time::{pause, wait_for};
use crate::support::{chat, chat_stream, text};

/// Memory of the index in these tests, MiB.
const INDEX_MIB: u64 = 64;
const PATH: &str = "/v1/chat/completions";

fn index_yaml() -> String {
    format!("index:\n  memory: {INDEX_MIB}MiB")
}

/// Resident memory once it has stood still for a moment.
fn settled_kib(gateway: &Gateway) -> u64 {
    let mut last = gateway.resident_kib();
    for _ in 0..20 {
        pause(Duration::from_millis(100));
        let next = gateway.resident_kib();
        if next.abs_diff(last) < 256 {
            return next;
        }
        last = next;
    }
    last
}

#[test]
#[ignore = "measures memory: ./x soak"]
fn at_rest_it_is_small() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).yaml(&index_yaml()).start();
    gateway.assert_serves();
    let resident = settled_kib(&gateway);
    eprintln!("resident at rest, an index of {INDEX_MIB} MiB included: {} MiB", resident / 1024);
    assert!(resident <= (64 + INDEX_MIB) * 1024, "{resident} KiB");
}

#[test]
#[ignore = "measures memory: ./x soak"]
fn a_thousand_streams_cost_little() {
    let open = Arc::new(AtomicBool::new(true));
    let backend = Backend::start({
        let open = Arc::clone(&open);
        move |exchange| {
            exchange.start_events()?;
            exchange.event(&chunk_event("begun"))?;
            while open.load(Ordering::Relaxed) {
                pause(Duration::from_millis(50));
            }
            exchange.event("[DONE]")?;
            exchange.end_events()
        }
    });
    let gateway = Setup::new(&[backend.url()]).yaml(&index_yaml()).start();
    gateway.assert_stream_and_close(&open);
    let before = settled_kib(&gateway);
    open.store(true, Ordering::Relaxed);
    let mut clients = Vec::new();
    for turn in 0..1_000 {
        let mut client = Client::connect(gateway.listen).unwrap();
        client.send_request("POST", PATH, &[], chat_stream(&text(turn, 8_000)).as_bytes()).unwrap();
        assert_eq!(client.read_head().unwrap().status, 200);
        assert!(client.read_chunk().unwrap().is_some());
        clients.push(client);
    }
    let more = settled_kib(&gateway).saturating_sub(before);
    eprintln!("1,000 open streams: {} MiB more", more / 1024);
    assert_eq!(gateway.in_flight(), 1_000);
    open.store(false, Ordering::Relaxed);
    for client in &mut clients {
        while client.read_chunk().unwrap().is_some() {}
    }
    gateway.wait_idle();
    assert!(more <= 100 * 1024, "{more} KiB more");
}

impl Gateway {
    /// One stream from start to end, so that what is allocated once is allocated.
    fn assert_stream_and_close(&self, open: &AtomicBool) {
        let mut client = Client::connect(self.listen).unwrap();
        client.send_request("POST", PATH, &[], chat_stream("hello").as_bytes()).unwrap();
        assert_eq!(client.read_head().unwrap().status, 200);
        open.store(false, Ordering::Relaxed);
        while client.read_chunk().unwrap().is_some() {}
    }
}

/// Sends `count` unique prompts over four kept connections.
fn send_unique(gateway: &Gateway, first: u64, count: u64) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut client = Client::connect(gateway.listen).unwrap();
                for turn in 0..count / 4 {
                    let body = chat(&text(first + thread * count + turn, 1_200));
                    let answer = client.exchange("POST", PATH, &[], body.as_bytes()).unwrap();
                    assert_eq!(answer.status(), 200, "{}", answer.text());
                }
            });
        }
    });
}

#[test]
#[ignore = "measures memory: ./x soak"]
fn unique_prompts_leave_nothing_behind() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).yaml(&index_yaml()).start();
    send_unique(&gateway, 0, 40_000); // fills what is bounded
    let before = settled_kib(&gateway);
    for round in 1..=4 {
        send_unique(&gateway, round * 1_000_000, 40_000);
    }
    wait_for("idle", Duration::from_secs(5), || gateway.in_flight() == 0);
    let after = settled_kib(&gateway);
    eprintln!("after 40k unique prompts {} MiB, after 200k {} MiB", before / 1024, after / 1024);
    assert!(after <= before + 8 * 1024 + INDEX_MIB * 1024 / 2, "{before} KiB became {after} KiB");
}
