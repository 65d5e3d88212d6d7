//! The daemon is killed between any two steps of RunPodSandbox and of CreateContainer: after the next start nothing is left
//! of the first, and the second can be done again. And the VMM is, while the daemon is between two steps. One test at a time, since fail
//! points belong to the process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../cri/support.rs"]
#[expect(
    dead_code,
    reason = "shared with the larger test program, which uses all of it"
)]
mod support;

#[path = "../cri/forks.rs"]
mod forks;

use cri_server::{failpoint::is_held, machine::MachineExit};
use forks::{ready, start_of};
use proto::cri::v1::PodSandboxState;
use support::{TestNode, eventually};
use tokio::sync::Mutex;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

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

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_between_any_two_steps_leaves_nothing() {
    let _alone = ONE_AT_A_TIME.lock().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_while_it_makes_a_template_makes_another() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut node = forks::start().await;
    ready(&node, 1).await;
    for point in TEMPLATE {
        std::fs::write(node.path("parts/kernel"), point).unwrap();
        fail::cfg(point, "return").unwrap();
        node.kill_daemon().await;
        eventually(point, async || is_held(point)).await;
        fail::remove(point);
        node.kill_daemon().await;
        ready(&node, 1).await;
        let pod = node.run_pod("web").await.unwrap();
        assert_eq!(start_of(&node, &pod).await, "fork", "{point}");
        node.remove_pod(&pod).await.unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_killed_between_any_two_steps_of_a_fork_costs_the_fork_and_not_the_pod() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let node = forks::start().await;
    let made_at = ready(&node, 1).await[0]["files"]["made_at"].clone();
    // What comes before has no VMM.
    let [_, _, _, points @ ..] = START;
    for point in points {
        let pod = killed_at(&node, point, node.run_pod("web")).await.unwrap();
        assert_eq!(start_of(&node, &pod).await, "boot", "{point}");
        node.remove_pod(&pod).await.unwrap();
        node.assert_nothing_is_left();
    }
    let after = ready(&node, 1).await.remove(0);
    assert_eq!(
        after["files"]["made_at"], made_at,
        "a kill says nothing of the template"
    );
    for point in CREATE {
        let pod = node.run_pod("web").await.unwrap();
        assert_eq!(start_of(&node, &pod).await, "fork");
        let config = node.container_config("c", &["sleep", "infinity"]);
        let create = Box::pin(node.create(&pod, config));
        let refusal = match killed_at(&node, point, create).await {
            Err(refusal) => refusal,
            // It was made by then: that the guest is gone shows at its start.
            Ok(container) => node.start_container(&container).await.unwrap_err(),
        };
        let message = refusal.message();
        let says_why = message.contains("the VMM was killed by signal 9") || message.contains("is not ready");
        assert!(says_why, "{point}: {refusal:?}");
        eventually("the pod is over", async || {
            node.pod_state(&pod).await == PodSandboxState::SandboxNotready
        })
        .await;
        node.remove_pod(&pod).await.unwrap();
        node.assert_nothing_is_left();
    }
}

/// Makes `request`, and kills the only VMM while the daemon is at `point`, which goes on then.
async fn killed_at<T>(node: &TestNode, point: &'static str, request: impl Future<Output = T>) -> T {
    let go = node.path("go");
    fail::cfg(point, &format!("return({})", go.display())).unwrap();
    let (answer, ()) = tokio::join!(request, async {
        eventually(point, async || is_held(point)).await;
        let running = node.host.running();
        let machine = node.host.machine(&running[0]).unwrap();
        machine.kill(MachineExit::Signalled(9));
        std::fs::write(&go, "").unwrap();
    });
    fail::remove(point);
    std::fs::remove_file(&go).unwrap();
    answer
}
