//! The agent's side of a stage: start it in its place, give it its order, take its report, open its gate.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use proto::agent::v1::ErrorCode;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::error::{Context as _, Failure};
use crate::init::channel::{self, Assembly, Received};
use crate::init::order::{Credentials, GO, Order, Report};
use crate::reaper::{Child, Reaper};
use crate::sys::clone::Stage;

/// From the start of a stage to its report: mounts of many layers on a slow disk take seconds.
const REPORT_WITHIN: Duration = Duration::from_secs(60);
/// From the gate's opening to execve's answer.
const EXEC_WITHIN: Duration = Duration::from_secs(60);

/// Where a stage is started.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// This binary.
    pub(crate) executable: BorrowedFd<'a>,
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    pub(crate) pid_namespace: PidNamespace<'a>,
}

/// The PID namespace of a stage.
#[derive(Debug)]
pub(crate) enum PidNamespace<'a> {
    New,
    /// That of the process of this pidfd.
    Of(BorrowedFd<'a>),
}

/// A stage that has done all it can before execve.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) child: Child,
    pub(crate) gate: Gate,
    pub(crate) user: Credentials,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) termination_log: Option<OwnedFd>,
}

/// A stage's socket after its report. Dropped, the stage gives up.
#[derive(Debug)]
pub(crate) struct Gate(UnixStream);

/// Starts a stage, sends `order` with `descriptors`, and waits for its report.
///
/// # Errors
/// What the stage reports; `System` when it cannot be started, or does not report.
pub(crate) async fn launch(
    reaper: &Reaper,
    place: &Place<'_>,
    order: &Order,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Ready, Failure> {
    let (socket, theirs) = std::os::unix::net::UnixStream::pair()
        .context(ErrorCode::System, || "make the stage socket".to_owned())?;
    let child = start(reaper, place, theirs.as_fd())?;
    drop(theirs);
    let socket = socket
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(socket))
        .context(ErrorCode::System, || "register the stage socket".to_owned())?;
    let conversation = async {
        send(&socket, order, descriptors).await?;
        receive_report(&socket).await
    };
    let answer = tokio::time::timeout(REPORT_WITHIN, conversation).await;
    let report = match answer {
        Ok(report) => report.context(ErrorCode::System, || "talk to the container's stage".to_owned())?,
        Err(_) => {
            crate::sys::signal::send(&child.pidfd, libc::SIGKILL).ok();
            let text = format!("the container's stage did not report within {REPORT_WITHIN:?}");
            return Err(Failure::new(ErrorCode::System, text));
        }
    };
    let mut descriptors = report.descriptors.into_iter();
    match report.message {
        Report::Ready {
            user,
            terminal,
            termination_log,
        } => Ok(Ready {
            child,
            gate: Gate(socket),
            user,
            terminal: terminal.then(|| descriptors.next()).flatten(),
            termination_log: termination_log.then(|| descriptors.next()).flatten(),
        }),
        Report::Failed(failure) => Err(failure),
    }
}

/// `container-init`: see `init::STAGE_ARGUMENT`.
const ARGV: [&CStr; 2] = [c"clearpod-agent", c"container-init"];

fn start(reaper: &Reaper, place: &Place<'_>, socket: BorrowedFd<'_>) -> Result<Child, Failure> {
    let stage = Stage {
        executable: place.executable,
        argv: &ARGV,
        socket,
        cgroup: place.cgroup,
        new_pid_namespace: matches!(place.pid_namespace, PidNamespace::New),
    };
    match place.pid_namespace {
        PidNamespace::New => reaper.spawn(&stage),
        PidNamespace::Of(process) => spawn_beside(reaper, &stage, process)?,
    }
    .context(ErrorCode::System, || "start the container's stage".to_owned())
}

/// Joining a PID namespace affects the children of the joining thread from then on, so the thread is used once.
fn spawn_beside(
    reaper: &Reaper,
    stage: &Stage<'_>,
    process: BorrowedFd<'_>,
) -> Result<io::Result<Child>, Failure> {
    let join_and_spawn = || {
        move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID)
            .context(ErrorCode::WrongState, || "join the PID namespace".to_owned())?;
        Ok(reaper.spawn(stage))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("join-pid-ns".to_owned());
        let joined = thread
            .spawn_scoped(scope, join_and_spawn)
            .map(std::thread::ScopedJoinHandle::join);
        match joined {
            Ok(Ok(child)) => child,
            Ok(Err(_)) => Err(Failure::new(
                ErrorCode::System,
                "the thread that joins a PID namespace panicked",
            )),
            Err(error) => Err(Failure::from_io(
                ErrorCode::System,
                "start the thread that joins a PID namespace",
                &error,
            )),
        }
    })
}

async fn send(socket: &UnixStream, order: &Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = channel::encode(order)?;
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        let descriptors = if sent == 0 { descriptors } else { &[] };
        socket.writable().await?;
        match socket.try_io(Interest::WRITABLE, || {
            channel::send_some(socket, rest, descriptors)
        }) {
            Ok(more) => sent += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn receive_report(socket: &UnixStream) -> io::Result<Received<Report>> {
    let mut assembly = Assembly::default();
    loop {
        socket.readable().await?;
        match socket.try_io(Interest::READABLE, || assembly.read_once(socket)) {
            Ok(Some(received)) => return Ok(received),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

impl Gate {
    /// Lets the stage execve, and waits for what comes of it.
    ///
    /// # Errors
    /// `Exec` with execve's errno, or what else the stage reports.
    pub(crate) async fn open(self) -> Result<(), Failure> {
        let go = async {
            self.0.writable().await?;
            self.0.try_write(&[GO])
        };
        // A stage that is gone already has left its report, or the reaper knows its end.
        if let Err(error) = go.await {
            tracing::debug!(%error, "stage ended before its start");
        }
        self.executed().await
    }

    /// Waits for execve: the stage's end of the socket closes when it succeeds.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) async fn executed(self) -> Result<(), Failure> {
        match tokio::time::timeout(EXEC_WITHIN, receive_report(&self.0)).await {
            Ok(Ok(Received {
                message: Report::Failed(failure),
                ..
            })) => Err(failure),
            Ok(Ok(_)) => Err(Failure::new(ErrorCode::System, "the stage reported twice")),
            Ok(Err(error)) if is_end(&error) => Ok(()),
            Ok(Err(error)) => Err(Failure::from_io(ErrorCode::System, "wait for execve", &error)),
            Err(_) => Err(Failure::new(
                ErrorCode::System,
                format!("no execve within {EXEC_WITHIN:?}"),
            )),
        }
    }
}

/// The stage was killed, or became the program.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
