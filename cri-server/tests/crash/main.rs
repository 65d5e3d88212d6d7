//! The daemon is killed between any two steps of RunPodSandbox and of CreateContainer: after the next start nothing is left
//! of the first, and the second can be done again. One test at a time, since fail points belong to the process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../cri/support.rs"]
#[expect(
    dead_code,
    reason = "shared with the larger test program, which uses all of it"
)]
mod support;

use cri_server::failpoint::is_held;
use support::{TestNode, eventually};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_between_any_two_steps_leaves_nothing() {
    let mut node = TestNode::start().await;
    for point in START {
        held_at(&node, point, async |node| drop(node.run_pod("web").await)).await;
        node.kill_daemon().await;
        assert!(node.pods().await.is_empty(), "{point}");
        node.assert_nothing_is_left();
    }
    for point in CREATE {
        let pod = node.run_pod("web").await.unwrap();
        let config = node.container_config("c", &["sleep", "infinity"]);
        let (id, again) = (pod.clone(), config.clone());
        held_at(&node, point, async move |node| {
            drop(node.create(&id, config).await);
        })
        .await;
        node.kill_daemon().await;
        assert!(node.containers().await.is_empty(), "{point}");
        let machine = node.host.machine(&pod).unwrap();
        eventually("the guest forgets it", async || {
            machine.agent().containers().is_empty()
        })
        .await;
        let container = node.create(&pod, again).await.unwrap();
        node.start_container(&container).await.unwrap();
        node.remove_pod(&pod).await.unwrap();
        node.assert_nothing_is_left();
    }
    for point in END {
        let pod = node.run_pod("web").await.unwrap();
        node.run_container(&pod, "c", &["sleep", "infinity"]).await;
        let id = pod.clone();
        held_at(&node, point, async move |node| drop(node.remove_pod(&id).await)).await;
        node.kill_daemon().await;
        node.remove_pod(&pod).await.unwrap();
        assert!(node.pods().await.is_empty(), "{point}");
        node.assert_nothing_is_left();
    }
}

/// Does `request` until the daemon stays at `point`.
async fn held_at(node: &TestNode, point: &'static str, request: impl AsyncFnOnce(&TestNode)) {
    fail::cfg(point, "return").unwrap();
    tokio::select! {
        () = request(node) => panic!("{point} was not reached"),
        () = eventually(point, async || is_held(point)) => {}
    }
    fail::remove(point);
}
