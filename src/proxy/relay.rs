//! A replica's answer passed to the client as it comes, chunk by chunk, and read on the way for what it teaches: when the
//! first token came, how far apart tokens are, and what the engine says it reused.

use super::events::EventGate;
use super::forward::Answer;
use super::respond::Dialect;
use super::shard::Shard;
use crate::clock::Now;
use crate::config::TimeoutConfig;
use crate::parse::answer::AnswerReader;
use crate::parse::usage::Usage;
use crate::pipeline::{Placement, Underway};
use crate::reject::Reject;
use bytes::{Bytes, BytesMut};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v1::client::HttpSession;
use pingora_error::Error;
use pingora_http::ResponseHeader;

/// Most bytes, and most reads, passed in one write.
const BATCH_BYTES: usize = 32 * 1024;
const BATCH_READS_MAX: usize = 64;

/// What a read from the replica gave: bytes, or its end, good or bad.
type Read = Result<Option<Bytes>, End>;

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The whole answer passed.
    Complete,
    /// The client left; the replica's connection is dropped, so that it stops computing.
    ClientLeft,
    /// The replica's answer broke off. The client was told, where the answer's framing allows it.
    Broken(Reject),
}

/// What was seen of the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seen {
    /// How it ended.
    pub end: End,
    /// When the first token came, for streams.
    pub first_token: Option<Now>,
    /// When the last one came.
    pub last_token: Option<Now>,
    /// It is a stream of events.
    pub is_stream: bool,
    /// Events that held content.
    pub content_events: u64,
    /// What the engine counted.
    pub usage: Usage,
    /// The engine said, inside a stream that began well, that it failed.
    pub told_failure: bool,
    /// The client's connection is where the next answer may begin.
    pub is_framed: bool,
    /// Body bytes passed.
    pub bytes: u64,
}

/// The state of one relay.
pub(super) struct Relay<'r> {
    pub(super) shard: &'r Shard,
    pub(super) session: &'r mut ServerSession,
    pub(super) underway: &'r mut Underway,
    /// Told what the answer says.
    pub(super) placement: &'r mut Placement,
    /// `None` for a path that is passed through.
    pub(super) reader: Option<AnswerReader>,
    pub(super) dialect: Dialect,
    pub(super) timeouts: &'r TimeoutConfig,
    pub(super) is_stream: bool,
    /// Holds half events back; `None` where the body is no event stream in plain bytes.
    pub(super) gate: Option<EventGate>,
    /// The answer's only end is that of its connection, which a crash looks like too.
    pub(super) ends_with_connection: bool,
}

impl Relay<'_> {
    /// Writes `head`, then passes the body on until it ends, one way or another. The replica's connection goes back to
    /// its pool after a whole answer, and is closed otherwise.
    pub(super) async fn run(mut self, mut answer: Answer, head: ResponseHeader) -> Seen {
        let mut seen = Seen {
            end: End::ClientLeft,
            first_token: None,
            last_token: None,
            content_events: 0,
            usage: Usage::default(),
            is_stream: self.is_stream,
            told_failure: false,
            is_framed: false,
            bytes: 0,
        };
        if self.session.write_response_header(Box::new(head)).await.is_ok() {
            seen.end = self.pass(&mut answer, &mut seen).await;
        }
        let (placement, shared) = (&mut *self.placement, &self.shard.core.shared);
        let mut go_on = |said: &[u8]| placement.go_on(shared, said);
        seen.usage = self.reader.as_mut().map(|reader| reader.finish_into(&mut go_on)).unwrap_or_default();
        match seen.end {
            End::Complete => {
                seen.is_framed = true;
                let Answer { upstream, peer, .. } = answer;
                self.shard.connector.release_http_session(*upstream, &peer, Some(self.timeouts.upstream_idle)).await;
            }
            End::Broken(reject) if self.is_stream => {
                let event =
                    [self.gate.as_ref().map_or(&b""[..], EventGate::closing), &self.dialect.error_event(reject)]
                        .concat();
                // It cannot be written where the replica had announced another length, or the client is gone.
                seen.is_framed = self.session.write_response_body(event.into(), true).await.is_ok();
            }
            End::Broken(_) | End::ClientLeft => {}
        }
        seen
    }

    async fn pass(&mut self, answer: &mut Answer, seen: &mut Seen) -> End {
        let upstream = &mut answer.upstream;
        let mut read = match answer.first.take() {
            Some(first) => Ok(Some(first)),
            None => match self.next(upstream).await {
                Some(read) => read,
                None => return End::ClientLeft,
            },
        };
        loop {
            let bytes = match read {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return self.end(Bytes::new()).await,
                Err(end) => return end,
            };
            let (bytes, then) = self.with_what_is_there(bytes, upstream).await;
            self.note(&bytes, seen);
            let bytes = match &mut self.gate {
                Some(gate) => gate.pass(bytes),
                None => bytes,
            };
            let is_last = match &then {
                Some(then) => matches!(then, Ok(None)),
                None => upstream.is_body_done(),
            };
            if is_last {
                return self.end(bytes).await;
            }
            if self.session.write_response_body(bytes, false).await.is_err() {
                return End::ClientLeft;
            }
            read = match then {
                Some(then) => then,
                None => match self.next(upstream).await {
                    Some(read) => read,
                    None => return End::ClientLeft,
                },
            };
        }
    }

    /// `bytes` and all that has come behind them already, so that a burst costs one write; and what came then, if that
    /// is known. Never waits.
    async fn with_what_is_there(&self, bytes: Bytes, upstream: &mut HttpSession) -> (Bytes, Option<Read>) {
        let mut batch: Option<BytesMut> = None;
        let mut gathered = bytes.len();
        for _ in 0..BATCH_READS_MAX {
            if gathered >= BATCH_BYTES || upstream.is_body_done() {
                break;
            }
            let more = tokio::select! {
                biased;
                read = upstream.read_body_bytes() => read,
                () = std::future::ready(()) => break,
            };
            match more {
                Ok(Some(more)) => {
                    gathered += more.len();
                    batch.get_or_insert_with(|| BytesMut::from(&bytes[..])).extend_from_slice(&more);
                }
                Ok(None) => return (batch.map_or(bytes, BytesMut::freeze), Some(Ok(None))),
                Err(error) => {
                    let broken = End::Broken(cut_short(&error, self.timeouts));
                    return (batch.map_or(bytes, BytesMut::freeze), Some(Err(broken)));
                }
            }
        }
        (batch.map_or(bytes, BytesMut::freeze), None)
    }

    /// The next bytes from the replica; `None` when the client leaves first.
    async fn next(&mut self, upstream: &mut HttpSession) -> Option<Read> {
        if upstream.is_body_done() {
            return Some(Ok(None));
        }
        tokio::select! {
            biased;
            read = upstream.read_body_bytes() => {
                Some(read.map_err(|error| End::Broken(cut_short(&error, self.timeouts))))
            }
            _left = self.session.read_body_or_idle(true) => None,
        }
    }

    /// The replica's answer is over: passes its last `bytes` and ends the client's.
    async fn end(&mut self, bytes: Bytes) -> End {
        // Before the client has the last byte: what it asks next finds the replica free.
        self.underway.ended(self.shard.core.clock.now());
        if self.ends_with_connection && self.is_cut_short() {
            return match self.session.write_response_body(bytes, false).await {
                Ok(()) => End::Broken(Reject::UpstreamClosed),
                Err(_gone) => End::ClientLeft,
            };
        }
        let rest = self.gate.as_mut().map(EventGate::rest).unwrap_or_default();
        let last = match (rest.is_empty(), bytes.is_empty()) {
            (true, _) => bytes,
            (false, true) => rest,
            (false, false) => [bytes, rest].concat().into(),
        };
        match self.session.write_response_body(last, true).await {
            Ok(()) => End::Complete,
            Err(_gone) => End::ClientLeft,
        }
    }

    /// The connection ended before the stream had said that it was whole.
    fn is_cut_short(&self) -> bool {
        self.is_stream && self.reader.as_ref().is_some_and(|reader| !reader.is_complete())
    }

    fn note(&mut self, bytes: &Bytes, seen: &mut Seen) {
        seen.bytes += bytes.len() as u64;
        let (placement, shared) = (&mut *self.placement, &self.shard.core.shared);
        let mut go_on = |said: &[u8]| placement.go_on(shared, said);
        let kind = self.reader.as_mut().map(|reader| reader.feed_into(bytes, &mut go_on)).unwrap_or_default();
        let tokens = kind.tokens;
        seen.told_failure |= kind.failed;
        if seen.bytes == bytes.len() as u64 && !self.is_stream {
            self.underway.prefilled(self.shard.core.clock.now());
        }
        if tokens == 0 {
            return;
        }
        let now = self.shard.core.clock.now();
        seen.content_events += u64::from(tokens);
        if self.is_stream {
            match seen.last_token {
                None => {
                    seen.first_token = Some(now);
                    self.underway.prefilled(now);
                }
                Some(before) => {
                    self.underway.token(&self.shard.core.shared, now);
                    self.shard.metrics.inter_token.observe(now.seconds_since(before) / f64::from(tokens));
                }
            }
            seen.last_token = Some(now);
        }
    }
}

fn cut_short(error: &Error, timeouts: &TimeoutConfig) -> Reject {
    let reject = super::forward::broken(error, timeouts).reject;
    if matches!(reject, Reject::UpstreamTimeout { .. }) {
        return Reject::UpstreamTimeout { limit: timeouts.gap };
    }
    reject
}
