//! The daemon ends, politely or not, and the next one goes on: pods run, logs continue, ends are told, nothing leaks.

use cri_server::machine::MachineExit;
use proto::cri::v1 as cri;
use tonic::Code;

use crate::support::{TestNode, refused};

const TALK: &str = "echo one; trap 'echo two; exit 9' TERM; sleep infinity";

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_on_over_a_kill_and_a_restart() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sh", "-c", TALK]).await;
    let created = node
        .create(&pod, node.container_config("d", &["true"]))
        .await
        .unwrap();
    node.log("web", "c", 1).await;
    let before = (
        node.pods().await,
        node.containers().await,
        node.container_status(&container).await.unwrap(),
    );
    node.kill_daemon().await;
    let after = (
        node.pods().await,
        node.containers().await,
        node.container_status(&container).await.unwrap(),
    );
    assert_eq!(before, after);
    node.restart_daemon().await;
    assert_eq!(node.pod_state(&pod).await, cri::PodSandboxState::SandboxReady);
    assert_eq!(
        node.exec(&container, &["echo", "hi"], 0).await.unwrap().stdout,
        b"hi\n"
    );
    node.start_container(&created).await.unwrap();
    node.run_container(&pod, "late", &["true"]).await;
    node.stop_container(&container, 30).await.unwrap();
    assert_eq!(node.ended(&container).await.exit_code, 9);
    assert_eq!(node.log("web", "c", 2).await, ["stdout F one", "stdout F two"]);
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_meanwhile_has_ended() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node
        .run_container(&pod, "c", &["sh", "-c", "sleep 1; echo late; exit 4"])
        .await;
    node.stop_daemon().await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    node.start_daemon().await;
    let ended = node.ended(&container).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (4, "Error"));
    assert_eq!(node.log("web", "c", 1).await, ["stdout F late"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_ended_meanwhile_is_a_pod_that_is_not_ready() {
    let mut node = TestNode::start().await;
    let (pod, other) = (
        node.run_pod("web").await.unwrap(),
        node.run_pod("other").await.unwrap(),
    );
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    node.stop_daemon().await;
    node.host.machine(&pod).unwrap().kill(MachineExit::Signalled(9));
    node.start_daemon().await;
    assert_eq!(node.pod_state(&pod).await, cri::PodSandboxState::SandboxNotready);
    assert_eq!(node.pod_state(&other).await, cri::PodSandboxState::SandboxReady);
    assert_eq!(node.ended(&container).await.exit_code, 137);
    for id in [&pod, &other] {
        node.stop_pod(id).await.unwrap();
        node.remove_pod(id).await.unwrap();
    }
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_stay_taken_and_ids_stay_known() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let stopped = node.run_pod("stopped").await.unwrap();
    node.stop_pod(&stopped).await.unwrap();
    node.kill_daemon().await;
    refused(node.run_pod("web").await, Code::AlreadyExists, &pod);
    refused(node.run_pod("stopped").await, Code::AlreadyExists, &stopped);
    assert_eq!(
        node.pod_state(&stopped).await,
        cri::PodSandboxState::SandboxNotready
    );
    node.remove_pod(&stopped).await.unwrap();
    node.run_pod("stopped").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_nobody_is_removed() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    node.stop_daemon().await;
    // The store is lost; what it knew is on the host still.
    std::fs::remove_file(node.path("state/clearpod.redb")).unwrap();
    node.start_daemon().await;
    assert!(node.pods().await.is_empty());
    node.assert_nothing_is_left();
    refused(node.pod_status(&pod).await, Code::NotFound, &pod);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_use_outlives_its_removal_and_a_restart() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    let image = Some(crate::support::image_spec(&node.image));
    node.images
        .remove_image(cri::RemoveImageRequest { image })
        .await
        .unwrap();
    let layers = || {
        std::fs::read_dir(node.path("state/images/layers"))
            .unwrap()
            .count()
    };
    assert_eq!(layers(), 1);
    let before = layers();
    node.kill_daemon().await;
    let layers = || {
        std::fs::read_dir(node.path("state/images/layers"))
            .unwrap()
            .count()
    };
    assert_eq!(layers(), before);
    node.remove_pod(&pod).await.unwrap();
    crate::support::eventually("the layer is gone", async || layers() == 0).await;
}
