//! Starts that fail, at each place where they can: nothing is left, and the name is free.

use cri_server::{
    guest::fake::{Fault, FaultPoint},
    network::fake::Behaviour,
};
use proto::cri::v1 as cri;
use tonic::Code;

use crate::support::{TestNode, eventually, refused};

async fn nothing_of_it_is_left(node: &TestNode) {
    assert!(node.pods().await.is_empty());
    node.assert_nothing_is_left();
    node.host.heal();
    let pod = node.run_pod("web").await.unwrap();
    node.remove_pod(&pod).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_does_not_start() {
    let node = TestNode::start().await;
    node.host.inject(FaultPoint::Launch, Fault::Fail, 1);
    refused(node.run_pod("web").await, Code::Internal, "start the VMM");
    nothing_of_it_is_left(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_kernel_that_panics_is_quoted() {
    let node = TestNode::start().await;
    node.host.inject(FaultPoint::Boot, Fault::Fail, 1);
    refused(
        node.run_pod("web").await,
        Code::Internal,
        "the guest kernel panicked",
    );
    nothing_of_it_is_left(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_gets_ready_is_ended_at_the_deadline() {
    let node = TestNode::start().await;
    node.host.inject(FaultPoint::Boot, Fault::Stall, 1);
    refused(node.run_pod("web").await, Code::Internal, "not ready within 5 s");
    nothing_of_it_is_left(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_fails_does_not_wait_for_the_guest() {
    let node = TestNode::start().await;
    node.network.on_attach(Behaviour::Fails);
    node.host.inject(FaultPoint::Boot, Fault::Stall, 1);
    let began = std::time::Instant::now();
    refused(node.run_pod("web").await, Code::Internal, "told to fail");
    assert!(began.elapsed().as_secs() < 5);
    node.network.on_attach(Behaviour::Works);
    nothing_of_it_is_left(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_kvm_gives_up_on_is_started_once_more_and_not_for_ever() {
    let node = TestNode::start().await;
    node.host.inject(FaultPoint::Kvm, Fault::Fail, 1);
    let pod = node.run_pod("web").await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
    node.host.inject(FaultPoint::Kvm, Fault::Fail, 3);
    refused(
        node.run_pod("web").await,
        Code::Internal,
        "KVM could not run the guest",
    );
    nothing_of_it_is_left(&node).await;
}

/// The tap goes with its VMM, so that the plugins' end fails as well: that is not the cause.
#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_ends_while_plugins_run_is_what_the_client_is_told() {
    let node = TestNode::start().await;
    node.network.on_attach(Behaviour::FailsLate);
    node.host.inject(FaultPoint::Boot, Fault::Fail, 1);
    refused(node.run_pod("web").await, Code::Internal, "kernel panicked");
    node.network.on_attach(Behaviour::Works);
    nothing_of_it_is_left(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_cannot_be_made() {
    let node = TestNode::start().await;
    node.network.on_prepare(Behaviour::Fails);
    refused(node.run_pod("web").await, Code::Internal, "network namespace");
    node.network.on_prepare(Behaviour::Works);
    nothing_of_it_is_left(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_refuses_its_configuration() {
    let node = TestNode::start().await;
    node.host
        .inject(FaultPoint::Call("ConfigureSandbox"), Fault::Fail, 1);
    refused(node.run_pod("web").await, Code::Internal, "configure sandbox");
    nothing_of_it_is_left(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_given_back_is_kept_for_remove() {
    let node = TestNode::start().await;
    node.network.on_attach(Behaviour::Fails);
    node.network.on_detach(Behaviour::Fails);
    refused(node.run_pod("web").await, Code::Internal, "told to fail");
    // It is shown, so that kubelet removes it, and its name is free.
    let left = node.pods().await;
    assert_eq!(left[0].state(), cri::PodSandboxState::SandboxNotready);
    node.network.on_attach(Behaviour::Works);
    let next = node.run_pod("web").await.unwrap();
    refused(node.remove_pod(&left[0].id).await, Code::Internal, "pod network");
    node.network.on_detach(Behaviour::Works);
    node.remove_pod(&left[0].id).await.unwrap();
    node.remove_pod(&next).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_no_pod() {
    let node = TestNode::start().await;
    node.host.inject(FaultPoint::Boot, Fault::Stall, 1);
    let client = tokio::time::timeout(std::time::Duration::from_millis(500), node.run_pod("web"));
    assert!(client.await.is_err());
    assert!(
        node.pods().await.is_empty(),
        "nobody has the id of a sandbox that starts"
    );
    refused(node.run_pod("web").await, Code::AlreadyExists, "web");
    eventually("the start is undone", async || node.host.running().is_empty()).await;
    eventually("the name is free", async || node.run_pod("web").await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_not_made_entirely_leaves_nothing() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let config = || node.container_config("c", &["sleep", "infinity"]);
    for point in [FaultPoint::Control, FaultPoint::Call("CreateContainer")] {
        node.host.inject(point, Fault::Fail, 1);
        assert_eq!(
            node.create(&pod, config()).await.unwrap_err().code(),
            Code::Internal,
            "{point:?}"
        );
        assert!(node.containers().await.is_empty());
    }
    // A log that cannot be opened, because a file is where its directory should be.
    std::fs::create_dir_all(node.path("logs")).unwrap();
    std::fs::write(node.path("logs/web"), "").unwrap();
    refused(node.create(&pod, config()).await, Code::Internal, "log");
    std::fs::remove_file(node.path("logs/web")).unwrap();
    assert!(node.host.machine(&pod).unwrap().agent().containers().is_empty());
    node.create(&pod, config()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_not_removed_is_whole() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let config = node.container_config("c", &["echo", "heard"]);
    let container = node.create(&pod, config).await.unwrap();
    node.host
        .inject(FaultPoint::Call("RemoveContainer"), Fault::Fail, 1);
    let removed = node.remove_container(&container).await;
    refused(removed, Code::Internal, "remove container");
    node.start_container(&container).await.unwrap();
    assert_eq!(node.log("web", "c", 1).await, ["stdout F heard"]);
    node.ended(&container).await;
    node.remove_container(&container).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_honoured_name_their_field_and_make_nothing() {
    let node = TestNode::start().await;
    let mut host_network = node.pod_config("web");
    host_network.linux = Some(cri::LinuxPodSandboxConfig {
        security_context: Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(cri::NamespaceOption {
                network: cri::NamespaceMode::Node.into(),
                ..cri::NamespaceOption::default()
            }),
            ..cri::LinuxSandboxSecurityContext::default()
        }),
        ..cri::LinuxPodSandboxConfig::default()
    });
    refused(
        node.run_pod_with(host_network).await,
        Code::Unimplemented,
        "config.linux.security_context.namespace_options.network",
    );
    let pod = node.run_pod("web").await.unwrap();
    let mut config = node.container_config("c", &["true"]);
    config.mounts.push(cri::Mount {
        container_path: "/data".to_owned(),
        host_path: "/srv".to_owned(),
        propagation: cri::MountPropagation::PropagationBidirectional.into(),
        ..cri::Mount::default()
    });
    refused(
        node.create(&pod, config).await,
        Code::Unimplemented,
        "mounts[0].propagation",
    );
    assert!(node.containers().await.is_empty());
}
