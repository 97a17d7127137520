//! The demo's HTTP client: one chat request over a pooled connection, timed to the first token.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, header};
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::RequestHeader;
use serde_json::Value;

use crate::clock::Clock;

/// Largest answer read.
const ANSWER_LIMIT: usize = 1 << 20;
/// Longest wait for a connection, and between two reads.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(3);

/// A client of one gateway.
pub(super) struct Client {
    connector: Connector,
    peer: HttpPeer,
    authority: String,
    clock: Clock,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// Time to the first bytes of the body.
    pub(super) ttft: Duration,
    /// The assistant's words.
    pub(super) text: String,
}

impl Client {
    /// A client of the gateway at `addr`.
    pub(super) fn new(addr: SocketAddr, clock: Clock) -> Self {
        let mut peer = HttpPeer::new(addr, false, String::new());
        peer.options.connection_timeout = Some(PATIENCE);
        peer.options.read_timeout = Some(PATIENCE);
        peer.options.idle_timeout = Some(IDLE);
        Self { connector: Connector::new(None), peer, authority: addr.to_string(), clock }
    }

    /// Sends one chat request and reads all of the answer.
    ///
    /// # Errors
    /// The connection failed, or the answer was no HTTP or too long.
    pub(super) async fn chat(&self, body: Bytes) -> Result<Reply> {
        let start = self.clock.now();
        let mut session = self.send(body).await?;
        let head = session.response_header();
        let status = head.map_or(0, |head| head.status.as_u16());
        let is_stream = head
            .and_then(|head| head.headers.get(header::CONTENT_TYPE))
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let (mut answer, mut first) = (Vec::new(), None);
        while let Some(chunk) = session.read_response_body().await? {
            if !chunk.is_empty() {
                first.get_or_insert_with(|| self.clock.now());
            }
            answer.extend_from_slice(&chunk);
            if answer.len() > ANSWER_LIMIT {
                return Error::e_explain(ErrorType::ReadError, "the answer is too long");
            }
        }
        let ttft = first.unwrap_or_else(|| self.clock.now()).since(start);
        self.connector.release_http_session(session, &self.peer, Some(IDLE)).await;
        Ok(Reply { status, ttft, text: if is_stream { streamed(&answer) } else { whole(&answer) } })
    }

    /// Sends a request and reads the head of its answer; once more if a pooled connection turns out to be closed.
    async fn send(&self, body: Bytes) -> Result<HttpSession> {
        loop {
            let (mut session, is_reused) = self.connector.get_http_session(&self.peer).await?;
            match self.exchange(&mut session, body.clone()).await {
                Ok(()) => return Ok(session),
                Err(_closed_while_idle) if is_reused => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn exchange(&self, session: &mut HttpSession, body: Bytes) -> Result<()> {
        session.set_read_timeout(Some(PATIENCE));
        let mut head = RequestHeader::build(Method::POST, b"/v1/chat/completions", Some(4))?;
        head.insert_header(header::HOST, &self.authority)?;
        head.insert_header(header::CONTENT_TYPE, "application/json")?;
        head.insert_header(header::CONTENT_LENGTH, body.len())?;
        session.write_request_header(Box::new(head)).await?;
        session.write_request_body(body, true).await?;
        session.finish_request_body().await?;
        session.read_response_header().await
    }
}

/// The words of a plain answer; empty for an error.
fn whole(answer: &[u8]) -> String {
    let json: Value = serde_json::from_slice(answer).unwrap_or_default();
    json.pointer("/choices/0/message/content").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The words of a stream.
fn streamed(answer: &[u8]) -> String {
    let mut text = String::new();
    for line in answer.split(|byte| *byte == b'\n') {
        let Some(data) = line.strip_prefix(b"data: ") else { continue };
        let event: Value = serde_json::from_slice(data).unwrap_or_default();
        text.push_str(event.pointer("/choices/0/delta/content").and_then(Value::as_str).unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_streams_and_in_plain_answers() {
        let stream = b"data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\" a\"}}]}\n\n: ping\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\" b\"}}]}\n\ndata: [DONE]\n\n";
        assert_eq!(streamed(stream), " a b");
        assert_eq!(whole(br#"{"choices":[{"message":{"content":"hi"}}]}"#), "hi");
        assert_eq!(whole(b"oops"), "");
    }
}
