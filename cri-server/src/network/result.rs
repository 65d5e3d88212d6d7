//! What CNI results of versions 0.3.0 to 1.1.0 say, as far as the daemon asks. CNI specification 1.1, section 5.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::Dns;

/// The parts of a result that matter here; the rest passes through as `prevResult`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CniResult {
    interfaces: Vec<CniInterface>,
    ips: Vec<CniIp>,
    dns: CniDns,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniInterface {
    name: String,
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct CniIp {
    address: String,
    #[serde(default)]
    interface: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniDns {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl CniResult {
    pub(super) fn parse(result: &Value) -> Result<Self, String> {
        Self::deserialize(result).map_err(|error| error.to_string())
    }

    /// The pod's addresses in the result's order: those of `interface` in a sandbox, and those of no interface.
    pub(super) fn ips(&self, interface: &str) -> Result<Vec<IpAddr>, String> {
        let mut ips = Vec::new();
        for (index, ip) in self.ips.iter().enumerate() {
            if self.belongs(ip, interface, index)? {
                let address = ip.address.split('/').next().unwrap_or_default();
                let address = address
                    .parse()
                    .map_err(|_| format!("ips[{index}].address is {:?}", ip.address))?;
                ips.push(address);
            }
        }
        Ok(ips)
    }

    fn belongs(&self, ip: &CniIp, interface: &str, index: usize) -> Result<bool, String> {
        match ip.interface {
            None => Ok(true),
            Some(at) => match self.interfaces.get(at) {
                Some(owner) => Ok(owner.name == interface && !owner.sandbox.is_empty()),
                None => Err(format!(
                    "ips[{index}].interface is {at}, and there are {}",
                    self.interfaces.len()
                )),
            },
        }
    }

    pub(super) fn dns(&self) -> Dns {
        Dns {
            servers: self.dns.nameservers.clone(),
            searches: self.dns.search.clone(),
            options: self.dns.options.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_the_pods_interface_are_found_among_others() {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [
                {"address": "10.88.0.1/16", "interface": 0},
                {"address": "10.88.0.7/16", "interface": 1, "gateway": "10.88.0.1"},
                {"address": "fd00::7/64", "interface": 1}
            ],
            "dns": {"nameservers": ["10.0.0.2"]}
        });
        let result = CniResult::parse(&result).unwrap();
        let wanted: Vec<IpAddr> = vec!["10.88.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        assert_eq!(result.ips("eth0").unwrap(), wanted);
        assert_eq!(result.dns().servers, ["10.0.0.2"]);
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        let result = json!({"ips": [{"address": "10.0.0.1/8", "interface": 4}]});
        assert!(
            CniResult::parse(&result)
                .unwrap()
                .ips("eth0")
                .unwrap_err()
                .contains("ips[0].interface")
        );
    }

    #[test]
    fn a_result_without_addresses_is_empty() {
        assert!(
            CniResult::parse(&json!({}))
                .unwrap()
                .ips("eth0")
                .unwrap()
                .is_empty()
        );
    }
}
