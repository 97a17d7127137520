//! A scripted engine inside the test: each request is handed to the test's own closure, which answers byte by byte
//! when it likes. It answers `GET` itself (`/health`, `/v1/models` with model `m`), and records what it was asked.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::time::holds_within;

/// Requests kept for the test to read.
const KEPT_MAX: usize = 4_096;

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// Method.
    pub(crate) method: String,
    /// Path with query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// Body, transfer coding removed.
    pub(crate) body: Vec<u8>,
}

impl Received {
    /// All values of a header; `name` in lower case.
    pub(crate) fn header_values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// One request being answered.
#[derive(Debug)]
pub(crate) struct Exchange<'c> {
    stream: &'c mut TcpStream,
    close: bool,
}

impl Exchange<'_> {
    /// Answers with a JSON body.
    pub(crate) fn json(&mut self, status: u16, body: &str) -> io::Result<()> {
        self.answer(status, &[("content-type", "application/json")], body.as_bytes())
    }

    /// Answers with these headers and body.
    pub(crate) fn answer(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        let mut bytes = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
        bytes.push_str("\r\n");
        let mut bytes = bytes.into_bytes();
        bytes.extend_from_slice(body);
        self.raw(&bytes)
    }

    /// Answers as an engine would: a chat completion with usage.
    pub(crate) fn completion(&mut self) -> io::Result<()> {
        self.json(200, COMPLETION)
    }

    /// Begins an event stream.
    pub(crate) fn start_events(&mut self) -> io::Result<()> {
        self.raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    }

    /// Sends one event as one chunk.
    pub(crate) fn event(&mut self, data: &str) -> io::Result<()> {
        let text = format!("data: {data}\n\n");
        self.raw(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
    }

    /// Ends the event stream.
    pub(crate) fn end_events(&mut self) -> io::Result<()> {
        self.raw(b"0\r\n\r\n")
    }

    /// Sends these bytes.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Closes the connection when the closure returns.
    pub(crate) fn close(&mut self) {
        self.close = true;
    }

    /// True when the peer has closed (or reset) its side within `limit`.
    pub(crate) fn peer_leaves_within(&mut self, limit: Duration) -> bool {
        let mut byte = [0];
        self.stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let left = holds_within(limit, || match self.stream.peek(&mut byte) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        });
        self.stream.set_read_timeout(None).unwrap();
        left
    }
}

/// A chat completion as an engine answers it.
pub(crate) const COMPLETION: &str = concat!(
    r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":"#,
    r#"{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":8,"#,
    r#""completion_tokens":1,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":0}}}"#
);

/// One event of a streamed chat completion.
pub(crate) fn chunk_event(content: &str) -> String {
    serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{ "index": 0, "delta": { "content": content }, "finish_reason": null }]
    })
    .to_string()
}

type Handler = dyn Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    posts: AtomicUsize,
    running: AtomicUsize,
    health: AtomicU16,
    received: Mutex<Vec<Received>>,
    connections: Mutex<Vec<TcpStream>>,
    accepted: AtomicUsize,
    stopping: AtomicBool,
}

/// The scripted engine.
pub(crate) struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Backend {
    /// Starts one that answers each POST with `handler`.
    pub(crate) fn start(handler: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::start_at(super::free_address(), handler)
    }

    /// Starts one at `address`.
    pub(crate) fn start_at(
        address: SocketAddr,
        handler: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            posts: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            health: AtomicU16::new(200),
            received: Mutex::new(Vec::new()),
            connections: Mutex::new(Vec::new()),
            accepted: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// Starts one that completes every chat.
    pub(crate) fn completing() -> Self {
        Self::start(|exchange| exchange.completion())
    }

    /// From now on `GET /health` is answered with this status.
    pub(crate) fn set_health(&self, status: u16) {
        self.shared.health.store(status, Ordering::SeqCst);
    }

    /// Its id in the gateway.
    pub(crate) fn id(&self) -> String {
        self.address.to_string()
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// POSTs received so far.
    pub(crate) fn posts(&self) -> usize {
        self.shared.posts.load(Ordering::SeqCst)
    }

    /// POSTs being answered now.
    pub(crate) fn running(&self) -> usize {
        self.shared.running.load(Ordering::SeqCst)
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// POSTs received so far, oldest first.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().clone()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        for connection in self.shared.connections.lock().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().map_while(Result::ok) {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        let _ = stream.set_nodelay(true);
        shared.connections.lock().extend(stream.try_clone());
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            let mut stream = stream;
            let _ = serve(&mut stream, &shared);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

/// Serves one connection until it closes.
fn serve(stream: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader, stream)? {
        if request.method == "GET" {
            let body: &[u8] = match request.path.as_str() {
                "/v1/models" => br#"{"object":"list","data":[{"id":"m","object":"model","owned_by":"test"}]}"#,
                _ => b"{}",
            };
            let mut exchange = Exchange { stream, close: false };
            let status = if request.path == "/health" { shared.health.load(Ordering::SeqCst) } else { 200 };
            exchange.answer(status, &[("content-type", "application/json")], body)?;
            continue;
        }
        shared.posts.fetch_add(1, Ordering::SeqCst);
        shared.running.fetch_add(1, Ordering::SeqCst);
        {
            let mut received = shared.received.lock();
            if received.len() < KEPT_MAX {
                received.push(request);
            }
        }
        let mut exchange = Exchange { stream, close: false };
        let result = (shared.handler)(&mut exchange);
        let close = exchange.close;
        shared.running.fetch_sub(1, Ordering::SeqCst);
        result?;
        if close {
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>, stream: &mut TcpStream) -> io::Result<Option<Received>> {
    let first = read_line(reader)?;
    let mut words = first.split_ascii_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    if header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = Vec::new();
    if header("transfer-encoding").is_some() {
        loop {
            let size = usize::from_str_radix(read_line(reader)?.trim(), 16).map_err(io::Error::other)?;
            let start = body.len();
            body.resize(start + size, 0);
            reader.read_exact(&mut body[start..])?;
            read_line(reader)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = header("content-length") {
        body.resize(length.parse().map_err(io::Error::other)?, 0);
        reader.read_exact(&mut body)?;
    }
    Ok(Some(Received { method, path, headers, body }))
}

fn read_line(reader: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}
