//! One attempt at one replica: connect, send the head and the body, wait for the answer's head and first bytes.
//!
//! The head of a good answer is held back until its first body bytes are there: an engine may send its head long before
//! it has computed anything, and as long as the client has seen nothing the request can go elsewhere.

use super::headers;
use crate::config::TimeoutConfig;
use crate::reject::Reject;
use bytes::Bytes;
use pingora_core::connectors::http::v1::Connector;
use pingora_core::protocols::http::v1::client::HttpSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType};
use pingora_http::{RequestHeader, ResponseHeader};
use std::net::SocketAddr;

/// A pool key under which no connection is ever kept: connections go back under the address's own.
const NEVER_POOLED: u64 = u64::MAX;
/// Interim answers (1xx) read before the replica is held to be broken.
const INTERIM_MAX: usize = 16;

/// A replica's answer, begun.
pub(super) struct Answer {
    /// The connection.
    pub upstream: Box<HttpSession>,
    /// Where it leads, to give it back to the pool.
    pub peer: HttpPeer,
    /// The answer's head.
    pub head: Box<ResponseHeader>,
    /// The first bytes of its body; `None` when the body is empty (or was not asked for: errors).
    pub first: Option<Bytes>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("status", &self.head.status).field("first", &self.first).finish()
    }
}

/// Why an attempt came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What the client would be told.
    pub reject: Reject,
    /// The request may go elsewhere: nothing was answered, and waiting was not the reason.
    pub elsewhere: bool,
    /// Nobody listens there any more: whatever the replica held is gone.
    pub is_down: bool,
}

/// What is sent.
#[derive(Debug)]
pub(super) struct Outbound<'r> {
    /// The client's head.
    pub head: &'r RequestHeader,
    /// It may run twice.
    pub is_repeatable: bool,
    /// The whole body; `None` when the request has none.
    pub body: Option<&'r Bytes>,
    /// The replica's `host:port`.
    pub authority: &'r str,
    /// Its address.
    pub address: SocketAddr,
}

/// Sends one request to one replica and waits for the first bytes of its answer.
///
/// # Errors
/// [`Failure`] says what happened and whether the request may go elsewhere.
pub(super) async fn attempt(
    connector: &Connector,
    outbound: &Outbound<'_>,
    timeouts: &TimeoutConfig,
) -> Result<Answer, Failure> {
    let mut peer = HttpPeer::new(outbound.address, false, String::new());
    peer.options.connection_timeout = Some(timeouts.connect);
    peer.options.total_connection_timeout = Some(timeouts.connect);
    peer.options.idle_timeout = Some(timeouts.upstream_idle);
    let (tried, reused) = on_connection(connector, &peer, outbound, timeouts).await;
    let tried = match tried {
        // The replica closed a connection that was idle in the pool, as it may: once more on a new one.
        Err(Failure { reject: Reject::UpstreamClosed, .. }) if reused && outbound.is_repeatable => {
            let mut unpooled = peer.clone();
            unpooled.group_key = NEVER_POOLED;
            on_connection(connector, &unpooled, outbound, timeouts).await.0
        }
        tried => tried,
    };
    let (upstream, head, first) = tried?;
    Ok(Answer { upstream, peer, head, first })
}

type Begun = (Box<HttpSession>, Box<ResponseHeader>, Option<Bytes>);

/// One exchange on one connection, and whether that came from the pool.
async fn on_connection(
    connector: &Connector,
    peer: &HttpPeer,
    outbound: &Outbound<'_>,
    timeouts: &TimeoutConfig,
) -> (Result<Begun, Failure>, bool) {
    let (mut upstream, reused) = match connector.get_http_session(peer).await {
        Ok(connected) => connected,
        Err(error) => {
            let is_down = *error.etype() == ErrorType::ConnectRefused;
            return (Err(Failure { reject: Reject::UpstreamConnect, elsewhere: true, is_down }), false);
        }
    };
    upstream.write_timeout = Some(timeouts.gap);
    upstream.read_timeout = Some(timeouts.first_byte);
    let begun = exchange(&mut upstream, outbound, timeouts).await;
    upstream.read_timeout = Some(timeouts.gap);
    (begun.map(|(head, first)| (Box::new(upstream), head, first)), reused)
}

async fn exchange(
    upstream: &mut HttpSession,
    outbound: &Outbound<'_>,
    timeouts: &TimeoutConfig,
) -> Result<(Box<ResponseHeader>, Option<Bytes>), Failure> {
    let head = headers::upstream_request(outbound.head, outbound.authority, outbound.body.map(Bytes::len))
        .map_err(|_unsettable| Failure { reject: Reject::Framing, elsewhere: false, is_down: false })?;
    let sent = send(upstream, head, outbound.body).await;
    if sent.is_err() {
        // It may have answered before it had read everything, and closed: that answer is worth reading.
        upstream.read_timeout = Some(timeouts.connect);
    }
    let failed = |error: &Error| match sent {
        Ok(()) => broken(error, timeouts),
        Err(_) => Failure { reject: Reject::UpstreamClosed, elsewhere: true, is_down: false },
    };
    let mut interim = 0;
    let head = loop {
        upstream.read_response().await.map_err(|error| failed(&error))?;
        let head = upstream.resp_header().ok_or(Failure {
            reject: Reject::UpstreamInvalid,
            elsewhere: true,
            is_down: false,
        })?;
        if !head.status.is_informational() {
            break Box::new(head.clone());
        }
        interim += 1;
        if interim > INTERIM_MAX {
            return Err(Failure { reject: Reject::UpstreamInvalid, elsewhere: true, is_down: false });
        }
    };
    if !head.status.is_success() {
        return Ok((head, None));
    }
    let first = upstream.read_body_bytes().await.map_err(|error| failed(&error))?;
    Ok((head, first))
}

async fn send(upstream: &mut HttpSession, head: RequestHeader, body: Option<&Bytes>) -> pingora_error::Result<()> {
    upstream.write_request_header(Box::new(head)).await?;
    if let Some(body) = body {
        upstream.write_body(body).await?;
    }
    upstream.finish_body().await?;
    Ok(())
}

/// What a read error says of the replica.
#[must_use]
pub(super) fn broken(error: &Error, timeouts: &TimeoutConfig) -> Failure {
    let kind = error.etype();
    if *kind == ErrorType::ReadTimedout {
        return Failure {
            reject: Reject::UpstreamTimeout { limit: timeouts.first_byte },
            elsewhere: false,
            is_down: false,
        };
    }
    let garbled = matches!(
        kind,
        ErrorType::InvalidHTTPHeader | ErrorType::Custom("InvalidChunk" | "InvalidTrailerEnd" | "InvalidContentLength")
    );
    Failure {
        reject: if garbled { Reject::UpstreamInvalid } else { Reject::UpstreamClosed },
        elsewhere: true,
        is_down: false,
    }
}
