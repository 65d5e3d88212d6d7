//! The streaming lists: what the unary ones answer, also where those are too long to be answered.

use std::collections::BTreeSet;

use proto::cri::v1 as cri;
use tonic::{Code, Streaming};

use crate::support::{TestNode, image_spec, refused};

/// All messages, each with at least one item.
async fn collect<M, T>(stream: tonic::Response<Streaming<M>>, items: fn(M) -> Vec<T>) -> Vec<T> {
    let mut stream = stream.into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        let items = items(message);
        assert!(!items.is_empty());
        all.extend(items);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stream_says_what_its_list_says() {
    let node = TestNode::start().await;
    let (web, db) = (
        node.run_pod("web").await.unwrap(),
        node.run_pod("db").await.unwrap(),
    );
    for (pod, name) in [(&web, "a"), (&web, "b"), (&db, "c")] {
        node.run_container(pod, name, &["sleep", "infinity"]).await;
    }
    let mut runtime = node.runtime.clone();
    let pods = runtime
        .stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default())
        .await
        .unwrap();
    assert_eq!(
        collect(pods, |message| message.pod_sandboxes).await,
        node.pods().await
    );
    let containers = runtime
        .stream_containers(cri::StreamContainersRequest::default())
        .await
        .unwrap();
    assert_eq!(
        collect(containers, |message| message.containers).await,
        node.containers().await
    );
    let filter = Some(cri::ContainerFilter {
        pod_sandbox_id: db.clone(),
        ..cri::ContainerFilter::default()
    });
    let containers = runtime
        .stream_containers(cri::StreamContainersRequest { filter })
        .await
        .unwrap();
    let [only] = collect(containers, |message| message.containers)
        .await
        .try_into()
        .unwrap();
    assert_eq!(only.pod_sandbox_id, db);
    let stats = runtime
        .stream_container_stats(cri::StreamContainerStatsRequest::default())
        .await
        .unwrap();
    let stats = collect(stats, |message| message.container_stats).await;
    let ids: BTreeSet<String> = stats
        .into_iter()
        .map(|stats| stats.attributes.unwrap().id)
        .collect();
    assert_eq!(ids.len(), 3);
    let stats = runtime
        .stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest::default())
        .await
        .unwrap();
    let stats = collect(stats, |message| message.pod_sandbox_stats).await;
    let ids: BTreeSet<String> = stats
        .into_iter()
        .map(|stats| stats.attributes.unwrap().id)
        .collect();
    assert_eq!(ids, BTreeSet::from([web.clone(), db.clone()]));
    let metrics = runtime
        .stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest {})
        .await
        .unwrap();
    let metrics = collect(metrics, |message| message.pod_sandbox_metrics).await;
    let ids: BTreeSet<String> = metrics
        .into_iter()
        .map(|metrics| metrics.pod_sandbox_id)
        .collect();
    assert_eq!(ids, BTreeSet::from([web, db]));
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_streamed_with_the_same_filter() {
    let mut node = TestNode::start().await;
    let listed = node
        .images
        .list_images(cri::ListImagesRequest::default())
        .await
        .unwrap();
    let streamed = node
        .images
        .stream_images(cri::StreamImagesRequest::default())
        .await
        .unwrap();
    let images = collect(streamed, |message| message.images).await;
    assert_eq!((images.len(), &images), (1, &listed.into_inner().images));
    let image = Some(image_spec("registry.example/none:1"));
    let filter = Some(cri::ImageFilter { image });
    let streamed = node
        .images
        .stream_images(cri::StreamImagesRequest { filter })
        .await
        .unwrap();
    assert!(collect(streamed, |message| message.images).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_no_message_can_hold_goes_through() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let mut made = BTreeSet::new();
    for number in 0..18 {
        let mut config = node.container_config(&format!("c{number}"), &["true"]);
        config
            .annotations
            .insert("padding".to_owned(), "x".repeat(1_000_000));
        made.insert(node.create(&pod, config).await.unwrap());
    }
    let mut runtime = node.runtime.clone();
    let listed = runtime
        .list_containers(cri::ListContainersRequest::default())
        .await;
    refused(listed, Code::OutOfRange, "");
    let stream = runtime
        .stream_containers(cri::StreamContainersRequest::default())
        .await
        .unwrap();
    let streamed = collect(stream, |message| message.containers).await;
    assert_eq!(streamed.len(), made.len());
    let ids: BTreeSet<String> = streamed.into_iter().map(|container| container.id).collect();
    assert_eq!(ids, made);
}
