//! A stand-in engine that answers a metrics page, which the test changes, and says that it serves the model `served`.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::{free_address, root};

/// What is answered at `/metrics`.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    status: u16,
    body: String,
}

impl Page {
    /// A page of `tests/pages`.
    pub(crate) fn recorded(name: &str) -> Self {
        let path = root().join("tests/pages").join(format!("{name}.txt"));
        Self::text(std::fs::read_to_string(path).unwrap())
    }

    /// This text.
    pub(crate) fn text(body: String) -> Self {
        Self { status: 200, body }
    }

    /// An answer that is not 200.
    pub(crate) fn status(status: u16) -> Self {
        Self { status, body: String::new() }
    }
}

/// The server.
#[derive(Debug)]
pub(crate) struct PageServer {
    address: SocketAddr,
    page: Arc<Mutex<Page>>,
    looks: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
}

impl PageServer {
    /// Starts one.
    pub(crate) fn start(page: Page) -> Self {
        let listener = TcpListener::bind(free_address()).unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            page: Arc::new(Mutex::new(page)),
            looks: Arc::default(),
            stopping: Arc::default(),
        };
        let (page, looks, stopping) =
            (Arc::clone(&server.page), Arc::clone(&server.looks), Arc::clone(&server.stopping));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (page, looks, stopping) = (Arc::clone(&page), Arc::clone(&looks), Arc::clone(&stopping));
                std::thread::spawn(move || serve(&stream, &page, &looks, &stopping));
            }
        });
        server
    }

    /// The page's URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }

    /// Answers this from now on.
    pub(crate) fn set(&self, page: Page) {
        *self.page.lock() = page;
    }

    /// How often the page was asked for.
    pub(crate) fn looks(&self) -> u64 {
        self.looks.load(Ordering::SeqCst)
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// Serves a connection until either side has done with it.
fn serve(stream: &TcpStream, page: &Mutex<Page>, looks: &AtomicU64, stopping: &AtomicBool) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !stopping.load(Ordering::SeqCst) {
        line.clear();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        while line.trim() != "" {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
        }
        let page = match path.as_str() {
            "/metrics" => {
                looks.fetch_add(1, Ordering::SeqCst);
                page.lock().clone()
            }
            "/v1/models" => Page::text(r#"{"data":[{"id":"served"}]}"#.to_owned()),
            _ => Page::status(404),
        };
        let Page { status, body } = page;
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
        if (&mut &*stream).write_all(format!("{head}{body}").as_bytes()).is_err() {
            return;
        }
    }
}
