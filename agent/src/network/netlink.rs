//! rtnetlink(7) as far as a sandbox needs it: six kinds of requests, each answered by an acknowledgement.
//!
//! All integers are in the machine's byte order, attributes are padded to four bytes, netlink(7).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::plan::{LinkPlan, NeighborPlan, Prefix, RoutePlan, RulePlan};

// linux/rtnetlink.h: message kinds.
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOR: u16 = 28;
const NEW_RULE: u16 = 32;

// linux/netlink.h.
const ERROR: u16 = 2;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
const HEADER: usize = 16;

const INET: u8 = 2;
const INET6: u8 = 10;
const INTERFACE_UP: u32 = 1;

/// A socket to the kernel's routing tables.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Name, address, MTU, and up; the kernel renames an interface only while it is down, and then takes all at once.
    pub(super) fn set_link(&mut self, index: u32, link: &LinkPlan) -> io::Result<()> {
        let mut message = Message::default();
        // struct ifinfomsg: family, padding, type, index, flags, change.
        message
            .u8(0)
            .u8(0)
            .u16(0)
            .u32(index)
            .u32(INTERFACE_UP)
            .u32(INTERFACE_UP);
        if link.pci_address.is_some() {
            message.attribute(3, &[link.name.as_bytes(), &[0]].concat());
        }
        if let Some(mac) = &link.mac {
            message.attribute(1, mac);
        }
        if let Some(mtu) = link.mtu {
            message.attribute(4, &mtu.to_ne_bytes());
        }
        self.request(NEW_LINK, 0, &message)
    }

    /// Moves the interface to another network namespace, where it has the same index and is down.
    pub(super) fn move_link(&mut self, index: u32, namespace: impl AsFd) -> io::Result<()> {
        // linux/if_link.h: IFLA_NET_NS_FD.
        const NAMESPACE_DESCRIPTOR: u16 = 28;
        let mut message = Message::default();
        message.u8(0).u8(0).u16(0).u32(index).u32(0).u32(0);
        let descriptor = namespace.as_fd().as_raw_fd();
        message.attribute(NAMESPACE_DESCRIPTOR, &descriptor.to_ne_bytes());
        self.request(NEW_LINK, 0, &message)
    }

    /// IPv6 addresses are usable at once: the CNI plugin made sure that nobody else has them.
    pub(super) fn add_address(&mut self, index: u32, prefix: Prefix) -> io::Result<()> {
        const NO_DUPLICATE_DETECTION: u32 = 0x2;
        let mut message = Message::default();
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        message
            .u8(family(prefix.address))
            .u8(prefix.length)
            .u8(0)
            .u8(0)
            .u32(index);
        message.attribute(1, &octets(prefix.address));
        message.attribute(2, &octets(prefix.address));
        match prefix.address {
            IpAddr::V4(address) => {
                if let Some(broadcast) = broadcast(address, prefix.length) {
                    message.attribute(4, &broadcast.octets());
                }
            }
            IpAddr::V6(_) => message.attribute(8, &NO_DUPLICATE_DETECTION.to_ne_bytes()),
        }
        self.request(NEW_ADDRESS, CREATE | REPLACE, &message)
    }

    /// A route that the kernel has already, because it follows from an address, is no error.
    pub(super) fn add_route(&mut self, index: u32, route: &RoutePlan) -> io::Result<()> {
        const PROTOCOL_BOOT: u8 = 3;
        const TYPE_UNICAST: u8 = 1;
        const ON_LINK: u32 = 4;
        const TABLE_MAIN: u32 = 254;
        let table = route.table.unwrap_or(TABLE_MAIN);
        let flags = if route.gateway_is_on_link { ON_LINK } else { 0 };
        let mut message = Message::default();
        // struct rtmsg: family, destination and source length, tos, table, protocol, scope, type, flags.
        message
            .u8(family(route.destination.address))
            .u8(route.destination.length)
            .u8(0)
            .u8(0);
        message
            .u8(u8::try_from(table).unwrap_or(0))
            .u8(PROTOCOL_BOOT)
            .u8(route.scope)
            .u8(TYPE_UNICAST)
            .u32(flags);
        message.attribute(1, &octets(route.destination.address));
        message.attribute(4, &index.to_ne_bytes());
        if let Some(gateway) = route.gateway {
            message.attribute(5, &octets(gateway));
        }
        if let Some(metric) = route.metric {
            message.attribute(6, &metric.to_ne_bytes());
        }
        if let Some(source) = route.source {
            message.attribute(7, &octets(source));
        }
        if let Some(mtu) = route.mtu {
            let mut metrics = Message::default();
            metrics.attribute(2, &mtu.to_ne_bytes());
            message.attribute(8, &metrics.0);
        }
        message.attribute(15, &table.to_ne_bytes());
        match self.request(NEW_ROUTE, CREATE | EXCLUSIVE, &message) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            added => added,
        }
    }

    pub(super) fn add_neighbor(&mut self, index: u32, neighbor: &NeighborPlan) -> io::Result<()> {
        const PERMANENT: u16 = 0x80;
        let mut message = Message::default();
        // struct ndmsg: family, padding, index, state, flags, type.
        message
            .u8(family(neighbor.address))
            .u8(0)
            .u16(0)
            .u32(index)
            .u16(PERMANENT)
            .u8(0)
            .u8(0);
        message.attribute(1, &octets(neighbor.address));
        message.attribute(2, &neighbor.mac);
        self.request(NEW_NEIGHBOR, CREATE | REPLACE, &message)
    }

    pub(super) fn add_rule(&mut self, rule: &RulePlan) -> io::Result<()> {
        const TO_TABLE: u8 = 1;
        let length = |prefix: Option<Prefix>| prefix.map_or(0, |prefix| prefix.length);
        let mut message = Message::default();
        // struct fib_rule_hdr: family, destination and source length, tos, table, two reserved, action, flags.
        message
            .u8(if rule.is_ipv6 { INET6 } else { INET })
            .u8(length(rule.destination))
            .u8(length(rule.source));
        message.u8(0).u8(0).u8(0).u8(0).u8(TO_TABLE).u32(0);
        if let Some(destination) = rule.destination {
            message.attribute(1, &octets(destination.address));
        }
        if let Some(source) = rule.source {
            message.attribute(2, &octets(source.address));
        }
        message.attribute(6, &rule.priority.to_ne_bytes());
        message.attribute(15, &rule.table.to_ne_bytes());
        match self.request(NEW_RULE, CREATE | EXCLUSIVE, &message) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            added => added,
        }
    }

    fn request(&mut self, kind: u16, flags: u16, message: &Message) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.with_header(kind, REQUEST | ACKNOWLEDGE | flags, self.sequence)?;
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (got, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty())?;
        acknowledgement(answer.get(..got).unwrap_or_default(), self.sequence)
    }
}

/// struct nlmsgerr after struct nlmsghdr: a negative errno, 0 for success.
fn acknowledgement(answer: &[u8], sequence: u32) -> io::Result<()> {
    let field = |at: usize| {
        answer
            .get(at..)?
            .first_chunk::<4>()
            .map(|bytes| i32::from_ne_bytes(*bytes))
    };
    let kind = answer
        .get(4..)
        .and_then(<[u8]>::first_chunk::<2>)
        .map(|bytes| u16::from_ne_bytes(*bytes));
    if kind != Some(ERROR) || field(8) != Some(sequence.cast_signed()) {
        return Err(io::Error::other(
            "netlink answered something else than an acknowledgement",
        ));
    }
    match field(HEADER) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        None => Err(io::Error::other("netlink sent a short acknowledgement")),
    }
}

/// The part of a message after its header.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// struct rtattr and its value. Values here are a few bytes long.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.u16(length).u16(kind);
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// struct nlmsghdr first: length, kind, flags, sequence, port.
    fn with_header(&self, kind: u16, flags: u16, sequence: u32) -> io::Result<Vec<u8>> {
        let length = u32::try_from(HEADER + self.0.len()).map_err(io::Error::other)?;
        let mut bytes = Self::default();
        bytes.u32(length).u16(kind).u16(flags).u32(sequence).u32(0);
        bytes.0.extend_from_slice(&self.0);
        Ok(bytes.0)
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { INET } else { INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The last address of the network; networks of one or two have none, RFC 3021.
fn broadcast(address: Ipv4Addr, length: u8) -> Option<Ipv4Addr> {
    let hosts = u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
    (length < 31).then(|| Ipv4Addr::from_bits(address.to_bits() | hosts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_the_header_counts_all() {
        let mut message = Message::default();
        message.u32(7);
        message.attribute(3, b"eth0\0");
        let bytes = message.with_header(NEW_LINK, REQUEST, 9).unwrap();
        assert_eq!(bytes.len(), 16 + 4 + 12);
        assert_eq!(bytes[..4], 32u32.to_ne_bytes());
        assert_eq!(bytes[20..], [9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0]);
    }

    #[test]
    fn answers_are_read_with_their_errno() {
        let answer = |errno: i32, sequence: u32| {
            let mut message = Message::default();
            message.u32(errno.cast_unsigned());
            message.with_header(ERROR, 0, sequence).unwrap()
        };
        acknowledgement(&answer(0, 5), 5).unwrap();
        let refused = acknowledgement(&answer(-libc::EEXIST, 5), 5).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
        assert!(
            acknowledgement(&answer(0, 4), 5).is_err(),
            "an answer to something else"
        );
        assert!(acknowledgement(&[], 5).is_err());
    }

    #[test]
    fn broadcast_addresses() {
        let address = Ipv4Addr::new(10, 88, 0, 5);
        assert_eq!(broadcast(address, 16), Some(Ipv4Addr::new(10, 88, 255, 255)));
        assert_eq!(broadcast(address, 32), None);
    }
}
