//! How beacons come in: past the kernel where that can be had (`xdp`), through plain sockets (`udp`) where not, and in any
//! case through both: what the kernel lets through, from other interfaces and from this machine itself, arrives at the
//! socket, which stays bound. Should the bypass end while running, the socket goes on alone and nothing is lost.

use socket2::{SockFilter, Socket};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::udp::{self, Batch};
use super::xdp::{self, Attachment, BypassFault, Hook, Interface, Statistics, XdpSocket};
use crate::config::Bypass;

/// What to receive, and how.
#[derive(Clone, Debug)]
pub struct ReceiveConfig {
    /// Where: unicast or multicast, IPv4 or IPv6. With port 0 the system picks one.
    pub listen: SocketAddr,
    /// The interface that joins a multicast group and that is bypassed; `None`: the routing table's choice for groups, and
    /// for bypass the interface that has the address.
    pub interface: Option<String>,
    /// Kernel bypass.
    pub bypass: Bypass,
    /// Never sleep: [`Receiver::wait`] looks again and again instead.
    pub busy_poll: bool,
}

/// Why nothing can be received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The address cannot be bound, or the group not joined.
    #[error("cannot receive at {listen}: {error}")]
    Bind {
        /// The address.
        listen: SocketAddr,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// No such interface.
    #[error("there is no network interface {0:?}; `ip link` lists them")]
    NoInterface(String),
    /// The bypass that was asked for by name cannot be had.
    #[error("beacons.bypass is {}, but {fault}; with `auto` plain sockets serve instead", mode.as_str())]
    Bypass {
        /// What was asked for.
        mode: Bypass,
        /// Why not.
        #[source]
        fault: BypassFault,
    },
    /// The kernel does not say what it must.
    #[error("cannot set up receiving at {listen}: {error}")]
    System {
        /// The address.
        listen: SocketAddr,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

/// How datagrams come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Past the kernel, out of the driver.
    Native,
    /// Past most of the kernel, out of its generic hook.
    Skb,
    /// Through a socket.
    Socket,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Native, Self::Skb, Self::Socket];

    /// The name in metrics and in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Skb => "skb",
            Self::Socket => "socket",
        }
    }
}

impl From<Hook> for Mode {
    fn from(hook: Hook) -> Self {
        match hook {
            Hook::Native => Self::Native,
            Hook::Skb => Self::Skb,
        }
    }
}

/// What a receiver has counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that came past the kernel.
    pub bypassed: u64,
    /// Datagrams that came through the socket.
    pub through_socket: u64,
    /// Datagrams the kernel dropped at the socket: its buffer was full, or a checksum wrong.
    pub socket_drops: u64,
    /// Bypassed frames that were no datagram for us; see [`xdp::frame::FrameFault`].
    pub bad_frames: u64,
    /// Bypassed frames dropped because none was free to hold them, or they were too long.
    pub frame_drops: u64,
    /// Bypassed frames dropped because the receive ring was full.
    pub ring_full: u64,
    /// Times that the driver found no free frame.
    pub fill_empty: u64,
}

/// Wakes a receiver that waits. May be kept longer than the receiver.
#[derive(Clone, Debug)]
pub struct Waker(Arc<File>);

impl Waker {
    /// Ends the receiver's wait, or the next one if it does not wait.
    pub fn wake(&self) {
        // Fails only when as many wakes as fit in 64 bits wait to be heard.
        let _ = (&*self.0).write(&1_u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = (&*self.0).read(&mut [0; 8]);
    }
}

/// The bypassed part of a receiver.
#[derive(Debug)]
struct Bypassed {
    /// Shared by the receivers of one address; the last one to go detaches the program.
    attachment: Arc<Attachment>,
    sockets: Vec<XdpSocket>,
}

/// When to sleep a moment longer than until the next datagram. To be woken costs ten times what a datagram does, so when
/// many come, it is better to be woken for several: load data that is a tenth of a millisecond older is as good.
#[derive(Clone, Copy, Debug, Default)]
struct Naps {
    /// Datagrams since the last wait.
    heard: usize,
    /// The last wait began with a nap.
    was_nap: bool,
    /// Waits until a nap is tried again, after one that was not worth it.
    pause: u32,
}

impl Naps {
    /// True when the wait that begins should begin with a nap.
    fn is_due(&mut self) -> bool {
        let heard = std::mem::take(&mut self.heard);
        self.pause = if self.was_nap && heard < NAP_WORTH { NAP_PAUSE } else { self.pause.saturating_sub(1) };
        self.was_nap = heard > 0 && self.pause == 0;
        self.was_nap
    }
}

/// How long a nap is. (The kernel's timers add some 50 µs.)
const NAP: Duration = Duration::from_micros(100);
/// Datagrams that a nap must bring, or naps are not tried again for so many waits.
const NAP_WORTH: usize = 4;
const NAP_PAUSE: u32 = 64;

/// Receives datagrams at one address, on one thread.
#[derive(Debug)]
pub struct Receiver {
    local: SocketAddr,
    socket: Socket,
    batch: Batch,
    bypassed: Option<Bypassed>,
    waker: Waker,
    waiting: Vec<libc::pollfd>,
    /// The socket may have something: set when a wait says so, cleared when it is found empty.
    is_socket_ready: bool,
    /// Datagrams that came through the socket since one came past the kernel, or since the bypass was looked at.
    detours: usize,
    naps: Naps,
    busy_poll: bool,
    calls: u32,
    mode: Mode,
    fallback: Option<String>,
    /// The bypass has ended and nobody has been told.
    is_loss_news: bool,
    counters: Counters,
    /// What was counted at sockets that are closed.
    closed: Statistics,
}

/// Entries of `Receiver::waiting` that stay: the socket's, then the waker's. Those of AF_XDP sockets follow.
const WAITING_ALWAYS: usize = 2;
/// Calls of [`Receiver::receive`] after which the kernel's socket is looked at in any case, so that endless beacons past
/// the kernel do not starve those through it.
const SOCKET_EVERY: u32 = 64;
/// Datagrams in a row through the socket that make the bypass suspect.
const DETOURS_MAX: usize = 1024;
/// Looks at the rings before a busy wait asks the kernel.
const SPINS: u32 = 256;

impl Receiver {
    /// Opens receivers at `config.listen`, for a thread each: `threads` of them, or one for a multicast group (every
    /// socket of a group gets every datagram). The interface's receive queues are dealt out among them.
    ///
    /// An interface holds one XDP program: of several addresses at one interface the first is bypassed.
    ///
    /// # Errors
    /// [`ReceiveError`]. With [`Bypass::Auto`] a bypass that cannot be had is none: see [`Self::fallback`].
    pub fn open(config: &ReceiveConfig, threads: usize) -> Result<Vec<Self>, ReceiveError> {
        let listen = config.listen;
        let system = |error| ReceiveError::System { listen, error };
        let named = match &config.interface {
            Some(name) => match xdp::interface::by_name(name).map_err(system)? {
                Some(interface) => Some(interface),
                None => return Err(ReceiveError::NoInterface(name.clone())),
            },
            None => None,
        };
        let index = named.as_ref().map_or(0, |interface| interface.index);
        let sockets = udp::bind(listen, index, threads).map_err(|error| ReceiveError::Bind { listen, error })?;
        let local = sockets.first().map_or(Ok(listen), udp::local).map_err(system)?;
        let bypass = open_bypass(config.bypass, local, named)?;
        let mut queues: Vec<Vec<XdpSocket>> = sockets.iter().map(|_| Vec::new()).collect();
        let receivers = queues.len();
        for (queue, socket) in bypass.sockets.into_iter().enumerate() {
            if config.busy_poll {
                socket.busy_poll();
            }
            if let Some(own) = queues.get_mut(queue % receivers) {
                own.push(socket);
            }
        }
        let attachment = bypass.attachment.map(Arc::new);
        let open = |(socket, sockets): (Socket, Vec<XdpSocket>)| {
            let attachment = attachment.as_ref().map(Arc::clone);
            let receiver = Self {
                local,
                socket,
                batch: Batch::new(),
                bypassed: attachment.map(|attachment| Bypassed { attachment, sockets }),
                waker: Waker(Arc::new(udp::event()?)),
                waiting: Vec::new(),
                is_socket_ready: true,
                detours: 0,
                naps: Naps::default(),
                busy_poll: config.busy_poll,
                calls: 0,
                mode: bypass.mode,
                fallback: bypass.fallback.clone(),
                is_loss_news: false,
                counters: Counters::default(),
                closed: Statistics::default(),
            };
            Ok(receiver.with_waiting())
        };
        sockets.into_iter().zip(queues).map(open).collect::<io::Result<_>>().map_err(system)
    }

    /// Lists what to wait for.
    fn with_waiting(mut self) -> Self {
        self.waiting = vec![udp::readable(self.socket.as_fd()), udp::readable(self.waker.0.as_fd())];
        let sockets = self.bypassed.iter().flat_map(|bypassed| &bypassed.sockets);
        self.waiting.extend(sockets.map(|socket| udp::readable(socket.as_fd())));
        self
    }

    /// Shows what waits to `f`: who sent it, and what. At most a batch of each socket, so that other work has its turn;
    /// returns how many. Does not block.
    ///
    /// Past the kernel, only datagrams with right lengths and checksums and a possible source are shown.
    ///
    /// # Errors
    /// What the kernel says of its socket. The receiver can be used further.
    pub fn receive(&mut self, mut f: impl FnMut(IpAddr, &[u8])) -> io::Result<usize> {
        let mut count = 0;
        if let Some(bypassed) = &mut self.bypassed {
            let mut bad = 0;
            let port = self.local.port();
            for socket in &mut bypassed.sockets {
                count += socket.receive(|frame| match xdp::frame::parse(frame) {
                    Ok(datagram) if datagram.to.port() == port => f(datagram.from, datagram.payload),
                    Ok(_) | Err(_) => bad += 1,
                });
            }
            count -= bad;
            self.counters.bad_frames += bad as u64;
            self.counters.bypassed += count as u64;
            if count > 0 {
                self.detours = 0;
            }
        }
        self.calls = self.calls.wrapping_add(1);
        if self.is_socket_ready || self.calls.is_multiple_of(SOCKET_EVERY) {
            // Should it fail, the next wait tells whether there is more.
            self.is_socket_ready = false;
            let received = self.batch.receive(&self.socket, &mut f)?;
            self.is_socket_ready = received == udp::BATCH;
            self.counters.through_socket += received as u64;
            count += received;
            self.detours += received;
            if self.detours >= DETOURS_MAX {
                self.check();
            }
        }
        self.naps.heard += count;
        Ok(count)
    }

    /// While `deaf`, the kernel drops what comes to the socket as it comes: nothing is queued, and nobody reads it. What
    /// comes past the kernel waits in a ring that is soon full.
    ///
    /// # Errors
    /// When the kernel takes no filter.
    pub fn set_deaf(&self, deaf: bool) -> io::Result<()> {
        /// `ret #0`: of each datagram, no byte is kept (linux/filter.h, `BPF_RET | BPF_K`).
        const KEEP_NOTHING: [SockFilter; 1] = [SockFilter::new(0x06, 0, 0, 0)];
        if deaf { self.socket.attach_filter(&KEEP_NOTHING) } else { self.socket.detach_filter() }
    }

    /// Waits until there is something to receive, someone wakes it, or `timeout` has passed; now and then for no reason.
    /// When busy polling it does not sleep, and returns soon in any case.
    ///
    /// # Errors
    /// When the kernel refuses to wait, which only a lack of memory explains.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let mut timeout = timeout;
        if self.is_socket_ready || self.is_anything_bypassed() {
            return Ok(());
        }
        if self.busy_poll {
            if self.spin() {
                return Ok(());
            }
            timeout = Duration::ZERO;
        } else if self.naps.is_due() {
            self.nap(timeout)?;
            if self.is_socket_ready || self.is_anything_bypassed() {
                return Ok(());
            }
        }
        udp::poll(&mut self.waiting, timeout)?;
        let [socket, waker, ..] = self.waiting.as_slice() else { return Ok(()) };
        self.is_socket_ready = socket.revents != 0;
        if waker.revents != 0 {
            self.waker.clear();
        }
        // An AF_XDP socket whose interface has gone says nothing of it: it is only silent from then on.
        if !self.busy_poll && self.waiting.iter().all(|descriptor| descriptor.revents == 0) {
            self.check();
        }
        Ok(())
    }

    /// Waits for the waker alone, a moment.
    fn nap(&mut self, timeout: Duration) -> io::Result<()> {
        let mut waker = [udp::readable(self.waker.0.as_fd())];
        udp::poll(&mut waker, NAP.min(timeout))?;
        // A look at the socket costs no more than to ask whether it is worth one.
        self.is_socket_ready = self.bypassed.is_none();
        Ok(())
    }

    fn is_anything_bypassed(&self) -> bool {
        self.bypassed.iter().flat_map(|bypassed| &bypassed.sockets).any(XdpSocket::is_ready)
    }

    /// Looks at the rings for some microseconds; true when something came.
    fn spin(&self) -> bool {
        for _ in 0..SPINS {
            if self.is_anything_bypassed() {
                return true;
            }
            std::hint::spin_loop();
        }
        self.bypassed.iter().flat_map(|bypassed| &bypassed.sockets).for_each(XdpSocket::kick);
        false
    }

    /// Looks whether the bypass is still in place, and goes on without it if not. Done when a wait was in vain, and when
    /// much comes through the socket and nothing past the kernel.
    pub fn check(&mut self) {
        self.detours = 0;
        let Some(bypassed) = self.bypassed.take_if(|bypassed| !bypassed.attachment.holds()) else { return };
        self.closed = self.closed.plus(&bypassed.sockets);
        self.mode = Mode::Socket;
        let interface = bypassed.attachment.interface();
        self.fallback = Some(format!("the XDP program at {interface} was detached, or the interface is gone"));
        self.is_loss_news = true;
        self.is_socket_ready = true;
        self.waiting.truncate(WAITING_ALWAYS);
    }

    /// Why the bypass has ended while running; said once.
    pub fn loss(&mut self) -> Option<&str> {
        if std::mem::take(&mut self.is_loss_news) { self.fallback() } else { None }
    }

    /// What wakes this receiver from another thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// How datagrams come in now.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Why a better mode cannot be had, or can no longer; `None` when this is what was asked for.
    #[must_use]
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// What was counted; asks the kernel for its part, so not for every datagram.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let statistics = match &self.bypassed {
            Some(bypassed) => self.closed.plus(&bypassed.sockets),
            None => self.closed,
        };
        Counters {
            socket_drops: udp::drops(&self.socket).unwrap_or(0).into(),
            frame_drops: statistics.dropped,
            ring_full: statistics.ring_full,
            fill_empty: statistics.fill_empty,
            ..self.counters
        }
    }

    /// Where it receives; with the port the system picked.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Statistics {
    /// These and those of `sockets` together.
    fn plus(self, sockets: &[XdpSocket]) -> Self {
        let each = sockets.iter().map(|socket| socket.statistics().unwrap_or_default());
        each.fold(self, |sum, one| Self {
            dropped: sum.dropped + one.dropped,
            ring_full: sum.ring_full + one.ring_full,
            fill_empty: sum.fill_empty + one.fill_empty,
        })
    }
}

/// A bypass, or why there is none.
struct Opened {
    attachment: Option<Attachment>,
    sockets: Vec<XdpSocket>,
    mode: Mode,
    fallback: Option<String>,
}

/// Bypasses the kernel as `wanted`, at the interface `named` or at that which has the address.
fn open_bypass(wanted: Bypass, local: SocketAddr, named: Option<Interface>) -> Result<Opened, ReceiveError> {
    let sockets_only = |fallback| Opened { attachment: None, sockets: Vec::new(), mode: Mode::Socket, fallback };
    let hooks: &[Hook] = match wanted {
        Bypass::Off => return Ok(sockets_only(None)),
        Bypass::Native => &[Hook::Native],
        Bypass::Skb => &[Hook::Skb],
        Bypass::Auto => &[Hook::Native, Hook::Skb],
    };
    let faults = match attach_first(hooks, local, named) {
        Ok((attachment, sockets, hook, faults)) => {
            let fallback = (!faults.is_empty()).then(|| joined(&faults));
            return Ok(Opened { attachment: Some(attachment), sockets, mode: hook.into(), fallback });
        }
        Err(faults) => faults,
    };
    if wanted == Bypass::Auto {
        return Ok(sockets_only(Some(joined(&faults))));
    }
    match faults.into_iter().next() {
        Some(fault) => Err(ReceiveError::Bypass { mode: wanted, fault }),
        None => Ok(sockets_only(None)),
    }
}

/// The bypass, its hook, and what was wrong with the hooks before it.
type Attached = (Attachment, Vec<XdpSocket>, Hook, Vec<BypassFault>);

/// Tries `hooks` in turn.
fn attach_first(hooks: &[Hook], local: SocketAddr, named: Option<Interface>) -> Result<Attached, Vec<BypassFault>> {
    let interface = match named {
        Some(interface) => interface,
        None => interface_of(local.ip()).ok_or_else(|| vec![BypassFault::NoInterface(local.ip())])?,
    };
    if interface.is_loopback {
        return Err(vec![BypassFault::Loopback]);
    }
    let sockets = xdp::open_sockets(&interface).map_err(|fault| vec![fault])?;
    let mut faults = Vec::new();
    for hook in hooks {
        match xdp::attach(&interface, local, *hook, &sockets) {
            Ok(attachment) => return Ok((attachment, sockets, *hook, faults)),
            Err(fault) => faults.push(fault),
        }
    }
    Err(faults)
}

/// The interface that has `address`, unless that is loopback: what this machine says to itself is not worth a bypass.
fn interface_of(address: IpAddr) -> Option<Interface> {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return None;
    }
    xdp::interface::by_address(address).unwrap_or(None)
}

/// All `faults`, each once.
fn joined(faults: &[BypassFault]) -> String {
    let mut texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    texts.dedup();
    texts.join("; ")
}

#[cfg(test)]
mod tests;
