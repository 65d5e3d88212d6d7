//! Machines, agents and commands that die while pods run.

use std::time::{Duration, Instant};

use cri_server::machine::MachineExit;
use proto::cri::v1 as cri;
use tonic::Code;

use crate::support::{TestNode, eventually, refused};

async fn not_ready_soon(node: &TestNode, pod: &str) {
    let began = Instant::now();
    eventually("the pod is not ready", async || {
        node.pod_state(pod).await == cri::PodSandboxState::SandboxNotready
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_vmm_takes_its_containers_along_and_can_be_cleaned_up() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node
        .run_container(&pod, "c", &["sh", "-c", "echo said; sleep infinity"])
        .await;
    let created = node
        .create(&pod, node.container_config("d", &["true"]))
        .await
        .unwrap();
    node.log("web", "c", 1).await;
    node.host.machine(&pod).unwrap().kill(MachineExit::Signalled(9));
    not_ready_soon(&node, &pod).await;
    for id in [&container, &created] {
        let ended = node.ended(id).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "Error"));
        assert!(ended.message.contains("signal 9"), "{}", ended.message);
    }
    assert_eq!(node.log("web", "c", 1).await, ["stdout F said"]);
    refused(
        node.exec(&container, &["true"], 0).await,
        Code::FailedPrecondition,
        "not running",
    );
    refused(
        node.create(&pod, node.container_config("e", &["true"])).await,
        Code::FailedPrecondition,
        "not ready",
    );
    node.stop_container(&container, 10).await.unwrap();
    node.remove_container(&container).await.unwrap();
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_is_a_guest_panic_whose_console_is_shown() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    node.host.machine(&pod).unwrap().kill_agent();
    not_ready_soon(&node, &pod).await;
    let message = node.ended(&container).await.message;
    assert!(
        message.contains("kernel panicked") && message.contains("kill init"),
        "{message}"
    );
    let info = node.pod_status(&pod).await.unwrap().info;
    assert!(info["info"].contains("Attempted to kill init"), "{info:?}");
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_end_with_their_machine() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node
        .run_container(&pod, "c", &["sh", "-c", "trap '' TERM; sleep infinity"])
        .await;
    let machine = node.host.machine(&pod).unwrap();
    let began = Instant::now();
    let (exec, stop, ()) = tokio::join!(
        node.exec(&container, &["sleep", "infinity"], 5),
        node.stop_container(&container, 3600),
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            machine.kill(MachineExit::Signalled(9));
        }
    );
    stop.unwrap();
    assert!(exec.is_err());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_answer_is_stopped_and_removed_all_the_same() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    node.host.machine(&pod).unwrap().stall(true);
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

/// The agent has ten seconds for each of three answers, and the kill as long to be seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_guest_does_not_answer_ends_with_its_machine() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    node.host.machine(&pod).unwrap().stall(true);
    node.stop_container(&container, 1).await.unwrap();
    assert_eq!(node.pod_state(&pod).await, cri::PodSandboxState::SandboxNotready);
    let ended = node.ended(&container).await;
    assert!(ended.message.contains("does not answer"), "{}", ended.message);
    assert_eq!(ended.exit_code, 137);
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_be_executed_is_an_end_with_a_reason() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node
        .create(&pod, node.container_config("c", &["/no/such/program"]))
        .await
        .unwrap();
    refused(
        node.start_container(&container).await,
        Code::InvalidArgument,
        "start container",
    );
    let ended = node.ended(&container).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (127, "StartError"));
    assert!(!ended.message.is_empty());
    node.remove_container(&container).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_memory_says_so() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sh", "-c", "oom"]).await;
    let ended = node.ended(&container).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_are_made_again_and_no_end_is_missed() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node
        .run_container(&pod, "c", &["sh", "-c", "sleep 1; echo late; exit 6"])
        .await;
    node.host.machine(&pod).unwrap().drop_connections();
    assert_eq!(node.ended(&container).await.exit_code, 6);
    assert_eq!(node.log("web", "c", 1).await, ["stdout F late"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_and_a_cut_registry_are_told() {
    let mut node = TestNode::start().await;
    let missing = format!("{}/test/none:1", node.registry.host());
    refused(node.pull(&missing).await, Code::NotFound, "not found");
    refused(
        node.pull("no such reference").await,
        Code::InvalidArgument,
        "reference",
    );
}
