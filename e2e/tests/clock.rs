//! The host's clock is set while pods run. Guests that go on from templates have the time of their start, and follow.

use std::{
    process::Command,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use e2e::{Node, on_a_node, wait};
use proto::cri::v1 as cri;

const HOUR: i64 = 3600;
/// The guest's clock against the host's, with the time that a call takes to say so.
const SECONDS: i64 = 10;
/// A line a second, with the time in it.
const TICK: &str = "while true; do echo $(date +%s); sleep 1; done";

fn host_seconds() -> Result<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(i64::try_from(since.as_secs())?)
}

/// Sets the host's clock off by so much, and right again when it is dropped.
struct Shifted {
    began: Instant,
    was: i64,
}

impl Shifted {
    fn by(seconds: i64) -> Result<Self> {
        let (began, was) = (Instant::now(), host_seconds()?);
        set(was + seconds)?;
        Ok(Self { began, was })
    }
}

impl Drop for Shifted {
    fn drop(&mut self) {
        let passed = i64::try_from(self.began.elapsed().as_secs()).unwrap_or_default();
        drop(set(self.was + passed));
    }
}

fn set(seconds: i64) -> Result<()> {
    let output = Command::new("date")
        .arg("-s")
        .arg(format!("@{seconds}"))
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// Waits until a guest says what the host's clock says.
async fn is_right(node: &Node, container: &str) -> Result<()> {
    wait::until(wait::CONTAINER, "the guest's clock to be right", async || {
        let (_, out, _) = node.cri().exec(container, "date +%s").await.ok()?;
        let guest: i64 = out.trim().parse().ok()?;
        let difference = guest - host_seconds().ok()?;
        (difference.abs() <= SECONDS).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_follow_the_hosts_clock_and_nothing_ends_by_it() -> Result<()> {
    on_a_node(async || {
        let node = Node::start().await?;
        node.set_plain_network()?;
        let cri = node.cri();
        let pod = node.pod("before");
        let sandbox = cri.run_pod(&pod).await?;
        let container = cri.run_shell(&sandbox, &pod, "main", &node.image(), TICK).await?;
        is_right(&node, &container).await?;
        for jump in [HOUR, -HOUR] {
            let shifted = Shifted::by(jump)?;
            is_right(&node, &container)
                .await
                .with_context(|| format!("{jump} s:\n{}", node.daemon_log()))?;
            goes_on_and_is_right(&node, &format!("during{jump}"))
                .await
                .with_context(|| format!("{jump} s:\n{}", node.daemon_log()))?;
            let lines = node.log("before", "main").len();
            wait::until(wait::CONTAINER, "the log to go on", async || {
                (node.log("before", "main").len() > lines + 1).then_some(())
            })
            .await?;
            drop(shifted);
            is_right(&node, &container)
                .await
                .with_context(|| format!("{jump} s and back:\n{}", node.daemon_log()))?;
        }
        let ready = cri.pod(&sandbox).await?.status.unwrap_or_default().state();
        ensure!(ready == cri::PodSandboxState::SandboxReady, "{ready:?}");
        let status = cri.container(&container).await?;
        ensure!(
            status.state() == cri::ContainerState::ContainerRunning,
            "{status:?}"
        );
        cri.stop(&container, 1).await?;
        let log = node.log("before", "main");
        ensure!(
            log.iter()
                .all(|(stream, line)| stream == "stdout" && line.parse::<i64>().is_ok())
        );
        cri.remove_pod(&sandbox).await?;
        Ok(())
    })
    .await
}

/// The next pod goes on from a template that is older or younger than it was.
async fn goes_on_and_is_right(node: &Node, name: &str) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod(name);
    let sandbox = cri.run_pod(&pod).await?;
    let start = node.start_of(&sandbox).await?;
    ensure!(start == "fork", "{start}");
    let container = cri
        .run_shell(&sandbox, &pod, "main", &node.image(), "date +%s")
        .await?;
    let status = cri.ended(&container).await?;
    ensure!(status.exit_code == 0, "{status:?}");
    let said = wait::until(wait::CONTAINER, "what it says", async || {
        node.log(name, "main").pop()
    });
    let guest: i64 = said.await?.1.parse()?;
    let host = host_seconds()?;
    ensure!(
        (guest - host).abs() <= SECONDS,
        "{guest} is said, and {host} it is"
    );
    cri.remove_pod(&sandbox).await?;
    Ok(())
}
