//! Pods made and removed one after another: what of them stays on the node and in the daemon.

use anyhow::{Context, Result};

use crate::{
    node::Node,
    process::{descriptors, status_kib},
};

/// What was found.
#[derive(Debug)]
pub struct Churn {
    pub pods: usize,
    /// Traces that were not there before.
    pub left_behind: Vec<String>,
    pub descriptors_before: usize,
    pub descriptors_after: usize,
    /// `(pods so far, the daemon's resident memory in KiB)`.
    pub daemon_rss_kib: Vec<(usize, u64)>,
}

/// Makes and removes `pods` pods with a container each; looks at the daemon's memory at every `step`th.
///
/// # Errors
/// Of the calls; with the pod's number.
pub async fn churn(node: &Node, pods: usize, step: usize) -> Result<Churn> {
    let daemon = node.daemon_pid().context("the daemon's pid")?;
    let before = node.traces();
    let mut found = Churn {
        pods,
        left_behind: Vec::new(),
        descriptors_before: descriptors(daemon)?,
        descriptors_after: 0,
        daemon_rss_kib: vec![(0, status_kib(daemon, "VmRSS")?)],
    };
    for number in 1..=pods {
        one(node, number)
            .await
            .with_context(|| format!("pod {number} of {pods}"))?;
        if number % step == 0 {
            found.daemon_rss_kib.push((number, status_kib(daemon, "VmRSS")?));
        }
    }
    found.descriptors_after = descriptors(daemon)?;
    found.left_behind = node.traces();
    found.left_behind.retain(|trace| !before.contains(trace));
    Ok(found)
}

async fn one(node: &Node, number: usize) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod(&format!("churn-{number}"));
    let sandbox = cri.run_pod(&pod).await?;
    cri.run_shell(&sandbox, &pod, "main", &node.image(), "exec sleep 1000")
        .await?;
    Ok(cri.remove_pod(&sandbox).await?)
}
