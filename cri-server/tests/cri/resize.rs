//! Limits of containers and pods that change while they run.

use std::collections::HashMap;

use cri_server::guest::fake::{Fault, FaultPoint};
use proto::cri::v1::{self as cri, NamespaceMode};
use tonic::{Code, Status};

use crate::{
    host_pod::{self, node_with_host_pods},
    support::{TestNode, refused},
};

type Limits = cri::LinuxContainerResources;

const MIB: i64 = 1 << 20;

fn cpu(quota: i64, shares: i64) -> Limits {
    Limits {
        cpu_period: 100_000,
        cpu_quota: quota,
        cpu_shares: shares,
        ..Limits::default()
    }
}

fn memory(bytes: i64) -> Limits {
    Limits {
        memory_limit_in_bytes: bytes,
        ..Limits::default()
    }
}

async fn update(node: &TestNode, id: &str, linux: Limits) -> Result<(), Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        windows: None,
        annotations: HashMap::new(),
    };
    node.runtime
        .clone()
        .update_container_resources(request)
        .await
        .map(drop)
}

async fn update_pod(node: &TestNode, id: &str, resources: Limits) -> Result<(), Status> {
    let request = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.to_owned(),
        overhead: None,
        resources: Some(resources),
    };
    node.runtime
        .clone()
        .update_pod_sandbox_resources(request)
        .await
        .map(drop)
}

async fn shown(node: &TestNode, id: &str) -> Limits {
    let resources = node.container_status(id).await.unwrap().resources.unwrap();
    resources.linux.unwrap()
}

async fn with_limits(node: &TestNode, pod: &str, limits: Limits) -> String {
    let mut config = node.container_config("c", &["sleep", "infinity"]);
    config.linux = Some(cri::LinuxContainerConfig {
        resources: Some(limits),
        security_context: None,
    });
    node.create(pod, config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_named_changes_in_the_guest_and_is_shown() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let mut limits = cpu(20_000, 512);
    // Not whole pages: the kernel keeps less, which is no difference.
    limits.memory_limit_in_bytes = 100_000_000;
    let container = with_limits(&node, &pod, limits.clone()).await;
    assert_eq!(shown(&node, &container).await, limits);
    // Before its start too.
    update(&node, &container, cpu(50_000, 1024)).await.unwrap();
    node.start_container(&container).await.unwrap();
    update(&node, &container, memory(64 * MIB)).await.unwrap();
    limits = cpu(50_000, 1024);
    limits.memory_limit_in_bytes = 64 * MIB;
    assert_eq!(shown(&node, &container).await, limits);
    let agent = node.host.machine(&pod).unwrap();
    let told = agent.agent().updates().pop().unwrap().resources.unwrap();
    assert_eq!(
        (told.cpu_quota_us, told.cpu_weight, told.memory_limit_bytes),
        (50_000, 39, 64 * MIB)
    );
    node.kill_daemon().await;
    assert_eq!(shown(&node, &container).await, limits);
    update(&node, &container, cpu(10_000, 0)).await.unwrap();
    limits.cpu_quota = 10_000;
    assert_eq!(shown(&node, &container).await, limits);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oom_score_goes_to_the_processes_and_to_later_commands() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    let score = |score| Limits {
        oom_score_adj: score,
        ..Limits::default()
    };
    update(&node, &container, score(900)).await.unwrap();
    update(&node, &container, cpu(10_000, 0)).await.unwrap();
    let agent = node.host.machine(&pod).unwrap();
    let told: Vec<_> = agent
        .agent()
        .updates()
        .iter()
        .map(|update| update.oom_score_adj)
        .collect();
    assert_eq!(told, [Some(900), None]);
    assert_eq!(shown(&node, &container).await.oom_score_adj, 900);
    refused(
        update(&node, &container, score(2000)).await,
        Code::InvalidArgument,
        "oom_score_adj",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_as_well_protected_as_the_best_protected_of_its_containers() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let score = |score| Limits {
        oom_score_adj: score,
        ..Limits::default()
    };
    let machine = node.host.machine(&pod).unwrap();
    let first = with_limits(&node, &pod, score(985)).await;
    assert_eq!(machine.oom_score_adj(), 985);
    let mut config = node.container_config("d", &["sleep", "infinity"]);
    config.linux = Some(cri::LinuxContainerConfig {
        resources: Some(score(500)),
        security_context: None,
    });
    let second = node.create(&pod, config).await.unwrap();
    assert_eq!(machine.oom_score_adj(), 500);
    update(&node, &second, score(-997)).await.unwrap();
    assert_eq!(machine.oom_score_adj(), -997);
    node.kill_daemon().await;
    update(&node, &second, cpu(10_000, 0)).await.unwrap();
    assert_eq!(machine.oom_score_adj(), -997);
    for (removed, score) in [(&second, 985), (&first, 985)] {
        node.remove_container(removed).await.unwrap();
        assert_eq!(machine.oom_score_adj(), score);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_machine_has_not_is_refused_by_field_and_nothing_changes() {
    let node = TestNode::start_with(|config| {
        config.machine.memory_max_mib = Some(0);
        config.machine.vcpus_spare = 0;
    })
    .await;
    let pod = node.run_pod("web").await.unwrap();
    let container = with_limits(&node, &pod, memory(64 * MIB)).await;
    let before = shown(&node, &container).await;
    let processors = |cpus: &str| Limits {
        cpuset_cpus: cpus.to_owned(),
        ..Limits::default()
    };
    for (limits, field) in [
        (memory(513 * MIB), "linux.memory_limit_in_bytes"),
        (cpu(100_001, 0), "linux.cpu_quota"),
        (processors("0-1"), "linux.resources.cpuset_cpus"),
    ] {
        refused(
            update(&node, &container, limits).await,
            Code::Unimplemented,
            field,
        );
    }
    assert_eq!(shown(&node, &container).await, before);
    assert!(node.host.machine(&pod).unwrap().agent().updates().is_empty());
    update(&node, &container, processors("0")).await.unwrap();
    assert_eq!(shown(&node, &container).await.cpuset_cpus, "0");
    refused(
        update_pod(&node, &pod, memory(513 * MIB)).await,
        Code::Unimplemented,
        "resources.memory_limit_in_bytes",
    );
    refused(
        update_pod(&node, &pod, processors("0")).await,
        Code::Unimplemented,
        "resources.cpuset_cpus",
    );
    update_pod(&node, &pod, memory(256 * MIB)).await.unwrap();
}

/// Of the machine's memory beyond the 512 MiB of its start, and of what is shown as its size.
async fn size(node: &TestNode, pod: &str) -> (Option<u64>, serde_json::Value) {
    let machine = node.host.machine(pod).unwrap();
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: pod.to_owned(),
        verbose: true,
    };
    let status = node.runtime.clone().pod_sandbox_status(request).await;
    let info = status.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    (machine.plugged_mib(), info["memory_mib"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_grows_with_its_limits_and_shrinks_again() {
    let mut node = TestNode::start_with(|config| config.machine.memory_max_mib = Some(2048)).await;
    let pod = node.run_pod("web").await.unwrap();
    assert_eq!(
        size(&node, &pod).await,
        (None, 512.into()),
        "no device before it is needed"
    );
    let small = with_limits(&node, &pod, memory(400 * MIB)).await;
    assert_eq!(size(&node, &pod).await, (None, 512.into()));
    update(&node, &small, memory(1000 * MIB)).await.unwrap();
    assert_eq!(size(&node, &pod).await, (Some(552), 1064.into()));
    assert_eq!(shown(&node, &small).await.memory_limit_in_bytes, 1000 * MIB);
    // The next daemon finds it as large as it is.
    node.kill_daemon().await;
    assert_eq!(size(&node, &pod).await, (Some(552), 1064.into()));
    update_pod(&node, &pod, memory(1500 * MIB)).await.unwrap();
    assert_eq!(size(&node, &pod).await, (Some(1052), 1564.into()));
    // What the pod was granted it keeps until the pod has less.
    update(&node, &small, memory(200 * MIB)).await.unwrap();
    assert_eq!(size(&node, &pod).await, (Some(1052), 1564.into()));
    update_pod(&node, &pod, memory(200 * MIB)).await.unwrap();
    assert_eq!(size(&node, &pod).await, (Some(0), 512.into()));
    let over = update(&node, &small, memory(2049 * MIB)).await;
    refused(over, Code::Unimplemented, "linux.memory_limit_in_bytes");
    assert_eq!(size(&node, &pod).await, (Some(0), 512.into()));
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_container_gets_its_room_and_a_removed_one_leaves_it() {
    let node = TestNode::start_with(|config| config.machine.memory_max_mib = Some(1024)).await;
    let pod = node.run_pod("web").await.unwrap();
    let large = with_limits(&node, &pod, memory(700 * MIB)).await;
    assert_eq!(size(&node, &pod).await, (Some(252), 764.into()));
    node.remove_container(&large).await.unwrap();
    assert_eq!(size(&node, &pod).await, (Some(0), 512.into()));
    // More than any machine has: it gets what there is.
    with_limits(&node, &pod, memory(1 << 50)).await;
    assert_eq!(size(&node, &pod).await, (Some(512), 1024.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guest_does_not_bring_about_is_told_and_taken_back() {
    let node = TestNode::start_with(|config| config.machine.memory_max_mib = Some(2048)).await;
    let pod = node.run_pod("web").await.unwrap();
    let container = with_limits(&node, &pod, memory(64 * MIB)).await;
    let before = shown(&node, &container).await;
    node.host.inject(FaultPoint::Call("Resize"), Fault::Fail, 1);
    let failed = update(&node, &container, memory(1000 * MIB)).await;
    refused(failed, Code::Internal, "make the machine larger");
    node.host
        .inject(FaultPoint::Call("UpdateContainer"), Fault::Fail, 1);
    let failed = update(&node, &container, memory(1000 * MIB)).await;
    refused(failed, Code::Internal, "update container");
    assert_eq!(size(&node, &pod).await, (Some(0), 512.into()));
    assert_eq!(shown(&node, &container).await, before);
    node.host.inject(FaultPoint::Call("Resize"), Fault::Fail, 1);
    let failed = update_pod(&node, &pod, memory(1000 * MIB)).await;
    refused(failed, Code::Internal, "make the machine larger");
    // What was refused to the pod is not granted by the next request.
    update(&node, &container, memory(100 * MIB)).await.unwrap();
    assert_eq!(size(&node, &pod).await, (Some(0), 512.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn spare_processors_are_brought_online_when_they_are_asked_for() {
    let host = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let node = TestNode::start_with(|config| config.machine.vcpus_spare = 1).await;
    let pod = node.run_pod("web").await.unwrap();
    let container = with_limits(&node, &pod, cpu(50_000, 0)).await;
    let agent = || node.host.machine(&pod).unwrap().agent().processors();
    assert_eq!(agent(), 0);
    if host > 1 {
        update(&node, &container, cpu(150_000, 0)).await.unwrap();
        assert_eq!(agent(), 2);
    }
    let over = update(&node, &container, cpu(200_001, 0)).await;
    refused(over, Code::Unimplemented, "linux.cpu_quota");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_the_host_has_no_machine_to_fit_into() {
    let node = node_with_host_pods().await;
    let wish = host_pod::pod(&node, "proxy", NamespaceMode::Node, NamespaceMode::Pod);
    let pod = node.run_pod_with(wish).await.unwrap();
    let container = with_limits(&node, &pod, memory(64 * MIB)).await;
    let mut more = cpu(900_000, 0);
    more.memory_limit_in_bytes = 4096 * MIB;
    more.cpuset_cpus = "0-7".to_owned();
    update(&node, &container, more.clone()).await.unwrap();
    assert_eq!(shown(&node, &container).await, more);
    let told = node.host.machine(&pod).unwrap().agent().updates().pop();
    assert_eq!(told.unwrap().resources.unwrap().cpuset_cpus, "0-7");
    update_pod(&node, &pod, memory(4096 * MIB)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_lives_is_changed() {
    const UNKNOWN: &str = "0123456789abcdef0123456789abcdef";
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sh", "-c", "exit 0"]).await;
    node.ended(&container).await;
    let ended = update(&node, &container, cpu(10_000, 0)).await;
    refused(ended, Code::FailedPrecondition, "ended");
    refused(update(&node, UNKNOWN, cpu(1, 0)).await, Code::NotFound, UNKNOWN);
    refused(
        update_pod(&node, UNKNOWN, cpu(1, 0)).await,
        Code::NotFound,
        UNKNOWN,
    );
    node.stop_pod(&pod).await.unwrap();
    refused(
        update_pod(&node, &pod, cpu(10_000, 0)).await,
        Code::FailedPrecondition,
        "not ready",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pod_network_is_remembered_and_shown() {
    let node = TestNode::start().await;
    let mut runtime = node.runtime.clone();
    let request = |cidr: &str| cri::UpdateRuntimeConfigRequest {
        runtime_config: Some(cri::RuntimeConfig {
            network_config: Some(cri::NetworkConfig {
                pod_cidr: cidr.to_owned(),
            }),
        }),
    };
    runtime
        .update_runtime_config(request("10.244.0.0/24,fd00::/64"))
        .await
        .unwrap();
    refused(
        runtime.update_runtime_config(request("10.244.0.0")).await,
        Code::InvalidArgument,
        "pod_cidr",
    );
    let status = runtime
        .status(cri::StatusRequest { verbose: true })
        .await
        .unwrap();
    let info = status.into_inner().info;
    assert_eq!(info["podCIDR"], "\"10.244.0.0/24,fd00::/64\"");
}
