//! Where beacons go: the addresses of the gateways, looked up again now and then, and the sockets to reach them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::config::GatewayAddress;

/// Most addresses one name may stand for.
const ADDRESSES_PER_NAME_MAX: usize = 64;

/// How multicast leaves the host.
#[derive(Clone, Debug, Default)]
pub(super) struct MulticastRoute {
    /// The interface: its name or an address of it.
    pub(super) interface: Option<String>,
    /// Routers it may pass.
    pub(super) ttl: u8,
}

/// Sockets and addresses.
#[derive(Debug)]
pub(super) struct Targets {
    gateways: Vec<GatewayAddress>,
    /// What each gateway's name stands for; those that were found last when it cannot be looked up.
    addresses: Vec<Vec<SocketAddr>>,
    multicast: MulticastRoute,
    /// For unicast over IPv4 and IPv6, then for multicast over both; opened when first needed.
    sockets: [Option<UdpSocket>; 4],
}

/// What a round of sending came to.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Datagrams that left.
    pub(super) datagrams: u32,
    /// The last failure.
    pub(super) failure: Option<(SocketAddr, io::Error)>,
}

impl Targets {
    pub(super) fn new(gateways: Vec<GatewayAddress>, multicast: MulticastRoute) -> Self {
        let known = |gateway: &GatewayAddress| match gateway {
            GatewayAddress::Address(address) => vec![*address],
            GatewayAddress::Name(_) => Vec::new(),
        };
        let addresses = gateways.iter().map(known).collect();
        Self { gateways, addresses, multicast, sockets: [None, None, None, None] }
    }

    /// Whether some gateway has a name that must be looked up.
    pub(super) fn has_names(&self) -> bool {
        !self.names().is_empty()
    }

    /// The gateways that have names, by their places.
    pub(super) fn names(&self) -> Vec<(usize, String)> {
        let named = |(index, gateway): (usize, &GatewayAddress)| match gateway {
            GatewayAddress::Name(name) => Some((index, name.clone())),
            GatewayAddress::Address(_) => None,
        };
        self.gateways.iter().enumerate().filter_map(named).collect()
    }

    /// What the name of gateway `index` stands for now; whether that is something else than before. No addresses at all
    /// leave those of before.
    pub(super) fn set(&mut self, index: usize, mut addresses: Vec<SocketAddr>) -> bool {
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(ADDRESSES_PER_NAME_MAX);
        match self.addresses.get_mut(index) {
            Some(before) if !addresses.is_empty() && *before != addresses => {
                *before = addresses;
                true
            }
            Some(_) | None => false,
        }
    }

    /// All addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().flatten().copied()
    }

    /// Whether some address is not of this host.
    pub(super) fn is_remote(&self) -> bool {
        self.addresses().any(|address| !address.ip().is_loopback())
    }

    /// Sends `datagram` to all.
    pub(super) fn send(&mut self, datagram: &[u8]) -> Sent {
        let mut sent = Sent::default();
        for address in self.addresses.iter().flatten() {
            let result = socket(&mut self.sockets, &self.multicast, address.ip())
                .and_then(|socket| socket.send_to(datagram, address));
            match result {
                Ok(_) => sent.datagrams += 1,
                Err(error) => sent.failure = Some((*address, error)),
            }
        }
        sent
    }
}

fn socket<'s>(
    sockets: &'s mut [Option<UdpSocket>; 4],
    route: &MulticastRoute,
    to: IpAddr,
) -> io::Result<&'s UdpSocket> {
    let index = usize::from(to.is_ipv6()) + 2 * usize::from(to.is_multicast());
    let cell = sockets.get_mut(index).ok_or(io::ErrorKind::InvalidInput)?;
    if cell.is_none() {
        *cell = Some(open(to, route)?);
    }
    cell.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
}

fn open(to: IpAddr, route: &MulticastRoute) -> io::Result<UdpSocket> {
    let (domain, any) = match to {
        IpAddr::V4(_) => (Domain::IPV4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        IpAddr::V6(_) => (Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    // A beacon that cannot be sent now is not worth waiting for: the next one says more.
    socket.set_nonblocking(true)?;
    if to.is_multicast() {
        route_multicast(&socket, to, route)?;
    }
    socket.bind(&SocketAddr::new(any, 0).into())?;
    Ok(socket.into())
}

fn route_multicast(socket: &Socket, to: IpAddr, route: &MulticastRoute) -> io::Result<()> {
    if to.is_ipv4() {
        socket.set_multicast_ttl_v4(u32::from(route.ttl))?;
    } else {
        socket.set_multicast_hops_v6(u32::from(route.ttl))?;
    }
    let Some(interface) = &route.interface else { return Ok(()) };
    match interface.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if to.is_ipv4() => socket.set_multicast_if_v4(&address),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`interface: {interface}` is an address that cannot carry {to}; give the interface's name"),
        )),
        Err(_name) => socket.bind_device(Some(interface.as_bytes())),
    }
}
