//! Exec, attach and port-forward: URLs from CRI, then SPDY and WebSocket clients against the streaming server.

mod attach;
mod bulk;
mod channels;
mod client;
mod crictl;
mod exec;
mod port_forward;
mod server;
mod vanish;
mod websocket;

use proto::cri::v1 as cri;
use tonic::Status;

use crate::support::{TestNode, eventually};

/// What a client wants of a command's streams.
#[derive(Debug, Clone, Copy, Default)]
struct Wish {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

const OUTPUT: Wish = Wish {
    stdin: false,
    stdout: true,
    stderr: true,
    tty: false,
};
const ALL: Wish = Wish {
    stdin: true,
    ..OUTPUT
};
const TERMINAL: Wish = Wish {
    stdin: true,
    stdout: true,
    stderr: false,
    tty: true,
};

/// A node with a container that sleeps; the pod's and the container's id.
async fn running() -> (TestNode, String, String) {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    (node, pod, container)
}

async fn exec_url(node: &TestNode, container: &str, command: &[&str], wish: Wish) -> Result<String, Status> {
    let request = cri::ExecRequest {
        container_id: container.to_owned(),
        cmd: command.iter().map(|&word| word.to_owned()).collect(),
        tty: wish.tty,
        stdin: wish.stdin,
        stdout: wish.stdout,
        stderr: wish.stderr,
    };
    Ok(node.runtime.clone().exec(request).await?.into_inner().url)
}

async fn attach_url(node: &TestNode, container: &str, wish: Wish) -> Result<String, Status> {
    let request = cri::AttachRequest {
        container_id: container.to_owned(),
        stdin: wish.stdin,
        tty: wish.tty,
        stdout: wish.stdout,
        stderr: wish.stderr,
    };
    Ok(node.runtime.clone().attach(request).await?.into_inner().url)
}

async fn forward_url(node: &TestNode, pod: &str, port: &[i32]) -> Result<String, Status> {
    let request = cri::PortForwardRequest {
        pod_sandbox_id: pod.to_owned(),
        port: port.to_vec(),
    };
    Ok(node.runtime.clone().port_forward(request).await?.into_inner().url)
}

/// No exec'd process of the container is left in the guest.
async fn forgotten(node: &TestNode, pod: &str, container: &str) {
    let machine = node.host.machine(pod).unwrap();
    eventually("the command is gone from the guest", async || {
        machine.agent().execs(container).is_empty()
    })
    .await;
}
