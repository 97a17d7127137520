//! Network interfaces: by name, or by an address they have. Asked of the kernel over netlink, which answers for the
//! network namespace of the thread that asks; files under `/sys` answer for that of whoever mounted them.

use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Receive queues its driver could have; some may not be in use.
    pub queues_max: u32,
    /// The machine's way to itself.
    pub is_loopback: bool,
}

/// The interface with `name`; `None` when there is none.
///
/// # Errors
/// When the kernel does not say.
pub fn by_name(name: &str) -> io::Result<Option<Interface>> {
    Ok(all()?.into_iter().find(|interface| interface.name == name))
}

/// The interface that has `address`; `None` when none has.
///
/// # Errors
/// When the kernel does not say.
pub fn by_address(address: IpAddr) -> io::Result<Option<Interface>> {
    let mut index = None;
    dump(libc::RTM_GETADDR, |kind, body| {
        if kind == libc::RTM_NEWADDR && body.get(ADDRESS_HEADER..).is_some_and(|rest| has_address(rest, address)) {
            index = index.or_else(|| word(body, ADDRESS_INDEX));
        }
    })?;
    Ok(all()?.into_iter().find(|interface| Some(interface.index) == index))
}

fn all() -> io::Result<Vec<Interface>> {
    let mut all = Vec::new();
    dump(libc::RTM_GETLINK, |kind, body| {
        if kind == libc::RTM_NEWLINK {
            all.extend(interface(body));
        }
    })?;
    Ok(all)
}

// Layouts of `linux/netlink.h`, `linux/rtnetlink.h` and `linux/if_addr.h`, in the machine's byte order.
/// `struct nlmsghdr`: length u32, type u16, flags u16, sequence u32, port u32.
const MESSAGE_HEADER: usize = 16;
/// `struct ifinfomsg`: family u8, padding u8, type u16, index i32, flags u32, change u32.
const LINK_HEADER: usize = 16;
const LINK_INDEX: usize = 4;
const LINK_FLAGS: usize = 8;
/// `struct ifaddrmsg`: family, prefix length, flags, scope u8 each, index u32.
const ADDRESS_HEADER: usize = 8;
const ADDRESS_INDEX: usize = 4;
/// `IFLA_NUM_RX_QUEUES`.
const RX_QUEUES: u16 = 32;
/// Reads of one answer; each brings some tens of interfaces.
const READS_MAX: usize = 1024;

/// The interface in the body of an `RTM_NEWLINK` message.
fn interface(body: &[u8]) -> Option<Interface> {
    let index = word(body, LINK_INDEX)?;
    let (mut name, mut queues_max) = (None, 1);
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        if kind == libc::IFLA_IFNAME {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            name = Some(String::from_utf8_lossy(text).into_owned());
        } else if kind == RX_QUEUES {
            queues_max = word(value, 0)?;
        }
    }
    let is_loopback = word(body, LINK_FLAGS)? & libc::IFF_LOOPBACK.cast_unsigned() != 0;
    Some(Interface { index, name: name?, queues_max, is_loopback })
}

/// True when the attributes of an `RTM_NEWADDR` message say `address`.
fn has_address(attributes_bytes: &[u8], address: IpAddr) -> bool {
    attributes(attributes_bytes).any(|(kind, value)| {
        // Of a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL is ours, but IPv6 has it only there.
        let is_own = kind == libc::IFA_LOCAL || (kind == libc::IFA_ADDRESS && address.is_ipv6());
        let value = match *value {
            [a, b, c, d] => Some(IpAddr::from(Ipv4Addr::new(a, b, c, d))),
            _ => <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into()),
        };
        is_own && value == Some(address)
    })
}

/// Attributes (`struct rtattr`: length u16, type u16, value, padded to four bytes) up to the first that is not whole.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]), value))
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

/// Asks for all objects of one kind and shows every message's type and body to `f`.
fn dump(request: u16, mut f: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let protocol = Protocol::from(libc::NETLINK_ROUTE);
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or(0);
    let mut message = Vec::with_capacity(MESSAGE_HEADER + LINK_HEADER);
    message.extend(u32::try_from(MESSAGE_HEADER + LINK_HEADER).unwrap_or(0).to_ne_bytes());
    message.extend(request.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.resize(MESSAGE_HEADER + LINK_HEADER, 0);
    socket.send(&message)?;
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..READS_MAX {
        let length = socket.read(&mut buffer)?;
        if is_last(buffer.get(..length).unwrap_or_default(), &mut f)? {
            return Ok(());
        }
    }
    Err(io::Error::new(ErrorKind::InvalidData, "the kernel's list of interfaces does not end"))
}

/// Reads the messages of one datagram; true when the last of them ends the answer.
fn is_last(datagram: &[u8], f: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    let mut rest = datagram;
    while let Some(length) = word(rest, 0) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(body) = rest.get(MESSAGE_HEADER..length) else { break };
        let kind = rest.get(4..).and_then(<[u8]>::first_chunk).map_or(0, |kind| u16::from_ne_bytes(*kind));
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = word(body, 0).map_or(0, u32::cast_signed);
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            _ => f(kind, body),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_by_name_and_by_address() {
        let found = by_name("lo").unwrap().unwrap();
        assert!(found.index > 0 && found.queues_max > 0 && found.is_loopback, "{found:?}");
        if std::net::UdpSocket::bind("127.0.0.1:0").is_ok() {
            assert_eq!(by_address([127, 0, 0, 1].into()).unwrap(), Some(found));
        }
        assert_eq!(by_name("no-such-one").unwrap(), None);
        assert_eq!(by_address([192, 0, 2, 1].into()).unwrap(), None);
    }

    #[test]
    fn any_bytes_are_an_answer() {
        bolero::check!().for_each(|bytes| {
            let _ = is_last(bytes, &mut |_, body| {
                let _ = (interface(body), has_address(body, [1, 2, 3, 4].into()));
            });
        });
    }
}
