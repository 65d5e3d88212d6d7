//! The agent's state: everything that a call can touch, in one place, each part with a lock of its own or none.
//!
//! Wiring only. What the parts do is in their modules; nothing here decides.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use proto::agent::v1::ErrorCode;
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use crate::cgroup::PodCgroup;
use crate::container::pid_namespace::SharedPidNamespace;
use crate::container::registry::Registry;
use crate::container::{Container, Volumes};
use crate::disk::Disks;
use crate::disk::pci::PciBus;
use crate::error::{Context as _, Failure};
use crate::events::Events;
use crate::reaper::Reaper;
use crate::sandbox::{Sandbox, sysctl};
use crate::user_namespace::{self, UserNamespace};

/// Where the agent works. A guest has one answer to each; tests bring their own.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The agent's directory, on a tmpfs.
    pub run: PathBuf,
    /// A cgroup v2 directory that the agent may divide.
    pub cgroup_root: PathBuf,
    /// sysfs.
    pub sysfs: PathBuf,
    /// proc.
    pub proc: PathBuf,
    /// Device nodes.
    pub dev: PathBuf,
}

impl Settings {
    /// A guest's.
    #[must_use]
    pub fn guest() -> Self {
        Self {
            run: "/run/clearpod".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            sysfs: "/sys".into(),
            proc: "/proc".into(),
            dev: "/dev".into(),
        }
    }
}

/// The pod inside of this Machine.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) settings: Settings,
    pub(crate) reaper: Reaper,
    pub(crate) disks: Disks,
    pub(crate) volumes: Volumes,
    pub(crate) cgroup: PodCgroup,
    pub(crate) containers: Registry<Container>,
    pub(crate) events: Events,
    pub(crate) sandbox: Mutex<Sandbox>,
    /// This binary, for stages: open from the start, so that no mount can put another in its place.
    pub(crate) executable: OwnedFd,
    /// Every task of the agent.
    pub(crate) tasks: TaskTracker,
    pid_namespace: SharedPidNamespace,
    user_namespace: OnceLock<UserNamespace>,
}

/// Descriptors of stages are moved above the ones that they get in a fixed place.
const FIRST_FREE_DESCRIPTOR: i32 = 10;

impl Pod {
    /// Makes the agent's directories and the pod's cgroup.
    ///
    /// # Errors
    /// `System` and `Cgroup`.
    pub(crate) fn new(settings: Settings) -> Result<Self, Failure> {
        for directory in ["disks", "volumes", "rootfs", "sandbox"] {
            let path = settings.run.join(directory);
            std::fs::create_dir_all(&path)
                .context(ErrorCode::System, || format!("create {}", path.display()))?;
        }
        Ok(Self {
            reaper: Reaper::default(),
            disks: Disks::new(
                PciBus::new(&settings.sysfs),
                &settings.dev,
                settings.run.join("disks"),
            ),
            volumes: Volumes::new(&settings.run),
            cgroup: PodCgroup::create(&settings.cgroup_root)?,
            containers: Registry::default(),
            events: Events::default(),
            sandbox: Mutex::new(Sandbox::New),
            executable: own_executable()?,
            tasks: TaskTracker::new(),
            pid_namespace: SharedPidNamespace::default(),
            user_namespace: OnceLock::new(),
            settings,
        })
    }

    /// Where containers' writable layers are.
    ///
    /// # Errors
    /// `WrongState` before ConfigureSandbox.
    pub(crate) async fn scratch(&self) -> Result<PathBuf, Failure> {
        self.sandbox.lock().await.scratch()
    }

    /// That of the pod's containers, if the sandbox was configured with one.
    pub(crate) fn user_namespace(&self) -> Option<&UserNamespace> {
        self.user_namespace.get()
    }

    /// Sets kernel parameters, of which those of the pod's namespaces are its root's.
    ///
    /// # Errors
    /// As [`sysctl::apply`].
    pub(crate) fn set_sysctls(&self, sysctls: &HashMap<String, String>) -> Result<(), Failure> {
        match self.user_namespace() {
            Some(namespace) if !sysctls.is_empty() => {
                let sysctls = user_namespace::sysctls(sysctls, namespace.map)?;
                namespace.as_root(|| sysctl::apply(&self.settings.proc, &sysctls))
            }
            _ => sysctl::apply(&self.settings.proc, sysctls),
        }
    }

    /// The first one stays.
    pub(crate) fn set_user_namespace(&self, namespace: UserNamespace) {
        self.user_namespace.get_or_init(|| namespace);
    }

    /// A process of the pod's shared PID namespace, which is made when it is first asked for.
    ///
    /// # Errors
    /// As [`stage::launch`].
    pub(crate) async fn pid_namespace_holder(&self) -> Result<OwnedFd, Failure> {
        let holder = self.pid_namespace.holder(&self.reaper, self.executable.as_fd());
        Ok(holder.await?.pidfd)
    }
}

/// This binary, to be started again as a stage.
///
/// # Errors
/// `System`.
pub(crate) fn own_executable() -> Result<OwnedFd, Failure> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/exe", flags, rustix::fs::Mode::empty())
        .and_then(|file| rustix::io::fcntl_dupfd_cloexec(file, FIRST_FREE_DESCRIPTOR))
        .context(ErrorCode::System, || "open this binary".to_owned())
}
