//! Attaching to an interface: a socket for each receive queue, the map that finds them, the program, and the link that
//! holds it in place.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use super::super::udp::poll;
use super::{Interface, XdpSocket, program, sys};

/// Where a program is hooked into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// In the driver, before the kernel makes anything of a frame. Not every driver has it.
    Native,
    /// In the kernel's own receive path ("generic" XDP), after it has made a packet of the frame. Works everywhere, for
    /// less gain.
    Skb,
}

impl Hook {
    /// The name in configuration and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Skb => "skb",
        }
    }

    const fn flags(self) -> u32 {
        match self {
            Self::Native => sys::FLAG_NATIVE,
            Self::Skb => sys::FLAG_SKB,
        }
    }
}

/// Why the kernel cannot be bypassed.
#[derive(Debug, thiserror::Error)]
pub enum BypassFault {
    /// No socket for a receive queue.
    #[error("no AF_XDP socket for receive queue {queue}: {error}{}", hint(error))]
    Socket {
        /// The queue.
        queue: u32,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// No map from queues to sockets.
    #[error("no map for AF_XDP sockets: {error}{}", hint(error))]
    Map {
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The kernel does not take the program.
    #[error("the kernel does not take the XDP program: {error}{}{log}", hint(error))]
    Program {
        /// What the kernel said.
        #[source]
        error: io::Error,
        /// The end of what its verifier said.
        log: String,
    },
    /// The program cannot be attached.
    #[error("the XDP program cannot be attached to {interface}: {error}{}", hint(error))]
    Attach {
        /// The interface's name.
        interface: String,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The address is on no interface that could be bypassed.
    #[error("{0} is not the address of one interface: name the interface (beacons.interface)")]
    NoInterface(std::net::IpAddr),
    /// What this machine says to itself is not worth a bypass; nor could a source address then be told from a forged one.
    #[error("the loopback interface is not bypassed")]
    Loopback,
}

/// What to do about an error.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (it needs CAP_NET_ADMIN, CAP_BPF and CAP_NET_RAW)",
        Some(libc::ENOBUFS | libc::ENOMEM) => " (raise the limit of locked memory, or grant CAP_IPC_LOCK)",
        Some(libc::EBUSY | libc::EEXIST) => " (something else has an XDP program or an AF_XDP socket there)",
        Some(libc::EOPNOTSUPP) => " (the driver cannot)",
        Some(libc::EAFNOSUPPORT) => " (the kernel is built without AF_XDP)",
        _ => "",
    }
}

/// Receive queues that get a socket. Datagrams of further ones go on to the kernel and its socket.
const QUEUES_MAX: u32 = 64;
/// Frames of all sockets together (2 KiB each), and of one, which then holds 4 ms of a million beacons a second; with 64
/// queues, each of which gets fewer beacons, an eighth of that.
const FRAMES_TOTAL: u32 = 32_768;
const FRAMES_MAX: u32 = 4096;
/// The kernel gives a closed socket's queue free a little later.
const BUSY_RETRIES: u32 = 25;
const BUSY_PAUSE: Duration = Duration::from_millis(4);
/// Bytes of the verifier's log, and how many of them an error shows.
const LOG_BYTES: usize = 64 << 10;
const LOG_SHOWN: usize = 400;

/// The program in its place. Dropping it takes it out.
#[derive(Debug)]
pub(in crate::load) struct Attachment {
    link: OwnedFd,
    /// Kept so that what the program refers to is owned in one place.
    _map: OwnedFd,
    interface: String,
}

impl Attachment {
    /// False once someone has detached the program, or the interface has gone.
    pub(in crate::load) fn holds(&self) -> bool {
        sys::attached_to(self.link.as_fd()).is_ok_and(|index| index != 0)
    }

    /// Name of the interface.
    pub(in crate::load) fn interface(&self) -> &str {
        &self.interface
    }
}

/// Opens a socket for each receive queue of `interface`, in the order of the queues.
///
/// # Errors
/// [`BypassFault::Socket`].
pub(in crate::load) fn open_sockets(interface: &Interface) -> Result<Vec<XdpSocket>, BypassFault> {
    let queues = interface.queues_max.clamp(1, QUEUES_MAX);
    let mut sockets = Vec::new();
    for queue in 0..queues {
        // As many frames as a full set of sockets may have: how many queues are in use is only known at the end.
        let frames = (FRAMES_TOTAL / queues.next_power_of_two()).min(FRAMES_MAX);
        match when_free(|| XdpSocket::open(interface.index, queue, frames)) {
            Ok(socket) => sockets.push(socket),
            // The driver could have more queues than it uses.
            Err(error) if queue > 0 && error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(BypassFault::Socket { queue, error }),
        }
    }
    Ok(sockets)
}

/// Sends what comes in by `interface` for `listen` to `sockets`, one for each queue.
///
/// # Errors
/// Why not.
pub(in crate::load) fn attach(
    interface: &Interface,
    listen: SocketAddr,
    hook: Hook,
    sockets: &[XdpSocket],
) -> Result<Attachment, BypassFault> {
    let map = sys::socket_map(QUEUES_MAX).map_err(|error| BypassFault::Map { error })?;
    for (queue, socket) in (0..).zip(sockets) {
        sys::set_socket(map.as_fd(), queue, socket.as_fd()).map_err(|error| BypassFault::Map { error })?;
    }
    let mut log = vec![0; LOG_BYTES];
    let program = program::redirect(listen, map.as_raw_fd());
    let program = sys::load(&program, &mut log).map_err(|error| BypassFault::Program { error, log: shown(&log) })?;
    let attached = when_free(|| sys::attach(program.as_fd(), interface.index, hook.flags()));
    match attached {
        Ok(link) => Ok(Attachment { link, _map: map, interface: interface.name.clone() }),
        Err(error) => Err(BypassFault::Attach { interface: interface.name.clone(), error }),
    }
}

/// Calls `open` until it does not find its object busy, for some 100 ms.
fn when_free<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..BUSY_RETRIES {
        match open() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => poll(&mut [], BUSY_PAUSE)?,
            other => return other,
        }
    }
    open()
}

/// The end of a verifier's log, where it says what is wrong.
fn shown(log: &[u8]) -> String {
    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = text.get(text.len().saturating_sub(LOG_SHOWN)..).unwrap_or_default();
    if text.is_empty() { String::new() } else { format!("\n{}", String::from_utf8_lossy(text)) }
}
