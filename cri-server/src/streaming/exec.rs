//! Exec: a process in a running container whose streams are a client's. It is killed when the client is gone, and forgotten
//! in the guest in any case.

use tokio::time::sleep;

use super::{
    remote_command::{Client, ClientOutput, Outcome, Wanted},
    terminal::{self, Resizes},
};
use crate::{
    container::exec::{self, DRAIN, Exec, FOREVER, Started},
    guest::Exit,
    sandbox::{Node, RequestError, chain},
    stdio::{Output, OutputEvent, Stdin},
};
use proto::stdio::Stream;

/// Runs `command` for `client` to its end.
pub(super) async fn run(
    node: &Node,
    container_id: &str,
    command: &[String],
    wanted: Wanted,
    client: &mut Client,
) -> Outcome {
    // It may have ended since the URL was given out.
    let prepared = node
        .sandboxes
        .container(container_id)
        .and_then(|(sandbox, container)| {
            let exec = exec::prepare(node, &sandbox, &container, command.to_vec())?;
            Ok((exec, sandbox.machine_gone()))
        });
    let (mut exec, machine_gone) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Outcome::Failed(chain(&error)),
    };
    exec.process.terminal = wanted.terminal;
    exec.process.stdin = wanted.stdin;
    let mut resizes = Resizes::new(client.resize.take());
    if wanted.terminal {
        exec.process.terminal_size = resizes.first().await.map(Into::into);
    }
    let outcome = tokio::select! {
        outcome = attend(&exec, wanted, client, resizes) => outcome,
        () = machine_gone => Outcome::Failed("the container's machine has ended".to_owned()),
    };
    // The client does not wait for it.
    node.tasks.spawn(async move { exec.forget().await });
    outcome
}

/// A start is waited for even when the client has gone: forgotten before it had begun, the command would run on for nobody.
async fn attend(exec: &Exec, wanted: Wanted, client: &mut Client, resizes: Resizes) -> Outcome {
    let closed = client.line.closed.clone();
    let followed = match exec.start().await {
        Ok(Started::Runs) => tokio::select! {
            ended = follow(exec, wanted, client, resizes) => ended,
            () = closed.cancelled() => return Outcome::Gone,
        },
        Ok(Started::Ended { text, exit_code }) => {
            client.output.note(text).await;
            Ok(exit_code)
        }
        Err(error) => Err(error),
    };
    match followed {
        Ok(exit_code) => Outcome::Exited(exit_code),
        Err(error) => Outcome::Failed(chain(&error)),
    }
}

async fn follow(
    exec: &Exec,
    wanted: Wanted,
    client: &mut Client,
    resizes: Resizes,
) -> Result<i32, RequestError> {
    let stdin = if wanted.stdin {
        let opened = Stdin::open(&exec.dialer, &exec.id).await;
        Some(opened.map_err(RequestError::failed(exec.operation()))?)
    } else {
        None
    };
    let input = async {
        if let (Some(stdin), Some(incoming)) = (stdin, client.stdin.take()) {
            terminal::type_in(stdin, incoming, wanted.terminal).await;
        }
    };
    let resizes = resizes.pass_on(&exec.guest, &exec.id);
    tokio::select! {
        exit = deliver(exec, wanted.terminal, &mut client.output) => Ok(exit?.code),
        never = async { tokio::join!(input, resizes); std::future::pending().await } => never,
    }
}

/// Everything that the process writes, and its end. Acknowledged is what the client has taken, so that one that is slow slows
/// the process down.
async fn deliver(exec: &Exec, terminal: bool, client: &mut ClientOutput) -> Result<Exit, RequestError> {
    let mut output = Output::new(exec.dialer.clone(), exec.id.clone(), terminal, 0);
    let wait = exec.guest.wait(&exec.id, FOREVER);
    tokio::pin!(wait);
    let mut exit = None;
    loop {
        let event = tokio::select! {
            event = output.next() => event,
            ended = &mut wait, if exit.is_none() => {
                exit = Some(ended.map_err(RequestError::guest(exec.operation()))?);
                continue;
            }
            // A child that the process left behind keeps its output open.
            () = sleep(DRAIN), if exit.is_some() => break,
        };
        match event.map_err(RequestError::failed(exec.operation()))? {
            OutputEvent::Data { stream, bytes } => {
                match stream {
                    Stream::Stdout => client.stdout(bytes).await,
                    Stream::Stderr => client.stderr(bytes).await,
                }
                output.acknowledge(output.offset()).await;
            }
            OutputEvent::StreamEnd(_) => {}
            OutputEvent::End => break,
        }
    }
    match exit {
        Some(exit) => Ok(exit),
        None => wait.await.map_err(RequestError::guest(exec.operation())),
    }
}
