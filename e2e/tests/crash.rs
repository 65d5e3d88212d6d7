//! The daemon is killed with SIGKILL between any two steps of RunPodSandbox, CreateContainer and RemovePodSandbox, and while it
//! makes a template, with real Machines and real CNI plugins: after its next start nothing is left of what was under way, and
//! the same can be asked again.
//!
//! The daemon under test is built with fail points (`CLEARPOD_FAILPOINTS` is its path): it stays at the point that a test
//! names until it is killed there.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use e2e::{Node, PodSpec, on_a_node, wait};
use proto::cri::v1 as cri;

const START: [&str; 7] = [
    "start.reserved",
    "start.directory",
    "start.prepared",
    "start.launched",
    "start.attached",
    "start.booted",
    "start.configured",
];
const CREATE: [&str; 4] = [
    "create.reserved",
    "create.layers",
    "create.volumes",
    "create.made",
];
const END: [&str; 2] = ["stop.ended", "remove.released"];
const TEMPLATE: [&str; 3] = ["template.launched", "template.paused", "template.written"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_between_any_two_steps_leaves_nothing() -> Result<()> {
    on_a_node(async || {
        let program = std::env::var_os("CLEARPOD_FAILPOINTS").context("CLEARPOD_FAILPOINTS is not set")?;
        let mut node = Node::start().await?;
        let mut killer = Killer {
            program: program.into(),
            before: node.traces(),
        };
        for point in START {
            killer.in_a_start(&mut node, point).await.context(point)?;
        }
        for point in CREATE {
            Box::pin(killer.in_a_create(&mut node, point))
                .await
                .context(point)?;
        }
        for point in END {
            killer.in_a_removal(&mut node, point).await.context(point)?;
        }
        for point in TEMPLATE {
            killer
                .while_a_template_is_made(&mut node, point)
                .await
                .context(point)?;
        }
        // After all of that the node does its work as on the first day.
        let (pod, sandbox) = ready_pod(&node).await?;
        let container = running(&node, &pod, &sandbox).await?;
        let (code, out, _) = node.cri().exec(&container, "echo works").await?;
        ensure!((code, out.as_str()) == (0, "works\n"), "{code} {out}");
        node.cri().remove_pod(&sandbox).await?;
        killer.nothing_is_left(&node)
    })
    .await
}

struct Killer {
    program: PathBuf,
    before: Vec<String>,
}

impl Killer {
    async fn in_a_start(&mut self, node: &mut Node, point: &str) -> Result<()> {
        self.daemon_that_stays_at(node, point).await?;
        let (cri, pod) = (node.cri(), node.pod("killed"));
        self.kill_at(node, point, async move { cri.run_pod(&pod).await.map(drop) })
            .await?;
        let pods = node
            .cri()
            .runtime
            .list_pod_sandbox(cri::ListPodSandboxRequest::default())
            .await?
            .into_inner()
            .items;
        ensure!(pods.is_empty(), "{pods:?}");
        self.nothing_is_left(node)
    }

    async fn in_a_create(&mut self, node: &mut Node, point: &str) -> Result<()> {
        self.daemon_that_stays_at(node, point).await?;
        let (pod, sandbox) = ready_pod(node).await?;
        let config = PodSpec::shell("main", &node.image(), "sleep 1000");
        let (cri, of, id) = (node.cri(), pod.clone(), sandbox.clone());
        let create = Box::pin(async move { cri.create(&id, &of, config).await.map(drop) });
        self.kill_at(node, point, create).await?;
        let containers = node
            .cri()
            .runtime
            .list_containers(cri::ListContainersRequest::default())
            .await?
            .into_inner()
            .containers;
        ensure!(containers.is_empty(), "{containers:?}");
        // The pod that was ready is ready, and the same container can be had.
        let container = running(node, &pod, &sandbox).await?;
        let (code, out, _) = node.cri().exec(&container, "ls /tmp | wc -l").await?;
        ensure!((code, out.as_str()) == (0, "0\n"), "{code} {out}");
        node.cri().remove_pod(&sandbox).await?;
        self.nothing_is_left(node)
    }

    async fn in_a_removal(&mut self, node: &mut Node, point: &str) -> Result<()> {
        self.daemon_that_stays_at(node, point).await?;
        let (pod, sandbox) = ready_pod(node).await?;
        running(node, &pod, &sandbox).await?;
        let (cri, id) = (node.cri(), sandbox.clone());
        self.kill_at(node, point, async move { cri.remove_pod(&id).await })
            .await?;
        node.cri().remove_pod(&sandbox).await?;
        self.nothing_is_left(node)
    }

    async fn while_a_template_is_made(&mut self, node: &mut Node, point: &str) -> Result<()> {
        node.kill_daemon().await?;
        fs_err::remove_dir_all(node.directory().join("templates"))?;
        let log = node.daemon_log_path();
        tokio::select! {
            // It waits for the template.
            started = self.daemon_that_stays_at(node, point) => bail!("the template did not come to the point: {started:?}"),
            stays = wait::held_at(wait::CALL, point, &log) => stays?,
        }
        node.kill_daemon().await?;
        node.start_daemon().await?;
        let (_, sandbox) = ready_pod(node).await?;
        let start = node.start_of(&sandbox).await?;
        ensure!(start == "fork", "by a {start}");
        node.cri().remove_pod(&sandbox).await?;
        self.nothing_is_left(node)
    }

    async fn daemon_that_stays_at(&self, node: &mut Node, point: &str) -> Result<()> {
        node.kill_daemon().await?;
        let fail = [("FAILPOINTS", format!("{point}=return"))];
        node.start_daemon_with(&self.program, &fail).await
    }

    /// Asks until the daemon stays at `point`, kills it there, and starts one that does not stay anywhere.
    async fn kill_at(
        &self,
        node: &mut Node,
        point: &str,
        request: impl Future<Output = Result<(), tonic::Status>> + Send + 'static,
    ) -> Result<()> {
        let log = node.daemon_log_path();
        let mut request = Box::pin(request);
        tokio::select! {
            answer = &mut request => bail!("the call ended without coming to the point: {answer:?}"),
            stays = wait::held_at(wait::CALL, point, &log) => stays?,
        }
        node.kill_daemon().await?;
        ensure!(request.await.is_err(), "a killed daemon cannot have answered");
        node.start_daemon().await
    }

    fn nothing_is_left(&self, node: &Node) -> Result<()> {
        node.is_as_before(&self.before).with_context(|| node.daemon_log())
    }
}

async fn ready_pod(node: &Node) -> Result<(PodSpec, String)> {
    let pod = node.pod("killed");
    let sandbox = node.cri().run_pod(&pod).await?;
    Ok((pod, sandbox))
}

async fn running(node: &Node, pod: &PodSpec, sandbox: &str) -> Result<String> {
    let cri = node.cri();
    Ok(cri
        .run_shell(sandbox, pod, "main", &node.image(), "sleep 1000")
        .await?)
}
