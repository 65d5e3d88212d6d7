//! The story of a template: a Machine with nothing of a pod boots, its agent gets ready and does once what forks begin with
//! (`rehearse`), it is halted, written down and ended.
//! It has an id and a directory as a sandbox's Machine has, and is no sandbox: after a crash it is nobody's, and removed as such.

use std::{os::fd::AsFd as _, time::Duration};

use super::{
    awake::until_ready,
    error::RequestError,
    launch::launch_spec,
    ledger::Ledger,
    node::{Node, new_id},
    plan::{self, SandboxPlan},
    rehearse::{rehearse, rest},
    start::{make_cgroup, make_directory},
    state::Acquired,
    turns::Turn,
};
use crate::{
    failpoint,
    guest::ReadyListener,
    machine::ControlClient,
    template::{Shape, Unfinished},
};

/// For a guest's memory to be written.
const WRITE_DEADLINE: Duration = Duration::from_secs(120);
/// Room that the template's file system keeps. It is the run directory's by default, where sockets and records have to fit in, too.
const SPARE: u64 = 64 << 20;

const BOOT: &str = "boot a guest for a template";
const WRITE: &str = "write the template";

/// Makes one of that shape and puts it into `files`; nothing of its Machine is left.
pub(crate) async fn make_template(
    node: &Node,
    shape: Shape,
    origin: &str,
    files: &Unfinished,
) -> Result<(), RequestError> {
    let plan = plan::of_template(&new_id()?, shape, &node.config)?;
    let turn = node.turns.take().await?;
    let mut reached = Vec::new();
    let made = story(node, &plan, turn, origin, files, &mut reached).await;
    for left in Ledger::new(node, &plan).give_back(&reached).await {
        tracing::error!(template = origin, machine = plan.id, what = %left.step, error = %left.error, "could not be given back");
    }
    made
}

async fn story(
    node: &Node,
    plan: &SandboxPlan,
    turn: Turn,
    origin: &str,
    files: &Unfinished,
    reached: &mut Vec<Acquired>,
) -> Result<(), RequestError> {
    make_directory(plan, reached).await?;
    make_cgroup(plan, reached).await?;
    reached.push(Acquired::Machine);
    let listener = ReadyListener::bind(&plan.layout).map_err(RequestError::failed(BOOT))?;
    let spec = launch_spec(&node.config, plan, None, None)?;
    let process = node
        .launcher
        .launch(spec)
        .await
        .map_err(RequestError::failed(BOOT))?;
    failpoint::reached("template.launched").await;
    let control = ControlClient::new(&plan.layout);
    let ready = async {
        let heard = listener.wait(node.config.deadlines.boot()).await;
        heard.map_err(RequestError::failed(BOOT))?;
        rehearse(node, &plan.layout).await?;
        // Others may start meanwhile.
        drop(turn);
        let rested = rest(&control, node.config.machine.templates.rest()).await;
        rested.map_err(RequestError::failed(BOOT))
    };
    // Whoever spoke to it has hung up: it goes on without a connection.
    let ready = until_ready(node, plan, ready, process, &node.stop).await?;
    let (process, _) = ready.ok_or(RequestError::Unavailable { doing: "stopping" })?;
    control.pause().await.map_err(RequestError::failed(WRITE))?;
    check_room(files, resident_bytes(process.pid()))?;
    failpoint::reached("template.paused").await;
    control
        .with_deadline(WRITE_DEADLINE)
        .snapshot(files.memory.as_fd(), files.state.as_fd(), origin)
        .await
        .map_err(RequestError::failed(WRITE))?;
    failpoint::reached("template.written").await;
    Ok(())
}

/// A full file system would be the operating system's or our own.
fn check_room(files: &Unfinished, bytes: u64) -> Result<(), RequestError> {
    let room = files.room().map_err(RequestError::failed(WRITE))?;
    if room < bytes.saturating_add(SPARE) {
        let why = format!(
            "{} MiB are free in its directory, and it may take {} MiB and leave {}",
            room >> 20,
            bytes >> 20,
            SPARE >> 20
        );
        return Err(RequestError::failed(WRITE)(why));
    }
    Ok(())
}

/// What a process has in memory, proc_pid_status(5): a guest's snapshot is never larger. 0 when it cannot be told.
fn resident_bytes(pid: u32) -> u64 {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}
