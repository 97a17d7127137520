//! When a client's connection ends: HTTP/1.0, `Connection: close`, and methods whose answers have no body.

use std::time::Duration;

use crate::support::backend::{Backend, chunk_event};
use crate::support::gateway::Setup;
use crate::support::http::{Client, events};
use crate::support::time::wait_for;
use crate::support::{chat, chat_stream};

const PATH: &str = "/v1/chat/completions";
/// Far below the time that idle connections are kept.
const AT_ONCE: Duration = Duration::from_secs(3);

fn post(version: &str, lines: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {PATH} HTTP/{version}\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         {lines}\r\n{body}"
    )
}

#[test]
fn clients_that_want_the_connection_closed_get_that() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).start();
    let requests = [
        ("HTTP/1.0", post("1.0", "", &chat("hi"))),
        ("Connection: close", post("1.1", "connection: close\r\n", &chat("hi"))),
        ("Connection: Close among others", post("1.1", "connection: x-a, Close\r\n", &chat("hi"))),
        ("HTTP/1.0 GET", "GET /v1/models HTTP/1.0\r\n\r\n".to_owned()),
        ("GET, Connection: close", "GET /v1/models HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n".to_owned()),
        ("refused", post("1.1", "connection: close\r\n", "not json")),
    ];
    for (name, request) in requests {
        let mut client = Client::connect(gateway.listen).unwrap();
        client.send(request.as_bytes()).unwrap();
        let answer = client.read_answer().unwrap();
        assert_eq!(answer.status(), if name == "refused" { 400 } else { 200 }, "{name}: {}", answer.text());
        assert_eq!(client.read_until_closed(AT_ONCE), Some(Vec::new()), "{name}: the connection was kept");
    }
    // Without any of that it is kept.
    let mut client = Client::connect(gateway.listen).unwrap();
    for _ in 0..3 {
        assert_eq!(client.exchange("POST", PATH, &[], chat("hi").as_bytes()).unwrap().status(), 200);
    }
}

#[test]
fn a_stream_for_http_1_0_has_no_chunks_and_ends_with_the_connection() {
    let backend = Backend::start(|exchange| {
        exchange.start_events()?;
        exchange.event(&chunk_event("one"))?;
        exchange.event("[DONE]")?;
        exchange.end_events()
    });
    let gateway = Setup::new(&[backend.url()]).start();
    let mut client = Client::connect(gateway.listen).unwrap();
    client.send(post("1.0", "", &chat_stream("hi")).as_bytes()).unwrap();
    let head = client.read_head().unwrap();
    assert_eq!((head.status, head.header("transfer-encoding"), head.header("content-length")), (200, None, None));
    let body = client.read_until_closed(AT_ONCE).expect("the connection was kept");
    let text = String::from_utf8_lossy(&body).into_owned();
    assert!(text.starts_with("data: {") && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(events(&body).len(), 2);
    gateway.wait_idle();
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).start();
    let mut client = Client::connect(gateway.listen).unwrap();
    let get = client.exchange("GET", "/v1/models", &[], b"").unwrap();
    for path in ["/v1/models", "/v1/models/m", "/health"] {
        client.send_request("HEAD", path, &[], b"").unwrap();
        let head = client.read_head().unwrap();
        assert_eq!(head.status, 200, "{path}");
        if path == "/v1/models" {
            assert_eq!(head.header("content-length"), get.head.header("content-length"));
        }
        // Were there a body, it would stand before the next answer on this connection.
        let next = client.exchange("GET", "/v1/models", &[], b"").unwrap();
        assert_eq!(next.body, get.body, "{path}");
    }
    wait_for("nothing in flight", AT_ONCE, || gateway.in_flight() == 0);
}
