//! A client's body, read once into memory within its limits and its deadline, and kept until a replica has accepted it.

use crate::reject::Reject;
use bytes::{Bytes, BytesMut};
use pingora_core::protocols::http::ServerSession;
use pingora_error::ErrorType;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// First allocation for a body of unknown length.
const FIRST_CHUNK: usize = 16 * 1024;
/// Largest first allocation for a body of announced length.
const ROOM_ON_TRUST: usize = 1 << 20;
/// Bytes thrown away after a refusal, so that the client reads the answer instead of a reset.
const LINGER_BYTES: usize = 256 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(5);

/// Bytes of bodies that one shard holds, against its limit.
#[derive(Debug, Default)]
pub(super) struct BodyMemory {
    held: AtomicU64,
}

/// A body in memory; its bytes count against the shard's limit until it is dropped.
#[derive(Debug)]
pub(super) struct Body {
    /// What the client sent.
    pub bytes: Bytes,
    memory: Arc<BodyMemory>,
    counted: u64,
}

impl Body {
    fn empty(memory: &Arc<BodyMemory>) -> Self {
        Self { bytes: Bytes::new(), memory: Arc::clone(memory), counted: 0 }
    }

    fn count(&mut self, bytes: u64, limit: u64) -> Result<(), Reject> {
        let more = bytes.saturating_sub(self.counted);
        let before = self.memory.held.fetch_add(more, Relaxed);
        self.counted += more;
        if more > 0 && before > 0 && before + more > limit { Err(Reject::Overloaded) } else { Ok(()) }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.counted, Relaxed);
    }
}

/// Limits on bodies.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    /// Largest body.
    pub bytes: u64,
    /// Most bytes of bodies in one shard's memory.
    pub in_memory: u64,
    /// For the whole body.
    pub deadline: Duration,
}

/// Reads the whole body.
///
/// # Errors
/// Too large (before it is read, when its length says so), too slow, broken framing, or a client that left.
pub(super) async fn read(
    session: &mut ServerSession,
    memory: &Arc<BodyMemory>,
    limits: BodyLimits,
) -> Result<Body, Reject> {
    let too_large = Reject::BodyTooLarge { limit_bytes: limits.bytes };
    let length = session.get_header("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limits.bytes) {
        return Err(too_large);
    }
    let mut body = Body::empty(memory);
    if session.get_header("expect").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        session.write_continue_response().await.map_err(|_gone| Reject::ClientClosed)?;
    }
    let reading = gather(session, &mut body, length, limits);
    match tokio::time::timeout(limits.deadline, reading).await {
        Ok(read) => read.map(|()| body),
        Err(_elapsed) => Err(Reject::BodyTooSlow { limit: limits.deadline }),
    }
}

async fn gather(
    session: &mut ServerSession,
    body: &mut Body,
    length: Option<u64>,
    limits: BodyLimits,
) -> Result<(), Reject> {
    let Some(first) = next(session, limits).await? else { return Ok(()) };
    if u64::try_from(first.len()).ok() == length {
        body.count(first.len() as u64, limits.in_memory)?;
        body.bytes = first;
        return Ok(());
    }
    let expected = length.and_then(|length| usize::try_from(length).ok());
    // What a client announces is not believed beyond a point: memory is taken for what has come.
    let room = expected.unwrap_or(FIRST_CHUNK).min(ROOM_ON_TRUST).max(first.len());
    let mut whole = BytesMut::with_capacity(room);
    let mut chunk = Some(first);
    while let Some(bytes) = chunk {
        let total = (whole.len() + bytes.len()) as u64;
        if total > limits.bytes {
            return Err(Reject::BodyTooLarge { limit_bytes: limits.bytes });
        }
        body.count(total, limits.in_memory)?;
        whole.extend_from_slice(&bytes);
        chunk = next(session, limits).await?;
    }
    body.bytes = whole.freeze();
    Ok(())
}

async fn next(session: &mut ServerSession, limits: BodyLimits) -> Result<Option<Bytes>, Reject> {
    session.read_request_body().await.map_err(|error| {
        if *error.etype() == ErrorType::ReadTimedout {
            return Reject::BodyTooSlow { limit: limits.deadline };
        }
        let gone = matches!(
            error.etype(),
            ErrorType::ConnectionClosed
                | ErrorType::ReadError
                | ErrorType::H2Error
                | ErrorType::Custom("PrematureBodyEnd")
        );
        if gone { Reject::ClientClosed } else { Reject::Framing }
    })
}

/// Throws away what a refused client still sends, for a short while.
pub(super) async fn linger(session: &mut ServerSession) {
    let drain = async {
        let mut left = LINGER_BYTES;
        while let Ok(Some(bytes)) = session.read_request_body().await {
            left = left.saturating_sub(bytes.len());
            if left == 0 {
                return;
            }
        }
    };
    // Whether it ended by itself or by time, the connection is closed next.
    let _ended = tokio::time::timeout(LINGER, drain).await;
}
