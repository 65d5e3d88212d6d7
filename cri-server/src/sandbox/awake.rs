//! From a VMM that is started to a guest that is awake: it boots and sends its signal, or goes on from a template and answers.
//! What does not get there is ended, and its last words are the reason.

use std::{error::Error, time::Duration};

use proto::{
    agent::v1 as agent,
    machine::{Description, DevicePlace, ExitReason},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    error::{RequestError, chain},
    launch::{Equipment, launch_spec},
    live::{NET, SCRATCH},
    node::{Node, random_bytes},
    plan::SandboxPlan,
};
use crate::{
    clock::{monotonic_ns, now_ns},
    failpoint,
    guest::{self, GuestClient, ReadyError, ReadyListener},
    machine::{ControlClient, Layout, MachineExit, Process},
    network::Prepared,
    template::{Fork, Outcome},
};

/// From the closing of a VMM's sockets until it is seen to have ended.
const SETTLE: Duration = Duration::from_secs(1);
/// Bytes of the VMM's log and of the console that a failed boot's message quotes.
const QUOTE: usize = 1024;

/// A guest that is awake.
#[derive(Debug)]
pub(super) struct Awake {
    /// When it was ready, monotonic.
    pub(super) ready_ns: u64,
    /// Of one that goes on.
    pub(super) woken: Option<Woken>,
}

/// What had to be done for a guest to go on.
#[derive(Debug)]
pub(super) struct Woken {
    /// When it had found the devices that were new to it, monotonic.
    pub(super) found_ns: u64,
    /// What its VMM said of them.
    pub(super) description: Description,
}

/// Starts the VMM and waits for the agent's signal, the process's end, or the deadline. `None`: it was `hopeless`, and was ended.
pub(super) async fn boot(
    node: &Node,
    plan: &SandboxPlan,
    prepared: Prepared,
    hopeless: &CancellationToken,
) -> Result<Option<(Process, Awake)>, RequestError> {
    let listener = ReadyListener::bind(&plan.layout).map_err(RequestError::failed("listen for the guest"))?;
    let process = launch(node, plan, prepared, None).await?;
    let ready = async {
        listener.wait(node.config.deadlines.boot()).await?;
        Ok::<_, ReadyError>(Awake {
            ready_ns: monotonic_ns(),
            woken: None,
        })
    };
    until_ready(node, plan, ready, process, hopeless).await
}

/// The same for a guest that goes on from `fork`: there is no signal, so its agent is dialled.
pub(super) async fn go_on(
    node: &Node,
    plan: &SandboxPlan,
    prepared: Prepared,
    fork: &Fork,
    hopeless: &CancellationToken,
) -> Result<Option<(Process, Awake)>, RequestError> {
    let process = launch(node, plan, prepared, Some(fork)).await?;
    let deadline = node.config.deadlines.fork();
    let ready = async {
        let woken = timeout(deadline, wake(&plan.layout, deadline)).await;
        woken.map_err(|_| RequestError::TimedOut {
            what: format!("what the guest of sandbox {} does to go on", plan.id),
            seconds: deadline.as_secs(),
        })?
    };
    let woken = ready_or_lost(node, plan, ready, process, hopeless).await;
    woken.map_err(|Lost { own_end, reason }| not_forked(node, plan, fork, own_end, reason))
}

/// From the first answer of a guest that goes on to the moment from which on it has entropy, time and devices of its own.
async fn wake(layout: &Layout, deadline: Duration) -> Result<Awake, RequestError> {
    let reached = guest::goes_on(layout, deadline).await;
    reached.map_err(RequestError::failed("reach the guest"))?;
    let ready_ns = monotonic_ns();
    let description = describe(layout).await?;
    let is_new = |place: &&DevicePlace| [NET, SCRATCH].contains(&place.id.as_str());
    let new = description.devices.iter().filter(is_new);
    let new = new.map(|place| place.pci_address.clone()).collect();
    let_go_on(&GuestClient::new(layout), new).await?;
    let woken = Woken {
        found_ns: monotonic_ns(),
        description,
    };
    Ok(Awake {
        ready_ns,
        woken: Some(woken),
    })
}

/// Gives a guest that goes on entropy and time of its own, and lets it find these devices.
pub(super) async fn let_go_on(client: &GuestClient, pci_addresses: Vec<String>) -> Result<(), RequestError> {
    let request = agent::GoOnRequest {
        entropy: random_bytes::<64>()?.to_vec(),
        realtime_ns: u64::try_from(now_ns()).unwrap_or_default(),
        pci_addresses,
    };
    let went_on = client.go_on(request).await;
    went_on.map_err(RequestError::guest("let the guest go on"))
}

/// What a VMM says of its devices and of its start.
pub(super) async fn describe(layout: &Layout) -> Result<Description, RequestError> {
    let description = ControlClient::new(layout).describe().await;
    description.map_err(RequestError::failed("ask the VMM for its devices"))
}

async fn launch(
    node: &Node,
    plan: &SandboxPlan,
    network: Prepared,
    fork: Option<&Fork>,
) -> Result<Process, RequestError> {
    let scratch = plan.scratch.clone();
    let spec = launch_spec(&node.config, plan, Some(Equipment { network, scratch }), fork)?;
    let launched = node.launcher.launch(spec).await;
    let process = launched.map_err(RequestError::failed("start the VMM"))?;
    failpoint::reached("start.launched").await;
    Ok(process)
}

/// The process that was started, once it is `ready`. One that does not get there is killed. `None`: it was `hopeless`.
pub(super) async fn until_ready<T, E: Error + 'static>(
    node: &Node,
    plan: &SandboxPlan,
    ready: impl Future<Output = Result<T, E>>,
    process: Process,
    hopeless: &CancellationToken,
) -> Result<Option<(Process, T)>, RequestError> {
    let ready = ready_or_lost(node, plan, ready, process, hopeless).await;
    ready.map_err(|Lost { own_end, reason }| did_not_boot(plan, own_end, reason))
}

fn did_not_boot(plan: &SandboxPlan, own_end: Option<MachineExit>, reason: String) -> RequestError {
    let id = plan.id.clone();
    if own_end == Some(MachineExit::Exited(ExitReason::GuestUnrunnable)) {
        RequestError::Unrunnable { id, reason }
    } else {
        RequestError::failed(format!("boot the machine of sandbox {id}"))(reason)
    }
}

/// A guest that did not get ready, and whose VMM runs no more.
#[derive(Debug)]
struct Lost {
    /// `None`: it was killed for being late.
    own_end: Option<MachineExit>,
    /// With the last words of both.
    reason: String,
}

async fn ready_or_lost<T, E: Error + 'static>(
    node: &Node,
    plan: &SandboxPlan,
    ready: impl Future<Output = Result<T, E>>,
    process: Process,
    hopeless: &CancellationToken,
) -> Result<Option<(Process, T)>, Lost> {
    let late = tokio::select! {
        ready = ready => match ready {
            Ok(ready) => return Ok(Some((process, ready))),
            Err(error) => Some(chain(&error)),
        },
        _ = process.exited() => None,
        () = hopeless.cancelled() => None,
    };
    let own_end = own_end(&process).await;
    // The VMM writes the console to its file at its end.
    let kill = process.kill();
    let ended = timeout(node.config.deadlines.shutdown(), process.exited()).await;
    if let (Err(error), _) | (Ok(()), Err(error)) = (kill, ended.map_err(std::io::Error::other)) {
        tracing::warn!(sandbox = plan.id, %error, "what failed to boot still runs");
    }
    match own_end.map(|exit| told(plan, exit)).or(late) {
        None => Ok(None),
        Some(why) => {
            let reason = format!("{why}{}", last_words(&plan.layout, QUOTE).await);
            Err(Lost { own_end, reason })
        }
    }
}

/// How a process has ended of itself, which is the cause of whatever went wrong meanwhile. Its sockets and its tap go before it is
/// seen to have ended, so that those who use them are the first to know.
pub(super) async fn own_end(process: &Process) -> Option<MachineExit> {
    timeout(SETTLE, process.exited()).await.ok()
}

/// How a Machine ended, for people. Who kills without a word is most often the host's kernel, when it is short of memory.
pub(super) fn told(plan: &SandboxPlan, exit: MachineExit) -> String {
    let killed_for_memory = exit == MachineExit::Signalled(libc::SIGKILL)
        && plan
            .cgroup
            .as_ref()
            .is_some_and(|plan| plan.cgroup.oom_kills() > 0);
    if killed_for_memory {
        "the host killed the VMM: it was out of memory, or a cgroup of the pod was".to_owned()
    } else {
        exit.to_string()
    }
}

/// That a process has ended of itself, if it has, and what went wrong by that.
pub(super) async fn ended_first(
    plan: &SandboxPlan,
    process: &Process,
    error: &RequestError,
) -> Option<(MachineExit, String)> {
    let exit = own_end(process).await?;
    Some((exit, format!("{}: {}", told(plan, exit), chain(error))))
}

/// What went wrong with a guest after its first answer and before anything of the pod ran in it, in the words that say most: of one
/// that went on and whose VMM has ended, or that says nothing any more, it is that it did not go on.
pub(super) async fn not_started(
    node: &Node,
    plan: &SandboxPlan,
    fork: Option<&Fork>,
    process: &Process,
    error: RequestError,
) -> RequestError {
    match (fork, ended_first(plan, process, &error).await) {
        (Some(fork), Some((exit, reason))) => not_forked(node, plan, fork, Some(exit), reason),
        (Some(fork), None) if error.is_silence() => not_forked(node, plan, fork, None, chain(&error)),
        (None, Some((exit, reason))) => did_not_boot(plan, Some(exit), reason),
        (_, None) => error,
    }
}

/// Of one that somebody killed the template is not told: that says nothing of it.
fn not_forked(
    node: &Node,
    plan: &SandboxPlan,
    fork: &Fork,
    own_end: Option<MachineExit>,
    reason: String,
) -> RequestError {
    match own_end {
        Some(MachineExit::Signalled(libc::SIGKILL)) => {}
        Some(MachineExit::Exited(ExitReason::SnapshotRefused)) => node.templates.tell(fork, Outcome::Refused),
        _ => node.templates.tell(fork, Outcome::Failed),
    }
    let id = plan.id.clone();
    RequestError::NotForked { id, reason }
}

/// The ends of the VMM's log and of the guest's console, for a message.
async fn last_words(layout: &Layout, limit: usize) -> String {
    let mut text = String::new();
    for (name, path) in [("VMM log", layout.vmm_log()), ("console", layout.console_log())] {
        let tail = tail(path, limit).await;
        if !tail.is_empty() {
            text.push_str(&format!("; {name}: {tail:?}"));
        }
    }
    text
}

/// The last `limit` bytes of a file, as text without control characters but line ends; empty when there is none.
pub(super) async fn tail(path: std::path::PathBuf, limit: usize) -> String {
    let bytes = fs_err::tokio::read(path).await.unwrap_or_default();
    let start = bytes.len().saturating_sub(limit);
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default())
        .chars()
        .filter(|character| *character == '\n' || !character.is_control())
        .collect::<String>()
        .trim()
        .to_owned()
}
