//! Plain UDP sockets: how beacons arrive where nothing is bypassed, and beside a bypass what it lets through. Batches of
//! datagrams in one system call (`recvmmsg`), and the waiting for several descriptors at once.
#![expect(unsafe_code, reason = "recvmmsg, ppoll, eventfd and two socket options have no safe interface at hand")]

use socket2::{Domain, InterfaceIndexOrAddress, Socket, Type};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Datagrams a system call.
pub(super) const BATCH: usize = 64;
/// Bytes of a buffer; what is longer is cut, and is no beacon.
const BUFFER: usize = 2048;
/// What waits in the kernel while its reader is busy, bytes as the kernel counts them: some 20,000 beacons.
const KERNEL_BUFFER: usize = 16 << 20;

/// Binds up to `count` sockets to `listen`; with port 0 the system picks one port for all. `interface` is the index of
/// the interface that joins a multicast group, 0 to leave it to the routing table.
///
/// A multicast address gets one socket: the kernel gives a copy of each datagram to every socket bound to the group,
/// so a second one would not share the work but double it. Several unicast sockets share it by the hash of a datagram's
/// addresses (`SO_REUSEPORT`): one sender always comes to the same socket, in order.
///
/// # Errors
/// When the address cannot be bound or the group not joined; when another process has a unicast address.
pub(super) fn bind(listen: SocketAddr, interface: u32, count: usize) -> io::Result<Vec<Socket>> {
    let mut address = with_scope(listen, interface);
    let multicast = listen.ip().is_multicast();
    let count = if multicast { 1 } else { count.max(1) };
    if count > 1 && address.port() != 0 {
        // With SO_REUSEPORT a second process would silently share the datagrams: probe without it first.
        let probe = open(address)?;
        probe.bind(&address.into())?;
    }
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = open(address)?;
        // Of one group every process gets a copy, so there sharing takes nothing from anybody.
        socket.set_reuse_address(multicast)?;
        socket.set_reuse_port(count > 1)?;
        socket.bind(&address.into())?;
        if multicast {
            join(&socket, address.ip(), interface)?;
        }
        address = local(&socket)?;
        sockets.push(socket);
    }
    Ok(sockets)
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv4() {
        // Otherwise a wildcard socket hears every group that anyone on this machine has joined.
        socket.set_multicast_all_v4(false)?;
    }
    // Past the system's limit needs a capability; without it the limit must do.
    let bytes = i32::try_from(KERNEL_BUFFER).unwrap_or(i32::MAX);
    if set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
        socket.set_recv_buffer_size(KERNEL_BUFFER)?;
    }
    Ok(socket)
}

/// Link-local addresses exist once an interface: `interface` says on which, where the address does not.
fn with_scope(address: SocketAddr, interface: u32) -> SocketAddr {
    match address {
        SocketAddr::V6(mut v6) if v6.scope_id() == 0 && v6.ip().is_unicast_link_local() => {
            v6.set_scope_id(interface);
            v6.into()
        }
        other @ (SocketAddr::V4(_) | SocketAddr::V6(_)) => other,
    }
}

fn join(socket: &Socket, group: IpAddr, interface: u32) -> io::Result<()> {
    match group {
        IpAddr::V4(group) => socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(interface)),
        IpAddr::V6(group) => socket.join_multicast_v6(&group, interface),
    }
}

/// Where `socket` is bound.
pub(super) fn local(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| ErrorKind::Unsupported.into())
}

/// Buffers of one batch of datagrams.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Box<[[u8; BUFFER]; BATCH]>,
}

impl Batch {
    /// Buffers, allocated once.
    pub(super) fn new() -> Self {
        let bytes: Box<[[u8; BUFFER]]> = vec![[0; BUFFER]; BATCH].into_boxed_slice();
        Self { bytes: bytes.try_into().unwrap_or_else(|_| Box::new([[0; BUFFER]; BATCH])) }
    }

    /// Receives what waits at `socket`, at most [`BATCH`] datagrams, and shows each to `f`. Does not block.
    ///
    /// # Errors
    /// What the kernel has to say of the socket. That nothing waits is no error.
    pub(super) fn receive(&mut self, socket: &Socket, f: &mut impl FnMut(IpAddr, &[u8])) -> io::Result<usize> {
        // SAFETY: all-zero is a valid `sockaddr_in6`: integers, family 0.
        let mut names: [libc::sockaddr_in6; BATCH] = unsafe { std::mem::zeroed() };
        let mut parts =
            self.bytes.each_mut().map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: BUFFER });
        // SAFETY: all-zero is a valid `mmsghdr`: null pointers and zero lengths, no flags.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for ((header, part), name) in headers.iter_mut().zip(&mut parts).zip(&mut names) {
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = size::<libc::sockaddr_in6>();
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
        }
        let count = u32::try_from(BATCH).unwrap_or(1);
        let (flags, no_timeout) = (libc::MSG_DONTWAIT, std::ptr::null_mut());
        // SAFETY: every header holds an address with the right length and one buffer with the right length; all of them
        // live to the end of this function and nothing else refers to them; the kernel writes at most those lengths.
        let received = unsafe { libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, flags, no_timeout) };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            let is_empty = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
            return if is_empty { Ok(0) } else { Err(error) };
        };
        for ((header, name), buffer) in headers.iter().zip(&names).zip(self.bytes.iter()).take(received) {
            let length = header.msg_len as usize;
            f(sender(name), buffer.get(..length).unwrap_or(buffer));
        }
        Ok(received)
    }
}

/// The address in `name`, which the kernel filled with a `sockaddr_in` or a `sockaddr_in6`. In both the family comes
/// first; the address of the shorter stands where the longer has its flow label.
fn sender(name: &libc::sockaddr_in6) -> IpAddr {
    if i32::from(name.sin6_family) == libc::AF_INET {
        Ipv4Addr::from(name.sin6_flowinfo.to_ne_bytes()).into()
    } else {
        Ipv6Addr::from(name.sin6_addr.s6_addr).to_canonical()
    }
}

/// Datagrams the kernel has dropped at `socket` since it was opened: its buffer was full, or their checksum wrong.
pub(super) fn drops(socket: &Socket) -> io::Result<u32> {
    // SO_MEMINFO: an array of u32, of which SK_MEMINFO_DROPS (8) is the last.
    let words: [u64; 5] = option_words(socket, libc::SOL_SOCKET, libc::SO_MEMINFO)?;
    let [b0, b1, b2, b3, ..] = words[4].to_ne_bytes();
    Ok(u32::from_ne_bytes([b0, b1, b2, b3]))
}

/// Sets an option that is an `int`.
pub(super) fn set_option(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    let pointer = std::ptr::from_ref(&value).cast();
    // SAFETY: `pointer` is to `value`, of the length given; the kernel only reads it, during the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, size::<i32>()) })?;
    Ok(())
}

/// Reads an option that is a structure of integers, as `N` words; what the kernel does not fill is zero.
pub(super) fn option_words<const N: usize>(socket: &Socket, level: i32, name: i32) -> io::Result<[u64; N]> {
    let mut words = [0_u64; N];
    let mut length = size::<[u64; N]>();
    let (fd, pointer) = (socket.as_raw_fd(), words.as_mut_ptr().cast());
    // SAFETY: the kernel writes at most `length` bytes to `words`, for which any bytes are valid.
    check(unsafe { libc::getsockopt(fd, level, name, pointer, &raw mut length) })?;
    Ok(words)
}

/// An event that wakes whoever polls it, until it is read.
pub(super) fn event() -> io::Result<File> {
    // SAFETY: takes two integers and makes a descriptor.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
    // SAFETY: `fd` is new, open, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Waits until one of `waiting` is ready or `timeout` has passed; a signal ends it too.
pub(super) fn poll(waiting: &mut [libc::pollfd], timeout: Duration) -> io::Result<()> {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let count = libc::nfds_t::try_from(waiting.len()).unwrap_or(0);
    // SAFETY: `waiting` holds `count` entries, which the kernel reads and whose `revents` it writes; `timeout` is only
    // read (the raw call would write it, the library's does not); no signal mask is given.
    let ready = unsafe { libc::ppoll(waiting.as_mut_ptr(), count, &raw const timeout, std::ptr::null()) };
    match check(ready) {
        Err(error) if error.kind() != ErrorKind::Interrupted => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// An entry for [`poll`] that waits for something to read.
pub(super) fn readable(fd: BorrowedFd<'_>) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }
}

/// The error of a call that answers with a negative number.
pub(super) fn check(answer: i32) -> io::Result<i32> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Size of `T` as system calls take it.
#[expect(clippy::cast_possible_truncation, reason = "structures of some hundred bytes")]
pub(super) const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    fn receive_all(sockets: &[Socket], wanted: usize) -> Vec<(IpAddr, Vec<u8>)> {
        let mut batch = Batch::new();
        let mut all = Vec::new();
        while all.len() < wanted {
            let mut waiting: Vec<_> = sockets.iter().map(|socket| readable(socket.as_fd())).collect();
            poll(&mut waiting, Duration::from_secs(5)).unwrap();
            let before = all.len();
            for socket in sockets {
                batch.receive(socket, &mut |from, bytes| all.push((from, bytes.to_vec()))).unwrap();
            }
            assert!(all.len() > before, "{before} of {wanted} came");
        }
        all
    }

    #[test]
    fn datagrams_of_both_families_come_whole_and_once() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let sockets = bind(address.parse().unwrap(), 0, 3).unwrap();
            let target = local(&sockets[0]).unwrap();
            let senders: Vec<_> = (0..8).map(|_| UdpSocket::bind(address).unwrap()).collect();
            for number in 0..200_u32 {
                let length = 4 + usize::try_from(number).unwrap() * 6;
                let mut datagram = number.to_le_bytes().to_vec();
                datagram.resize(length, 7);
                senders[number as usize % 8].send_to(&datagram, target).unwrap();
            }
            let mut all = receive_all(&sockets, 200);
            all.sort_by_key(|(_, bytes)| u32::from_le_bytes(*bytes.first_chunk().unwrap()));
            for (number, (from, bytes)) in all.iter().enumerate() {
                assert_eq!((*from, bytes.len()), (target.ip(), 4 + number * 6));
                assert_eq!(bytes[..4], u32::try_from(number).unwrap().to_le_bytes());
            }
            assert_eq!(sockets.iter().map(|socket| drops(socket).unwrap()).sum::<u32>(), 0);
        }
    }

    #[test]
    fn ipv4_senders_to_an_ipv6_socket_have_ipv4_addresses() {
        let sockets = bind("[::]:0".parse().unwrap(), 0, 1).unwrap();
        let port = local(&sockets[0]).unwrap().port();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"x", ("127.0.0.1", port)).unwrap();
        assert_eq!(receive_all(&sockets, 1), [([127, 0, 0, 1].into(), b"x".to_vec())]);
    }

    #[test]
    fn too_long_datagrams_are_cut() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 0, 1).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(&[1; 5000], local(&sockets[0]).unwrap()).unwrap();
        assert_eq!(receive_all(&sockets, 1)[0].1, [1; BUFFER]);
    }

    #[test]
    fn a_taken_port_is_an_error_not_a_shared_one() {
        for (first, second) in [(1, 1), (2, 2), (2, 1), (1, 2)] {
            let held = bind("127.0.0.1:0".parse().unwrap(), 0, first).unwrap();
            let again = bind(local(&held[0]).unwrap(), 0, second);
            assert_eq!(again.unwrap_err().kind(), ErrorKind::AddrInUse, "{first} then {second}");
        }
    }

    #[test]
    fn a_full_buffer_drops_and_counts() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 0, 1).unwrap();
        sockets[0].set_recv_buffer_size(4096).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 128], local(&sockets[0]).unwrap()).unwrap();
        }
        let dropped = drops(&sockets[0]).unwrap();
        let mut received = 0;
        let mut batch = Batch::new();
        while batch.receive(&sockets[0], &mut |_, _| received += 1).unwrap() > 0 {}
        assert!(dropped > 0 && received + dropped == 100, "{received} received, {dropped} dropped");
    }
}
