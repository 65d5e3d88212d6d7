//! The state of a host pod: everything that a call can touch, and the end of it all.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use proto::agent::v1::{ConfigureSandboxRequest, ErrorCode};
use proto::host::{HostConfig, RUNTIME_ROOT};
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use crate::cgroup::PodCgroup;
use crate::container::pid_namespace::SharedPidNamespace;
use crate::container::registry::{Member as _, Registry};
use crate::error::{Context as _, Failure};
use crate::events::Events;
use crate::host::container::{self, HostContainer};
use crate::host::rootfs::{self, Layers};
use crate::host::runtime::Runtime;
use crate::pod::own_executable;
use crate::reaper::Reaper;
use crate::sandbox::{self, files, sysctl};

/// Of the pod's directory: what the shim makes in it.
pub(super) const SANDBOX_FILES: &str = "sandbox";
pub(super) const SHM: &str = "shm";
pub(super) const ROOTFS: &str = "rootfs";
pub(super) const BUNDLES: &str = "bundles";

/// One host pod.
#[derive(Debug)]
pub(super) struct HostPod {
    pub(super) config: HostConfig,
    /// The pod's directory, absolute; also the working directory.
    pub(super) directory: PathBuf,
    pub(super) runtime: Runtime,
    pub(super) reaper: Reaper,
    pub(super) cgroup: Option<PodCgroup>,
    pub(super) layers: Layers,
    pub(super) containers: Registry<HostContainer>,
    pub(super) events: Events,
    pub(super) tasks: TaskTracker,
    configured: Mutex<Option<Box<ConfigureSandboxRequest>>>,
    pid_namespace: SharedPidNamespace,
    /// This binary, for the stage that holds a PID namespace.
    executable: OwnedFd,
}

impl HostPod {
    /// Makes the shim's directories and the containers' parent cgroup.
    ///
    /// # Errors
    /// `System` and `Cgroup`.
    pub(super) fn new(config: HostConfig) -> Result<Self, Failure> {
        let directory =
            std::env::current_dir().context(ErrorCode::System, || "find the pod's directory".to_owned())?;
        for name in [rootfs::LAYERS, ROOTFS, BUNDLES, RUNTIME_ROOT, SANDBOX_FILES] {
            let path = directory.join(name);
            fs::create_dir_all(&path).context(ErrorCode::System, || format!("create {}", path.display()))?;
        }
        let cgroup = match &config.cgroup {
            Some(cgroup) => Some(PodCgroup::create(&cgroup.directory)?),
            None => None,
        };
        Ok(Self {
            runtime: Runtime::new(
                config.runtime.clone(),
                directory.join(RUNTIME_ROOT),
                cgroup.is_some(),
            ),
            reaper: Reaper::default(),
            layers: Layers::default(),
            containers: Registry::default(),
            events: Events::default(),
            tasks: TaskTracker::new(),
            configured: Mutex::default(),
            pid_namespace: SharedPidNamespace::default(),
            executable: own_executable()?,
            cgroup,
            directory,
            config,
        })
    }

    /// ConfigureSandbox: names, DNS files, sysctls, shared memory. The same request again does nothing.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field, `AlreadyExists` for other content, what each part answers.
    pub(super) async fn configure(&self, mut request: ConfigureSandboxRequest) -> Result<(), Failure> {
        sandbox::check(&request)?;
        for (field, given) in [
            ("realtime_ns", request.realtime_ns != 0),
            ("entropy", !request.entropy.is_empty()),
            ("scratch", request.scratch.is_some()),
            ("routes", !request.routes.is_empty()),
            ("user_namespace", request.user_namespace.is_some()),
        ] {
            if given {
                return Err(Failure::invalid(format!(
                    "{field}: it is the host's, not the pod's"
                )));
            }
        }
        let mut configured = self.configured.lock().await;
        match &*configured {
            Some(before) if **before == request => return Ok(()),
            Some(_) => {
                let text = "the sandbox was configured with other content";
                return Err(Failure::new(ErrorCode::AlreadyExists, text));
            }
            None => {}
        }
        let as_asked = request.clone();
        let own_network = self.config.network.is_some();
        if own_network {
            sandbox::set_names(&request)?;
        } else {
            let name = rustix::system::uname();
            request.hostname = name.nodename().to_string_lossy().into_owned();
        }
        sysctl::apply("/proc".as_ref(), &request.sysctls)?;
        let files = self.directory.join(SANDBOX_FILES);
        let of_host = |wanted: bool, name: &str| match wanted {
            true => fs::copy(format!("/etc/{name}"), files.join(name)).map(drop),
            false => Ok(()),
        };
        files::write(&files, &request)
            .and_then(|()| of_host(!own_network, "hosts"))
            .and_then(|()| of_host(request.dns.is_none(), "resolv.conf"))
            .context(ErrorCode::System, || "write DNS files".to_owned())?;
        if !self.config.host_ipc {
            let options = sandbox::shm_options(request.shm_size_bytes);
            sandbox::mount_tmpfs_once(
                &self.directory.join(SHM),
                &options,
                rustix::mount::MountFlags::NOEXEC,
            )?;
        }
        *configured = Some(Box::new(as_asked));
        Ok(())
    }

    /// # Errors
    /// `WrongState` before ConfigureSandbox.
    pub(super) async fn check_configured(&self) -> Result<(), Failure> {
        match *self.configured.lock().await {
            Some(_) => Ok(()),
            None => Err(Failure::new(
                ErrorCode::WrongState,
                "the sandbox is not configured yet",
            )),
        }
    }

    /// The pod's shared PID namespace, made when it is first asked for; the path is good as long as the shim lives.
    ///
    /// # Errors
    /// When its PID 1 cannot be started.
    pub(super) async fn pid_namespace(&self) -> Result<PathBuf, Failure> {
        let holder = self
            .pid_namespace
            .holder(&self.reaper, self.executable.as_fd())
            .await?;
        Ok(namespace_of(holder.pid))
    }

    /// Ends and removes all containers, and takes down what was mounted.
    pub(super) async fn end(self: &Arc<Self>) {
        for container in self.containers.all() {
            if let Err(error) = container::remove(self, container.id()).await {
                tracing::warn!(container = container.id(), %error, "container left at the pod's end");
            }
        }
        if !self.config.host_ipc {
            rootfs::unmount_if_mounted(&self.directory.join(SHM));
        }
        self.layers.unmount_all();
    }
}

/// The PID namespace of a process.
pub(super) fn namespace_of(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/pid"))
}
