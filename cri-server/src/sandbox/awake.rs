//! From a VMM that is started to a guest that is awake: it boots and sends its signal, or goes on from a template and answers.
//! What does not get there is ended, and its last words are the reason.

use std::{error::Error, time::Duration};

use proto::{
    agent::v1 as agent,
    machine::{DevicePlace, ExitReason},
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

/// Bytes of the VMM's log and of the console that a failed boot's message quotes.
const QUOTE: usize = 1024;

/// When a guest was ready, monotonic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Awake {
    pub(super) ready_ns: u64,
    /// One that goes on: when it had found the devices that were new to it.
    pub(super) found_ns: Option<u64>,
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
            found_ns: None,
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
    let began = until_ready(node, plan, ready, process.clone(), hopeless).await;
    began.map_err(|error| not_forked(node, plan, fork, &process, &error))
}

fn not_forked(
    node: &Node,
    plan: &SandboxPlan,
    fork: &Fork,
    process: &Process,
    error: &RequestError,
) -> RequestError {
    let refused = own_end(process) == Some(MachineExit::Exited(ExitReason::SnapshotRefused));
    let outcome = if refused {
        Outcome::Refused
    } else {
        Outcome::Failed
    };
    node.templates.tell(fork, outcome);
    RequestError::NotForked {
        id: plan.id.clone(),
        reason: chain(error),
    }
}

/// From the first answer of a guest that goes on to the moment from which on it has entropy, time and devices of its own.
async fn wake(layout: &Layout, deadline: Duration) -> Result<Awake, RequestError> {
    let reached = guest::goes_on(layout, deadline).await;
    reached.map_err(RequestError::failed("reach the guest"))?;
    let ready_ns = monotonic_ns();
    let description = ControlClient::new(layout).describe().await;
    let devices = description
        .map_err(RequestError::failed("ask the VMM for its devices"))?
        .devices;
    let is_new = |place: &DevicePlace| [NET, SCRATCH].contains(&place.id.as_str());
    let new = devices.into_iter().filter(is_new);
    let request = agent::GoOnRequest {
        entropy: random_bytes::<64>()?.to_vec(),
        realtime_ns: u64::try_from(now_ns()).unwrap_or_default(),
        pci_addresses: new.map(|place| place.pci_address).collect(),
    };
    let went_on = GuestClient::new(layout).go_on(request).await;
    went_on.map_err(RequestError::guest("let the guest go on"))?;
    Ok(Awake {
        ready_ns,
        found_ns: Some(monotonic_ns()),
    })
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

/// The process that was started, once it is `ready`. One that does not get there is killed.
pub(super) async fn until_ready<T, E: Error + 'static>(
    node: &Node,
    plan: &SandboxPlan,
    ready: impl Future<Output = Result<T, E>>,
    process: Process,
    hopeless: &CancellationToken,
) -> Result<Option<(Process, T)>, RequestError> {
    let late = tokio::select! {
        ready = ready => match ready {
            Ok(ready) => return Ok(Some((process, ready))),
            Err(error) => Some(chain(&error)),
        },
        _ = process.exited() => None,
        () = hopeless.cancelled() => None,
    };
    let own_end = end(node, plan, &process).await;
    let why = late.or_else(|| own_end.map(|exit| exit.to_string()));
    match why {
        Some(why) => Err(did_not_start(plan, own_end, &why).await),
        None => Ok(None),
    }
}

/// What a failure after the guest was awake comes from: the Machine's own end, if it has ended, of which the failure was only the
/// first sign. Ends the Machine.
pub(super) async fn cause(
    node: &Node,
    plan: &SandboxPlan,
    fork: Option<&Fork>,
    process: &Process,
    error: RequestError,
) -> RequestError {
    let (error, is_silent) = match end(node, plan, process).await {
        Some(exit) => (did_not_start(plan, Some(exit), &exit.to_string()).await, true),
        None => {
            let is_silent = error.is_silence();
            (error, is_silent)
        }
    };
    match fork {
        // A guest that went on and then says nothing did not go on.
        Some(fork) if is_silent => not_forked(node, plan, fork, process, &error),
        _ => error,
    }
}

/// Ends a Machine; how it had ended of itself before, if it had.
async fn end(node: &Node, plan: &SandboxPlan, process: &Process) -> Option<MachineExit> {
    // The VMM writes the console to its file at its end.
    let kill = process.kill();
    let ended = tokio::time::timeout(node.config.deadlines.shutdown(), process.exited()).await;
    if let (Err(error), _) | (Ok(()), Err(error)) = (kill, ended.map_err(std::io::Error::other)) {
        tracing::warn!(sandbox = plan.id, %error, "what failed to boot still runs");
    }
    own_end(process)
}

async fn did_not_start(plan: &SandboxPlan, own_end: Option<MachineExit>, why: &str) -> RequestError {
    let id = plan.id.clone();
    let reason = format!("{why}{}", last_words(&plan.layout, QUOTE).await);
    if own_end == Some(MachineExit::Exited(ExitReason::GuestUnrunnable)) {
        RequestError::Unrunnable { id, reason }
    } else {
        RequestError::failed(format!("boot the machine of sandbox {id}"))(reason)
    }
}

/// How a process that was killed had ended before of itself: a tap goes with its VMM, so the plugins can see that end first,
/// and it, not what they say, is the cause.
fn own_end(process: &Process) -> Option<MachineExit> {
    process
        .try_exited()
        .filter(|exit| *exit != MachineExit::Signalled(libc::SIGKILL))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::machine::Kill;

    #[derive(Debug)]
    struct NoKill;

    impl Kill for NoKill {
        fn kill(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_end_of_its_own_is_told_from_being_killed() {
        let (end, exit) = watch::channel(None);
        let process = Process::new(7, exit, Arc::new(NoKill));
        assert_eq!(own_end(&process), None);
        let panicked = Some(MachineExit::Exited(ExitReason::GuestPanic));
        end.send_replace(panicked);
        assert_eq!(own_end(&process), panicked);
        end.send_replace(Some(MachineExit::Signalled(libc::SIGKILL)));
        assert_eq!(own_end(&process), None);
    }
}
