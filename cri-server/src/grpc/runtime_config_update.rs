//! UpdateRuntimeConfig: kubelet tells the node's pod network. It is remembered and shown; addresses are CNI's, whose
//! configuration is the operator's.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError},
};

use proto::cri::v1 as cri;

use crate::sandbox::{Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::UpdateRuntimeConfigRequest,
) -> Result<cri::UpdateRuntimeConfigResponse, RequestError> {
    let network = request.runtime_config.and_then(|config| config.network_config);
    let cidr = network.unwrap_or_default().pod_cidr;
    if !cidr.is_empty() && !cidr.split(',').all(is_network) {
        let reason = "no list of address/prefix";
        return Err(RequestError::invalid(
            "runtime_config.network_config.pod_cidr",
            reason,
        ));
    }
    *node.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner) = cidr;
    Ok(cri::UpdateRuntimeConfigResponse {})
}

fn is_network(text: &str) -> bool {
    let Some((address, prefix)) = text.trim().split_once('/') else {
        return false;
    };
    let most = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    prefix.parse::<u8>().is_ok_and(|prefix| prefix <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_both_families() {
        for good in ["10.244.1.0/24", "fd00::/64", " 10.0.0.0/32"] {
            assert!(is_network(good), "{good}");
        }
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "fd00::/129", "10.0.0.0/-1"] {
            assert!(!is_network(bad), "{bad}");
        }
    }
}
