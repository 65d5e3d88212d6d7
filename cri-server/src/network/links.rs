//! Reads from a namespace what the guest has to carry: addresses, routes, neighbours and rules of the pod's interface.
//!
//! The kernel is asked, not the plugins' result: plugins may do more than they tell, and what counts is what there is.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::{
    IpVersion, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage, AddressScope},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{
    Attachment, Neighbor, NetworkError, Route, Rule,
    netlink::{Link, Netlink, failed, mac_text},
};

/// Priorities of the rules that every namespace has: local, main, default. ip-rule(8).
const STANDARD_RULES: [u32; 3] = [0, 32766, 32767];

/// Everything of `link` that the guest takes over; result, DNS and IPs are left to the caller.
pub(super) async fn read(netlink: &Netlink, link: &Link) -> Result<Attachment, NetworkError> {
    Ok(Attachment {
        mac: link.mac.clone(),
        mtu: link.mtu,
        addresses: addresses(netlink, link).await?,
        routes: routes(netlink, link).await?,
        neighbors: neighbors(netlink, link).await?,
        rules: rules(netlink).await?,
        ..Attachment::default()
    })
}

async fn addresses(netlink: &Netlink, link: &Link) -> Result<Vec<String>, NetworkError> {
    let request = netlink.handle.address().get().set_link_index_filter(link.index);
    let messages: Vec<AddressMessage> = request
        .execute()
        .try_collect()
        .await
        .map_err(failed("read addresses".to_owned()))?;
    Ok(messages.iter().filter_map(address).collect())
}

/// Link-local IPv6 addresses are the guest's own affair.
fn address(message: &AddressMessage) -> Option<String> {
    if message.header.scope == AddressScope::Link {
        return None;
    }
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => return Some(format!("{ip}/{}", message.header.prefix_len)),
            AddressAttribute::Address(ip) => found = Some(format!("{ip}/{}", message.header.prefix_len)),
            _ => {}
        }
    }
    found
}

async fn routes(netlink: &Netlink, link: &Link) -> Result<Vec<Route>, NetworkError> {
    let mut routes = Vec::new();
    for request in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let messages: Vec<RouteMessage> = netlink
            .handle
            .route()
            .get(request)
            .execute()
            .try_collect()
            .await
            .map_err(failed("read routes".to_owned()))?;
        for message in &messages {
            routes.extend(route(message, link.index)?);
        }
    }
    Ok(routes)
}

/// Routes that the kernel makes itself for an address (connected, local, multicast) come with the address in the guest.
fn route(message: &RouteMessage, interface: u32) -> Result<Option<Route>, NetworkError> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.protocol == RouteProtocol::Kernel {
        return Ok(None);
    }
    let mut found = Route {
        scope: header.scope.into(),
        table: header.table.into(),
        ..Route::default()
    };
    let mut destination = None;
    let mut leaves_by = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => destination = ip_address(ip),
            RouteAttribute::Gateway(ip) => found.gateway = ip_address(ip),
            RouteAttribute::PrefSource(ip) => found.source = ip_address(ip),
            RouteAttribute::Priority(metric) => found.metric = *metric,
            RouteAttribute::Table(table) => found.table = *table,
            RouteAttribute::Oif(index) => leaves_by = Some(*index),
            RouteAttribute::Metrics(metrics) => found.mtu = route_mtu(metrics),
            RouteAttribute::MultiPath(_) | RouteAttribute::Encap(_) => {
                return Err(NetworkError::Unsupported(
                    "a multipath or encapsulating route cannot be carried".into(),
                ));
            }
            _ => {}
        }
    }
    if leaves_by != Some(interface) {
        return Ok(None);
    }
    let any = if header.address_family == AddressFamily::Inet6 {
        "::"
    } else {
        "0.0.0.0"
    };
    let destination = destination.map_or_else(|| any.to_owned(), |ip| ip.to_string());
    found.destination = format!("{destination}/{}", header.destination_prefix_length);
    Ok(Some(found))
}

fn route_mtu(metrics: &[RouteMetric]) -> u32 {
    metrics
        .iter()
        .find_map(|metric| {
            if let RouteMetric::Mtu(mtu) = metric {
                Some(*mtu)
            } else {
                None
            }
        })
        .unwrap_or(0)
}

fn ip_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

async fn neighbors(netlink: &Netlink, link: &Link) -> Result<Vec<Neighbor>, NetworkError> {
    let messages: Vec<NeighbourMessage> = netlink
        .handle
        .neighbours()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(failed("read neighbours".to_owned()))?;
    Ok(messages
        .iter()
        .filter_map(|message| neighbor(message, link.index))
        .collect())
}

fn neighbor(message: &NeighbourMessage, interface: u32) -> Option<Neighbor> {
    if message.header.ifindex != interface || message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut address: Option<IpAddr> = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some((*ip).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some((*ip).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(mac_text(bytes)),
            _ => {}
        }
    }
    Some(Neighbor {
        address: address?,
        mac: mac?,
    })
}

async fn rules(netlink: &Netlink) -> Result<Vec<Rule>, NetworkError> {
    let mut rules = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let messages: Vec<RuleMessage> = netlink
            .handle
            .rule()
            .get(version)
            .execute()
            .try_collect()
            .await
            .map_err(failed("read policy rules".to_owned()))?;
        for message in &messages {
            rules.extend(rule(message)?);
        }
    }
    Ok(rules)
}

fn rule(message: &RuleMessage) -> Result<Option<Rule>, NetworkError> {
    let header = &message.header;
    let mut found = Rule {
        table: header.table.into(),
        ..Rule::default()
    };
    let mut foreign = header.action != RuleAction::ToTable;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => found.priority = *priority,
            RuleAttribute::Table(table) => found.table = *table,
            RuleAttribute::Source(ip) => found.source = format!("{ip}/{}", header.src_len),
            RuleAttribute::Destination(ip) => found.destination = format!("{ip}/{}", header.dst_len),
            // u32::MAX says that nothing is suppressed, which is what a rule without the word has.
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
            _ => foreign = true,
        }
    }
    if STANDARD_RULES.contains(&found.priority) && found.source.is_empty() && found.destination.is_empty() {
        return Ok(None);
    }
    if foreign {
        return Err(NetworkError::Unsupported(format!(
            "policy rule {} matches on more than source and destination, which cannot be carried",
            found.priority
        )));
    }
    Ok(Some(found))
}
