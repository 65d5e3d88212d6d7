//! Limits of containers and pods that change while they run.

use std::collections::HashMap;

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
async fn what_the_machine_has_not_is_refused_by_field_and_nothing_changes() {
    let node = TestNode::start().await;
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
