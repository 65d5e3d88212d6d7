//! Pod networks: a network namespace and a tap per pod, joined to what the CNI plugins make there.
//!
//! The plugins see an ordinary pod: a namespace with an interface `eth0`. The Machine's tap stands in the same
//! namespace and a redirect (`redirect`) hands every frame that arrives on one to the other, so that the guest, which
//! carries eth0's MAC, addresses and routes, takes the place of the namespace's own stack. Since the redirect acts
//! before that stack, eth0 keeps its addresses: nothing answers twice, and plugins find at DEL what they made at ADD
//! (without the address, bridge's ipMasq leaks its nat chain).
//!
//! `cni` runs the plugins, `namespace` and `tap` make the kernel objects, `links` reads them, `node` is the real
//! [`Network`], `fake` the one of tests. What the guest does with an [`Attachment`] is the agent's business.

mod cni;
mod conflist;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
mod links;
mod namespace;
mod netlink;
mod node;
mod plugin;
mod redirect;
mod result;
mod sys;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use node::{CniNetwork, ConfigurationReport};

/// Interface that the plugins make in the namespace, and its name in the guest.
pub const INTERFACE: &str = "eth0";

/// Where CNI's parts are, and how long they may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Directory of `*.conflist` and `*.conf`; the first valid one in lexical order is used.
    pub conf_dir: PathBuf,
    /// Where plugins are looked for, in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// What DEL needs to know of each ADD.
    pub cache_dir: PathBuf,
    /// Where the namespaces are bound.
    pub namespace_dir: PathBuf,
    /// For one plugin's run; then its process group is killed.
    pub plugin_seconds: u64,
    /// ADDs at the same time; DELs have as many of their own, so that hanging ADDs cannot hold them up.
    pub max_parallel: usize,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/clearpod/cni".into(),
            namespace_dir: "/run/netns".into(),
            plugin_seconds: 60,
            max_parallel: 16,
        }
    }
}

impl NetworkConfig {
    pub(crate) fn plugin_deadline(&self) -> Duration {
        Duration::from_secs(self.plugin_seconds)
    }
}

/// What the plugins are told of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetwork {
    pub sandbox_id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// For plugins with the capability `portMappings`.
    pub port_mappings: Vec<PortMapping>,
    /// For plugins with the capability `bandwidth`, bits per second.
    pub bandwidth: Option<Bandwidth>,
    /// For plugins with the capability `dns`.
    pub dns: Option<Dns>,
}

/// One host port, in the form of CNI's `portMappings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    pub host_port: u16,
    pub container_port: u16,
    /// "tcp", "udp" or "sctp".
    pub protocol: String,
    #[serde(rename = "hostIP", default, skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

/// In the form of CNI's `bandwidth`: bits per second and bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    pub ingress_rate: u64,
    pub ingress_burst: u64,
    pub egress_rate: u64,
    pub egress_burst: u64,
}

/// In the form of CNI's `dns`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// A namespace with a tap in it, before any plugin has run.
#[derive(Debug)]
pub struct Prepared {
    pub namespace: PathBuf,
    /// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, non-blocking; the VMM keeps it, and the tap goes when it is closed.
    pub tap: OwnedFd,
}

/// What the guest has to carry to be the pod that the plugins made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// "02:00:00:00:00:01"
    pub mac: String,
    pub mtu: u32,
    /// "10.88.0.5/16"
    pub addresses: Vec<String>,
    pub routes: Vec<Route>,
    pub neighbors: Vec<Neighbor>,
    pub rules: Vec<Rule>,
    pub dns: Dns,
    /// Primary first.
    pub ips: Vec<IpAddr>,
    /// The last plugin's result, as CNI defines it.
    pub result: serde_json::Value,
}

/// A route out of [`INTERFACE`]; numbers as in rtnetlink(7).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// "0.0.0.0/0"
    pub destination: String,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub metric: u32,
    pub table: u32,
    pub scope: u8,
    pub mtu: u32,
}

/// A permanent neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbor {
    pub address: IpAddr,
    pub mac: String,
}

/// A policy routing rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub priority: u32,
    /// Prefix; empty: any.
    pub source: String,
    /// Prefix; empty: any.
    pub destination: String,
    pub table: u32,
}

/// For the NetworkReady condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkStatus {
    Ready,
    NotReady { reason: &'static str, message: String },
}

/// Pod networks as the sandbox sees them.
#[async_trait]
pub trait Network: Send + Sync + fmt::Debug {
    /// Makes the pod's namespace and a tap in it. Quick: no plugin runs. Fails when the namespace exists already.
    async fn prepare(&self, sandbox_id: &str) -> Result<Prepared, NetworkError>;

    /// Runs the plugins' ADD in the prepared namespace and joins their interface with the tap.
    async fn attach(&self, pod: &PodNetwork) -> Result<Attachment, NetworkError>;

    /// Makes the namespace of a pod that has no Machine: its own stack speaks, and there is no tap.
    async fn prepare_plain(&self, sandbox_id: &str) -> Result<PathBuf, NetworkError>;

    /// Runs the plugins' ADD in such a namespace.
    async fn attach_plain(&self, pod: &PodNetwork) -> Result<Attachment, NetworkError>;

    /// Runs the plugins' DEL and removes the namespace. Idempotent, and enough after a `prepare` or an `attach` that
    /// did not end: what DEL needs was stored before ADD.
    async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError>;

    /// Sandbox ids of which a namespace or a record of an ADD is left.
    async fn leftovers(&self) -> Result<Vec<String>, NetworkError>;

    /// Whether pods can be attached now.
    fn status(&self) -> NetworkStatus;
}

/// Why a pod has no network, or still has one.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("no CNI configuration: {0}")]
    NotConfigured(String),
    #[error("CNI configuration {file}: {problem}")]
    BadConfiguration { file: PathBuf, problem: String },
    #[error("CNI plugin {plugin} was not found in {searched}")]
    PluginMissing { plugin: String, searched: String },
    /// The plugin said no, in CNI's error format.
    #[error("CNI plugin {plugin} {command} failed with code {code}: {message}")]
    Plugin {
        plugin: String,
        command: &'static str,
        code: u32,
        message: String,
    },
    #[error("CNI plugin {plugin} {command} took longer than {seconds} s and was killed")]
    PluginTimeout {
        plugin: String,
        command: &'static str,
        seconds: u64,
    },
    #[error("CNI plugin {plugin} {command} answered with no valid result: {problem}")]
    PluginAnswer {
        plugin: String,
        command: &'static str,
        problem: String,
    },
    #[error("network of the pod: {0}")]
    Unsupported(String),
    #[error("{operation}")]
    System { operation: String, source: io::Error },
    #[error("netlink: {operation}")]
    Netlink {
        operation: String,
        source: Box<rtnetlink::Error>,
    },
}

impl NetworkError {
    pub(crate) fn system(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System {
            operation: operation.into(),
            source: source.into(),
        }
    }
}

/// CNI_ARGS of a pod, as kubelet's runtimes pass them.
pub(crate) fn cni_args(pod: &PodNetwork) -> String {
    let fields = BTreeMap::from([
        ("K8S_POD_INFRA_CONTAINER_ID", &pod.sandbox_id),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_UID", &pod.uid),
    ]);
    let pairs = fields.into_iter().filter(|(_, value)| !value.is_empty());
    pairs.fold("IgnoreUnknown=1".to_owned(), |args, (key, value)| {
        format!("{args};{key}={value}")
    })
}

/// The namespace's file of a sandbox.
pub(crate) fn namespace_path(dir: &Path, sandbox_id: &str) -> PathBuf {
    dir.join(format!("{NAMESPACE_PREFIX}{sandbox_id}"))
}

/// Namespaces of ours are told from others' by this.
pub(crate) const NAMESPACE_PREFIX: &str = "clearpod-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cni_args_name_the_pod_and_leave_out_what_is_unknown() {
        let pod = PodNetwork {
            sandbox_id: "abc".into(),
            name: "web".into(),
            namespace: "default".into(),
            ..PodNetwork::default()
        };
        assert_eq!(
            cni_args(&pod),
            "IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_NAME=web;K8S_POD_NAMESPACE=default"
        );
    }

    #[test]
    fn a_configuration_with_an_unknown_field_is_refused() {
        let error = toml::from_str::<NetworkConfig>("confdir = '/x'")
            .unwrap_err()
            .to_string();
        assert!(error.contains("confdir"), "{error}");
    }
}
