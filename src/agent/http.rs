//! HTTP/1.1 `GET` over one kept connection, in plain text: all an agent asks of the engine beside it. Made by hand to
//! be small: no TLS, no redirects, no proxies. What an answer may take is bounded, in bytes and in time.
//!
//! The same code runs over two kinds of connection. An agent has a thread to wait in: its reads block, one system call
//! where a runtime needs several. A gateway that reads many pages itself waits for all of them in one runtime.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use url::Url;

use super::link::Link;
use crate::clock::{Clock, Now};
use crate::engine::PAGE_BYTES_MAX;

/// Longest head of an answer, bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Longest answer, head and chunk lengths and all.
const ANSWER_BYTES_MAX: usize = PAGE_BYTES_MAX + (64 << 10);
/// Read at once.
const READ_BYTES: usize = 32 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpFault {
    /// Nobody listens there.
    #[error("nothing listens there (connection refused)")]
    Refused,
    /// The connection could not be made, or broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The engine took too long.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Slow(Duration),
    /// The answer is longer than [`ANSWER_BYTES_MAX`].
    #[error("the answer has more than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    /// Not HTTP/1.1.
    #[error("the answer is not HTTP/1.1; is it TLS? Only plain http:// is spoken here")]
    NotHttp,
    /// Another status than 200.
    #[error("the answer is {0}")]
    Status(u16),
}

impl HttpFault {
    /// Whether nobody listens there.
    pub(super) const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused)
    }

    /// Whether the server is there and says that it has no such page: then the address is wrong, and not the engine.
    pub(super) const fn is_wrong_address(&self) -> bool {
        match self {
            Self::NotHttp | Self::TooLong => true,
            Self::Status(status) => *status < 500,
            Self::Refused | Self::Io(_) | Self::Slow(_) => false,
        }
    }
}

/// An answer with status 200.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'b> {
    pub(super) body: &'b [u8],
    /// `Process-Start-Time-Unix`, as llama.cpp sends it: any number that changes when the process restarts.
    pub(super) start_mark: Option<u64>,
}

/// One server, and a connection to it.
#[derive(Debug)]
pub(super) struct Client<L> {
    /// `host:port` to connect to.
    peer: String,
    clock: Clock,
    stream: Option<L>,
    request: String,
    input: Vec<u8>,
    /// A body in chunks, put together.
    whole: Vec<u8>,
}

impl Client<std::net::TcpStream> {
    /// Asks for `path` (with its query), within `limit`; blocks.
    pub(super) fn get_blocking(&mut self, path: &str, limit: Duration) -> Result<Answer<'_>, HttpFault> {
        let until = Limit { at: self.clock.now().plus(limit), limit };
        // Everything in it blocks, so that it is over when it has been polled once.
        let head = match std::pin::pin!(self.exchange(path, until)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(head) => head?,
            Poll::Pending => return Err(HttpFault::Slow(limit)),
        };
        self.answer(head)
    }
}

impl Client<tokio::net::TcpStream> {
    /// Asks for `path` (with its query), within `limit`.
    pub(super) async fn get(&mut self, path: &str, limit: Duration) -> Result<Answer<'_>, HttpFault> {
        let until = Limit { at: self.clock.now().plus(limit), limit };
        // What is dropped in the middle takes its connection along.
        let slow = |_elapsed| HttpFault::Slow(limit);
        let head = tokio::time::timeout(limit, self.exchange(path, until)).await.map_err(slow)??;
        self.answer(head)
    }
}

impl<L: Link> Client<L> {
    /// A client of the server at `url`, whose path is not looked at.
    pub(super) fn new(url: &Url, clock: Clock) -> Self {
        let peer = peer(url);
        Self { peer, clock, stream: None, request: String::new(), input: Vec::new(), whole: Vec::new() }
    }

    fn answer(&self, head: Head) -> Result<Answer<'_>, HttpFault> {
        if head.status != 200 {
            return Err(HttpFault::Status(head.status));
        }
        let body = match head.body {
            Body::Here(range) => self.input.get(range).unwrap_or_default(),
            Body::Joined => &self.whole,
        };
        Ok(Answer { body, start_mark: head.start_mark })
    }

    /// One exchange; a kept connection that the server has closed in the meantime is replaced, once.
    async fn exchange(&mut self, path: &str, until: Limit) -> Result<Head, HttpFault> {
        // Taken out, so that a connection on which something failed is not used again.
        if let Some(mut stream) = self.stream.take() {
            match self.on(&mut stream, path, until).await {
                Ok(head) => {
                    self.stream = head.is_kept.then_some(stream);
                    return Ok(head);
                }
                Err(HttpFault::Io(_)) if self.input.is_empty() => {}
                Err(fault) => return Err(fault),
            }
        }
        let mut stream = L::connect(&self.peer, until.limit).await.map_err(|error| {
            if error.kind() == io::ErrorKind::ConnectionRefused { HttpFault::Refused } else { until.fault(error) }
        })?;
        let head = self.on(&mut stream, path, until).await?;
        self.stream = head.is_kept.then_some(stream);
        Ok(head)
    }

    async fn on(&mut self, stream: &mut L, path: &str, until: Limit) -> Result<Head, HttpFault> {
        self.input.clear();
        self.request.clear();
        for part in ["GET ", path, " HTTP/1.1\r\nHost: ", &self.peer, "\r\nUser-Agent: emberlane-agent\r\n\r\n"] {
            self.request.push_str(part);
        }
        stream.write_whole(self.request.as_bytes()).await.map_err(|error| until.fault(error))?;
        let (mut head, length) = loop {
            self.more(stream, until).await?;
            if let Some(end) = memchr::memmem::find(&self.input, b"\r\n\r\n") {
                break parse_head(self.input.get(..end).unwrap_or_default(), end + 4)?;
            }
            if self.input.len() > HEAD_BYTES_MAX {
                return Err(HttpFault::NotHttp);
            }
            if !b"HTTP/1.".starts_with(self.input.get(..7.min(self.input.len())).unwrap_or_default()) {
                return Err(HttpFault::NotHttp);
            }
        };
        let Body::Here(range) = &mut head.body else { return Ok(head) };
        let start = range.start;
        match length {
            Length::Known(bytes) => {
                if bytes > PAGE_BYTES_MAX {
                    return Err(HttpFault::TooLong);
                }
                while self.input.len() < start + bytes {
                    self.more(stream, until).await?;
                }
                *range = start..start + bytes;
            }
            Length::Chunked => {
                while !dechunk(self.input.get(start..).unwrap_or_default(), &mut self.whole)? {
                    self.more(stream, until).await?;
                }
                head.body = Body::Joined;
            }
            Length::UntilClosed => {
                while self.more(stream, until).await.is_ok() {}
                if self.input.len() >= ANSWER_BYTES_MAX {
                    return Err(HttpFault::TooLong);
                }
                *range = start..self.input.len();
                head.is_kept = false;
            }
        }
        Ok(head)
    }

    /// Reads at least a byte more.
    async fn more(&mut self, stream: &mut L, until: Limit) -> Result<(), HttpFault> {
        if self.input.len() >= ANSWER_BYTES_MAX {
            return Err(HttpFault::TooLong);
        }
        self.input.reserve(READ_BYTES);
        match stream.read_more(&mut self.input).await.map_err(|error| until.fault(error))? {
            0 => Err(HttpFault::Io(io::ErrorKind::UnexpectedEof.into())),
            _ if self.clock.now() > until.at => Err(HttpFault::Slow(until.limit)),
            _ => Ok(()),
        }
    }
}

/// When an answer must be there.
#[derive(Clone, Copy, Debug)]
struct Limit {
    at: Now,
    limit: Duration,
}

impl Limit {
    /// What an error of a socket means: waiting in vain is an error of its own.
    fn fault(self, error: io::Error) -> HttpFault {
        let is_slow = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        if is_slow { HttpFault::Slow(self.limit) } else { HttpFault::Io(error) }
    }
}

/// `host:port` of a URL.
pub(super) fn peer(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(80))
}

/// Where an answer's body is.
#[derive(Debug)]
enum Body {
    /// In the input.
    Here(Range<usize>),
    /// In `whole`.
    Joined,
}

#[derive(Debug)]
struct Head {
    status: u16,
    is_kept: bool,
    start_mark: Option<u64>,
    body: Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Known(usize),
    Chunked,
    UntilClosed,
}

fn parse_head(head: &[u8], body_at: usize) -> Result<(Head, Length), HttpFault> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let first = lines.next().and_then(|line| line.strip_prefix("HTTP/1."));
    let (minor, rest) = first.and_then(|rest| rest.split_once(' ')).ok_or(HttpFault::NotHttp)?;
    let status = rest.get(..3).and_then(|status| status.parse().ok()).ok_or(HttpFault::NotHttp)?;
    let mut head = Head { status, is_kept: minor == "1", start_mark: None, body: Body::Here(body_at..body_at) };
    let mut length = Length::UntilClosed;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" if length != Length::Chunked => {
                length = Length::Known(value.parse().map_err(|_not_a_number| HttpFault::NotHttp)?);
            }
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => length = Length::Chunked,
            "connection" if value.eq_ignore_ascii_case("close") => head.is_kept = false,
            "process-start-time-unix" => head.start_mark = value.parse().ok(),
            _ => {}
        }
    }
    Ok((head, length))
}

/// Joins the chunks of `input` in `whole`; whether the last one is there.
fn dechunk(input: &[u8], whole: &mut Vec<u8>) -> Result<bool, HttpFault> {
    whole.clear();
    let mut rest = input;
    while let Some(end) = memchr::memmem::find(rest, b"\r\n") {
        let line = std::str::from_utf8(rest.get(..end).unwrap_or_default()).map_err(|_binary| HttpFault::NotHttp)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_not_a_number| HttpFault::NotHttp)?;
        if size > PAGE_BYTES_MAX {
            return Err(HttpFault::TooLong);
        }
        let Some(chunk) = rest.get(end + 2..end + 2 + size) else { return Ok(false) };
        let Some(after) = rest.get(end + 2 + size..).filter(|after| after.len() >= 2) else { return Ok(false) };
        if size == 0 {
            // Trailers are not used; the next request would find them, so a server that sends some is asked anew.
            return Ok(true);
        }
        whole.extend_from_slice(chunk);
        rest = after.get(2..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_how_long_the_body_is() {
        let head =
            |text: &str| parse_head(text.as_bytes(), 100).map(|(head, length)| (head.status, head.is_kept, length));
        assert_eq!(head("HTTP/1.1 200 OK\r\nContent-Length: 12").unwrap(), (200, true, Length::Known(12)));
        let chunked = "HTTP/1.1 503 X\r\ntransfer-encoding: Chunked\r\ncontent-length: 3\r\nconnection: close";
        assert_eq!(head(chunked).unwrap(), (503, false, Length::Chunked));
        assert_eq!(head("HTTP/1.0 404 No").unwrap(), (404, false, Length::UntilClosed));
        for wrong in ["", "HTTP/2 200", "HTTP/1.1 2x0", "\u{16}\u{3}", "HTTP/1.1 200 OK\r\ncontent-length: -1"] {
            assert!(head(wrong).is_err(), "{wrong:?}");
        }
        let (head, _) = parse_head(b"HTTP/1.1 200 OK\r\nProcess-Start-Time-Unix: 42", 0).unwrap();
        assert_eq!(head.start_mark, Some(42));
    }

    #[test]
    fn chunks_are_joined_once_all_are_there() {
        let mut whole = Vec::new();
        let text = b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n";
        for cut in 0..text.len() {
            assert!(!dechunk(&text[..cut], &mut whole).unwrap(), "cut at {cut}");
        }
        assert!(dechunk(text, &mut whole).unwrap());
        assert_eq!(whole, b"abc0123456789");
        assert!(dechunk(b"zz\r\n", &mut whole).is_err());
        assert!(dechunk(b"ffffffff\r\n", &mut whole).is_err());
    }
}
