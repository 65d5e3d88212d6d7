//! A guest goes on from a template: what it must not share with the others, before anything else happens to it.

use proto::agent::v1::GoOnRequest;

use super::{check_entropy, set_clock_and_entropy};
use crate::disk::pci::PciAddress;
use crate::error::Failure;
use crate::pod::Pod;

/// A bound, as for everything that a request can repeat.
const MAX_DEVICES: usize = 64;

/// New entropy first: until then the guest's random numbers are those of all other forks, and drivers begin with some.
///
/// # Errors
/// `InvalidArgument` naming the field, `DeviceMissing`, `System`.
pub(crate) async fn go_on(pod: &Pod, request: &GoOnRequest) -> Result<(), Failure> {
    let addresses = check(request)?;
    set_clock_and_entropy(pod, request.realtime_ns, &request.entropy)?;
    for address in &addresses {
        pod.disks.bus().driven(address).await?;
    }
    Ok(())
}

fn check(request: &GoOnRequest) -> Result<Vec<PciAddress>, Failure> {
    check_entropy(&request.entropy)?;
    if request.pci_addresses.len() > MAX_DEVICES {
        return Err(Failure::invalid(format!(
            "pci_addresses: {} are more than {MAX_DEVICES}",
            request.pci_addresses.len()
        )));
    }
    let addresses = request.pci_addresses.iter().enumerate();
    addresses
        .map(|(index, address)| PciAddress::parse(&format!("pci_addresses[{index}]"), address))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_by_field() {
        let request = |entropy: usize, address: &str, count: usize| GoOnRequest {
            entropy: vec![7; entropy],
            realtime_ns: 1,
            pci_addresses: vec![address.to_owned(); count],
        };
        assert_eq!(check(&request(32, "0000:00:03.0", 2)).unwrap().len(), 2);
        assert!(check(&request(0, "", 0)).unwrap().is_empty());
        let refusal = |request: &GoOnRequest| check(request).unwrap_err().to_string();
        assert!(refusal(&request(31, "", 0)).contains("entropy"));
        assert!(refusal(&request(32, "../x", 1)).contains("pci_addresses[0]"));
        assert!(refusal(&request(32, "0000:00:03.0", MAX_DEVICES + 1)).contains("65"));
    }
}
