//! Pods in the host's namespaces, with a fake shim: who becomes one, its life, and a daemon that is killed under it.

use proto::cri::v1::{self as cri, NamespaceMode};
use tonic::Code;

use crate::support::{TestNode, refused};

/// A pod of these namespaces.
pub(crate) fn pod(
    node: &TestNode,
    name: &str,
    network: NamespaceMode,
    pid: NamespaceMode,
) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    network: network.into(),
                    pid: pid.into(),
                    ..cri::NamespaceOption::default()
                }),
                ..cri::LinuxSandboxSecurityContext::default()
            }),
            ..cri::LinuxPodSandboxConfig::default()
        }),
        ..node.pod_config(name)
    }
}

pub(crate) async fn node_with_host_pods() -> TestNode {
    TestNode::start_with(|config| {
        config.host_pods.enabled = true;
        // Found, and never run: the shim is a fake.
        config.host_pods.runtime = "true".into();
    })
    .await
}

async fn info(node: &TestNode, pod: &str) -> serde_json::Value {
    serde_json::from_str(&node.pod_status(pod).await.unwrap().info["info"]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_switch_a_pod_of_the_hosts_namespaces_is_refused_with_the_key_that_turns_it_on() {
    let node = TestNode::start().await;
    let wish = pod(&node, "proxy", NamespaceMode::Node, NamespaceMode::Pod);
    refused(
        node.run_pod_with(wish.clone()).await,
        Code::Unimplemented,
        "namespace_options.network",
    );
    refused(node.run_pod_with(wish).await, Code::Unimplemented, "[host_pods]");
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_hosts_network_lives_as_any_pod_and_has_no_address_of_its_own() {
    let node = node_with_host_pods().await;
    // The plugins' own pods are of this kind: they start before the network is there.
    node.network.set_not_ready(Some("no plugin yet".to_owned()));
    let wish = pod(&node, "proxy", NamespaceMode::Node, NamespaceMode::Pod);
    let id = node.run_pod_with(wish).await.unwrap();
    assert_eq!(node.network.pods(), Vec::<String>::new());
    let status = node.pod_status(&id).await.unwrap().status.unwrap();
    assert_eq!(status.network.unwrap().ip, "");
    assert_eq!(info(&node, &id).await["kind"], "host");

    let container = node.run_container(&id, "app", &["echo", "hello"]).await;
    let layers = node
        .host
        .machine(&id)
        .unwrap()
        .agent()
        .container(&container)
        .unwrap()
        .layers;
    assert!(
        layers
            .iter()
            .all(|layer| layer.pci_address.is_empty() && layer.host_path.starts_with('/')),
        "{layers:?}"
    );
    assert_eq!(node.ended(&container).await.exit_code, 0);
    assert_eq!(node.log("proxy", "app", 1).await, ["stdout F hello"]);
    node.remove_pod(&id).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_hosts_processes_has_a_network_of_its_own() {
    let node = node_with_host_pods().await;
    let wish = pod(&node, "agent", NamespaceMode::Pod, NamespaceMode::Node);
    let id = node.run_pod_with(wish).await.unwrap();
    assert_eq!(node.network.pods(), std::slice::from_ref(&id));
    let status = node.pod_status(&id).await.unwrap().status.unwrap();
    assert_ne!(status.network.unwrap().ip, "");
    node.remove_pod(&id).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_pod_stays_in_its_machine_until_the_second_switch_is_on() {
    let privileged = |node: &TestNode| {
        let mut wish = pod(node, "csi", NamespaceMode::Pod, NamespaceMode::Pod);
        let linux = wish.linux.as_mut().unwrap();
        linux.security_context.as_mut().unwrap().privileged = true;
        wish
    };
    for (second_switch, kind) in [(false, "machine"), (true, "host")] {
        let node = TestNode::start_with(|config| {
            config.host_pods.enabled = true;
            config.host_pods.privileged = second_switch;
            config.host_pods.runtime = "true".into();
        })
        .await;
        let id = node.run_pod_with(privileged(&node)).await.unwrap();
        assert_eq!(info(&node, &id).await["kind"], kind);
        node.remove_pod(&id).await.unwrap();
        node.assert_nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_finds_a_host_pod_again() {
    let mut node = node_with_host_pods().await;
    let wish = pod(&node, "proxy", NamespaceMode::Node, NamespaceMode::Pod);
    let id = node.run_pod_with(wish).await.unwrap();
    let container = node.run_container(&id, "app", &["sleep", "infinity"]).await;
    node.kill_daemon().await;
    assert_eq!(node.pod_state(&id).await, cri::PodSandboxState::SandboxReady);
    assert_eq!(info(&node, &id).await["kind"], "host");
    let status = node.container_status(&container).await.unwrap();
    assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
    node.stop_container(&container, 0).await.unwrap();
    node.remove_pod(&id).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_runtime_is_named_and_nothing_is_left() {
    let node = TestNode::start_with(|config| {
        config.host_pods.enabled = true;
        config.host_pods.runtime = "no-such-runtime".into();
    })
    .await;
    let wish = pod(&node, "proxy", NamespaceMode::Node, NamespaceMode::Pod);
    refused(node.run_pod_with(wish).await, Code::Internal, "host_pods.runtime");
    node.assert_nothing_is_left();
}
