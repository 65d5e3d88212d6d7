//! From the request's strings to addresses and numbers, with every field checked. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proto::agent::v1 as wire;
use proto::agent::v1::ConfigureSandboxRequest;

use crate::disk::pci::PciAddress;
use crate::error::Failure;

/// linux/if.h: IFNAMSIZ with its NUL.
const MAX_NAME: usize = 15;
/// rtnetlink(7): RT_SCOPE_LINK.
const SCOPE_LINK: u8 = 253;

/// All of a sandbox's network.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NetworkPlan {
    pub(super) links: Vec<LinkPlan>,
    /// On-link routes first: gateways are reached through them.
    pub(super) routes: Vec<RoutePlan>,
    pub(super) neighbors: Vec<NeighborPlan>,
    pub(super) rules: Vec<RulePlan>,
}

/// One interface; `pci_address` is `None` for the loopback interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LinkPlan {
    pub(super) name: String,
    pub(super) pci_address: Option<PciAddress>,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) mtu: Option<u32>,
    pub(super) addresses: Vec<Prefix>,
}

impl LinkPlan {
    pub(super) fn loopback() -> Self {
        Self {
            name: "lo".to_owned(),
            pci_address: None,
            mac: None,
            mtu: None,
            addresses: Vec::new(),
        }
    }
}

/// An address and how much of it is the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) address: IpAddr,
    pub(super) length: u8,
}

impl Prefix {
    fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
        self.address.is_ipv4() == address.is_ipv4() && (bits(self.address) ^ bits(address)) & mask == 0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// One route.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RoutePlan {
    pub(super) destination: Prefix,
    pub(super) gateway: Option<IpAddr>,
    /// No on-link prefix covers the gateway: the kernel must take our word that it is there.
    pub(super) gateway_is_on_link: bool,
    pub(super) interface: String,
    pub(super) metric: Option<u32>,
    /// `None`: main.
    pub(super) table: Option<u32>,
    pub(super) scope: u8,
    pub(super) source: Option<IpAddr>,
    pub(super) mtu: Option<u32>,
}

impl fmt::Display for RoutePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.destination, self.interface)?;
        match self.gateway {
            Some(gateway) => write!(f, " via {gateway}"),
            None => Ok(()),
        }
    }
}

/// A permanent neighbour entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NeighborPlan {
    pub(super) address: IpAddr,
    pub(super) mac: [u8; 6],
    pub(super) interface: String,
}

/// A policy routing rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RulePlan {
    pub(super) is_ipv6: bool,
    pub(super) priority: u32,
    pub(super) source: Option<Prefix>,
    pub(super) destination: Option<Prefix>,
    pub(super) table: u32,
}

impl NetworkPlan {
    /// # Errors
    /// `InvalidArgument`, naming the field.
    pub(super) fn new(request: &ConfigureSandboxRequest) -> Result<Self, Failure> {
        let links = each("interfaces", &request.interfaces, link)?;
        let mut routes = each("routes", &request.routes, route)?;
        routes.sort_by_key(|route| route.gateway.is_some());
        let on_link: Vec<(String, Prefix)> = links
            .iter()
            .flat_map(|link| link.addresses.iter().map(|prefix| (link.name.clone(), *prefix)))
            .chain(
                routes
                    .iter()
                    .filter(|r| r.gateway.is_none())
                    .map(|r| (r.interface.clone(), r.destination)),
            )
            .collect();
        for route in &mut routes {
            route.gateway_is_on_link = route.gateway.is_some_and(|gateway| {
                !on_link
                    .iter()
                    .any(|(name, prefix)| *name == route.interface && prefix.contains(gateway))
            });
        }
        let rules = each("rules", &request.rules, rule)?;
        Ok(Self {
            links,
            routes,
            neighbors: each("neighbors", &request.neighbors, neighbor)?,
            rules: rules.into_iter().flatten().collect(),
        })
    }
}

fn each<W, P>(
    field: &str,
    wire: &[W],
    parse: impl Fn(&str, &W) -> Result<P, Failure>,
) -> Result<Vec<P>, Failure> {
    wire.iter()
        .enumerate()
        .map(|(index, item)| parse(&format!("{field}[{index}]"), item))
        .collect()
}

fn link(field: &str, link: &wire::Interface) -> Result<LinkPlan, Failure> {
    check_name(&format!("{field}.name"), &link.name)?;
    let pci_address = match link.pci_address.as_str() {
        "" => None,
        address => Some(PciAddress::parse(&format!("{field}.pci_address"), address)?),
    };
    Ok(LinkPlan {
        name: link.name.clone(),
        pci_address,
        mac: (!link.mac.is_empty())
            .then(|| mac(&format!("{field}.mac"), &link.mac))
            .transpose()?,
        mtu: (link.mtu != 0).then_some(link.mtu),
        addresses: each(&format!("{field}.addresses"), &link.addresses, |field, text| {
            prefix(field, text)
        })?,
    })
}

fn route(field: &str, route: &wire::Route) -> Result<RoutePlan, Failure> {
    check_name(&format!("{field}.interface"), &route.interface)?;
    let destination = prefix(&format!("{field}.destination"), &route.destination)?;
    let gateway = optional(&route.gateway, |text| address(&format!("{field}.gateway"), text))?;
    let scope = u8::try_from(route.scope)
        .map_err(|_| Failure::invalid(format!("{field}.scope: {} is more than 255", route.scope)))?;
    // ip-route(8) does the same: an IPv4 route without a gateway is for the link, unless something else is said.
    let scope = if scope == 0 && gateway.is_none() && destination.address.is_ipv4() {
        SCOPE_LINK
    } else {
        scope
    };
    Ok(RoutePlan {
        destination,
        gateway,
        gateway_is_on_link: false,
        interface: route.interface.clone(),
        metric: (route.metric != 0).then_some(route.metric),
        table: (route.table != 0).then_some(route.table),
        scope,
        source: optional(&route.source, |text| address(&format!("{field}.source"), text))?,
        mtu: (route.mtu != 0).then_some(route.mtu),
    })
}

fn neighbor(field: &str, neighbor: &wire::Neighbor) -> Result<NeighborPlan, Failure> {
    check_name(&format!("{field}.interface"), &neighbor.interface)?;
    Ok(NeighborPlan {
        address: address(&format!("{field}.address"), &neighbor.address)?,
        mac: mac(&format!("{field}.mac"), &neighbor.mac)?,
        interface: neighbor.interface.clone(),
    })
}

/// A rule without addresses holds for both families: two rules.
fn rule(field: &str, rule: &wire::Rule) -> Result<Vec<RulePlan>, Failure> {
    let source = optional(&rule.source, |text| prefix(&format!("{field}.source"), text))?;
    let destination = optional(&rule.destination, |text| {
        prefix(&format!("{field}.destination"), text)
    })?;
    let families: Vec<bool> = match (source, destination) {
        (Some(a), Some(b)) if a.address.is_ipv6() != b.address.is_ipv6() => {
            return Err(Failure::invalid(format!(
                "{field}: source and destination are of different families"
            )));
        }
        (Some(prefix), _) | (None, Some(prefix)) => vec![prefix.address.is_ipv6()],
        (None, None) => vec![false, true],
    };
    let plan = |is_ipv6| RulePlan {
        is_ipv6,
        priority: rule.priority,
        source,
        destination,
        table: rule.table,
    };
    Ok(families.into_iter().map(plan).collect())
}

fn optional<T>(text: &str, parse: impl Fn(&str) -> Result<T, Failure>) -> Result<Option<T>, Failure> {
    if text.is_empty() {
        Ok(None)
    } else {
        parse(text).map(Some)
    }
}

fn address(field: &str, text: &str) -> Result<IpAddr, Failure> {
    text.parse()
        .map_err(|_| Failure::invalid(format!("{field}: {text:?} is no address")))
}

fn prefix(field: &str, text: &str) -> Result<Prefix, Failure> {
    let parse = || {
        let (address, length) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let length: u8 = length.parse().ok()?;
        let bits = if address.is_ipv4() {
            Ipv4Addr::BITS
        } else {
            Ipv6Addr::BITS
        };
        (u32::from(length) <= bits).then_some(Prefix { address, length })
    };
    parse().ok_or_else(|| Failure::invalid(format!("{field}: {text:?} is no address with a prefix length")))
}

fn mac(field: &str, text: &str) -> Result<[u8; 6], Failure> {
    let parse = || {
        let mut mac = [0; 6];
        let mut octets = text.split(':');
        for byte in &mut mac {
            let octet = octets.next().filter(|octet| octet.len() == 2)?;
            *byte = u8::from_str_radix(octet, 16).ok()?;
        }
        octets.next().is_none().then_some(mac)
    };
    parse().ok_or_else(|| Failure::invalid(format!("{field}: {text:?} is no MAC address")))
}

/// What the kernel takes, dev_valid_name(): it also becomes a path in sysfs.
fn check_name(field: &str, name: &str) -> Result<(), Failure> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    if name.is_empty() || name.len() > MAX_NAME || matches!(name, "." | "..") || !name.bytes().all(plain) {
        return Err(Failure::invalid(format!(
            "{field}: {name:?} is no interface name"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ConfigureSandboxRequest {
        ConfigureSandboxRequest {
            interfaces: vec![wire::Interface {
                name: "eth0".to_owned(),
                pci_address: "0000:00:03.0".to_owned(),
                mac: "02:0a:ff:00:00:01".to_owned(),
                mtu: 1450,
                addresses: vec!["10.88.0.5/16".to_owned(), "fd00::5/64".to_owned()],
            }],
            routes: vec![
                via("0.0.0.0/0", "10.88.0.1"),
                via("::/0", "fe80::1"),
                via("169.254.1.1/32", ""),
            ],
            ..ConfigureSandboxRequest::default()
        }
    }

    fn via(destination: &str, gateway: &str) -> wire::Route {
        wire::Route {
            destination: destination.to_owned(),
            gateway: gateway.to_owned(),
            interface: "eth0".to_owned(),
            ..wire::Route::default()
        }
    }

    #[test]
    fn on_link_routes_come_first_and_gateways_beyond_them_are_marked() {
        let plan = NetworkPlan::new(&request()).unwrap();
        let seen: Vec<(String, bool, u8)> = plan
            .routes
            .iter()
            .map(|r| (r.to_string(), r.gateway_is_on_link, r.scope))
            .collect();
        assert_eq!(
            seen,
            [
                ("169.254.1.1/32 dev eth0".to_owned(), false, SCOPE_LINK),
                ("0.0.0.0/0 dev eth0 via 10.88.0.1".to_owned(), false, 0),
                ("::/0 dev eth0 via fe80::1".to_owned(), true, 0),
            ]
        );
        assert_eq!(plan.links[0].mac, Some([2, 10, 255, 0, 0, 1]));
    }

    #[test]
    fn a_rule_without_addresses_is_for_both_families() {
        let mut request = request();
        request.rules = vec![wire::Rule {
            priority: 100,
            table: 10,
            ..wire::Rule::default()
        }];
        let families: Vec<bool> = NetworkPlan::new(&request)
            .unwrap()
            .rules
            .iter()
            .map(|rule| rule.is_ipv6)
            .collect();
        assert_eq!(families, [false, true]);
        request.rules[0].source = "10.0.0.0/8".to_owned();
        assert_eq!(NetworkPlan::new(&request).unwrap().rules.len(), 1);
        request.rules[0].destination = "fd00::/8".to_owned();
        assert!(NetworkPlan::new(&request).is_err());
    }

    #[test]
    fn refusals_name_the_field() {
        type Change = fn(&mut ConfigureSandboxRequest);
        let changes: [(Change, &str); 7] = [
            (|r| r.interfaces[0].name = "a/b".to_owned(), "interfaces[0].name"),
            (
                |r| r.interfaces[0].name = "sixteen_letters_".to_owned(),
                "interfaces[0].name",
            ),
            (
                |r| r.interfaces[0].mac = "02:00:00:00:00".to_owned(),
                "interfaces[0].mac",
            ),
            (
                |r| r.interfaces[0].addresses[1] = "fd00::5/129".to_owned(),
                "interfaces[0].addresses[1]",
            ),
            (
                |r| r.routes[1].gateway = "gateway".to_owned(),
                "routes[1].gateway",
            ),
            (
                |r| r.routes[0].destination = "0.0.0.0".to_owned(),
                "routes[0].destination",
            ),
            (
                |r| r.interfaces[0].pci_address = "3".to_owned(),
                "interfaces[0].pci_address",
            ),
        ];
        for (change, field) in changes {
            let mut request = request();
            change(&mut request);
            let failure = NetworkPlan::new(&request).unwrap_err();
            assert!(failure.to_string().starts_with(field), "{failure}");
        }
    }

    #[test]
    fn prefixes_contain_what_they_cover() {
        let prefix = |text| prefix("p", text).unwrap();
        assert!(prefix("10.88.0.5/16").contains("10.88.255.1".parse().unwrap()));
        assert!(!prefix("10.88.0.5/16").contains("10.89.0.1".parse().unwrap()));
        assert!(!prefix("::/0").contains("10.88.0.1".parse().unwrap()));
        assert!(prefix("0.0.0.0/0").contains("1.2.3.4".parse().unwrap()));
        assert!(prefix("fd00::5/128").contains("fd00::5".parse().unwrap()));
    }
}
