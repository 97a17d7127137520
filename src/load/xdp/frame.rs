//! From an Ethernet frame to the UDP datagram in it. The kernel's stack never saw these frames, so everything that it
//! would have checked is checked here: lengths, header and UDP checksums, and that the source can be a source.
//!
//! The last matters most: beacons without a key are taken from loopback only, and a frame from the wire that claims to
//! come from 127.0.0.1 must not pass for one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Offsets in Ethernet, VLAN (IEEE 802.1Q), IPv4 (RFC 791), IPv6 (RFC 8200) and UDP (RFC 768) headers; each counted from
/// the start of its own header.
pub(super) mod field {
    pub(crate) const ETHERTYPE: usize = 12;
    pub(crate) const ETHERNET_BYTES: usize = 14;
    pub(crate) const VLAN_BYTES: usize = 4;

    pub(crate) const V4_LENGTH: usize = 2;
    pub(crate) const V4_FRAGMENT: usize = 6;
    pub(crate) const V4_PROTOCOL: usize = 9;
    pub(crate) const V4_SOURCE: usize = 12;
    pub(crate) const V4_TARGET: usize = 16;
    /// Without options.
    pub(crate) const V4_BYTES: usize = 20;

    pub(crate) const V6_LENGTH: usize = 4;
    pub(crate) const V6_NEXT: usize = 6;
    pub(crate) const V6_SOURCE: usize = 8;
    pub(crate) const V6_TARGET: usize = 24;
    pub(crate) const V6_BYTES: usize = 40;

    pub(crate) const UDP_TARGET: usize = 2;
    pub(crate) const UDP_LENGTH: usize = 4;
    pub(crate) const UDP_CHECKSUM: usize = 6;
    pub(crate) const UDP_BYTES: usize = 8;
}

/// Ethertypes, as they stand on the wire.
pub(super) const ETHERTYPE_V4: [u8; 2] = [0x08, 0x00];
pub(super) const ETHERTYPE_V6: [u8; 2] = [0x86, 0xdd];
/// Customer and service VLAN tags.
pub(super) const ETHERTYPES_VLAN: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
/// Version 4, five words of header.
pub(super) const V4_FIRST: u8 = 0x45;
/// Of the flags and the offset: "more fragments" and the offset, that is all but "don't fragment".
pub(super) const V4_FRAGMENT_MASK: [u8; 2] = [0x3f, 0xff];
/// Protocol number of UDP.
pub(super) const UDP: u8 = 17;

/// What a frame carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'f> {
    /// Who sent it, if the source address can be believed.
    pub from: IpAddr,
    /// Whom it was sent to.
    pub to: SocketAddr,
    /// What it says.
    pub payload: &'f [u8],
}

/// Why a frame is no datagram for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// It ends within a header, or before the end its headers claim.
    #[error("the frame is cut off")]
    Short,
    /// Neither IPv4 without options nor IPv6.
    #[error("neither plain IPv4 nor IPv6")]
    Network,
    /// A part of a datagram: what XDP sees it cannot put together.
    #[error("a fragment")]
    Fragment,
    /// Not UDP, or behind extension headers.
    #[error("not UDP")]
    Transport,
    /// Lengths of headers that contradict each other.
    #[error("lengths contradict each other")]
    Length,
    /// A wrong checksum of the IPv4 header.
    #[error("wrong header checksum")]
    HeaderChecksum,
    /// A wrong checksum of the datagram.
    #[error("wrong UDP checksum")]
    Checksum,
    /// A source no datagram from the wire can have: loopback, multicast, broadcast, unspecified.
    #[error("impossible source address")]
    Source,
}

/// Reads `frame`.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(frame: &[u8]) -> Result<Datagram<'_>, FrameFault> {
    let mut ethertype: [u8; 2] = array(frame, field::ETHERTYPE)?;
    let mut start = field::ETHERNET_BYTES;
    if ETHERTYPES_VLAN.contains(&ethertype) {
        ethertype = array(frame, field::ETHERTYPE + field::VLAN_BYTES)?;
        start += field::VLAN_BYTES;
    }
    let packet = frame.get(start..).ok_or(FrameFault::Short)?;
    let (from, to, sum, datagram) = match ethertype {
        ETHERTYPE_V4 => network_v4(packet)?,
        ETHERTYPE_V6 => network_v6(packet)?,
        _ => return Err(FrameFault::Network),
    };
    let from = from.to_canonical();
    if is_impossible(from) {
        return Err(FrameFault::Source);
    }
    let port = u16::from_be_bytes(array(datagram, field::UDP_TARGET)?);
    let length = usize::from(u16::from_be_bytes(array(datagram, field::UDP_LENGTH)?));
    let datagram = datagram.get(..length).ok_or(FrameFault::Length)?;
    let payload = datagram.get(field::UDP_BYTES..).ok_or(FrameFault::Length)?;
    let may_be_absent = ethertype == ETHERTYPE_V4;
    if !is_sum_right(datagram, sum.plus(u64::from(ne(length))), may_be_absent)? {
        return Err(FrameFault::Checksum);
    }
    Ok(Datagram { from, to: SocketAddr::new(to, port), payload })
}

type Network<'f> = (IpAddr, IpAddr, Sum, &'f [u8]);

/// Addresses, the sum of the pseudo-header but for the UDP length, and what follows the header.
fn network_v4(packet: &[u8]) -> Result<Network<'_>, FrameFault> {
    let header: [u8; field::V4_BYTES] = array(packet, 0)?;
    if header[0] != V4_FIRST {
        return Err(FrameFault::Network);
    }
    let [flags, offset]: [u8; 2] = array(&header, field::V4_FRAGMENT)?;
    if flags & V4_FRAGMENT_MASK[0] != 0 || offset & V4_FRAGMENT_MASK[1] != 0 {
        return Err(FrameFault::Fragment);
    }
    if header[field::V4_PROTOCOL] != UDP {
        return Err(FrameFault::Transport);
    }
    if Sum::of(&header).folded() != u16::MAX {
        return Err(FrameFault::HeaderChecksum);
    }
    // Short frames are padded to 60 bytes: the header says where the packet ends.
    let length = usize::from(u16::from_be_bytes(array(&header, field::V4_LENGTH)?));
    let rest = packet.get(..length).ok_or(FrameFault::Short)?.get(field::V4_BYTES..).ok_or(FrameFault::Length)?;
    let from: [u8; 4] = array(&header, field::V4_SOURCE)?;
    let to: [u8; 4] = array(&header, field::V4_TARGET)?;
    Ok((Ipv4Addr::from(from).into(), Ipv4Addr::from(to).into(), pseudo(&from, &to), rest))
}

/// As [`network_v4`].
fn network_v6(packet: &[u8]) -> Result<Network<'_>, FrameFault> {
    let header: [u8; field::V6_BYTES] = array(packet, 0)?;
    if header[0] >> 4 != 6 {
        return Err(FrameFault::Network);
    }
    if header[field::V6_NEXT] != UDP {
        return Err(FrameFault::Transport);
    }
    let length = usize::from(u16::from_be_bytes(array(&header, field::V6_LENGTH)?));
    let rest = packet.get(field::V6_BYTES..field::V6_BYTES + length).ok_or(FrameFault::Short)?;
    let from: [u8; 16] = array(&header, field::V6_SOURCE)?;
    let to: [u8; 16] = array(&header, field::V6_TARGET)?;
    Ok((Ipv6Addr::from(from).into(), Ipv6Addr::from(to).into(), pseudo(&from, &to), rest))
}

/// True for sources that only a forger writes into a frame.
fn is_impossible(from: IpAddr) -> bool {
    let broadcast = from == IpAddr::V4(Ipv4Addr::BROADCAST);
    from.is_loopback() || from.is_unspecified() || from.is_multicast() || broadcast
}

/// True when the checksum of `datagram` is right, absent where it may be, or partial.
///
/// Partial: between virtual devices of one machine (veth, virtio) the sender's kernel puts in only the sum of the
/// pseudo-header, for a network card to complete, and no card ever does. The kernel knows such packets by a mark on the
/// packet (`CHECKSUM_PARTIAL`) that a frame in AF_XDP has lost, so they are known by the sum itself. That lets one
/// damaged datagram in 65,536 pass, as the checksum does in any case; beacons carry a keyed code of their own.
fn is_sum_right(datagram: &[u8], pseudo: Sum, may_be_absent: bool) -> Result<bool, FrameFault> {
    let sent = u16::from_ne_bytes(array(datagram, field::UDP_CHECKSUM)?);
    if sent == 0 {
        return Ok(may_be_absent);
    }
    // Over a right checksum the sum is all ones; zero and all ones are the same number in this arithmetic.
    Ok(pseudo.plus(Sum::of(datagram).0).folded() == u16::MAX || sent == pseudo.folded())
}

/// An Internet checksum (RFC 1071) under way. It sums words in the machine's own byte order: the sum comes out in that
/// order too, and is only ever compared.
#[derive(Clone, Copy)]
struct Sum(u64);

impl Sum {
    /// Sums `bytes`, four at a time; up to 2^32 of them cannot overflow.
    fn of(bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let mut last = [0; 4];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Self(sum + u64::from(u32::from_ne_bytes(last)))
    }

    const fn plus(self, more: u64) -> Self {
        Self(self.0 + more)
    }

    /// The sum in 16 bits, carries added back in.
    #[expect(clippy::cast_possible_truncation, reason = "folded until it fits")]
    const fn folded(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }
}

/// Addresses and protocol of the pseudo-header. It also holds the UDP length, which is not known yet.
fn pseudo(from: &[u8], to: &[u8]) -> Sum {
    Sum::of(from).plus(Sum::of(to).0).plus(u64::from(ne(usize::from(UDP))))
}

/// A small number as 16 bits in network order, read in the machine's.
#[expect(clippy::cast_possible_truncation, reason = "a protocol number, or a length read from 16 bits")]
const fn ne(number: usize) -> u16 {
    (number as u16).to_be()
}

/// `N` bytes of `bytes` from `at`.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], FrameFault> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().ok_or(FrameFault::Short)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const FROM_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const TO_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    /// A frame as a network card would deliver it; built apart from the code it tests, word by word.
    pub(in crate::load::xdp) fn frame(from: IpAddr, to: SocketAddr, vlan: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if vlan {
            frame.extend([0x81, 0x00, 0x00, 0x64]);
        }
        let udp_length = u16::try_from(8 + payload.len()).unwrap();
        let mut udp = Vec::new();
        udp.extend(40_000_u16.to_be_bytes());
        udp.extend(to.port().to_be_bytes());
        udp.extend(udp_length.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(payload);
        let mut pseudo = Vec::new();
        match (from, to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([0x08, 0x00]);
                let mut header = vec![0x45, 0];
                header.extend((20 + udp_length).to_be_bytes());
                header.extend([0x12, 0x34, 0x40, 0, 64, 17, 0, 0]);
                header.extend(from.octets());
                header.extend(to.octets());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(header);
                pseudo.extend(from.octets());
                pseudo.extend(to.octets());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(udp_length.to_be_bytes());
                frame.extend([17, 64]);
                frame.extend(from.octets());
                frame.extend(to.octets());
                pseudo.extend(from.octets());
                pseudo.extend(to.octets());
            }
            _ => panic!("mixed families"),
        }
        pseudo.extend([0, 17]);
        pseudo.extend(udp_length.to_be_bytes());
        pseudo.extend(&udp);
        let sum = match checksum(&pseudo) {
            0 => u16::MAX,
            sum => sum,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        frame.extend(udp);
        frame
    }

    fn checksum(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    fn v4(payload: &[u8]) -> Vec<u8> {
        frame([10, 0, 0, 1].into(), "10.0.0.2:7946".parse().unwrap(), false, payload)
    }

    fn v6(payload: &[u8]) -> Vec<u8> {
        frame(FROM_V6.into(), (TO_V6, 7946).into(), false, payload)
    }

    /// Put together apart, by RFC 768 and RFC 791: `hello` from 192.168.0.1:40000 to 192.168.0.199:7946.
    #[test]
    fn a_golden_frame() {
        let golden = [
            0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1, 0x08, 0x00, // Ethernet
            0x45, 0, 0, 33, 0, 0, 0x40, 0, 0x40, 17, 0xb8, 0xb3, 192, 168, 0, 1, 192, 168, 0, 199, // IPv4
            0x9c, 0x40, 0x1f, 0x0a, 0, 13, 0x7e, 0x9e, b'h', b'e', b'l', b'l', b'o', // UDP
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // padding to 60 bytes
        ];
        let read = parse(&golden).unwrap();
        assert_eq!(read.from, IpAddr::from([192, 168, 0, 1]));
        assert_eq!(read.to, "192.168.0.199:7946".parse().unwrap());
        assert_eq!(read.payload, b"hello");
    }

    #[test]
    fn datagrams_of_both_families_and_all_lengths_are_read() {
        for length in 0..200_u8 {
            let payload: Vec<u8> = (0..length).map(|at| at.wrapping_mul(37)).collect();
            let read = v4(&payload);
            assert_eq!(parse(&read).map(|read| read.payload), Ok(&*payload));
            let read = v6(&payload);
            let read = parse(&read).unwrap();
            assert_eq!((read.from, read.to), (FROM_V6.into(), (TO_V6, 7946).into()));
            assert_eq!(read.payload, payload);
        }
        let tagged = frame([10, 0, 0, 1].into(), "10.0.0.2:7946".parse().unwrap(), true, b"tagged");
        assert_eq!(parse(&tagged).map(|read| read.payload), Ok(&b"tagged"[..]));
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused() {
        for whole in [v4(b"twelve bytes"), v6(b"twelve bytes")] {
            for length in 0..whole.len() {
                assert!(parse(&whole[..length]).is_err(), "{length} bytes of {}", whole.len());
            }
        }
    }

    #[test]
    fn a_damaged_bit_is_found_wherever_the_checksums_reach() {
        for whole in [v4(b"a beacon, or so"), v6(b"a beacon, or so")] {
            let truth = parse(&whole).unwrap();
            for bit in field::ETHERNET_BYTES * 8..whole.len() * 8 {
                let mut damaged = whole.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                if let Ok(read) = parse(&damaged) {
                    // Traffic class, flow label and hop limit of IPv6 are under no checksum and mean nothing here.
                    assert_eq!(read, truth, "bit {bit}");
                    assert!(whole[14] == 0x60, "bit {bit}");
                }
            }
        }
    }

    #[test]
    fn checksums_may_be_partial_and_over_ipv4_absent() {
        let partial = |frame: &mut [u8], addresses: std::ops::Range<usize>| {
            let udp = addresses.end;
            let mut pseudo = frame[addresses].to_vec();
            pseudo.extend([0, 17, frame[udp + 4], frame[udp + 5]]);
            let sum = !checksum(&pseudo);
            frame[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
        };
        let (mut v4, mut v6) = (v4(b"partial"), v6(b"partial"));
        partial(&mut v4, 26..34);
        partial(&mut v6, 22..54);
        assert!(parse(&v4).is_ok() && parse(&v6).is_ok());
        v4[40..42].fill(0);
        v6[60..62].fill(0);
        assert!(parse(&v4).is_ok());
        assert_eq!(parse(&v6), Err(FrameFault::Checksum));
    }

    #[test]
    fn what_only_a_forger_sends_is_refused() {
        let to: SocketAddr = "10.0.0.2:7946".parse().unwrap();
        for source in [[127, 0, 0, 1], [0, 0, 0, 0], [224, 0, 0, 1], [255, 255, 255, 255]] {
            assert_eq!(parse(&frame(source.into(), to, false, b"x")), Err(FrameFault::Source), "{source:?}");
        }
        for source in ["::1", "::", "ff02::1", "::ffff:127.0.0.1"] {
            let forged = frame(source.parse().unwrap(), (TO_V6, 7946).into(), false, b"x");
            assert_eq!(parse(&forged), Err(FrameFault::Source), "{source}");
        }
    }

    #[test]
    fn what_is_not_plain_udp_is_named() {
        let change = |at: usize, byte: u8| {
            let mut frame = v4(b"x");
            frame[at] = byte;
            parse(&frame).unwrap_err()
        };
        assert_eq!(change(13, 6), FrameFault::Network);
        assert_eq!(change(14, 0x46), FrameFault::Network);
        assert_eq!(change(20, 0x20), FrameFault::Fragment);
        assert_eq!(change(21, 1), FrameFault::Fragment);
        assert_eq!(change(23, 6), FrameFault::Transport);
        assert_eq!(change(22, 63), FrameFault::HeaderChecksum);
        assert_eq!(change(39, 200), FrameFault::Length);
        assert_eq!(change(39, 7), FrameFault::Length);
        assert_eq!(change(42, b'y'), FrameFault::Checksum);
    }

    #[test]
    fn any_bytes_are_an_answer() {
        bolero::check!().for_each(|bytes| {
            if let Ok(read) = parse(bytes) {
                assert!(read.payload.len() <= bytes.len() - 42);
            }
        });
    }
}
