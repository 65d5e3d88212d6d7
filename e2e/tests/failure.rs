//! What a node does when its parts die: the VMM, the guest's kernel, the daemon.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Node, PLUGIN_SECONDS, PodSpec, on_a_node, wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::cri::v1 as cri;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_a_part_costs_what_depends_on_it_and_no_more() -> Result<()> {
    on_a_node(async || {
        let mut node = Node::start().await?;
        let before = node.traces();
        a_killed_vmm_ends_its_pod(&node).await.context("killed VMM")?;
        a_guest_that_panics_ends_its_pod(&node)
            .await
            .context("guest panic")?;
        a_killed_daemon_costs_no_pod_and_no_byte(&mut node)
            .await
            .context("killed daemon")?;
        a_daemon_killed_while_pods_start_leaves_nothing(&mut node)
            .await
            .context("daemon killed in a start")?;
        a_plugin_that_fails_takes_everything_back(&node)
            .await
            .context("failing CNI plugin")?;
        node.is_as_before(&before)
    })
    .await
}

/// Waits until the pod is NotReady and its container exited, and removes it; how long that took from now.
async fn dies(node: &Node, sandbox: &str, container: &str) -> Result<Duration> {
    let cri = node.cri();
    let since = Instant::now();
    wait::until(
        wait::CONTAINER,
        "the pod to be NotReady and its container exited",
        async || {
            let pod = cri.pod(sandbox).await.ok()?.status?;
            let container = cri.container(container).await.ok()?;
            let over = pod.state() == cri::PodSandboxState::SandboxNotready
                && container.state() == cri::ContainerState::ContainerExited;
            over.then_some(())
        },
    )
    .await?;
    let took = since.elapsed();
    ensure!(
        cri.container(container).await?.exit_code != 0,
        "a container that was killed has no exit code 0"
    );
    cri.remove_pod(sandbox).await?;
    Ok(took)
}

async fn a_killed_vmm_ends_its_pod(node: &Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod("vmm-dies");
    let sandbox = cri.run_pod(&pod).await?;
    let container = cri
        .run_shell(&sandbox, &pod, "main", &node.image(), "sleep 1000")
        .await?;
    let pid = node.vmm_pid(&sandbox).await?;
    kill(Pid::from_raw(pid.try_into()?), Signal::SIGKILL)?;
    let took = dies(node, &sandbox, &container).await?;
    ensure!(took <= wait::MACHINE_DEATH, "it took {took:?}");
    Ok(())
}

async fn a_guest_that_panics_ends_its_pod(node: &Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod("guest-panics");
    let sandbox = cri.run_pod(&pod).await?;
    let mut config = PodSpec::shell(
        "main",
        &node.image(),
        "sleep 2; echo c >/proc/sysrq-trigger; sleep 1000",
    );
    let context = cri::LinuxContainerSecurityContext {
        privileged: true,
        ..Default::default()
    };
    config.linux = Some(cri::LinuxContainerConfig {
        security_context: Some(context),
        ..Default::default()
    });
    let container = cri.create(&sandbox, &pod, config).await?;
    cri.start(&container).await?;
    dies(node, &sandbox, &container).await?;
    Ok(())
}

async fn a_killed_daemon_costs_no_pod_and_no_byte(node: &mut Node) -> Result<()> {
    let pod = node.pod("survivor");
    let sandbox = node.cri().run_pod(&pod).await?;
    let script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; exit 5";
    let container = node
        .cri()
        .run_shell(&sandbox, &pod, "main", &node.image(), script)
        .await?;
    for _ in 0..2 {
        wait::until(wait::CONTAINER, "some lines", async || {
            (!node.log("survivor", "main").is_empty()).then_some(())
        })
        .await?;
        node.kill_daemon().await?;
        node.start_daemon().await?;
    }
    let cri = node.cri();
    let ready = cri.pod(&sandbox).await?.status.unwrap_or_default().state();
    ensure!(ready == cri::PodSandboxState::SandboxReady, "{ready:?}");
    let status = cri.ended(&container).await?;
    ensure!(status.exit_code == 5, "{status:?}");
    let wanted: Vec<_> = (0..300)
        .map(|i| ("stdout".to_owned(), format!("line {i}")))
        .collect();
    wait::until(wait::CONTAINER, "the whole log", async || {
        (node.log("survivor", "main").len() >= 300).then_some(())
    })
    .await?;
    let lines = node.log("survivor", "main");
    ensure!(lines == wanted, "lost or doubled: {} lines", lines.len());
    cri.remove_pod(&sandbox).await?;
    Ok(())
}

async fn a_daemon_killed_while_pods_start_leaves_nothing(node: &mut Node) -> Result<()> {
    let before = node.traces();
    for round in 0..4_u64 {
        let pod = node.pod("half-made");
        let cri = node.cri();
        let start = tokio::time::timeout(Duration::from_millis(150 + 500 * round), cri.run_pod(&pod)).await;
        node.kill_daemon().await?;
        node.start_daemon().await?;
        // One that was finished in time is found again and may be removed like any other.
        let cri = node.cri();
        let pods = cri
            .runtime
            .clone()
            .list_pod_sandbox(cri::ListPodSandboxRequest::default())
            .await?
            .into_inner();
        for pod in pods.items {
            cri.remove_pod(&pod.id).await?;
        }
        drop(start);
        let after = node.traces();
        ensure!(
            before == after,
            "round {round}: {after:#?}\ninstead of {before:#?}\n{}",
            node.daemon_log()
        );
    }
    Ok(())
}

async fn a_plugin_that_fails_takes_everything_back(node: &Node) -> Result<()> {
    // The plugins before it have done their work, which has to be undone.
    for (script, wanted, at_most) in [
        (
            r#"[ "$CNI_COMMAND" != ADD ] && exit; echo '{"cniVersion": "1.0.0", "code": 100, "msg": "no more leases"}'; exit 1"#,
            "no more leases",
            wait::CALL,
        ),
        // Its child holds the pipe open: both have to go.
        (
            r#"[ "$CNI_COMMAND" != ADD ] && exit; sleep 1000"#,
            "e2e-plugin",
            Duration::from_secs(2 * PLUGIN_SECONDS),
        ),
    ] {
        node.set_last_plugin(Some(script))?;
        let before = node.traces();
        let since = Instant::now();
        let error = node
            .cri()
            .run_pod(&node.pod("no-network"))
            .await
            .err()
            .context("the pod must not start")?;
        ensure!(error.message().contains(wanted), "{error}");
        ensure!(since.elapsed() < at_most, "{:?}", since.elapsed());
        node.is_as_before(&before)?;
    }
    node.set_last_plugin(None)
}
