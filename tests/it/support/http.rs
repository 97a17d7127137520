//! A raw HTTP/1.1 client: sends exactly the bytes it is given, reads answers piece by piece, never waits for ever.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// Longest wait for one read.
const READ_LIMIT: Duration = Duration::from_secs(20);

/// Status line and headers of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// Status code.
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    /// First value of a header; `name` in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    fn has_no_body(&self) -> bool {
        self.status < 200 || self.status == 204 || self.status == 304
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Status line and headers.
    pub(crate) head: Head,
    /// Body, transfer coding removed.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Status code.
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    /// Body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {} {}", self.head.status, self.text()))
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(READ_LIMIT))?;
        stream.set_write_timeout(Some(READ_LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(64 * 1024, stream) })
    }

    /// Sends these bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends a whole request with `Content-Length`.
    pub(crate) fn send_request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<()> {
        let mut bytes = head_bytes(method, path, headers);
        if !body.is_empty() || method == "POST" {
            bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        self.send(&bytes)
    }

    /// Sends a whole request in chunks of `piece` bytes.
    pub(crate) fn send_chunked(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        piece: usize,
    ) -> io::Result<()> {
        let mut head = head_bytes("POST", path, headers);
        head.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
        self.send(&head)?;
        for part in body.chunks(piece) {
            let mut bytes = format!("{:x}\r\n", part.len()).into_bytes();
            bytes.extend_from_slice(part);
            bytes.extend_from_slice(b"\r\n");
            self.send(&bytes)?;
        }
        self.send(b"0\r\n\r\n")
    }

    /// Reads a status line and headers; interim answers (100) are returned like others.
    pub(crate) fn read_head(&mut self) -> io::Result<Head> {
        let first = self.read_line()?;
        let mut words = first.split_ascii_whitespace();
        let version = words.next().unwrap_or_default();
        let status = words.next().and_then(|code| code.parse().ok());
        let (true, Some(status)) = (version.starts_with("HTTP/1."), status) else {
            return Err(io::Error::other(format!("not a status line: {first:?}")));
        };
        let mut headers = Vec::new();
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                return Ok(Head { status, headers });
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other(format!("bad header {line:?}")))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads the body that `head` announces.
    pub(crate) fn read_body(&mut self, head: &Head) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if head.has_no_body() {
            return Ok(body);
        }
        if head.is_chunked() {
            while let Some(chunk) = self.read_chunk()? {
                body.extend_from_slice(&chunk);
            }
        } else if let Some(length) = head.header("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            body.resize(length, 0);
            self.stream.read_exact(&mut body)?;
        } else {
            self.stream.read_to_end(&mut body)?;
        }
        Ok(body)
    }

    /// Reads one chunk; `None` at the last one. A connection that closes earlier is an error.
    pub(crate) fn read_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.read_line()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; size];
        self.stream.read_exact(&mut chunk)?;
        let end = self.read_line()?;
        if !end.is_empty() {
            return Err(io::Error::other(format!("junk after a chunk: {end:?}")));
        }
        Ok((size > 0).then_some(chunk))
    }

    /// Reads an answer's head (skipping 100 Continue) and body.
    pub(crate) fn read_answer(&mut self) -> io::Result<Answer> {
        loop {
            let head = self.read_head()?;
            if head.status != 100 {
                let body = self.read_body(&head)?;
                return Ok(Answer { head, body });
            }
        }
    }

    /// Sends a request and reads its answer.
    pub(crate) fn exchange(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        self.send_request(method, path, headers, body)?;
        self.read_answer()
    }

    /// All that still comes until the peer closes; `None` when it has not within `limit` of silence.
    pub(crate) fn read_until_closed(&mut self, limit: Duration) -> Option<Vec<u8>> {
        self.set_read_limit(limit);
        let (mut all, mut scratch) = (Vec::new(), [0; 4096]);
        loop {
            match self.stream.read(&mut scratch) {
                Ok(0) => return Some(all),
                Ok(length) => all.extend_from_slice(&scratch[..length]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return None;
                }
                Err(_reset) => return Some(all),
            }
        }
    }

    /// True once the peer has closed; reads and drops whatever it still sent.
    pub(crate) fn closes_within(&mut self, limit: Duration) -> bool {
        let stream = self.stream.get_mut();
        stream.set_read_timeout(Some(limit)).unwrap();
        let mut scratch = [0; 4096];
        loop {
            match stream.read(&mut scratch) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
            }
        }
    }

    /// Sets the longest wait for one read.
    pub(crate) fn set_read_limit(&self, limit: Duration) {
        self.stream.get_ref().set_read_timeout(Some(limit)).unwrap();
    }

    /// Closes both directions at once, as a client that leaves.
    pub(crate) fn leave(self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.by_ref().take(64 * 1024).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection closed inside a line"));
        }
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map_err(io::Error::other)
    }
}

/// Request line and headers, without the empty line that ends them.
fn head_bytes(method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: gateway.test\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) && method == "POST" {
        head.push_str("content-type: application/json\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.into_bytes()
}

/// One GET on its own connection.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    Client::connect(address)?.exchange("GET", path, &[("connection", "close")], b"")
}

/// One POST on its own connection.
pub(crate) fn post(address: SocketAddr, path: &str, body: &str) -> io::Result<Answer> {
    Client::connect(address)?.exchange("POST", path, &[("connection", "close")], body.as_bytes())
}

/// The `data:` lines of an event stream.
pub(crate) fn events(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    text.lines().filter_map(|line| line.strip_prefix("data:")).map(|data| data.trim().to_owned()).collect()
}
