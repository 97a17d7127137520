//! Requests whose end two parsers could see in different places: refused, and nothing hidden in them reaches a replica.

use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::chat;
use crate::support::gateway::Setup;
use crate::support::http::Client;

/// The request hidden in the body of each attempt.
const HIDDEN: &str = "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nx-hidden: 1\r\ncontent-length: 2\r\n\r\n{}";

/// What must come of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Answered 4xx or 501, and the connection closed.
    Refused,
    /// Either that, or read in the one way that the standard allows: the hidden request is never seen on its own.
    Harmless,
}

/// A POST with these header lines, each ended as given, and this body.
fn raw(lines: &str, body: &str) -> String {
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n{lines}\r\n{body}")
}

fn attempts() -> Vec<(&'static str, String, Expected)> {
    use Expected::{Harmless, Refused};
    let good = chat("hi");
    let length = good.len();
    let both = good.len() + HIDDEN.len();
    let chunked = format!("{length:x}\r\n{good}\r\n0\r\n\r\n{HIDDEN}");
    let closed = format!("0\r\n\r\n{HIDDEN}");
    let with_hidden = format!("{good}{HIDDEN}");
    vec![
        (
            "length and chunked",
            raw(&format!("content-length: {both}\r\ntransfer-encoding: chunked\r\n"), &closed),
            Refused,
        ),
        ("chunked and length", raw("transfer-encoding: chunked\r\ncontent-length: 4\r\n", &chunked), Refused),
        ("two lengths", raw(&format!("content-length: {length}\r\ncontent-length: {both}\r\n"), &with_hidden), Refused),
        ("two lengths in a list", raw(&format!("content-length: {length}, {both}\r\n"), &with_hidden), Refused),
        ("negative length", raw("content-length: -1\r\n", &with_hidden), Refused),
        ("plus length", raw(&format!("content-length: +{length}\r\n"), &with_hidden), Refused),
        ("hexadecimal length", raw("content-length: 0x10\r\n", &with_hidden), Refused),
        ("empty length", raw("content-length: \r\n", &with_hidden), Refused),
        ("length past 2^64", raw("content-length: 18446744073709551632\r\n", &with_hidden), Refused),
        ("unknown coding", raw("transfer-encoding: xchunked\r\n", &chunked), Refused),
        ("coding with a tab", raw("transfer-encoding:\tchunked\x0b\r\n", &chunked), Refused),
        ("chunked not last", raw("transfer-encoding: chunked, identity\r\n", &chunked), Refused),
        ("chunked twice", raw("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", &chunked), Refused),
        ("identity before chunked", raw("transfer-encoding: identity, chunked\r\n", &chunked), Harmless),
        ("folded header", raw("x-a: b\r\n transfer-encoding: chunked\r\ncontent-length: 0\r\n", &chunked), Refused),
        ("folded coding", raw("transfer-encoding:\r\n chunked\r\n", &chunked), Refused),
        ("space before colon", raw(&format!("content-length : {length}\r\n"), &with_hidden), Refused),
        ("tab before colon", raw("transfer-encoding\t: chunked\r\n", &chunked), Refused),
        ("bare line feeds", raw(&format!("content-length: {length}\nx-b: 1\n"), &good), Harmless),
        ("carriage return inside", raw("x-a: b\rcontent-length: 4\r\n", &with_hidden), Refused),
        ("zero byte in a value", raw("x-a: b\0c\r\n", &with_hidden), Refused),
        (
            "chunk size overflow",
            raw("transfer-encoding: chunked\r\n", &format!("10000000000000002\r\n{good}")),
            Refused,
        ),
        ("negative chunk size", raw("transfer-encoding: chunked\r\n", "-1\r\n{}\r\n0\r\n\r\n"), Refused),
        ("chunk size not a number", raw("transfer-encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n"), Refused),
        ("chunk longer than its size", raw("transfer-encoding: chunked\r\n", "2\r\n{}{}{}\r\n0\r\n\r\n"), Refused),
        (
            "hidden behind HTTP/1.0",
            raw("transfer-encoding: chunked\r\n", &chunked)
                .replace("HTTP/1.1\r\nhost: h\r\ncontent-t", "HTTP/1.0\r\nhost: h\r\ncontent-t"),
            Harmless,
        ),
    ]
}

/// Sends one attempt; the finding, if it did not go as expected.
fn try_one(
    name: &str,
    bytes: &str,
    expected: Expected,
    backend: &Backend,
    gateway: std::net::SocketAddr,
) -> Option<String> {
    let before = backend.posts();
    let mut client = Client::connect(gateway).unwrap();
    client.set_read_limit(Duration::from_secs(3));
    let sent = client.send(bytes.as_bytes());
    let head = sent.and_then(|()| client.read_head());
    let received = backend.received().split_off(before);
    if received.iter().any(|request| !request.header_values("x-hidden").is_empty()) {
        return Some(format!("{name}: the hidden request reached the replica"));
    }
    let status = match head {
        Ok(head) => head.status,
        // Closed without a word is a refusal too; silence is not.
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Some(format!("{name}: no answer")),
        Err(_) => return None,
    };
    let refused = (400..500).contains(&status) || status == 501;
    if expected == Expected::Refused && !refused {
        return Some(format!("{name}: answered {status}"));
    }
    if refused && !client.closes_within(Duration::from_secs(3)) {
        return Some(format!("{name}: answered {status} and kept the connection"));
    }
    (refused && !received.is_empty()).then(|| format!("{name}: refused with {status}, yet forwarded"))
}

#[test]
fn ambiguous_framing_is_refused() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).start();
    let findings: Vec<String> = attempts()
        .iter()
        .filter_map(|(name, bytes, expected)| try_one(name, bytes, *expected, &backend, gateway.listen))
        .collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
    gateway.assert_serves();
    gateway.wait_idle();
}

#[test]
fn header_floods_are_refused() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).start();
    let many: String = (0..10_000).map(|n| format!("x-flood-{n}: 1\r\n")).collect();
    let large = format!("x-flood: {}\r\n", "a".repeat(1_000_000));
    let long_path = format!("POST /v1/{} HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{{}}", "a".repeat(1_000_000));
    for (name, bytes) in [("many", raw(&many, "")), ("large", raw(&large, "")), ("long path", long_path)] {
        let mut client = Client::connect(gateway.listen).unwrap();
        client.set_read_limit(Duration::from_secs(5));
        let _ = client.send(bytes.as_bytes()); // it may close before all is sent
        let told = client.read_head().map(|head| head.status);
        assert!(told.as_ref().is_err() || matches!(told, Ok(400 | 414 | 431)), "{name}: answered {told:?}");
        assert!(client.closes_within(Duration::from_secs(5)), "{name}: told {told:?}, and the connection was kept");
    }
    assert_eq!(backend.posts(), 0);
    gateway.assert_serves();
}

#[test]
fn a_pipelined_request_does_not_harm_the_first() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).start();
    let one = raw(&format!("content-length: {}\r\n", chat("hi").len()), &chat("hi"));
    let mut client = Client::connect(gateway.listen).unwrap();
    client.send(one.repeat(2).as_bytes()).unwrap();
    let answer = client.read_answer().unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text());
    // The second is answered too, or the connection is closed so that the client sends it again.
    if let Ok(answer) = client.read_answer() {
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    gateway.wait_idle();
}

#[test]
fn hop_by_hop_headers_stay_on_their_hop() {
    let backend = Backend::start(|exchange| {
        exchange.answer(
            200,
            &[("keep-alive", "timeout=5"), ("x-plain", "1"), ("content-type", "application/json")],
            b"{}",
        )
    });
    let gateway = Setup::new(&[backend.url()]).start();
    let mut client = Client::connect(gateway.listen).unwrap();
    let headers = [
        ("connection", "keep-alive, x-private"),
        ("x-private", "1"),
        ("keep-alive", "timeout=9"),
        ("te", "trailers"),
        ("proxy-connection", "keep-alive"),
        ("x-public", "1"),
    ];
    let answer = client.exchange("POST", "/v1/chat/completions", &headers, chat("hi").as_bytes()).unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.head.header("x-plain"), Some("1"));
    assert_eq!(answer.head.header("keep-alive"), None);
    let received = &backend.received()[0];
    assert_eq!(received.header_values("x-public"), ["1"]);
    for name in ["x-private", "keep-alive", "proxy-connection", "te"] {
        assert_eq!(received.header_values(name), Vec::<&str>::new(), "{name} was forwarded");
    }
}
