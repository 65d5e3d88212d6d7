//! More pods at once than Machines may start: they wait for their turn, in order, and hold nothing else up.

use std::{collections::BTreeSet, time::Duration};

use cri_server::guest::fake::{Fault, FaultPoint};
use proto::cri::v1::{self as cri, runtime_service_client::RuntimeServiceClient};
use tokio::{task::JoinSet, time::timeout};
use tonic::{Code, Status, transport::Channel};

use crate::support::{TestNode, eventually};

/// A daemon that starts so many Machines at once, each of which takes half a second.
async fn start(at_once: usize) -> TestNode {
    let node = TestNode::start_with(|config| config.machine.starts_at_once = Some(at_once)).await;
    let slow = FaultPoint::Call("ConfigureSandbox");
    node.host.inject(slow, Fault::Late, usize::MAX);
    node
}

/// Machines that run and are no pod's yet.
fn starting(node: &TestNode) -> BTreeSet<String> {
    let running = node.host.running().into_iter();
    let is_starting = |id: &String| {
        let machine = node.host.machine(id);
        machine.is_some_and(|machine| machine.agent().configured().is_none())
    };
    running.filter(is_starting).collect()
}

async fn run_pod(
    mut runtime: RuntimeServiceClient<Channel>,
    config: cri::PodSandboxConfig,
) -> Result<String, Status> {
    let request = cri::RunPodSandboxRequest {
        config: Some(config),
        ..Default::default()
    };
    let answer = runtime.run_pod_sandbox(request).await?;
    Ok(answer.into_inner().pod_sandbox_id)
}

/// How many pods there are, whatever their state.
async fn pods(node: &TestNode) -> usize {
    let request = cri::ListPodSandboxRequest::default();
    let answer = node.runtime.clone().list_pod_sandbox(request).await;
    answer.unwrap().into_inner().items.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_start_at_once_and_the_others_wait() {
    const PODS: usize = 9;
    let node = start(3).await;
    let mut asked = JoinSet::new();
    for number in 0..PODS {
        let (runtime, config) = (node.runtime.clone(), node.pod_config(&format!("pod-{number}")));
        asked.spawn(run_pod(runtime, config));
    }
    let mut most = 0;
    let mut ready = Vec::new();
    while ready.len() < PODS {
        most = most.max(starting(&node).len());
        // What is asked meanwhile is answered.
        pods(&node).await;
        if let Ok(Some(pod)) = timeout(Duration::from_millis(10), asked.join_next()).await {
            ready.push(pod.unwrap().unwrap());
        }
    }
    assert!((2..=3).contains(&most), "{most}");
    for pod in ready {
        node.remove_pod(&pod).await.unwrap();
    }
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_wait_for_its_turn_has_nothing_started() {
    let node = start(1).await;
    node.host
        .inject(FaultPoint::Call("ConfigureSandbox"), Fault::Stall, 1);
    let (runtime, config) = (node.runtime.clone(), node.pod_config("first"));
    let mut asked = JoinSet::new();
    asked.spawn(run_pod(runtime, config));
    eventually("the first one starts", async || starting(&node).len() == 1).await;
    let gone = timeout(Duration::from_millis(200), node.run_pod("second")).await;
    assert!(gone.is_err());
    eventually("the second one is forgotten", async || pods(&node).await <= 1).await;
    let first = starting(&node);
    assert_eq!(first.len(), 1);
    node.host.heal();
    node.host.machine(first.first().unwrap()).unwrap().kill_agent();
    assert!(asked.join_next().await.unwrap().unwrap().is_err());
    let pod = node.run_pod("second").await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_memory_refuses_a_pod_and_keeps_the_others() {
    let mut node = TestNode::start().await;
    let witness = node.run_pod("witness").await.unwrap();
    node.config.machine.memory_reserve_mib = 1024 * 1024;
    node.restart_daemon().await;
    let refused = node.run_pod("second").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    for word in ["MiB of memory available", "machine.memory_reserve_mib"] {
        assert!(refused.message().contains(word), "{refused}");
    }
    assert_eq!(pods(&node).await, 1, "the refused one has never been");
    assert_eq!(node.pod_state(&witness).await, cri::PodSandboxState::SandboxReady);
    node.config.machine.memory_reserve_mib = 0;
    node.restart_daemon().await;
    let pod = node.run_pod("second").await.unwrap();
    for pod in [pod, witness] {
        node.remove_pod(&pod).await.unwrap();
    }
    node.assert_nothing_is_left();
}
