//! Bodies of any size, however they arrive, reach the replica byte for byte, also when it takes several tries.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::support::backend::{Backend, Received};
use crate::support::gateway::Setup;
use crate::support::http::Client;
use crate::support::{chat, checksum, free_address, h2c, text};

const PATH: &str = "/v1/chat/completions";
const FIVE_MB: usize = 5_000_000;

/// The replica got exactly `body`, framed by one length and nothing else.
#[track_caller]
fn assert_arrived(received: &Received, body: &[u8]) {
    assert_eq!((received.body.len(), checksum(&received.body)), (body.len(), checksum(body)), "the body changed");
    assert_eq!(received.header_values("content-length"), [body.len().to_string()]);
    assert_eq!(received.header_values("transfer-encoding"), Vec::<&str>::new());
    assert_eq!(received.header_values("expect"), Vec::<&str>::new());
}

#[test]
fn five_megabytes_arrive_with_content_length() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).start();
    let body = chat(&text(1, FIVE_MB));
    let answer = gateway.post(PATH, &body);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_arrived(&backend.received()[0], body.as_bytes());
}

#[test]
fn five_megabytes_arrive_in_chunks() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).start();
    let body = chat(&text(2, FIVE_MB));
    for piece in [7_001, 64 * 1024, FIVE_MB] {
        let mut client = Client::connect(gateway.listen).unwrap();
        client.send_chunked(PATH, &[], body.as_bytes(), piece).unwrap();
        let answer = client.read_answer().unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert_arrived(backend.received().last().unwrap(), body.as_bytes());
    }
}

#[test]
fn five_megabytes_arrive_over_http2() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).start();
    let body = chat(&text(3, FIVE_MB));
    h2c::run(Duration::from_secs(30), async {
        let client = h2c::connect(gateway.listen).await;
        let answer = h2c::post(&client, PATH, Bytes::from(body.clone())).await.unwrap();
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        // The connection is still good, and streams share it.
        let small = chat("again");
        let (one, two) = tokio::join!(
            h2c::post(&client, PATH, Bytes::from(small.clone())),
            h2c::post(&client, PATH, Bytes::from(small.clone())),
        );
        assert_eq!((one.unwrap().status, two.unwrap().status), (200, 200));
    });
    let received = backend.received();
    assert_arrived(&received[0], body.as_bytes());
    assert_eq!(received.len(), 3);
}

#[test]
fn a_client_that_expects_100_continue_is_told_to() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).start();
    let body = chat(&text(4, 300_000));
    let mut client = Client::connect(gateway.listen).unwrap();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    );
    client.send(head.as_bytes()).unwrap();
    assert_eq!(client.read_head().unwrap().status, 100);
    client.send(body.as_bytes()).unwrap();
    let answer = client.read_answer().unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_arrived(&backend.received()[0], body.as_bytes());
}

#[test]
fn connections_are_kept_on_both_sides() {
    let backend = Backend::completing();
    // Health checks have connections of their own.
    let gateway = Setup::new(&[backend.url()]).yaml("health: off").start();
    let before = backend.connections();
    let mut client = Client::connect(gateway.listen).unwrap();
    for turn in 0..20 {
        let body = chat(&text(turn, if turn % 3 == 0 { 200_000 } else { 500 }));
        if turn % 2 == 0 {
            client.send_chunked(PATH, &[], body.as_bytes(), 10_000).unwrap();
        } else {
            client.send_request("POST", PATH, &[], body.as_bytes()).unwrap();
        }
        assert_eq!(client.read_answer().unwrap().status(), 200, "turn {turn}");
        assert_arrived(backend.received().last().unwrap(), body.as_bytes());
    }
    let opened = backend.connections() - before;
    assert!(opened <= 4, "20 requests in a row took {opened} connections to the replica");
}

#[test]
fn only_the_models_name_is_rewritten() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).yaml("models:\n  - name: \"public/name\"\n    served_as: m").start();
    // Odd spacing, an escape, a vendor field, keys in an unusual order: all of it must stay.
    let body = format!(
        "{{ \"messages\" :[{{\"content\":\"model \\u00e9 \\\"model\\\": \\\"public/name\\\" {}\",\"role\":\"user\"}}],\n\
         \"x_vendor\":{{\"model\":\"public/name\"}}, \"model\"  : \"public/name\" ,\"max_tokens\":4}}",
        text(5, 100_000)
    );
    let answer = gateway.post(PATH, &body);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let expected = body.replacen("\"model\"  : \"public/name\"", "\"model\"  : \"m\"", 1);
    assert_arrived(&backend.received()[0], expected.as_bytes());
}

#[test]
fn one_request_survives_four_kinds_of_failure() {
    // Whichever replica is asked, the first attempt is closed on, the second gets 503, the third 429, the fourth works.
    let attempts = Arc::new(AtomicUsize::new(0));
    let start = || {
        let attempts = Arc::clone(&attempts);
        Backend::start(move |exchange| match attempts.fetch_add(1, Ordering::SeqCst) % 4 {
            0 => {
                exchange.close();
                Ok(())
            }
            1 => exchange.json(503, r#"{"error":{"message":"starting"}}"#),
            2 => exchange.answer(429, &[("retry-after", "7")], b"{}"),
            _ => exchange.completion(),
        })
    };
    let backends: Vec<Backend> = (0..4).map(|_| start()).collect();
    let mut urls: Vec<String> = backends.iter().map(Backend::url).collect();
    urls.push(format!("http://{}", free_address())); // refuses
    let gateway = Setup::new(&urls)
        .policy("round_robin")
        .yaml(
            "retry:\n  attempts: 5\n  budget: 1.0\n  budget_floor_per_s: 1000\nejection:\n  consecutive_failures: 1000",
        )
        .start();
    for turn in 0..5 {
        attempts.store(0, Ordering::SeqCst);
        let body = chat(&text(turn, 1_500_000));
        let answer = gateway.post(PATH, &body);
        assert_eq!(answer.status(), 200, "turn {turn}: {}", answer.text());
        assert_eq!(attempts.load(Ordering::SeqCst), 4, "turn {turn}: attempts that reached a replica");
        let turn = usize::try_from(turn).unwrap();
        assert_eq!(backends.iter().map(Backend::posts).sum::<usize>(), (turn + 1) * 4);
        // A connection that was idle in the pool and turns out closed costs a second try at the same replica, so
        // which replica had which attempt is open; that all four had the whole body is not.
        let arrived = backends.iter().flat_map(Backend::received).filter(|one| one.body == body.as_bytes());
        assert_eq!(arrived.count(), 4, "turn {turn}: attempts that brought the whole body");
    }
    gateway.wait_idle();
}

#[test]
fn the_last_attempts_own_answer_reaches_the_client() {
    let backend =
        Backend::start(|exchange| exchange.answer(429, &[("retry-after", "7")], br#"{"error":{"message":"full"}}"#));
    let gateway = Setup::new(&[backend.url()]).start();
    let answer = gateway.post(PATH, &chat("hello"));
    assert_eq!((answer.status(), answer.head.header("retry-after")), (429, Some("7")));
    assert!(answer.text().contains("full"), "{}", answer.text());
    gateway.wait_idle();
}
