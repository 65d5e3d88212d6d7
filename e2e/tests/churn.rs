//! A few pods one after another leave neither traces nor descriptors; `e2e/bench` does the same with hundreds.

use anyhow::{Result, ensure};
use e2e::{Node, churn, on_a_node};

const PODS: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_one_after_another_leave_nothing() -> Result<()> {
    on_a_node(async || {
        let node = Node::start().await?;
        // The first pod makes what stays for all: the bridge, connections between the daemon's parts.
        churn(&node, 1, 1).await?;
        let found = churn(&node, PODS, PODS).await?;
        ensure!(found.left_behind.is_empty(), "left behind: {found:#?}");
        ensure!(
            found.descriptors_after <= found.descriptors_before,
            "the daemon keeps descriptors: {found:#?}"
        );
        Ok(())
    })
    .await
}
