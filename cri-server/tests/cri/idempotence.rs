//! kubelet repeats itself, reorders and forgets: what must succeed again, and what must not happen twice.

use proto::cri::v1 as cri;
use tonic::Code;

use crate::support::{TestNode, refused};

const UNKNOWN: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_are_gone_for_stop_and_remove_and_not_found_for_the_rest() {
    let node = TestNode::start().await;
    node.stop_pod(UNKNOWN).await.unwrap();
    node.remove_pod(UNKNOWN).await.unwrap();
    node.stop_container(UNKNOWN, 1).await.unwrap();
    node.remove_container(UNKNOWN).await.unwrap();
    refused(node.pod_status(UNKNOWN).await, Code::NotFound, UNKNOWN);
    refused(node.container_status(UNKNOWN).await, Code::NotFound, UNKNOWN);
    refused(node.start_container(UNKNOWN).await, Code::NotFound, UNKNOWN);
    refused(node.exec(UNKNOWN, &["true"], 0).await, Code::NotFound, UNKNOWN);
    refused(
        node.create(UNKNOWN, node.container_config("c", &["true"])).await,
        Code::NotFound,
        UNKNOWN,
    );
    let request = cri::ReopenContainerLogRequest {
        container_id: UNKNOWN.to_owned(),
    };
    let reopened = node.runtime.clone().reopen_container_log(request).await;
    refused(reopened, Code::NotFound, UNKNOWN);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_and_remove_succeed_again_and_again() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    for _ in 0..3 {
        node.stop_container(&container, 0).await.unwrap();
    }
    for _ in 0..3 {
        node.stop_pod(&pod).await.unwrap();
    }
    for _ in 0..3 {
        node.remove_container(&container).await.unwrap();
    }
    for _ in 0..3 {
        node.remove_pod(&pod).await.unwrap();
    }
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_are_as_one() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    let (a, b, c, d, e) = tokio::join!(
        node.stop_pod(&pod),
        node.remove_pod(&pod),
        node.stop_container(&container, 0),
        node.remove_container(&container),
        node.remove_pod(&pod),
    );
    for result in [a, b, c, d, e] {
        result.unwrap();
    }
    assert!(node.pods().await.is_empty() && node.containers().await.is_empty());
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn remove_ends_what_runs() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node
        .run_container(&pod, "c", &["sh", "-c", "trap '' TERM; sleep infinity"])
        .await;
    node.remove_container(&container).await.unwrap();
    assert!(node.host.machine(&pod).unwrap().agent().containers().is_empty());
    node.run_container(&pod, "d", &["sleep", "infinity"]).await;
    node.remove_pod(&pod).await.unwrap();
    assert!(node.containers().await.is_empty());
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_until_its_holder_is_removed() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    refused(node.run_pod("web").await, Code::AlreadyExists, &pod);
    let mut next = node.pod_config("web");
    next.metadata.as_mut().unwrap().attempt = 1;
    let other = node.run_pod_with(next).await.unwrap();
    node.stop_pod(&pod).await.unwrap();
    refused(node.run_pod("web").await, Code::AlreadyExists, &pod);
    node.remove_pod(&pod).await.unwrap();
    let again = node.run_pod("web").await.unwrap();

    let config = || node.container_config("c", &["true"]);
    let container = node.create(&again, config()).await.unwrap();
    refused(
        node.create(&again, config()).await,
        Code::AlreadyExists,
        &container,
    );
    node.create(&other, config()).await.unwrap();
    node.remove_container(&container).await.unwrap();
    node.create(&again, config()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_pod_asked_for_twice_at_once_runs_once() {
    let node = TestNode::start().await;
    let (one, other) = tokio::join!(node.run_pod("web"), node.run_pod("web"));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    assert_eq!(node.host.running().len(), 1);
    assert_eq!(node.pods().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_a_containers_life_is_kept() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node
        .create(&pod, node.container_config("c", &["sh", "-c", "exit 0"]))
        .await
        .unwrap();
    refused(
        node.exec(&container, &["true"], 0).await,
        Code::FailedPrecondition,
        "not running",
    );
    node.stop_container(&container, 1).await.unwrap();
    node.start_container(&container).await.unwrap();
    node.ended(&container).await;
    refused(
        node.start_container(&container).await,
        Code::FailedPrecondition,
        "ended",
    );
    node.stop_pod(&pod).await.unwrap();
    refused(
        node.create(&pod, node.container_config("late", &["true"])).await,
        Code::FailedPrecondition,
        "not ready",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_beginning_of_an_id_is_enough() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    assert_eq!(
        node.container_status(&container[..13]).await.unwrap().id,
        container
    );
    node.stop_pod(&pod[..13]).await.unwrap();
    node.remove_pod(&pod[..13]).await.unwrap();
    assert!(node.pods().await.is_empty());
    refused(node.stop_pod("").await, Code::InvalidArgument, "sandbox id");
}
