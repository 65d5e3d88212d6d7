//! Events: what evented PLEG needs to do without listing.

use proto::cri::v1 as cri;
use tonic::Streaming;

use crate::support::{PATIENCE, TestNode, eventually};

use cri::ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
    ContainerStoppedEvent as Stopped,
};

type Events = Streaming<cri::ContainerEventResponse>;

async fn listen(node: &TestNode) -> Events {
    let request = cri::GetEventsRequest {};
    node.runtime
        .clone()
        .get_container_events(request)
        .await
        .unwrap()
        .into_inner()
}

async fn next(events: &mut Events) -> cri::ContainerEventResponse {
    let next = tokio::time::timeout(PATIENCE, events.message()).await;
    next.expect("no event").unwrap().expect("the stream ended")
}

/// The next event, which must be of this kind.
async fn expect(events: &mut Events, kind: cri::ContainerEventType, id: &str) -> cri::ContainerEventResponse {
    let event = next(events).await;
    assert_eq!(
        (event.container_event_type(), event.container_id.as_str()),
        (kind, id)
    );
    assert!(event.created_at > 0);
    event
}

fn states(event: &cri::ContainerEventResponse) -> Vec<(&str, cri::ContainerState)> {
    let statuses = event.containers_statuses.iter();
    statuses
        .map(|status| (status.id.as_str(), status.state()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_is_told_from_beginning_to_end() {
    use cri::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
    let node = TestNode::start().await;
    let mut events = listen(&node).await;
    let pod = node.run_pod("web").await.unwrap();
    let event = expect(&mut events, Created, &pod).await;
    let status = event.pod_sandbox_status.unwrap();
    assert_eq!(
        (status.id.as_str(), status.state()),
        (pod.as_str(), cri::PodSandboxState::SandboxReady)
    );
    assert_eq!(status.metadata.unwrap().uid, "uid-web");
    expect(&mut events, Started, &pod).await;
    let container = node
        .create(&pod, node.container_config("c", &["sh", "-c", "exit 3"]))
        .await
        .unwrap();
    let event = expect(&mut events, Created, &container).await;
    assert_eq!(states(&event), [(container.as_str(), ContainerCreated)]);
    node.start_container(&container).await.unwrap();
    let event = expect(&mut events, Started, &container).await;
    assert_eq!(states(&event), [(container.as_str(), ContainerRunning)]);
    let event = expect(&mut events, Stopped, &container).await;
    assert_eq!(states(&event), [(container.as_str(), ContainerExited)]);
    assert_eq!(event.containers_statuses[0].exit_code, 3);
    node.remove_container(&container).await.unwrap();
    let event = expect(&mut events, Deleted, &container).await;
    assert!(states(&event).is_empty() && event.pod_sandbox_status.is_some());
    node.stop_pod(&pod).await.unwrap();
    let event = expect(&mut events, Stopped, &pod).await;
    let status = event.pod_sandbox_status.unwrap();
    assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
    node.remove_pod(&pod).await.unwrap();
    let event = expect(&mut events, Deleted, &pod).await;
    assert_eq!(event.pod_sandbox_status.unwrap().metadata.unwrap().uid, "uid-web");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_dies_and_a_removal_of_what_runs_are_told() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    let mut events = listen(&node).await;
    let exit = cri_server::machine::MachineExit::Signalled(9);
    node.host.machine(&pod).unwrap().kill(exit);
    let mut told = [next(&mut events).await, next(&mut events).await];
    told.sort_by_key(|event| event.container_id == pod);
    assert_eq!(told[0].container_id, container);
    assert!(told.iter().all(|event| event.container_event_type() == Stopped));
    node.remove_pod(&pod).await.unwrap();
    expect(&mut events, Deleted, &container).await;
    expect(&mut events, Deleted, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_does_not_start_is_not_told() {
    use cri_server::guest::fake::{Fault, FaultPoint};
    let node = TestNode::start().await;
    let mut events = listen(&node).await;
    node.host.inject(FaultPoint::Launch, Fault::Fail, 1);
    node.run_pod("web").await.unwrap_err();
    let pod = node.run_pod("web").await.unwrap();
    expect(&mut events, Created, &pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_fetches_nothing_slows_nobody_and_all_streams_end_with_the_daemon() {
    let mut node = TestNode::start().await;
    let (mut idle, mut events) = (listen(&node).await, listen(&node).await);
    let mut config = node.pod_config("web");
    // Much more than a connection holds for a stream that nobody reads.
    let padding = "x".repeat(1_000_000);
    config.annotations.insert("padding".to_owned(), padding);
    let pod = node.run_pod_with(config).await.unwrap();
    expect(&mut events, Created, &pod).await;
    expect(&mut events, Started, &pod).await;
    for _ in 0..8 {
        let config = node.container_config("c", &["true"]);
        let container = node.create(&pod, config).await.unwrap();
        node.remove_container(&container).await.unwrap();
        expect(&mut events, Created, &container).await;
        expect(&mut events, Deleted, &container).await;
    }
    expect(&mut idle, Created, &pod).await;
    node.stop_daemon().await;
    for mut stream in [idle, events] {
        eventually("the stream ends with the daemon", async || {
            !matches!(stream.message().await, Ok(Some(_)))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_tells_nothing_of_what_was_before() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    node.restart_daemon().await;
    let mut events = listen(&node).await;
    let container = node
        .create(&pod, node.container_config("d", &["true"]))
        .await
        .unwrap();
    expect(&mut events, Created, &container).await;
}
