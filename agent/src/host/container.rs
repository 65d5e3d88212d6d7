//! A container of a host pod: its creation, which is undone newest first if a step fails, its life, and its end.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proto::agent::v1::watch_event::Event;
use proto::agent::v1::{
    ContainerExited, ContainerState, CreateContainerRequest, CreateContainerResponse, ErrorCode, Exit,
    HostLabels, Namespaces, PidNamespace, Resources, Security, SignalRequest, UpdateContainerRequest,
};
use rustix::fs::{Mode, OFlags};
use tokio::sync::{oneshot, watch};

use crate::cgroup::{Cgroup, limits};
use crate::clock;
use crate::container::exec::{self, Execs};
use crate::container::process::{Process, signal_number};
use crate::container::registry::{Member, check_id};
use crate::container::state::State;
use crate::container::{lifecycle, mount_plan, plan, update};
use crate::error::{Context as _, Failure};
use crate::host::bundle::{self, Parts, Pid};
use crate::host::mounts::{self, Places};
use crate::host::pod::{BUNDLES, HostPod, ROOTFS, namespace_of};
use crate::host::rootfs;
use crate::host::runtime::{Start, Started};
use crate::init::order::{DeviceNode, Security as NoSecurity, UserSpec};
use crate::init::user::{self, Accounts, Resolved};
use crate::lock::lock;
use crate::reaper::Ended;
use crate::stats::writable::Writable;

/// What a device may be used for when the request does not say.
const ALL_ACCESS: &str = "rwm";

/// One container from the success of its creation to its removal.
#[derive(Debug)]
pub(super) struct HostContainer {
    id: String,
    pub(super) init: Arc<Process>,
    pub(super) cgroup: Option<Cgroup>,
    /// What everything executed in it is confined by, too.
    pub(super) security: Security,
    pub(super) labels: HostLabels,
    pub(super) places: ContainerPlaces,
    /// Where what it writes goes.
    pub(super) writable: Arc<Writable>,
    pub(super) state: Mutex<State<()>>,
    pub(super) execs: Execs,
}

/// Where the parts of a container are: they follow from its id, so that a creation that failed half-way can be undone.
#[derive(Debug, Clone)]
pub(super) struct ContainerPlaces {
    /// Configuration and files for the runtime's calls.
    pub(super) bundle: PathBuf,
    /// The overlay.
    pub(super) rootfs: PathBuf,
    /// Its writable layer.
    pub(super) writable: PathBuf,
}

impl ContainerPlaces {
    fn of(pod: &HostPod, id: &str) -> Self {
        Self {
            bundle: pod.directory.join(BUNDLES).join(id),
            rootfs: pod.directory.join(ROOTFS).join(id),
            writable: pod.config.scratch.join(id),
        }
    }

    /// Where what the container writes goes.
    pub(super) fn upper(&self) -> PathBuf {
        self.writable.join("upper")
    }
}

impl Member for HostContainer {
    fn id(&self) -> &str {
        &self.id
    }

    fn process(&self, exec_id: &str) -> Result<Arc<Process>, Failure> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs.get(&self.id, exec_id)
    }
}

/// Makes a container that waits for its start.
///
/// # Errors
/// As the protocol says; nothing of the container is left then.
pub(super) async fn create(
    pod: &Arc<HostPod>,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Failure> {
    pod.check_configured().await?;
    let id = request.container_id.clone();
    pod.containers.reserve(&id)?;
    let places = ContainerPlaces::of(pod, &id);
    match build(pod, &request, &places).await {
        Ok(built) => {
            let resources = request.resources.clone().unwrap_or_default();
            let container = built.into_container(pod, request, places);
            Ok(CreateContainerResponse {
                pid: container.init.pid(),
                user: Some(container.init.resolved_user()),
                actual: container.cgroup.as_ref().map(|cgroup| cgroup.actual(&resources)),
            })
        }
        Err(failure) => {
            if let Err(left) = release(pod, &id, &places).await {
                tracing::warn!(container = %id, error = %left, "creation could not be undone");
            }
            pod.containers.forget(&id);
            Err(failure)
        }
    }
}

/// All that becomes a [`HostContainer`].
struct Built {
    started: Started,
    user: Resolved,
    cgroup: Option<Cgroup>,
}

async fn build(
    pod: &HostPod,
    request: &CreateContainerRequest,
    places: &ContainerPlaces,
) -> Result<Built, Failure> {
    let wanted = request
        .process
        .as_ref()
        .ok_or_else(|| Failure::invalid("process: missing"))?;
    // Checks what needs the request only; how the process is confined is the runtime's business.
    let order = plan::process(wanted, NoSecurity::default())?;
    let layers = pod.layers.mount(&request.layers)?;
    rootfs::mount_overlay(&layers, &places.writable, &places.rootfs)?;
    let user = resolve(&places.rootfs, &order.user)?;
    let cgroup = pod
        .cgroup
        .as_ref()
        .map(|pod| pod.path().join(&request.container_id));
    let below_root = match (&cgroup, &pod.config.cgroup) {
        (Some(path), Some(of)) => path.strip_prefix(&of.root).ok(),
        _ => None,
    };
    let parts = Parts {
        rootfs: &places.rootfs,
        root_propagation: mounts::root_propagation(&request.mounts, &mountinfo()?)?,
        mounts: mounts(pod, request)?,
        user: &user,
        pid: pid_namespace(pod, &request.namespaces.clone().unwrap_or_default()).await?,
        cgroup: below_root,
        devices: devices(request)?,
    };
    let spec = bundle::container(request, &parts)?;
    fs::create_dir_all(&places.bundle)
        .and_then(|()| fs::write(places.bundle.join("config.json"), serde_json::to_vec(&spec)?))
        .context(ErrorCode::System, || {
            "write the container's configuration".to_owned()
        })?;
    let start = Start {
        verb: "create",
        arguments: &[
            OsStr::new("--bundle"),
            places.bundle.as_os_str(),
            OsStr::new(&request.container_id),
        ],
        files: &places.bundle,
        terminal: order.terminal,
        stdin: wanted.stdin,
    };
    let started = pod.runtime.start(&pod.reaper, start).await?;
    let cgroup = cgroup.map(Cgroup::at);
    // By us and not by the runtime: one place knows how limits are written, whatever kind the pod is of.
    limit(cgroup.as_ref(), request.resources.as_ref())?;
    Ok(Built {
        started,
        user,
        cgroup,
    })
}

/// The program may write this file until the container is gone, so it is looked up as the container would.
pub(super) fn resolve(rootfs: &Path, user: &UserSpec) -> Result<Resolved, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, flags, Mode::empty())
        .context(ErrorCode::System, || format!("open {}", rootfs.display()))?;
    user::resolve(user, &Accounts::read(root.as_fd())?)
}

fn mountinfo() -> Result<String, Failure> {
    fs::read_to_string("/proc/self/mountinfo").context(ErrorCode::System, || "read mountinfo".to_owned())
}

fn mounts(pod: &HostPod, request: &CreateContainerRequest) -> Result<Vec<serde_json::Value>, Failure> {
    let privileged = request
        .security
        .as_ref()
        .is_some_and(|security| security.privileged);
    let places = Places {
        directory: pod.directory.clone(),
        host_ipc: pod.config.host_ipc,
    };
    let complete = mount_plan::complete(&request.mounts, privileged);
    let made = complete.iter().map(|mount| {
        let index = request.mounts.iter().position(|requested| requested == mount);
        let field = index.map_or_else(|| mount.destination.clone(), |index| format!("mounts[{index}]"));
        mounts::mount(&field, mount, &places)
    });
    made.collect()
}

async fn pid_namespace(pod: &HostPod, wanted: &Namespaces) -> Result<Pid, Failure> {
    Ok(match wanted.pid() {
        PidNamespace::Container => Pid::New,
        PidNamespace::Node => Pid::Host,
        PidNamespace::Pod => Pid::Of(pod.pid_namespace().await?),
        PidNamespace::Target => {
            check_id("namespaces.pid_target", &wanted.pid_target)?;
            let target = pod.containers.get(&wanted.pid_target)?;
            Pid::Of(namespace_of(target.init.pid().cast_signed()))
        }
    })
}

/// A privileged container has all of the host's, and what it asks for.
fn devices(request: &CreateContainerRequest) -> Result<Vec<(DeviceNode, String)>, Failure> {
    let mut devices = Vec::new();
    for (index, device) in request.devices.iter().enumerate() {
        let field = format!("devices[{index}]");
        if device.disk.is_some() {
            return Err(Failure::invalid(format!(
                "{field}.disk: a host pod has no disks of its own"
            )));
        }
        if !device.access.chars().all(|access| ALL_ACCESS.contains(access)) {
            return Err(Failure::invalid(format!(
                "{field}.access: {:?} is not of \"rwm\"",
                device.access
            )));
        }
        let access = if device.access.is_empty() {
            ALL_ACCESS
        } else {
            &device.access
        };
        devices.push((plan::device(&field, device)?, access.to_owned()));
    }
    if request
        .security
        .as_ref()
        .is_some_and(|security| security.privileged)
    {
        let named: Vec<String> = devices.iter().map(|(node, _)| node.path.clone()).collect();
        let others = lifecycle::all_devices()
            .into_iter()
            .filter(|node| !named.contains(&node.path));
        devices.extend(others.map(|node| (node, ALL_ACCESS.to_owned())));
    }
    Ok(devices)
}

/// # Errors
/// `Unsupported` for limits without a cgroup, and what the cgroup answers.
fn limit(cgroup: Option<&Cgroup>, resources: Option<&Resources>) -> Result<(), Failure> {
    let wanted = resources.cloned().unwrap_or_default();
    match cgroup {
        Some(cgroup) => cgroup.limit(&wanted),
        None => refuse_limits("resources", !limits::settings(&wanted)?.is_empty()),
    }
}

/// On a node without cgroups.
fn refuse_limits(field: &str, is_asked_for: bool) -> Result<(), Failure> {
    if !is_asked_for {
        return Ok(());
    }
    let text =
        format!("{field}: the node has no cgroup v2 hierarchy (machine.cgroup_root) to limit a container in");
    Err(Failure::new(ErrorCode::Unsupported, text))
}

impl Built {
    /// From here on the container exists, and its end will be noticed.
    fn into_container(
        self,
        pod: &Arc<HostPod>,
        request: CreateContainerRequest,
        places: ContainerPlaces,
    ) -> Arc<HostContainer> {
        let Started {
            child,
            stdio,
            outputs,
        } = self.started;
        let stdio = Arc::new(stdio);
        let (init, told) = Process::new(child.pid, child.pidfd, stdio.clone(), self.user.credentials);
        let container = Arc::new(HostContainer {
            id: request.container_id,
            init: Arc::new(init),
            cgroup: self.cgroup,
            security: request.security.unwrap_or_default(),
            labels: request.host_labels.unwrap_or_default(),
            writable: Writable::new(places.upper()),
            places,
            state: Mutex::new(State::Created(())),
            execs: Execs::default(),
        });
        pod.containers.created(container.clone());
        pod.tasks.spawn(async move { stdio.pump(outputs).await });
        pod.tasks
            .spawn(await_init(pod.clone(), container.clone(), child.ended, told));
        container
    }
}

/// Waits for the end of the init process and tells everybody.
async fn await_init(
    pod: Arc<HostPod>,
    container: Arc<HostContainer>,
    ended: oneshot::Receiver<Ended>,
    told: watch::Sender<Option<Exit>>,
) {
    let Ok(ended) = ended.await else { return };
    let kills = container.cgroup.as_ref().map_or(0, Cgroup::oom_kills);
    let exit = Exit {
        code: ended.code,
        signal: ended.signal,
        oom_killed: ended.code != 0 && kills > 0,
        finished_at_ns: ended.at_ns,
        // kubelet reads the file itself: it is the host's.
        termination_message: Vec::new(),
    };
    lock(&container.state).end(exit.clone());
    told.send_replace(Some(exit.clone()));
    tracing::info!(container = %container.id, code = exit.code, oom = exit.oom_killed, "container exited");
    pod.events.publish(&Event::Exited(ContainerExited {
        container_id: container.id.clone(),
        exit: Some(exit),
    }));
}

impl HostContainer {
    /// Lets the init process execve. CLOCK_REALTIME of it, nanoseconds.
    ///
    /// # Errors
    /// `WrongState`, and what the runtime answers: the container has then exited.
    pub(super) async fn start(&self, pod: &HostPod) -> Result<u64, Failure> {
        lock(&self.state).start(&self.id)?;
        pod.runtime
            .release(&pod.reaper, &self.id, &self.places.bundle)
            .await?;
        let started_at_ns = clock::realtime_ns();
        lock(&self.state).started(started_at_ns);
        Ok(started_at_ns)
    }

    /// # Errors
    /// `InvalidArgument`, `NotFound`, `WrongState`.
    pub(super) fn signal(&self, request: &SignalRequest) -> Result<(), Failure> {
        let number = signal_number(request.signal)?;
        match &self.cgroup {
            Some(cgroup) if request.all => cgroup.signal(number),
            // Without a cgroup the init process stands for all; in a PID namespace of its own they end with it.
            _ => self.process(&request.exec_id)?.signal(request.signal),
        }
    }

    /// Sets other limits, and says what the cgroup has then.
    ///
    /// # Errors
    /// As of [`update::update`]; `Unsupported` without a cgroup.
    pub(super) fn update(&self, request: &UpdateContainerRequest) -> Result<Resources, Failure> {
        let phase = lock(&self.state).phase();
        let Some(cgroup) = &self.cgroup else {
            limit(None, request.resources.as_ref())?;
            refuse_limits("oom_score_adj", request.oom_score_adj.is_some())?;
            return Ok(Resources::default());
        };
        update::update(&self.id, phase, cgroup, request, "/proc".as_ref())
    }

    /// For a watcher's snapshot.
    pub(super) fn snapshot(&self) -> ContainerState {
        lock(&self.state).report(&self.id, self.init.pid())
    }
}

/// Kills what still runs, gives back what the container held, forgets it.
///
/// # Errors
/// `NotFound`, `WrongState`; what could not be ended or given back: the container then still exists and can be removed again.
pub(super) async fn remove(pod: &HostPod, id: &str) -> Result<(), Failure> {
    let container = pod.containers.begin_remove(id)?;
    let removed = async {
        if let Some(cgroup) = &container.cgroup
            && cgroup.path().exists()
        {
            cgroup.kill()?;
        }
        exec::end(&container.init).await?;
        for process in container.execs.all() {
            exec::end(&process).await?;
        }
        release(pod, id, &container.places).await
    };
    let removed = removed.await;
    match removed {
        Ok(()) => pod.containers.forget(id),
        Err(_) => pod.containers.created(container),
    }
    removed
}

/// Gives back everything that carries the container's name, whether it was made or not.
async fn release(pod: &HostPod, id: &str, places: &ContainerPlaces) -> Result<(), Failure> {
    // The files of the call are in the bundle, which a creation may not have reached.
    if places.bundle.exists() {
        pod.runtime.delete(&pod.reaper, id, &places.bundle).await?;
    }
    if let Some(cgroup) = &pod.cgroup {
        Cgroup::at(cgroup.path().join(id)).remove().await?;
    }
    rootfs::unmount_all_at(&places.rootfs)?;
    for directory in [&places.rootfs, &places.writable, &places.bundle] {
        let directory = directory.clone();
        let what = format!("remove {}", directory.display());
        // Trees that the container made as large as it liked: not on the runtime's thread.
        tokio::task::spawn_blocking(move || match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        })
        .await
        .map_err(io::Error::other)
        .and_then(|removed| removed)
        .context(ErrorCode::System, || what)?;
    }
    Ok(())
}
