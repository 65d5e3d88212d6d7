//! The story of a container's creation: what it needs is acquired step by step, and given back newest first if a later
//! step fails.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use proto::agent::v1::mount::Source;
use proto::agent::v1::{
    CreateContainerRequest, CreateContainerResponse, Device, ErrorCode, Mount as WireMount,
};
use tokio::sync::Mutex as AsyncMutex;

use crate::apparmor;
use crate::cgroup::{Cgroup, device_filter};
use crate::container::exec::Execs;
use crate::container::plan::{PidPlan, Plan};
use crate::container::process::Process;
use crate::container::stage::{self, PidNamespace, Place, Ready};
use crate::container::state::State;
use crate::container::volumes::{Held, User};
use crate::container::{Container, mount_plan, plan, watch_oom};
use crate::disk::Lease;
use crate::disk::pci::PciAddress;
use crate::error::{Context as _, Failure};
use crate::init::order::{self, ContainerOrder, DeviceNode, Mount, Order, Rootfs};
use crate::pod::Pod;
use crate::stats::writable::Writable;
use crate::stdio::process::{self as streams, Outputs, ProcessStdio};
use crate::user_namespace::UserNamespace;

/// What a container holds of the pod, in the order in which it was acquired.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    pub(super) layers: Vec<Lease>,
    /// The container's directory on the scratch file system.
    pub(super) scratch: Option<PathBuf>,
    pub(super) volumes: Vec<Held>,
    pub(super) cgroup: Option<PathBuf>,
}

/// Makes a container that waits for its start.
///
/// # Errors
/// As the protocol says; nothing of the container is left then.
pub(crate) async fn create(
    pod: &Arc<Pod>,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Failure> {
    let id = request.container_id.clone();
    pod.containers.reserve(&id)?;
    let mut holdings = Holdings::default();
    match build(pod, &request, &mut holdings).await {
        Ok(built) => {
            let container = built.into_container(pod, &id, holdings);
            let response = CreateContainerResponse {
                pid: container.init.pid(),
                user: Some(container.init.resolved_user()),
                actual: Some(
                    container
                        .cgroup
                        .actual(&request.resources.clone().unwrap_or_default()),
                ),
            };
            Ok(response)
        }
        Err(failure) => {
            for left in super::remove::release(pod, &mut holdings).await {
                tracing::warn!(container = %id, error = %left, "creation could not be undone");
            }
            pod.containers.forget(&id);
            Err(failure)
        }
    }
}

/// All that becomes a [`Container`].
struct Built {
    order: ContainerOrder,
    cgroup: Cgroup,
    ready: Ready,
    stdio: Arc<ProcessStdio>,
    outputs: Outputs,
}

async fn build(
    pod: &Pod,
    request: &CreateContainerRequest,
    holdings: &mut Holdings,
) -> Result<Built, Failure> {
    let mut plan = Plan::new(request)?;
    apparmor::load(&pod.settings.sysfs, &plan.apparmor_policy)?;
    let rootfs = acquire_rootfs(pod, request, holdings).await?;
    let mounts = acquire_mounts(pod, request, &plan, holdings).await?;
    let devices = devices(pod, request, &plan).await?;
    pod.set_sysctls(&request.sysctls)?;
    let cgroup = pod.cgroup.container(&request.container_id)?;
    holdings.cgroup = Some(cgroup.path().to_owned());
    cgroup.limit(&request.resources.clone().unwrap_or_default())?;
    plan.process.id_map = pod.user_namespace().map(|namespace| namespace.map);
    match plan.process.id_map {
        // It can write to /sys/fs/cgroup and is to find itself the owner there.
        Some(map) if plan.privileged => cgroup.delegate(map.uids.outside, map.gids.outside)?,
        _ if plan.privileged => {}
        _ => cgroup.filter_devices(&device_filter::program(&devices))?,
    }
    let order = ContainerOrder {
        rootfs,
        mounts,
        devices,
        masked_paths: plan.masked_paths,
        read_only_paths: plan.read_only_paths,
        termination_log: plan.termination_log,
        process: plan.process,
    };
    let stdin = request.process.as_ref().is_some_and(|process| process.stdin);
    let (order, ready, stdio, outputs) = launch(pod, order, &cgroup, &plan.pid_namespace, stdin).await?;
    Ok(Built {
        order,
        cgroup,
        ready,
        stdio,
        outputs,
    })
}

async fn acquire_mounts(
    pod: &Pod,
    request: &CreateContainerRequest,
    plan: &Plan,
    holdings: &mut Holdings,
) -> Result<Vec<Mount>, Failure> {
    let mut mounts = Vec::new();
    for (index, mount) in plan.mounts.iter().enumerate() {
        let field = mount_field(request, mount, index);
        let id_mapped = id_mapped(&field, mount, pod)?;
        let user = User {
            field: &field,
            container_id: &request.container_id,
            namespace: pod.user_namespace().filter(|_| id_mapped),
        };
        let source = pod
            .volumes
            .source(&pod.disks, &user, mount, &mut holdings.volumes)
            .await?;
        // What is mounted anew is made for the namespace's root, and an image's overlay has been made of mapped layers.
        let as_it_is =
            matches!(source, order::Source::New { .. }) || matches!(mount.source, Some(Source::Image(_)));
        mounts.push(Mount {
            id_mapped: id_mapped && !as_it_is,
            ..mount_plan::mount(&field, mount, source)?
        });
    }
    Ok(mounts)
}

/// Whether the mount is to show the ids of the pod's user namespace: what the daemon says, and of what is the agent's own
/// always.
fn id_mapped(field: &str, mount: &WireMount, pod: &Pod) -> Result<bool, Failure> {
    let own = matches!(mount.source, Some(Source::Sandbox(_)));
    match pod.user_namespace() {
        Some(_) => Ok(mount.id_mapped || own),
        None if mount.id_mapped => Err(Failure::invalid(format!(
            "{field}.id_mapped: the pod has no user namespace"
        ))),
        None => Ok(false),
    }
}

/// A privileged container has all devices of the guest, but not in a user namespace: what is the guest's is nobody's there.
async fn devices(
    pod: &Pod,
    request: &CreateContainerRequest,
    plan: &Plan,
) -> Result<Vec<DeviceNode>, Failure> {
    let namespace = pod.user_namespace();
    let mut devices = if plan.privileged && namespace.is_none() {
        super::lifecycle::all_devices()
    } else {
        Vec::new()
    };
    for (index, device) in request.devices.iter().enumerate() {
        let field = format!("devices[{index}]");
        let mut node = resolve_device(pod, &field, device).await?;
        if let Some(UserNamespace { map, .. }) = namespace {
            let mapped = map.uids.outside(node.uid).zip(map.gids.outside(node.gid));
            (node.uid, node.gid) = mapped.ok_or_else(|| {
                Failure::invalid(format!("{field}.uid: not mapped in the pod's user namespace"))
            })?;
        }
        devices.push(node);
    }
    Ok(devices)
}

/// The mount's place in the request, for messages; standard mounts have none.
fn mount_field(request: &CreateContainerRequest, mount: &proto::agent::v1::Mount, index: usize) -> String {
    match request.mounts.iter().position(|requested| requested == mount) {
        Some(index) => format!("mounts[{index}]"),
        None => format!("standard mount {index} at {}", mount.destination),
    }
}

async fn launch(
    pod: &Pod,
    order: ContainerOrder,
    cgroup: &Cgroup,
    pid_namespace: &PidPlan,
    with_stdin: bool,
) -> Result<(ContainerOrder, Ready, Arc<ProcessStdio>, Outputs), Failure> {
    let joined: Option<OwnedFd> = match pid_namespace {
        PidPlan::Own => None,
        PidPlan::Pod => Some(pod.pid_namespace_holder().await?),
        PidPlan::OfContainer(id) => {
            let target = pod.containers.get(id)?;
            Some(
                target
                    .init
                    .pidfd()
                    .try_clone_to_owned()
                    .context(ErrorCode::System, || "duplicate pidfd".to_owned())?,
            )
        }
    };
    let cgroup = cgroup.open()?;
    let place = Place {
        executable: pod.executable.as_fd(),
        cgroup: Some(cgroup.as_fd()),
        pid_namespace: joined
            .as_ref()
            .map_or(PidNamespace::New, |pidfd| PidNamespace::Of(pidfd.as_fd())),
    };
    let terminal = order.process.terminal.is_some();
    let pipes = pipes_unless(terminal, with_stdin)?;
    let namespace = pod.user_namespace().map(UserNamespace::namespace);
    let mut descriptors: Vec<BorrowedFd<'_>> = namespace.into_iter().collect();
    descriptors.extend(pipes.iter().flat_map(|(_, theirs)| theirs.borrow()));
    let message = Order::Container(Box::new(order));
    let mut ready = stage::launch(&pod.reaper, &place, &message, &descriptors).await?;
    let (stdio, outputs) = stdio(pipes.map(|(ours, _)| ours), ready.terminal.take(), with_stdin)?;
    let Order::Container(order) = message else {
        return Err(Failure::new(
            ErrorCode::System,
            "the order changed while it was sent",
        ));
    };
    Ok((*order, ready, Arc::new(stdio), outputs))
}

pub(crate) type Pipes = (streams::Ends, streams::ProcessEnds);

pub(crate) fn pipes_unless(terminal: bool, with_stdin: bool) -> Result<Option<Pipes>, Failure> {
    if terminal {
        return Ok(None);
    }
    streams::pipes(with_stdin)
        .map(Some)
        .context(ErrorCode::System, || "make pipes for stdio".to_owned())
}

/// From pipes, or else from the terminal that the stage opened.
pub(crate) fn stdio(
    pipes: Option<streams::Ends>,
    terminal: Option<OwnedFd>,
    with_stdin: bool,
) -> Result<(ProcessStdio, Outputs), Failure> {
    let ends = match (pipes, terminal) {
        (Some(ends), _) => Ok(ends),
        (None, Some(master)) => streams::terminal(master, with_stdin),
        (None, None) => return Err(Failure::new(ErrorCode::System, "the stage opened no terminal")),
    };
    ends.and_then(ProcessStdio::new)
        .context(ErrorCode::System, || "register stdio".to_owned())
}

async fn acquire_rootfs(
    pod: &Pod,
    request: &CreateContainerRequest,
    holdings: &mut Holdings,
) -> Result<Rootfs, Failure> {
    for (index, layer) in request.layers.iter().enumerate() {
        let lease = pod.disks.acquire(&format!("layers[{index}]"), layer).await?;
        holdings.layers.push(lease);
    }
    let directory = pod.scratch().await?.join(&request.container_id);
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    holdings.scratch = Some(directory);
    let owner = pod
        .user_namespace()
        .map(|namespace| (namespace.map.uids.outside, namespace.map.gids.outside));
    for made in [&upper, &work] {
        std::fs::create_dir_all(made)
            .and_then(|()| match owner {
                Some((uid, gid)) => chown(made, Some(uid), Some(gid)),
                None => Ok(()),
            })
            .context(ErrorCode::Mount, || format!("create {}", made.display()))?;
    }
    Ok(Rootfs {
        target: pod.settings.run.join("rootfs"),
        layers: holdings
            .layers
            .iter()
            .rev()
            .map(|lease| lease.path.clone())
            .collect(),
        upper,
        work,
        read_only: request.read_only_rootfs,
    })
}

/// A raw block volume's numbers are those of the disk at its address.
async fn resolve_device(pod: &Pod, field: &str, device: &Device) -> Result<DeviceNode, Failure> {
    let mut node = plan::device(field, device)?;
    if let Some(disk) = &device.disk {
        let address = PciAddress::parse(&format!("{field}.disk.pci_address"), &disk.pci_address)?;
        let path = pod
            .settings
            .dev
            .join(pod.disks.bus().block_device(&address).await?);
        let stat = rustix::fs::stat(&path)
            .context(ErrorCode::DeviceMissing, || format!("look at {}", path.display()))?;
        node.major = rustix::fs::major(stat.st_rdev);
        node.minor = rustix::fs::minor(stat.st_rdev);
    }
    Ok(node)
}

impl Built {
    /// From here on the container exists, and its end will be noticed.
    fn into_container(self, pod: &Arc<Pod>, id: &str, holdings: Holdings) -> Arc<Container> {
        let Ready {
            child,
            gate,
            user,
            termination_log,
            ..
        } = self.ready;
        let (init, exit) = Process::new(child.pid, child.pidfd, self.stdio.clone(), user);
        let container = Arc::new(Container {
            id: id.to_owned(),
            init: Arc::new(init),
            cgroup: self.cgroup,
            security: self.order.process.security,
            writable: Writable::new(self.order.rootfs.upper),
            state: Mutex::new(State::Created(gate)),
            execs: Execs::default(),
            holdings: AsyncMutex::new(holdings),
        });
        pod.containers.created(container.clone());
        let (stdio, outputs) = (self.stdio, self.outputs);
        pod.tasks.spawn(async move { stdio.pump(outputs).await });
        pod.tasks.spawn(watch_oom::watch(pod.clone(), container.clone()));
        pod.tasks.spawn(super::lifecycle::await_init(
            pod.clone(),
            container.clone(),
            child.ended,
            termination_log,
            exit,
        ));
        container
    }
}
