//! One more process in a running container: prepared here for whoever runs it, and ExecSync, whose output is captured and
//! whose end is awaited. What clients follow while it runs is in `streaming::exec`.
//!
//! The work is a task of its own that outlives the request: whatever becomes of the client, the process is ended and
//! forgotten in the guest.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{
    spec,
    state::{Ask, WrongState, decide},
};
use crate::{
    guest::{Dialer, GuestClient, GuestError},
    sandbox::{ContainerView, Node, RequestError, SandboxHandle, chain, new_id},
    stdio::{Capture, Captured, MAX_CAPTURE, ProcessId},
};

/// For output that is under way when the process has ended: a child that it left behind may keep the streams open.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);
/// "None": CRI has no limit then, and a process that never ends is ended with its container.
pub(crate) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How the command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Executed {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit_code: i32,
}

/// Runs `command` and waits for its end; zero is no time limit.
///
/// A command that cannot be executed ends with 127 or 126 as under a shell, so that a probe with a missing program fails, and
/// is not taken for a fault of the node that says nothing about the container.
pub(crate) async fn exec_sync(
    node: &Node,
    sandbox: &SandboxHandle,
    container: &ContainerView,
    command: Vec<String>,
    limit: Duration,
) -> Result<Executed, RequestError> {
    let exec = prepare(node, sandbox, container, command)?;
    let operation = exec.operation();
    let capture = Capture::new(exec.dialer.clone(), exec.id.clone(), MAX_CAPTURE);
    let run = Run {
        exec,
        limit: if limit.is_zero() { FOREVER } else { limit },
    };
    let (mut reply, answer) = oneshot::channel();
    let stop = node.stop.clone();
    let machine_gone = sandbox.machine_gone();
    node.tasks.spawn(async move {
        let unwanted = async {
            // The client has gone, or the daemon stops: nobody wants the output.
            tokio::select! {
                () = reply.closed() => {}
                () = stop.cancelled() => {}
            }
        };
        let result = tokio::select! {
            result = run.run(capture, unwanted) => result,
            // Without this a command without limit would be waited for in a guest that is no more.
            () = machine_gone => Some(Err(RequestError::WrongState {
                operation,
                reason: "its machine has ended".to_owned(),
            })),
        };
        run.exec.forget().await;
        if let Some(result) = result {
            // It may have gone since.
            drop(reply.send(result));
        }
    });
    answer
        .await
        .map_err(|_| RequestError::Unavailable { doing: "stopping" })?
}

/// A process that can be started.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) guest: GuestClient,
    pub(crate) dialer: Dialer,
    pub(crate) id: ProcessId,
    /// Without stdin and terminal, unless whoever runs it says otherwise.
    pub(crate) process: proto::agent::v1::Process,
}

/// What came of a start.
pub(crate) enum Started {
    Runs,
    /// Not executable: how a shell would have told its user.
    Ended {
        text: String,
        exit_code: i32,
    },
}

/// A process that runs `command` as the container's own does; nothing is started yet.
pub(crate) fn prepare(
    node: &Node,
    sandbox: &SandboxHandle,
    container: &ContainerView,
    command: Vec<String>,
) -> Result<Exec, RequestError> {
    if command.is_empty() {
        return Err(RequestError::invalid("cmd", "missing"));
    }
    let operation = operation(&container.id);
    decide(&container.state, Ask::Exec).map_err(|WrongState(reason)| RequestError::WrongState {
        operation: operation.clone(),
        reason: reason.to_owned(),
    })?;
    let view = sandbox.view();
    let machine = view.machine.as_ref().ok_or_else(|| RequestError::WrongState {
        operation: operation.clone(),
        reason: "its machine does not run".to_owned(),
    })?;
    let mut process = spec::process(&container.config(), &container.image, &node.config.container)?;
    process.args = command;
    process.terminal = false;
    Ok(Exec {
        guest: machine.guest.clone(),
        dialer: machine.dialer.clone(),
        id: ProcessId {
            container_id: container.id.clone(),
            exec_id: Some(new_id()?),
        },
        process,
    })
}

fn operation(container_id: &str) -> String {
    format!("execute in container {container_id}")
}

impl Exec {
    /// For messages.
    pub(crate) fn operation(&self) -> String {
        operation(&self.id.container_id)
    }

    /// Starts it in the guest.
    pub(crate) async fn start(&self) -> Result<Started, RequestError> {
        let exec_id = self.id.exec_id.clone().unwrap_or_default();
        let started = self
            .guest
            .exec(&self.id.container_id, &exec_id, self.process.clone());
        match started.await {
            Ok(()) => Ok(Started::Runs),
            Err(error) => match error.exec_exit_code() {
                Some(exit_code) => {
                    let program = self.program();
                    let text = format!("clearpod: exec {program:?}: {}\n", chain(&error));
                    Ok(Started::Ended { text, exit_code })
                }
                None => Err(RequestError::guest(self.operation())(error)),
            },
        }
    }

    /// Forgets it in the guest; kills it if it runs still.
    pub(crate) async fn forget(&self) {
        let exec_id = self.id.exec_id.clone().unwrap_or_default();
        if let Err(error) = self.guest.remove_exec(&self.id.container_id, &exec_id).await {
            tracing::warn!(
                exec = exec_id,
                error = chain(&error),
                "the command may run on in the guest"
            );
        }
    }

    fn program(&self) -> &str {
        self.process.args.first().map_or("", String::as_str)
    }
}

struct Run {
    exec: Exec,
    limit: Duration,
}

impl Run {
    /// `None` when the result is `unwanted`. A start is waited for all the same: forgotten before it had begun, the command
    /// would run on for nobody.
    async fn run(
        &self,
        capture: Capture,
        unwanted: impl Future<Output = ()>,
    ) -> Option<Result<Executed, RequestError>> {
        match self.exec.start().await {
            Ok(Started::Runs) => tokio::select! {
                result = self.follow(capture) => Some(result),
                () = unwanted => None,
            },
            Ok(Started::Ended { text, exit_code }) => Some(Ok(Executed {
                stdout: Vec::new(),
                stderr: text.into_bytes(),
                exit_code,
            })),
            Err(error) => Some(Err(error)),
        }
    }

    async fn follow(&self, mut capture: Capture) -> Result<Executed, RequestError> {
        let exec = &self.exec;
        let exec_id = exec.id.exec_id.clone().unwrap_or_default();
        // Both at once: a process whose output nobody takes does not end.
        let mut captured = None;
        let ended = {
            let wait = exec.guest.wait(&exec.id, self.limit);
            tokio::pin!(wait);
            tokio::select! {
                exit = &mut wait => exit,
                result = capture.run() => {
                    captured = Some(result);
                    wait.await
                }
            }
        };
        let exit = match ended {
            Ok(exit) => exit,
            Err(GuestError::Timeout { .. }) => {
                return Err(RequestError::TimedOut {
                    what: format!(
                        "command {:?} in container {}",
                        exec.program(),
                        exec.id.container_id
                    ),
                    seconds: self.limit.as_secs(),
                });
            }
            Err(error) => return Err(RequestError::guest(exec.operation())(error)),
        };
        let captured = match captured {
            Some(result) => Ok(result),
            None => tokio::time::timeout(DRAIN, capture.run()).await,
        };
        match captured {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(
                exec = exec_id,
                error = chain(&error),
                "the output is not complete"
            ),
            Err(_) => tracing::debug!(exec = exec_id, "a child of the command keeps its output open"),
        }
        let Captured { stdout, stderr, .. } = fit(capture.into_captured());
        Ok(Executed {
            stdout,
            stderr,
            exit_code: exit.code,
        })
    }
}

/// Both streams must fit into one answer that kubelet and crictl accept (16 MiB): stdout gets what stderr leaves, and stderr
/// at least a sixteenth.
fn fit(mut captured: Captured) -> Captured {
    /// For the message around the streams.
    const MARGIN: usize = 4096;
    let room = MAX_CAPTURE - MARGIN;
    if captured.stdout.len() + captured.stderr.len() > room {
        let for_stdout = room.saturating_sub(captured.stderr.len()).max(room / 16 * 15);
        captured.stdout.truncate(for_stdout);
        captured.stderr.truncate(room - captured.stdout.len());
    }
    captured
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_streams_fit_into_one_answer_together() {
        let captured = |stdout, stderr| {
            let captured = fit(Captured {
                stdout: vec![0; stdout],
                stderr: vec![0; stderr],
                dropped: 0,
            });
            (captured.stdout.len(), captured.stderr.len())
        };
        assert_eq!(captured(10, 20), (10, 20));
        for (stdout, stderr) in [
            (MAX_CAPTURE, MAX_CAPTURE),
            (MAX_CAPTURE, 10),
            (10, MAX_CAPTURE),
            (MAX_CAPTURE, 0),
        ] {
            let (kept_stdout, kept_stderr) = captured(stdout, stderr);
            assert!(kept_stdout + kept_stderr < MAX_CAPTURE);
            assert!(kept_stderr >= stderr.min(1000) && kept_stdout >= stdout.min(10));
        }
    }
}
