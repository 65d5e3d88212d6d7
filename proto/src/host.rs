//! What the daemon tells the shim of a host pod when it starts it: one file of JSON. Data only.
//!
//! A host pod has `clearpod-shim` in the place of a Machine: started as `clearpod-shim --config <file>` with the pod's directory
//! as its working directory, it serves `agent.v1.Agent` and the stdio streams as the agent of a guest does. Where that has vsock
//! ports the shim has unix sockets in its directory, [`port_socket`]; its `Ready` goes to the socket [`HostConfig::ready`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of [`HostConfig`]; another one is refused.
pub const HOST_CONFIG_VERSION: u32 = 1;
/// Directory of the OCI runtime's state (its `--root`) in the pod's directory; a container is a directory in it.
pub const RUNTIME_ROOT: &str = "oci";

/// Everything a shim is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// [`HOST_CONFIG_VERSION`].
    pub version: u32,
    /// The sandbox's id.
    pub id: String,
    /// The OCI runtime: a path, or a name to be found in `PATH`.
    pub runtime: PathBuf,
    /// Where the containers' writable layers are; on disk.
    pub scratch: PathBuf,
    /// Listened on by the daemon until the shim is ready.
    pub ready: PathBuf,
    /// The pod's network namespace; absent: the host's.
    #[serde(default)]
    pub network: Option<PathBuf>,
    /// The pod has the host's IPC namespace.
    #[serde(default)]
    pub host_ipc: bool,
    /// The pod's cgroup; absent: containers stay in the shim's.
    #[serde(default)]
    pub cgroup: Option<HostCgroup>,
}

/// A cgroup v2 directory that the shim may divide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostCgroup {
    /// Mount point of the hierarchy.
    pub root: PathBuf,
    /// Below `root`.
    pub directory: PathBuf,
}

/// Name of the socket that stands for a vsock port.
#[must_use]
pub fn port_socket(port: u32) -> String {
    format!("port-{port}.sock")
}
