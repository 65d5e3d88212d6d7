//! The node's real pod networks: CNI plugins, namespaces, taps.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{
    Attachment, INTERFACE, NAMESPACE_PREFIX, Network, NetworkConfig, NetworkError, NetworkStatus, PodNetwork,
    Prepared,
    cni::{self, Record},
    conflist::{NetworkList, plugin_type},
    links, namespace, namespace_path,
    netlink::{Link, Netlink, failed},
    plugin, redirect,
    result::CniResult,
    sys,
};

/// The tap's name in every pod's namespace.
const TAP: &str = "tap0";

/// [`Network`] over CNI plugins.
#[derive(Debug)]
pub struct CniNetwork {
    config: NetworkConfig,
    adds: Arc<Semaphore>,
    dels: Arc<Semaphore>,
}

/// What `clearpod check` says of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigurationReport {
    /// The file in use and its network's name.
    pub file: PathBuf,
    pub network: String,
    /// Plugins of the list that are nowhere.
    pub missing_plugins: Vec<String>,
}

impl CniNetwork {
    #[must_use]
    pub fn new(config: NetworkConfig) -> Self {
        let permits = config.max_parallel.max(1);
        Self {
            config,
            adds: Arc::new(Semaphore::new(permits)),
            dels: Arc::new(Semaphore::new(permits)),
        }
    }

    /// Reads the configuration and looks for its plugins.
    pub fn inspect(&self) -> Result<ConfigurationReport, NetworkError> {
        let (file, list) = NetworkList::load(&self.config.conf_dir)?;
        let missing = list.plugins.iter().map(plugin_type);
        let missing = missing.filter(|name| plugin::find(name, &self.config.bin_dirs).is_err());
        Ok(ConfigurationReport {
            file,
            missing_plugins: missing.map(str::to_owned).collect(),
            network: list.name,
        })
    }

    /// Runs the plugins' CHECK for an attached pod.
    pub async fn check(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        cni::check(&self.config, sandbox_id).await
    }

    async fn add(&self, pod: &PodNetwork, with_tap: bool) -> Result<Attachment, NetworkError> {
        let closed = |_| NetworkError::Unsupported("the daemon is shutting down".to_owned());
        let _permit = self.adds.acquire().await.map_err(closed)?;
        let result = cni::add(&self.config, pod).await?;
        self.join(pod, result, with_tap).await
    }

    fn namespace(&self, sandbox_id: &str) -> PathBuf {
        namespace_path(&self.config.namespace_dir, sandbox_id)
    }

    /// `with_tap`: the tap takes the place of the namespace's own stack.
    async fn join(
        &self,
        pod: &PodNetwork,
        result: serde_json::Value,
        with_tap: bool,
    ) -> Result<Attachment, NetworkError> {
        let answer = |problem: String| NetworkError::PluginAnswer {
            plugin: "chain".into(),
            command: "ADD",
            problem,
        };
        let told = CniResult::parse(&result).map_err(answer)?;
        let ips = told.ips(INTERFACE).map_err(answer)?;
        let netlink = Netlink::connect(&self.namespace(&pod.sandbox_id)).await?;
        let eth = netlink.link(INTERFACE).await?;
        if with_tap {
            join_tap(&netlink, &eth).await?;
        }
        let attachment = links::read(&netlink, &eth).await?;
        Ok(Attachment {
            dns: told.dns(),
            ips,
            result,
            ..attachment
        })
    }
}

async fn join_tap(netlink: &Netlink, eth: &Link) -> Result<(), NetworkError> {
    let tap = netlink.link(TAP).await?;
    let up = rtnetlink::LinkUnspec::new_with_index(tap.index)
        .mtu(eth.mtu)
        .up()
        .build();
    netlink
        .handle
        .link()
        .set(up)
        .execute()
        .await
        .map_err(failed(format!("set {TAP} up")))?;
    redirect::join(netlink, eth, &tap).await
}

#[async_trait]
impl Network for CniNetwork {
    async fn prepare(&self, sandbox_id: &str) -> Result<Prepared, NetworkError> {
        let path = self.namespace(sandbox_id);
        namespace::create(path.clone()).await?;
        let tap = namespace::inside(&path, || {
            let tap = sys::open_tap(TAP)?;
            // The namespace's own stack must not speak to the guest: no router solicitations, no duplicate detection.
            let off = fs_err::write(format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6"), "1");
            match off {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(tap),
            }
        })
        .await;
        match tap {
            Ok(tap) => Ok(Prepared { namespace: path, tap }),
            Err(error) => {
                namespace::remove(&path)?;
                Err(error)
            }
        }
    }

    async fn attach(&self, pod: &PodNetwork) -> Result<Attachment, NetworkError> {
        self.add(pod, true).await
    }

    async fn prepare_plain(&self, sandbox_id: &str) -> Result<PathBuf, NetworkError> {
        let path = self.namespace(sandbox_id);
        namespace::create(path.clone()).await?;
        Ok(path)
    }

    async fn attach_plain(&self, pod: &PodNetwork) -> Result<Attachment, NetworkError> {
        self.add(pod, false).await
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        let closed = |_| NetworkError::Unsupported("the daemon is shutting down".to_owned());
        let _permit = self.dels.acquire().await.map_err(closed)?;
        cni::del(&self.config, sandbox_id).await?;
        namespace::remove(&self.namespace(sandbox_id))
    }

    async fn leftovers(&self) -> Result<Vec<String>, NetworkError> {
        let mut ids = Record::ids(&self.config)?;
        match fs_err::read_dir(&self.config.namespace_dir) {
            Ok(entries) => {
                let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
                ids.extend(names.filter_map(|name| name.strip_prefix(NAMESPACE_PREFIX).map(str::to_owned)));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(NetworkError::system("list network namespaces", error)),
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    fn status(&self) -> NetworkStatus {
        let not_ready = |message| NetworkStatus::NotReady {
            reason: "NetworkPluginNotReady",
            message,
        };
        match self.inspect() {
            Ok(report) if report.missing_plugins.is_empty() => NetworkStatus::Ready,
            Ok(report) => not_ready(format!(
                "{}: plugin {} is missing",
                report.file.display(),
                report.missing_plugins.join(", ")
            )),
            Err(error) => not_ready(error.to_string()),
        }
    }
}
