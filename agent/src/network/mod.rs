//! The guest's network: interfaces found by PCI address and given what CNI decided on the host.
//!
//! `plan` turns the request into typed settings (pure), `netlink` encodes rtnetlink(7). Own encoder: what is needed are
//! five message kinds, a fraction of what the rtnetlink crates would add to a binary that is in every Machine's memory.

mod netlink;
mod plan;

use std::collections::HashMap;
use std::os::fd::AsFd;

use proto::agent::v1::{ConfigureSandboxRequest, ErrorCode};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::disk::pci::{PciAddress, PciBus};
use crate::error::{Context as _, Failure};
use crate::user_namespace::UserNamespace;
use netlink::Netlink;
use plan::{LinkPlan, NetworkPlan};

/// Name of the loopback interface.
const LOOPBACK: &str = "lo";

/// Brings the loopback interface up; the kernel adds its addresses.
///
/// # Errors
/// `Network`.
pub(crate) fn loopback_up() -> Result<(), Failure> {
    let up = LinkPlan::loopback();
    let index = interface_index(LOOPBACK)?;
    open()?
        .set_link(index, &up)
        .context(ErrorCode::Network, || "bring lo up".to_owned())
}

/// Moves the interfaces that the request names into the network namespace `to`; their indices, which stay what they are.
/// Either all that are there are found, or none is moved.
///
/// # Errors
/// `InvalidArgument` naming the field, `DeviceMissing`, `Network`.
pub(crate) async fn move_interfaces(
    bus: &PciBus,
    request: &ConfigureSandboxRequest,
    to: impl AsFd,
) -> Result<HashMap<PciAddress, u32>, Failure> {
    let mut found = HashMap::new();
    for link in NetworkPlan::new(request)?.links {
        if let Some(address) = link.pci_address {
            let index = interface_index(&bus.interface(&address).await?)?;
            found.insert(address, index);
        }
    }
    let mut netlink = open()?;
    for (address, index) in &found {
        let moved = || {
            format!(
                "move the interface at {} to the pod's namespace",
                address.as_str()
            )
        };
        netlink
            .move_link(*index, &to)
            .context(ErrorCode::Network, moved)?;
    }
    Ok(found)
}

/// Sets up everything that the request asks for, in the order in which the parts need each other. `moved` is the namespace
/// that interfaces were moved into.
///
/// # Errors
/// `InvalidArgument` naming the field, `DeviceMissing`, `Network`.
pub(crate) async fn configure(
    bus: &PciBus,
    request: &ConfigureSandboxRequest,
    moved: Option<&UserNamespace>,
) -> Result<(), Failure> {
    let plan = NetworkPlan::new(request)?;
    let mut netlink = open()?;
    for link in &plan.links {
        let index = match &link.pci_address {
            None => interface_index(LOOPBACK)?,
            Some(address) => match moved.and_then(|namespace| namespace.interface(address)) {
                Some(index) => index,
                None => interface_index(&bus.interface(address).await?)?,
            },
        };
        let named = || format!("set up interface {} (index {index})", link.name);
        netlink.set_link(index, link).context(ErrorCode::Network, named)?;
        for address in &link.addresses {
            netlink
                .add_address(index, *address)
                .context(ErrorCode::Network, || format!("add {address} to {}", link.name))?;
        }
    }
    for route in &plan.routes {
        let index = interface_index(&route.interface)?;
        netlink
            .add_route(index, route)
            .context(ErrorCode::Network, || format!("add route {route}"))?;
    }
    for neighbor in &plan.neighbors {
        let index = interface_index(&neighbor.interface)?;
        netlink
            .add_neighbor(index, neighbor)
            .context(ErrorCode::Network, || {
                format!("add neighbor {} on {}", neighbor.address, neighbor.interface)
            })?;
    }
    for rule in &plan.rules {
        netlink.add_rule(rule).context(ErrorCode::Network, || {
            format!("add rule {} to table {}", rule.priority, rule.table)
        })?;
    }
    Ok(())
}

fn open() -> Result<Netlink, Failure> {
    Netlink::open().context(ErrorCode::Network, || "open a netlink socket".to_owned())
}

/// By a socket and not by sysfs, which shows the namespace that it was mounted in.
fn interface_index(name: &str) -> Result<u32, Failure> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .and_then(|socket| rustix::net::netdevice::name_to_index(socket, name))
        .context(ErrorCode::Network, || format!("find interface {name}"))
}
