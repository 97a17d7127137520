//! Listening sockets: bound before anything runs, so that a taken port is an error with a name; one a shard with
//! `SO_REUSEPORT`; each under a key of its own in Pingora's table, so that a binary upgrade hands it over.

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::apps::HttpServerApp;
use pingora_core::listeners::ListenerConfig;
use pingora_core::protocols::l4::stream::L4BufferSettings;
use pingora_core::server::{Fds, ListenFds, ShutdownWatch};
use pingora_core::services::Service;
use pingora_core::services::listening::Service as Listening;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::pin::Pin;
use std::sync::Arc;

/// Bytes of a client connection's buffers. Heads and bodies are read into buffers of their own, so a second one before
/// them only costs memory; writes are gathered until an event or a body is whole.
const READ_BUFFER: usize = 0;
const WRITE_BUFFER: usize = 4096;
/// Connections that wait to be accepted, a socket.
const BACKLOG: i32 = 4096;

/// Listening sockets that Pingora hands over in a binary upgrade; the next process does not come up with more.
pub(super) const SOCKETS_MAX: usize = 32;

/// More listening sockets than a binary upgrade can hand over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} addresses to listen on; at most {SOCKETS_MAX} can be handed over in an upgrade")]
pub struct TooManySockets {
    /// Addresses configured, the admin listener among them.
    pub wanted: usize,
}

/// How many of the `wanted` shards can have a socket of their own for each of `addresses`, beside the admin listener's.
///
/// # Errors
/// [`TooManySockets`] when there is not room for one.
pub(super) const fn shards_that_fit(wanted: usize, addresses: usize, admin: bool) -> Result<usize, TooManySockets> {
    if addresses == 0 {
        return Ok(wanted);
    }
    match (SOCKETS_MAX - admin as usize) / addresses {
        0 => Err(TooManySockets { wanted: addresses + admin as usize }),
        most if most < wanted => Ok(most),
        _ => Ok(wanted),
    }
}

/// Binds `count` sockets to `address`. With port 0 the system picks one port for all.
///
/// # Errors
/// When the address cannot be bound, or another process listens there.
pub(super) fn bind(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let mut address = address;
    if address.port() != 0 {
        // With SO_REUSEPORT a second process would silently share the traffic: probe without it first.
        let probe = socket(address)?;
        probe.bind(&address.into())?;
    }
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let listener = shared(address)?;
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((address, listeners))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

fn shared(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Which socket of a service a listener is, across a binary upgrade.
#[must_use]
pub(super) fn key(address: SocketAddr, part: &str) -> String {
    format!("{address}#{part}")
}

/// One socket of a service.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Its key in the table of sockets.
    pub key: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// The socket; `None` to take it over from the process before.
    pub listener: Option<TcpListener>,
}

/// A service on one thread, on sockets of its own.
pub(super) struct OneThread<A> {
    name: String,
    endpoints: Vec<Endpoint>,
    core: Option<usize>,
    inner: Mutex<Option<Listening<A>>>,
    beside: Mutex<Option<Beside>>,
}

/// What else runs on a service's thread.
pub(super) type Beside = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<A> std::fmt::Debug for OneThread<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OneThread")
            .field("name", &self.name)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> OneThread<A> {
    /// Runs `app` on `endpoints`, pinned to `core` if one is given.
    pub(super) fn new(name: String, app: A, endpoints: Vec<Endpoint>, core: Option<usize>) -> Self {
        let mut inner = Listening::new(name.clone(), app);
        for endpoint in &endpoints {
            let listener = ListenerConfig::tcp(endpoint.address.to_string());
            inner.add_listener(listener.l4_buffer(L4BufferSettings::new(READ_BUFFER, WRITE_BUFFER)));
        }
        Self { name, endpoints, core, inner: Mutex::new(Some(inner)), beside: Mutex::default() }
    }

    /// Runs `beside` on the same thread, until it ends or the service does.
    pub(super) fn beside(self, beside: impl Future<Output = ()> + Send + 'static) -> Self {
        *self.beside.lock() = Some(Box::pin(beside));
        self
    }
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> Service for OneThread<A> {
    async fn start_service(&mut self, fds: Option<ListenFds>, shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        if let Some(core) = self.core {
            pin(core);
        }
        let beside = self.beside.lock().take().map(tokio::spawn);
        // Pingora looks a socket up by its address, and the shards share one: each gets a table with its own socket.
        let own = Fds::new();
        let own: ListenFds = Arc::new(own.into());
        for endpoint in &mut self.endpoints {
            let inherited = fds.as_ref().and_then(|fds| fds.lock().get(&endpoint.key).copied());
            let listener = endpoint.listener.take();
            let fd = match (inherited, listener) {
                (Some(fd), _) => fd,
                (None, Some(listener)) => listener.into_raw_fd(),
                (None, None) => match shared(endpoint.address) {
                    Ok(listener) => listener.into_raw_fd(),
                    Err(error) => {
                        tracing::error!(address = %endpoint.address, %error, "cannot listen");
                        return;
                    }
                },
            };
            if let Some(fds) = &fds {
                fds.lock().add(endpoint.key.clone(), fd);
            }
            own.lock().add(endpoint.address.to_string(), fd);
        }
        let inner = self.inner.lock().take();
        if let Some(mut inner) = inner {
            Service::start_service(&mut inner, Some(own), shutdown, 1).await;
        }
        if let Some(beside) = beside {
            beside.abort();
        }
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(self.endpoints.iter().map(|endpoint| endpoint.key.clone()).collect())
    }
}

fn pin(core: usize) {
    let mut set = nix::sched::CpuSet::new();
    let pinned = set.set(core).and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        tracing::warn!(core, %error, "cannot pin a shard to its core: it runs anywhere");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_not_a_shared_one() {
        let (address, _held) = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        assert_eq!(bind(address, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn no_more_sockets_than_an_upgrade_hands_over() {
        assert_eq!(shards_that_fit(64, 1, true), Ok(31));
        assert_eq!(shards_that_fit(64, 1, false), Ok(32));
        assert_eq!(shards_that_fit(16, 2, false), Ok(16));
        assert_eq!(shards_that_fit(16, 2, true), Ok(15));
        assert_eq!(shards_that_fit(2, 0, true), Ok(2));
        assert_eq!(shards_that_fit(1, 32, true), Err(TooManySockets { wanted: 33 }));
    }

    struct Nothing;

    #[async_trait]
    impl HttpServerApp for Nothing {
        async fn process_new_http(
            self: &Arc<Self>,
            _session: pingora_core::protocols::http::ServerSession,
            _shutdown: &ShutdownWatch,
        ) -> Option<pingora_core::apps::ReusedHttpStream> {
            None
        }
    }

    /// Pingora closes what no service says it listens on: a service must name its sockets as the table does.
    #[test]
    fn inherited_sockets_that_no_shard_claims_are_closed() {
        let (address, listeners) = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let left = listeners[0].try_clone().unwrap();
        let mut inherited = Fds::new();
        for (shard, listener) in listeners.into_iter().enumerate() {
            inherited.add(key(address, &shard.to_string()), listener.into_raw_fd());
        }
        let endpoint = Endpoint { key: key(address, "0"), address, listener: None };
        let service = OneThread::new("shard-0".to_owned(), Nothing, vec![endpoint], None);
        let claimed = service.listen_addresses().unwrap().into_iter().collect();
        assert_eq!(inherited.close_unclaimed(&claimed), [key(address, "1")]);
        assert!(inherited.get(&key(address, "0")).is_some());
        // Every connection now comes to the socket that is left: none waits where nobody accepts.
        let clients: Vec<_> = (0..16).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        assert_eq!((0..16).filter(|_| left.accept().is_ok()).count(), clients.len());
    }
}
