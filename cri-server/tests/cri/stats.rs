//! What pods use, as their guests say it, and what becomes of guests that say nothing or nonsense.

use std::{collections::HashMap, time::Duration};

use cri_server::{guest::fake::Fault, guest::fake::FaultPoint};
use proto::{agent::v1, cri::v1 as cri};
use tonic::{Code, Status};

use crate::support::{TestNode, eventually, refused};

fn used(cpu_usage_ns: u64) -> v1::ContainerStats {
    v1::ContainerStats {
        cgroup: Some(v1::CgroupStats {
            cpu_usage_ns,
            memory_usage_bytes: 2000,
            memory_working_set_bytes: 1500,
            memory_limit_bytes: 4000,
            ..v1::CgroupStats::default()
        }),
        writable_bytes: Some(4096),
        writable_inodes: Some(1),
        files: Some(v1::FileStats::default()),
        ..v1::ContainerStats::default()
    }
}

fn value(number: Option<cri::UInt64Value>) -> Option<u64> {
    number.map(|number| number.value)
}

async fn list(
    node: &TestNode,
    filter: Option<cri::ContainerStatsFilter>,
) -> Result<Vec<cri::ContainerStats>, Status> {
    let request = cri::ListContainerStatsRequest { filter };
    let answer = node.runtime.clone().list_container_stats(request).await?;
    Ok(answer.into_inner().stats)
}

async fn list_pods(node: &TestNode, filter: cri::PodSandboxStatsFilter) -> Vec<cri::PodSandboxStats> {
    let filter = Some(filter);
    let request = cri::ListPodSandboxStatsRequest { filter };
    let answer = node.runtime.clone().list_pod_sandbox_stats(request).await;
    answer.unwrap().into_inner().stats
}

async fn one(node: &TestNode, id: &str) -> Result<cri::ContainerStats, Status> {
    let request = cri::ContainerStatsRequest {
        container_id: id.to_owned(),
    };
    let answer = node.runtime.clone().container_stats(request).await?;
    Ok(answer.into_inner().stats.unwrap())
}

async fn pod(node: &TestNode, id: &str) -> Result<cri::LinuxPodSandboxStats, Status> {
    let request = cri::PodSandboxStatsRequest {
        pod_sandbox_id: id.to_owned(),
    };
    let answer = node.runtime.clone().pod_sandbox_stats(request).await?;
    Ok(answer.into_inner().stats.unwrap().linux.unwrap())
}

async fn metrics(node: &TestNode) -> Vec<cri::PodSandboxMetrics> {
    let request = cri::ListPodSandboxMetricsRequest {};
    let answer = node.runtime.clone().list_pod_sandbox_metrics(request).await;
    answer.unwrap().into_inner().pod_metrics
}

fn ids(stats: &[cri::ContainerStats]) -> Vec<&str> {
    let attributes = stats.iter().map(|stats| stats.attributes.as_ref().unwrap());
    attributes.map(|attributes| attributes.id.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containers_numbers_are_its_guests() {
    let node = TestNode::start().await;
    let pod_id = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod_id, "c", &["sleep", "infinity"]).await;
    let machine = node.host.machine(&pod_id).unwrap();
    machine.agent().set_stats(&container, used(5_000_000_000));
    let stats = one(&node, &container).await.unwrap();
    let attributes = stats.attributes.unwrap();
    assert_eq!(
        (attributes.id, attributes.metadata.unwrap().name),
        (container.clone(), "c".to_owned())
    );
    assert_eq!(attributes.labels["role"], "c");
    let memory = stats.memory.unwrap();
    assert_eq!(
        (value(memory.usage_bytes), value(memory.available_bytes)),
        (Some(2000), Some(2500))
    );
    let layer = stats.writable_layer.unwrap();
    assert_eq!(value(layer.used_bytes), Some(4096));
    let mountpoint = layer.fs_id.unwrap().mountpoint;
    assert!(std::path::Path::new(&mountpoint).is_dir(), "{mountpoint}");
    assert_eq!(value(stats.cpu.unwrap().usage_nano_cores), None);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    machine.agent().set_stats(&container, used(u64::MAX));
    let rate = value(
        one(&node, &container)
            .await
            .unwrap()
            .cpu
            .unwrap()
            .usage_nano_cores,
    );
    assert_eq!(
        rate,
        Some(1_000_000_000),
        "at most the one processor that the machine has"
    );
    refused(
        one(&node, "0123456789abcdef").await,
        Code::NotFound,
        "0123456789abcdef",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_numbers_are_the_whole_guests() {
    let node = TestNode::start().await;
    let pod_id = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod_id, "c", &["sleep", "infinity"]).await;
    let machine = node.host.machine(&pod_id).unwrap();
    let whole = v1::CgroupStats {
        memory_usage_bytes: u64::MAX,
        processes: 3,
        ..v1::CgroupStats::default()
    };
    let eth0 = v1::InterfaceStats {
        name: "eth0".to_owned(),
        rx_bytes: 7,
        ..v1::InterfaceStats::default()
    };
    machine.agent().set_sandbox_stats(whole, vec![eth0]);
    let stats = pod(&node, &pod_id).await.unwrap();
    let memory = value(stats.memory.unwrap().usage_bytes);
    assert_eq!(memory, Some(512 << 20), "no guest uses more than it has");
    assert_eq!(value(stats.process.unwrap().process_count), Some(3));
    let interface = stats.network.unwrap().default_interface.unwrap();
    assert_eq!(
        (interface.name.as_str(), value(interface.rx_bytes)),
        ("eth0", Some(7))
    );
    assert_eq!(ids(&stats.containers), [container.as_str()]);
    node.stop_pod(&pod_id).await.unwrap();
    refused(
        pod(&node, &pod_id).await,
        Code::FailedPrecondition,
        "does not run",
    );
    assert!(
        list_pods(&node, cri::PodSandboxStatsFilter::default())
            .await
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_by_id_pod_and_labels() {
    let node = TestNode::start().await;
    let (web, db) = (
        node.run_pod("web").await.unwrap(),
        node.run_pod("db").await.unwrap(),
    );
    let a = node.run_container(&web, "a", &["sleep", "infinity"]).await;
    let b = node
        .create(&web, node.container_config("b", &["true"]))
        .await
        .unwrap();
    let c = node.run_container(&db, "c", &["sleep", "infinity"]).await;
    assert_eq!(list(&node, None).await.unwrap().len(), 3, "created ones too");
    let by = |id: &str, pod: &str, role: Option<&str>| {
        Some(cri::ContainerStatsFilter {
            id: id.to_owned(),
            pod_sandbox_id: pod.to_owned(),
            label_selector: role
                .map(|role| ("role".to_owned(), role.to_owned()))
                .into_iter()
                .collect(),
        })
    };
    assert_eq!(ids(&list(&node, by(&a, "", None)).await.unwrap()), [a.as_str()]);
    assert_eq!(
        ids(&list(&node, by("", "", Some("b"))).await.unwrap()),
        [b.as_str()]
    );
    assert_eq!(ids(&list(&node, by("", &db, None)).await.unwrap()), [c.as_str()]);
    assert!(list(&node, by(&a, &db, None)).await.unwrap().is_empty());
    let labels = cri::PodSandboxStatsFilter {
        id: String::new(),
        label_selector: HashMap::from([("app".to_owned(), "db".to_owned())]),
    };
    let [only] = list_pods(&node, labels).await.try_into().unwrap();
    assert_eq!(only.attributes.unwrap().id, db);
    let by_id = cri::PodSandboxStatsFilter {
        id: web.clone(),
        ..cri::PodSandboxStatsFilter::default()
    };
    assert_eq!(list_pods(&node, by_id).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_answer_costs_only_its_own_entry() {
    let node = TestNode::start().await;
    let (web, stuck) = (
        node.run_pod("web").await.unwrap(),
        node.run_pod("stuck").await.unwrap(),
    );
    let container = node.run_container(&web, "c", &["sleep", "infinity"]).await;
    let silent = node.run_container(&stuck, "d", &["sleep", "infinity"]).await;
    node.host.machine(&stuck).unwrap().stall(true);
    assert_eq!(ids(&list(&node, None).await.unwrap()), [container.as_str()]);
    let pods = list_pods(&node, cri::PodSandboxStatsFilter::default()).await;
    assert_eq!(pods.len(), 1);
    assert_eq!(metrics(&node).await[0].pod_sandbox_id, web);
    refused(one(&node, &silent).await, Code::Unavailable, "did not answer");
    node.host.machine(&stuck).unwrap().stall(false);
    eventually("the guest is asked again", async || {
        list(&node, None).await.unwrap().len() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_says_nonsense_is_left_out() {
    let node = TestNode::start().await;
    let (web, liar) = (
        node.run_pod("web").await.unwrap(),
        node.run_pod("liar").await.unwrap(),
    );
    let container = node.run_container(&web, "c", &["sleep", "infinity"]).await;
    let lie = node.run_container(&liar, "d", &["sleep", "infinity"]).await;
    let agent = node.host.machine(&liar).unwrap();
    // Another pod's container: it has none of that id, so nothing is shown of it.
    let mut stranger = used(1);
    stranger.container_id.clone_from(&container);
    agent.agent().set_stats(&lie, stranger);
    assert_eq!(ids(&list(&node, None).await.unwrap()), [container.as_str()]);
    let mut strange = used(1);
    strange.container_id = "../../etc/passwd".to_owned();
    agent.agent().set_stats(&lie, strange);
    assert_eq!(ids(&list(&node, None).await.unwrap()), [container.as_str()]);
    refused(one(&node, &lie).await, Code::Internal, "not valid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_refuses_is_left_out() {
    let node = TestNode::start().await;
    let web = node.run_pod("web").await.unwrap();
    node.run_container(&web, "c", &["sleep", "infinity"]).await;
    node.host.inject(FaultPoint::Call("Stats"), Fault::Fail, 1);
    assert!(list(&node, None).await.unwrap().is_empty());
    assert_eq!(list(&node, None).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_descriptors() {
    let node = TestNode::start().await;
    let web = node.run_pod("web").await.unwrap();
    let container = node.run_container(&web, "c", &["sleep", "infinity"]).await;
    let machine = node.host.machine(&web).unwrap();
    machine.agent().set_stats(&container, used(5_000_000_000));
    let request = cri::ListMetricDescriptorsRequest {};
    let answer = node
        .runtime
        .clone()
        .list_metric_descriptors(request)
        .await
        .unwrap();
    let keys: HashMap<String, Vec<String>> = answer
        .into_inner()
        .descriptors
        .into_iter()
        .map(|descriptor| (descriptor.name, descriptor.label_keys))
        .collect();
    let [pod] = metrics(&node).await.try_into().unwrap();
    assert_eq!(pod.pod_sandbox_id, web);
    let [of_container] = pod.container_metrics.try_into().unwrap();
    assert_eq!(of_container.container_id, container);
    for metric in pod.metrics.iter().chain(&of_container.metrics) {
        assert_eq!(keys[&metric.name].len(), metric.label_values.len(), "{metric:?}");
    }
    let named = |name: &str| of_container.metrics.iter().find(|metric| metric.name == name);
    let cpu = named("container_cpu_usage_seconds_total").unwrap();
    assert_eq!(value(cpu.value), Some(5));
    let label = |key: &str| {
        let at = keys[&cpu.name].iter().position(|other| other == key).unwrap();
        cpu.label_values[at].as_str()
    };
    assert_eq!(
        (label("container"), label("pod"), label("namespace")),
        ("c", "web", "default")
    );
    assert_eq!(
        (label("id"), label("image")),
        (container.as_str(), node.image.as_str())
    );
    assert!(
        named("container_file_descriptors").is_some(),
        "files are asked for"
    );
}
