//! The stage: this binary again, as the process that becomes a container's.
//!
//! The agent starts it (`container/stage.rs`) in the right cgroup and PID namespace and sends an [`Order`]; what must
//! happen inside the container's namespaces happens here, in a process with one thread. It ends in execve, or in
//! [`Report::Failed`]. Nothing here outlives that, and nothing here decides: see `container/plan.rs`.

pub(crate) mod channel;
mod devices;
pub(crate) mod identity;
pub(crate) mod mounts;
pub(crate) mod order;
pub(crate) mod paths;
mod program;
mod rootfs;
pub(crate) mod terminal;
pub(crate) mod user;
pub(crate) mod user_namespace;

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use proto::agent::v1::ErrorCode;
use rustix::fs::{FileType, Mode, OFlags, Uid};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType};

use crate::error::{Context as _, Failure};
use crate::init::channel::Received;
use crate::init::order::{
    ContainerOrder, Credentials, GO, IdMap, Order, ProcessOrder, Report, STDIO_DESCRIPTORS,
};
use crate::init::paths::Missing;
use crate::init::terminal::Terminal;
use crate::init::user::{Accounts, Resolved};
use crate::init::user_namespace::Namespace;
use crate::sys;

/// The argument that makes this binary a stage.
pub const STAGE_ARGUMENT: &str = "container-init";

/// Where AppArmor takes what comes with the next execve, Documentation/admin-guide/LSM/apparmor.rst.
const APPARMOR_EXEC: &str = "/proc/self/attr/apparmor/exec";

/// Exit code of a stage that could not become the program; the agent has the reason.
const FAILED: u8 = 127;

/// The main function of a stage. Returns only on failure.
#[must_use]
pub fn stage_main() -> ExitCode {
    let Some(socket) = sys::clone::take_stage_socket() else {
        return ExitCode::from(FAILED);
    };
    if let Err(failure) = run(&socket) {
        // If the agent is gone as well there is nobody left to tell.
        channel::send(&socket, &Report::Failed(failure), &[]).ok();
    }
    ExitCode::from(FAILED)
}

fn run(socket: &OwnedFd) -> Result<(), Failure> {
    // A container must not look into a process that still has the agent's power: no ptrace, no /proc/<pid>/*.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context(ErrorCode::System, || "make the stage undumpable".to_owned())?;
    rustix::thread::set_name(c"clearpod-stage").context(ErrorCode::System, || "name the stage".to_owned())?;
    rustix::process::umask(Mode::empty());
    let Received { message, descriptors } =
        channel::receive::<Order>(socket).context(ErrorCode::System, || "receive the order".to_owned())?;
    match message {
        Order::Container(order) => become_container(socket, &order, descriptors),
        Order::Exec(order) => become_exec(socket, &order, descriptors),
        Order::HoldPidNamespace => hold_pid_namespace(socket),
    }
}

/// The story of a container's init process.
fn become_container(
    socket: &OwnedFd,
    order: &ContainerOrder,
    mut descriptors: Vec<OwnedFd>,
) -> Result<(), Failure> {
    let id_map = order.process.id_map;
    let descriptor = id_map
        .map(|_| take_first(&mut descriptors, "a user namespace"))
        .transpose()?;
    let namespace = namespace(id_map, descriptor.as_ref());
    rootfs::leave_agent()?;
    prepare_process(&order.process)?;
    let root = rootfs::mount(&order.rootfs, namespace.as_ref())?;
    if let Some(namespace) = &namespace {
        namespace.own_files()?;
    }
    for mount in &order.mounts {
        mounts::attach(root.as_fd(), mount, namespace.as_ref())?;
    }
    for device in &order.devices {
        devices::create(root.as_fd(), device)?;
    }
    let stdio = Stdio::open(root.as_fd(), &order.process, descriptors)?;
    if let Stdio::Terminal(terminal) = &stdio {
        terminal::attach_console(root.as_fd(), terminal)?;
    }
    create_cwd(root.as_fd(), &order.process.cwd)?;
    let termination_log = order
        .termination_log
        .as_deref()
        .map(|path| open_log(root.as_fd(), path))
        .transpose()?;
    for path in &order.read_only_paths {
        mounts::make_read_only(root.as_fd(), path)?;
    }
    for path in &order.masked_paths {
        mounts::mask(root.as_fd(), path)?;
    }
    let user = user::resolve(&order.process.user, &Accounts::read(root.as_fd())?)?;
    if order.rootfs.read_only {
        rootfs::make_read_only(&root)?;
    }
    rootfs::enter(&root)?;
    stdio.install(user_namespace::owner(&user.credentials, id_map)?)?;
    if let Some(namespace) = &namespace {
        namespace.enter()?;
        rootfs::leave_guest()?;
    }
    report(socket, &user, &stdio, termination_log.as_ref())?;
    drop(stdio);
    wait_for_go(socket)?;
    program::execute(&order.process, &user)
}

/// The story of a process beside a running container's init.
fn become_exec(socket: &OwnedFd, order: &ProcessOrder, mut descriptors: Vec<OwnedFd>) -> Result<(), Failure> {
    let container = take_first(&mut descriptors, "a process to join")?;
    prepare_process(order)?;
    let namespaces = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP;
    rustix::thread::move_into_thread_name_spaces(container.as_fd(), namespaces)
        .context(ErrorCode::WrongState, || {
            "join the container's namespaces".to_owned()
        })?;
    let root = rootfs::open_path("/")?;
    let user = user::resolve(&order.user, &Accounts::read(root.as_fd())?)?;
    let stdio = Stdio::open(root.as_fd(), order, descriptors)?;
    stdio.install(user_namespace::owner(&user.credentials, order.id_map)?)?;
    if let Some(namespace) = namespace(order.id_map, Some(&container)) {
        namespace.enter()?;
    }
    drop(container);
    report(socket, &user, &stdio, None)?;
    drop(stdio);
    program::execute(order, &user)
}

fn take_first(descriptors: &mut Vec<OwnedFd>, what: &str) -> Result<OwnedFd, Failure> {
    if descriptors.is_empty() {
        let text = format!("the order came without {what}");
        return Err(Failure::new(ErrorCode::System, text));
    }
    Ok(descriptors.remove(0))
}

fn namespace(map: Option<IdMap>, descriptor: Option<&OwnedFd>) -> Option<Namespace<'_>> {
    map.zip(descriptor).map(|(map, descriptor)| Namespace {
        map,
        descriptor: descriptor.as_fd(),
    })
}

/// Stays as PID 1 of the pod's shared PID namespace: reaps, and shows the containers nothing of the agent.
fn hold_pid_namespace(socket: &OwnedFd) -> Result<(), Failure> {
    rootfs::leave_agent()?;
    mounts::enter_empty_root()?;
    sys::exec::reap_children_automatically();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none)
        .context(ErrorCode::System, || "drop all capabilities".to_owned())?;
    let user = Resolved {
        credentials: Credentials::default(),
        home: Vec::new(),
    };
    report(socket, &user, &Stdio::Pipes(Vec::new()), None)?;
    // Until the agent lets go of the socket, which it does at the Machine's end: this process outlives every container.
    let mut byte = [0];
    loop {
        match rustix::io::read(socket, &mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            failed @ Err(_) => {
                failed.context(ErrorCode::System, || "wait for the agent".to_owned())?;
            }
        }
    }
}

/// What needs the agent's /proc and CAP_SYS_RESOURCE.
fn prepare_process(order: &ProcessOrder) -> Result<(), Failure> {
    let profile = &order.security.apparmor_profile;
    if !profile.is_empty() {
        // Kept for the next execve, which is the program's. Written by what this process is now: the kernel refuses a file
        // that was opened with other rights than the writer's.
        File::options()
            .write(true)
            .open(APPARMOR_EXEC)
            .and_then(|mut file| file.write_all(format!("exec {profile}").as_bytes()))
            .context(ErrorCode::System, || {
                format!("security.apparmor_profile: change to {profile:?} on exec")
            })?;
    }
    let score = order.oom_score_adj;
    File::options()
        .write(true)
        .open("/proc/self/oom_score_adj")
        // In one write: formatted into the file, the sign of a negative one would come alone.
        .and_then(|mut file| file.write_all(score.to_string().as_bytes()))
        .context(ErrorCode::System, || format!("set oom_score_adj to {score}"))?;
    rustix::process::setsid().context(ErrorCode::System, || "start a session".to_owned())?;
    sys::exec::new_session_keyring().context(ErrorCode::System, || "start a session keyring".to_owned())?;
    identity::limit(&order.rlimits)
}

/// Where the process's first three descriptors come from.
enum Stdio {
    Pipes(Vec<OwnedFd>),
    Terminal(Terminal),
}

impl Stdio {
    fn open(root: BorrowedFd<'_>, order: &ProcessOrder, descriptors: Vec<OwnedFd>) -> Result<Self, Failure> {
        match order.terminal {
            Some(size) => Ok(Self::Terminal(terminal::open(root, size)?)),
            None if descriptors.len() == STDIO_DESCRIPTORS => Ok(Self::Pipes(descriptors)),
            None => Err(Failure::new(
                ErrorCode::System,
                format!("the order came with {} descriptors for stdio", descriptors.len()),
            )),
        }
    }

    /// Makes them descriptors 0, 1 and 2, owned by the user so that /dev/stdout can be opened again.
    fn install(&self, owner: u32) -> Result<(), Failure> {
        let [stdin, stdout, stderr] = match self {
            Self::Pipes(pipes) => match pipes.as_slice() {
                [stdin, stdout, stderr] => [stdin, stdout, stderr],
                _ => return Err(Failure::new(ErrorCode::System, "stdio is incomplete")),
            },
            Self::Terminal(terminal) => {
                terminal::control(terminal)?;
                [&terminal.slave; 3]
            }
        };
        for fd in [stdin, stdout, stderr] {
            give_to(fd, owner).context(ErrorCode::System, || "hand stdio to the user".to_owned())?;
        }
        rustix::stdio::dup2_stdin(stdin)
            .and_then(|()| rustix::stdio::dup2_stdout(stdout))
            .and_then(|()| rustix::stdio::dup2_stderr(stderr))
            .context(ErrorCode::System, || "install stdio".to_owned())
    }

    fn master(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Terminal(terminal) => Some(terminal.master.as_fd()),
            Self::Pipes(_) => None,
        }
    }
}

/// Pipes and terminals belong to one process; /dev/null is everybody's and stays as it is.
fn give_to(fd: impl AsFd, owner: u32) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(&fd)?;
    let own = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo || rustix::termios::isatty(&fd);
    if own && stat.st_uid != owner {
        rustix::fs::fchown(&fd, Some(Uid::from_raw(owner)), None)?;
    }
    Ok(())
}

fn create_cwd(root: BorrowedFd<'_>, cwd: &str) -> Result<(), Failure> {
    paths::open_or_create(root, cwd, Missing::Directory)
        .map(drop)
        .context(ErrorCode::InvalidArgument, || {
            format!("create working directory {cwd}")
        })
}

/// The termination log, created if it is missing, for reading after the end.
fn open_log(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Failure> {
    paths::open_or_create(root, path, Missing::File)
        .and_then(|_| paths::open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY))
        .context(ErrorCode::Mount, || format!("open termination log {path}"))
}

fn report(
    socket: &OwnedFd,
    user: &Resolved,
    stdio: &Stdio,
    termination_log: Option<&OwnedFd>,
) -> Result<(), Failure> {
    let ready = Report::Ready {
        user: user.credentials.clone(),
        terminal: stdio.master().is_some(),
        termination_log: termination_log.is_some(),
    };
    let descriptors: Vec<BorrowedFd<'_>> = stdio
        .master()
        .into_iter()
        .chain(termination_log.map(AsFd::as_fd))
        .collect();
    channel::send(socket, &ready, &descriptors)
        .context(ErrorCode::System, || "report to the agent".to_owned())
}

/// Waits for StartContainer.
fn wait_for_go(socket: &OwnedFd) -> Result<(), Failure> {
    let mut byte = [0];
    let got = rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut byte))
        .context(ErrorCode::System, || "wait for the start".to_owned())?;
    if got == 1 && byte == [GO] {
        Ok(())
    } else {
        Err(Failure::new(
            ErrorCode::WrongState,
            "the agent let go of the container before its start",
        ))
    }
}
