//! Attach: a client's streams and a container's first process. Its output is what the log gets from now on, and the log never
//! waits for a client: one that does not keep up loses some and is told so.

use proto::stdio::Stream;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{
    remote_command::{Client, ClientOutput, Outcome, Wanted},
    terminal::{self, Resizes},
};
use crate::{
    container::exec::FOREVER,
    guest::GuestError,
    sandbox::{ContainerView, MachineView, Node, Request, RequestError, chain},
    stdio::{OutputEvent, ProcessId, Stdin},
};

/// Whether `container` can be attached to in this way.
pub(crate) fn check(container: &ContainerView, wanted: Wanted) -> Result<(), RequestError> {
    let config = container.config();
    if !container.state.is_running() {
        return Err(RequestError::WrongState {
            operation: operation(&container.id),
            reason: "it is not running".to_owned(),
        });
    }
    if wanted.stdin && !config.stdin {
        return Err(RequestError::invalid(
            "stdin",
            "the container was created without it",
        ));
    }
    if wanted.terminal != config.tty {
        let reason = format!("must be as the container was created: {}", config.tty);
        return Err(RequestError::invalid("tty", reason));
    }
    Ok(())
}

/// Attaches `client` until the container ends.
pub(super) async fn run(node: &Node, container_id: &str, wanted: Wanted, client: &mut Client) -> Outcome {
    let closed = client.line.closed.clone();
    tokio::select! {
        attached = attach(node, container_id, wanted, client) => match attached {
            Ok(()) => Outcome::Exited(0),
            Err(error) => Outcome::Failed(chain(&error)),
        },
        () = closed.cancelled() => Outcome::Gone,
    }
}

async fn attach(
    node: &Node,
    container_id: &str,
    wanted: Wanted,
    client: &mut Client,
) -> Result<(), RequestError> {
    // It may have ended since the URL was given out.
    let (sandbox, container) = node.sandboxes.container(container_id)?;
    check(&container, wanted)?;
    let view = sandbox.view();
    let machine = view.machine.as_ref().ok_or_else(|| RequestError::WrongState {
        operation: operation(container_id),
        reason: "its machine does not run".to_owned(),
    })?;
    let process = ProcessId {
        container_id: container.id.clone(),
        exec_id: None,
    };
    // stdin first: who types at once sees the echo of it.
    let stdin = if wanted.stdin {
        Some(open_stdin(machine, &process, &container, wanted).await?)
    } else {
        None
    };
    let output = sandbox
        .ask(|reply| Request::FollowOutput(container.id.clone(), reply))
        .await?;
    let input = async {
        match (stdin, client.stdin.take()) {
            (Some((stdin, true)), Some(incoming)) => terminal::type_in(stdin, incoming, false).await,
            (Some((stdin, false)), Some(incoming)) => terminal::type_in_kept(stdin, incoming).await,
            _ => {}
        }
    };
    let resizes = Resizes::new(client.resize.take()).pass_on(&machine.guest, &process);
    let until_end = async {
        if let Some(output) = output {
            follow(output, &mut client.output).await;
        }
        // Its output may have ended long before.
        match machine.guest.wait(&process, FOREVER).await {
            // Removed meanwhile.
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    };
    tokio::select! {
        ended = until_end => ended.map_err(|error: GuestError| RequestError::guest(operation(container_id))(error)),
        () = sandbox.machine_gone() => Ok(()),
        never = async { tokio::join!(input, resizes); std::future::pending().await } => never,
    }
}

fn operation(container_id: &str) -> String {
    format!("attach to container {container_id}")
}

/// With it, whether the client's end is the process's: once, as the container was created, and never on a terminal.
async fn open_stdin(
    machine: &MachineView,
    process: &ProcessId,
    container: &ContainerView,
    wanted: Wanted,
) -> Result<(Stdin, bool), RequestError> {
    let ends = container.config().stdin_once && !wanted.terminal;
    let opened = if ends {
        Stdin::open(&machine.dialer, process).await
    } else {
        Stdin::open_kept(&machine.dialer, process).await
    };
    let stdin = opened.map_err(RequestError::failed(operation(&process.container_id)))?;
    Ok((stdin, ends))
}

async fn follow(mut output: Receiver<OutputEvent>, client: &mut ClientOutput) {
    loop {
        match output.recv().await {
            Ok(OutputEvent::Data { stream, bytes }) => match stream {
                Stream::Stdout => client.stdout(bytes).await,
                Stream::Stderr => client.stderr(bytes).await,
            },
            Ok(OutputEvent::StreamEnd(_)) => {}
            Ok(OutputEvent::End) | Err(RecvError::Closed) => return,
            Err(RecvError::Lagged(pieces)) => {
                let text = format!(
                    "\r\nclearpod: this client was too slow; {pieces} pieces of output are in the log only\r\n"
                );
                client.note(text).await;
            }
        }
    }
}
