//! The two kinds of connection that pages are read over.

use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::net::ToSocketAddrs as _;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A connection in plain text.
pub(super) trait Link: Sized + Send {
    /// Connects to `host:port`, within `limit` for each address of it.
    fn connect(peer: &str, limit: Duration) -> impl Future<Output = io::Result<Self>> + Send;

    /// Writes all of `bytes`.
    fn write_whole(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Reads what is there, or waits for some, into the spare room of `input`; how many bytes, 0 at the end.
    fn read_more(&mut self, input: &mut Vec<u8>) -> impl Future<Output = io::Result<usize>> + Send;
}

impl Link for tokio::net::TcpStream {
    async fn connect(peer: &str, _limit: Duration) -> io::Result<Self> {
        let stream = Self::connect(peer).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn write_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await
    }

    async fn read_more(&mut self, input: &mut Vec<u8>) -> io::Result<usize> {
        self.read_buf(input).await
    }
}

/// Blocks in each of its steps, and so is ready whenever it is polled.
impl Link for std::net::TcpStream {
    async fn connect(peer: &str, limit: Duration) -> io::Result<Self> {
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for address in peer.to_socket_addrs()? {
            match Self::connect_timeout(&address, limit) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    // Of each read; that all of them are within the limit is looked at after each.
                    stream.set_read_timeout(Some(limit))?;
                    stream.set_write_timeout(Some(limit))?;
                    return Ok(stream);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn write_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    async fn read_more(&mut self, input: &mut Vec<u8>) -> io::Result<usize> {
        let used = input.len();
        input.resize(input.capacity(), 0);
        let read = loop {
            match self.read(input.get_mut(used..).unwrap_or_default()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        input.truncate(used + read.as_ref().map_or(0, |bytes| *bytes));
        read
    }
}
