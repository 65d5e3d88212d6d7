//! The guest's network: interfaces found by PCI address and given what CNI decided on the host.
//!
//! `plan` turns the request into typed settings (pure), `netlink` encodes rtnetlink(7). Own encoder: what is needed are
//! five message kinds, a fraction of what the rtnetlink crates would add to a binary that is in every Machine's memory.

mod netlink;
mod plan;

use std::fs;
use std::path::Path;

use proto::agent::v1::{ConfigureSandboxRequest, ErrorCode};

use crate::disk::pci::PciBus;
use crate::error::{Context as _, Failure};
use netlink::Netlink;
use plan::{LinkPlan, NetworkPlan};

/// Name of the loopback interface.
const LOOPBACK: &str = "lo";

/// Brings the loopback interface up; the kernel adds its addresses.
///
/// # Errors
/// `Network`.
pub(crate) fn loopback_up(sysfs: &Path) -> Result<(), Failure> {
    let up = LinkPlan::loopback();
    let index = interface_index(sysfs, LOOPBACK)?;
    open()?
        .set_link(index, &up)
        .context(ErrorCode::Network, || "bring lo up".to_owned())
}

/// Sets up everything that the request asks for, in the order in which the parts need each other.
///
/// # Errors
/// `InvalidArgument` naming the field, `DeviceMissing`, `Network`.
pub(crate) async fn configure(
    sysfs: &Path,
    bus: &PciBus,
    request: &ConfigureSandboxRequest,
) -> Result<(), Failure> {
    let plan = NetworkPlan::new(request)?;
    let mut netlink = open()?;
    for link in &plan.links {
        let current = match &link.pci_address {
            Some(address) => bus.interface(address).await?,
            None => LOOPBACK.to_owned(),
        };
        let index = interface_index(sysfs, &current)?;
        let named = || format!("set up interface {} (was {current})", link.name);
        netlink.set_link(index, link).context(ErrorCode::Network, named)?;
        for address in &link.addresses {
            netlink
                .add_address(index, *address)
                .context(ErrorCode::Network, || format!("add {address} to {}", link.name))?;
        }
    }
    for route in &plan.routes {
        let index = interface_index(sysfs, &route.interface)?;
        netlink
            .add_route(index, route)
            .context(ErrorCode::Network, || format!("add route {route}"))?;
    }
    for neighbor in &plan.neighbors {
        let index = interface_index(sysfs, &neighbor.interface)?;
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

fn interface_index(sysfs: &Path, name: &str) -> Result<u32, Failure> {
    let file = sysfs.join("class/net").join(name).join("ifindex");
    let text = fs::read_to_string(&file).context(ErrorCode::Network, || format!("find interface {name}"))?;
    text.trim().parse().map_err(|_| {
        Failure::new(
            ErrorCode::Network,
            format!("{}: {text:?} is no index", file.display()),
        )
    })
}
