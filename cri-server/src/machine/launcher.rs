//! Starts VMM processes and finds them again after a restart of the daemon.
//!
//! [`Launcher`] is the seam where tests put a fake host (`guest::fake`). [`VmmLauncher`] is the real one: it writes
//! `machine.json`, starts `clearpod-vmm` in a session and cgroup of its own, and records who the process is before anything
//! else can fail. It does not make directories, sockets, taps or cgroups.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use async_trait::async_trait;
use proto::{
    host::HostConfig,
    machine::{FileSource, MachineConfig},
};

use super::{
    layout::Layout,
    monitor::Monitors,
    process::{Identity, Process, boot_id, record},
};
use crate::sys::spawn;

/// What a Machine is started with.
#[derive(Debug)]
pub struct LaunchSpec {
    /// Its directory, which exists; the VMM's working directory.
    pub layout: Layout,
    /// Its configuration. Every [`FileSource::Fd`] in it is an index into `inherited`, as in a control request; the
    /// launcher writes the number that the descriptor has in the VMM.
    pub config: MachineConfig,
    /// Descriptors that the VMM inherits; closed in the daemon when the call returns.
    pub inherited: Vec<OwnedFd>,
    /// cgroup directory which the VMM is in from its first instruction on.
    pub cgroup: Option<PathBuf>,
}

/// What the shim of a host pod is started with.
#[derive(Debug)]
pub struct ShimSpec {
    /// The pod's directory, which exists; the shim's working directory.
    pub layout: Layout,
    /// Its configuration.
    pub config: HostConfig,
    /// cgroup directory which the shim is in from its first instruction on.
    pub cgroup: Option<PathBuf>,
}

/// Why no VMM was started. Nothing runs then.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The configuration names a descriptor that was not given.
    #[error("{field} of machine {id} is descriptor {index}, but {given} are inherited")]
    Descriptor {
        /// The Machine.
        id: String,
        /// Which part of the configuration.
        field: String,
        /// The index that it names.
        index: u32,
        /// How many there are.
        given: usize,
    },
    /// A step failed.
    #[error("{step} of machine {id}")]
    Step {
        /// The Machine.
        id: String,
        /// What was done.
        step: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// Why a running VMM was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The recorded process does not exist any more.
    #[error("the VMM of machine {id} is gone")]
    Gone {
        /// The Machine.
        id: String,
    },
    /// No process was recorded and none works in the Machine's directory.
    #[error("machine {id} has no VMM")]
    NeverStarted {
        /// The Machine.
        id: String,
    },
    /// It cannot be told.
    #[error("find the VMM of machine {id}")]
    Unknown {
        /// The Machine.
        id: String,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// Starts Machines and takes over those of an earlier daemon.
#[async_trait]
pub trait Launcher: Send + Sync + std::fmt::Debug {
    /// Starts the VMM of one Machine. It survives the daemon. The Machine is not ready yet: see `guest::ReadyListener`.
    ///
    /// # Errors
    /// [`LaunchError`]; no process is left behind then.
    async fn launch(&self, spec: LaunchSpec) -> Result<Process, LaunchError>;

    /// Starts the shim of a host pod, which is to its pod what a VMM is: the same holds of it.
    ///
    /// # Errors
    /// [`LaunchError`]; no process is left behind then.
    async fn launch_shim(&self, spec: ShimSpec) -> Result<Process, LaunchError>;

    /// Takes over the running VMM or shim of a Machine whose directory was found. It may end at any moment.
    ///
    /// # Errors
    /// [`AdoptError`]; only after `Gone` and `NeverStarted` is it certain that no VMM runs.
    async fn adopt(&self, layout: &Layout) -> Result<Process, AdoptError>;
}

/// Starts `clearpod-vmm` and `clearpod-shim`.
#[derive(Debug)]
pub struct VmmLauncher {
    program: PathBuf,
    shim: PathBuf,
    monitors: Monitors,
}

impl VmmLauncher {
    /// A launcher of the VMM at this path; of shims see [`Self::with_shim`].
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            shim: PathBuf::new(),
            monitors: Monitors::default(),
        }
    }

    /// The same with the shim at this path.
    #[must_use]
    pub fn with_shim(self, shim: PathBuf) -> Self {
        Self { shim, ..self }
    }

    /// Runs `start`, which blocks, and watches the process that it started.
    async fn started(
        &self,
        id: String,
        start: impl FnOnce() -> Result<Identity, LaunchError> + Send + 'static,
    ) -> Result<Process, LaunchError> {
        let step = |step| {
            let id = id.clone();
            move |source| LaunchError::Step { id, step, source }
        };
        // Fork copies the daemon's page tables and exec reads the program: too long for an async thread.
        let identity = tokio::task::spawn_blocking(start)
            .await
            .map_err(io::Error::other)
            .map_err(step("start the process"))??;
        self.monitors
            .watch(&identity)
            .and_then(|process| process.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)))
            .map_err(step("watch the process"))
    }
}

#[async_trait]
impl Launcher for VmmLauncher {
    async fn launch(&self, spec: LaunchSpec) -> Result<Process, LaunchError> {
        let program = self.program.clone();
        self.started(spec.layout.id().to_owned(), move || start(&program, spec))
            .await
    }

    async fn launch_shim(&self, spec: ShimSpec) -> Result<Process, LaunchError> {
        let program = self.shim.clone();
        self.started(spec.layout.id().to_owned(), move || start_shim(&program, &spec))
            .await
    }

    async fn adopt(&self, layout: &Layout) -> Result<Process, AdoptError> {
        let id = || layout.id().to_owned();
        let unknown = |source| AdoptError::Unknown { id: id(), source };
        let identity = match Identity::load(&layout.process()) {
            Ok(Some(identity)) => identity,
            Ok(None) => find_by_directory(layout)
                .map_err(unknown)?
                .ok_or_else(|| AdoptError::NeverStarted { id: id() })?,
            // A torn record cannot be: it is renamed into place. Someone wrote it, so look for ourselves.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => find_by_directory(layout)
                .map_err(unknown)?
                .ok_or_else(|| AdoptError::Gone { id: id() })?,
            Err(error) => return Err(unknown(error)),
        };
        self.monitors
            .watch(&identity)
            .map_err(unknown)?
            .ok_or_else(|| AdoptError::Gone { id: id() })
    }
}

/// The start story: configuration, process, record.
fn start(program: &Path, mut spec: LaunchSpec) -> Result<Identity, LaunchError> {
    let id = spec.layout.id().to_owned();
    let step = |step| {
        let id = id.clone();
        move |source| LaunchError::Step { id, step, source }
    };
    name_descriptors(&mut spec.config, &spec.inherited)?;
    let config = serde_json::to_vec_pretty(&spec.config)
        .map_err(io::Error::from)
        .map_err(step("encode the configuration"))?;
    fs_err::write(spec.layout.config(), config).map_err(step("write the configuration"))?;
    spawn_recorded(
        program,
        "machine.json",
        &spec.layout,
        spec.cgroup.as_deref(),
        spec.inherited,
    )
}

/// The same for a shim.
fn start_shim(program: &Path, spec: &ShimSpec) -> Result<Identity, LaunchError> {
    let step = |step| {
        let id = spec.layout.id().to_owned();
        move |source| LaunchError::Step { id, step, source }
    };
    let config = serde_json::to_vec_pretty(&spec.config)
        .map_err(io::Error::from)
        .map_err(step("encode the configuration"))?;
    fs_err::write(spec.layout.shim_config(), config).map_err(step("write the configuration"))?;
    spawn_recorded(
        program,
        Layout::SHIM_CONFIG,
        &spec.layout,
        spec.cgroup.as_deref(),
        Vec::new(),
    )
}

/// Starts `program --config config` in the directory of `layout` and records who it is.
fn spawn_recorded(
    program: &Path,
    config: &str,
    layout: &Layout,
    cgroup: Option<&Path>,
    inherited: Vec<OwnedFd>,
) -> Result<Identity, LaunchError> {
    let id = layout.id().to_owned();
    let step = |step| {
        let id = id.clone();
        move |source| LaunchError::Step { id, step, source }
    };
    let log = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(layout.vmm_log())
        .map_err(step("open vmm.log"))?;
    let errors = log.try_clone().map_err(step("open vmm.log"))?;
    let cgroup_procs = cgroup
        .map(|cgroup| File::options().write(true).open(cgroup.join("cgroup.procs")))
        .transpose()
        .map_err(step("open cgroup.procs"))?;

    let mut command = Command::new(program);
    command
        .arg("--config")
        .arg(config)
        .current_dir(layout.directory())
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    spawn::detach(&mut command, cgroup_procs, inherited);
    let mut child = command.spawn().map_err(step("start the program"))?;

    record(&mut child, &layout.process()).map_err(step("record the process"))
}

/// Replaces each index into `inherited` by the number of that descriptor, which it keeps in the VMM.
fn name_descriptors(config: &mut MachineConfig, inherited: &[OwnedFd]) -> Result<(), LaunchError> {
    let id = config.id.clone();
    let name = |field: &str, source: &mut FileSource| {
        let FileSource::Fd(index) = *source else {
            return Ok(());
        };
        let number = usize::try_from(index)
            .ok()
            .and_then(|index| inherited.get(index))
            .and_then(|descriptor| u32::try_from(descriptor.as_raw_fd()).ok());
        match number {
            Some(number) => {
                *source = FileSource::Fd(number);
                Ok(())
            }
            None => Err(LaunchError::Descriptor {
                id: id.clone(),
                field: field.to_owned(),
                index,
                given: inherited.len(),
            }),
        }
    };
    for (field, source) in config.files_mut() {
        name(field, source)?;
    }
    for device in &mut config.devices {
        let field = format!("device {}", device.id());
        if let Some(source) = device.source_mut() {
            name(&field, source)?;
        }
    }
    Ok(())
}

/// Finds a VMM that was started but not recorded (the daemon was killed in between): the process whose working directory
/// is the Machine's.
fn find_by_directory(layout: &Layout) -> io::Result<Option<Identity>> {
    let directory = match fs_err::canonicalize(layout.directory()) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let boot_id = boot_id()?;
    for entry in fs_err::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // Processes end while we look, and zombies have no working directory: not ours.
        let (Ok(before), Ok(cwd)) = (
            Identity::read(pid),
            std::fs::read_link(format!("/proc/{pid}/cwd")),
        ) else {
            continue;
        };
        if cwd == directory && before.boot_id == boot_id {
            return Ok(Some(before));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
