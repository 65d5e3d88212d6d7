//! From RunPodSandbox to RemovePodSandbox, and what statuses and lists say on the way.

use proto::cri::v1 as cri;
use tonic::Code;

use crate::support::{TestNode, eventually, image_spec, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_a_container_and_leaves_nothing() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let status = node.pod_status(&pod).await.unwrap();
    let sandbox = status.status.unwrap();
    assert_eq!(sandbox.state(), cri::PodSandboxState::SandboxReady);
    assert_eq!(sandbox.network.unwrap().ip, "10.88.0.1");
    assert_eq!(sandbox.annotations["note"], "kept");
    for phase in [
        "netns",
        "scratch",
        "cni",
        "vmm-spawn",
        "machine",
        "configure",
        "total",
    ] {
        assert!(
            status.info["info"].contains(&format!("\"{phase}\"")),
            "{phase} in {:?}",
            status.info
        );
    }

    let container = node
        .run_container(&pod, "c", &["sh", "-c", "echo out; echo err >&2; exit 3"])
        .await;
    let ended = node.ended(&container).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (3, "Error"));
    assert!(ended.created_at <= ended.started_at && ended.started_at <= ended.finished_at);
    let mut log = node.log("web", "c", 2).await;
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F out"]);

    node.remove_container(&container).await.unwrap();
    refused(
        node.container_status(&container).await,
        Code::NotFound,
        &container,
    );
    node.stop_pod(&pod).await.unwrap();
    assert_eq!(node.pod_state(&pod).await, cri::PodSandboxState::SandboxNotready);
    node.remove_pod(&pod).await.unwrap();
    refused(node.pod_status(&pod).await, Code::NotFound, &pod);
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_is_told_what_the_plugins_and_the_pod_say() {
    let node = TestNode::start().await;
    let mut config = node.pod_config("web");
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.96.0.10".to_owned()],
        searches: vec!["svc.cluster.local".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    let pod = node.run_pod_with(config).await.unwrap();
    let told = node.host.machine(&pod).unwrap().agent().configured().unwrap();
    assert_eq!(told.hostname, "web");
    assert_eq!(told.interfaces[0].addresses, ["10.88.0.1/16"]);
    assert_eq!(told.interfaces[0].mac, "02:00:00:00:00:01");
    assert!(told.interfaces[0].pci_address.starts_with("0000:"));
    let dns = told.dns.unwrap();
    assert_eq!(
        (dns.servers, dns.options),
        (vec!["10.96.0.10".to_owned()], vec!["ndots:5".to_owned()])
    );
    assert!(told.scratch.is_some() && told.entropy.len() >= 32 && told.realtime_ns > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_on_the_bus_once_for_all_containers_of_a_pod() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    for name in ["a", "b"] {
        node.run_container(&pod, name, &["sleep", "infinity"]).await;
    }
    let machine = node.host.machine(&pod).unwrap();
    let layers = machine.devices().into_iter().filter(|id| id.starts_with("pmem-"));
    assert_eq!(layers.count(), 1, "{:?}", machine.devices());
    let layers = |id: &str| machine.agent().container(id).unwrap().layers;
    let containers = node.containers().await;
    assert_eq!(layers(&containers[0].id), layers(&containers[1].id));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_what_filters_let_through() {
    let node = TestNode::start().await;
    let (one, two) = (
        node.run_pod("one").await.unwrap(),
        node.run_pod("two").await.unwrap(),
    );
    node.stop_pod(&two).await.unwrap();
    let list = async |filter: cri::PodSandboxFilter| {
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let answer = node.runtime.clone().list_pod_sandbox(request).await.unwrap();
        let ids = answer.into_inner().items.into_iter().map(|item| item.id);
        ids.collect::<Vec<_>>()
    };
    let ready = cri::PodSandboxStateValue {
        state: cri::PodSandboxState::SandboxReady.into(),
    };
    let by_state = cri::PodSandboxFilter {
        state: Some(ready),
        ..cri::PodSandboxFilter::default()
    };
    assert_eq!(list(by_state).await, *std::slice::from_ref(&one));
    let by_label = cri::PodSandboxFilter {
        label_selector: [("app".to_owned(), "two".to_owned())].into(),
        ..cri::PodSandboxFilter::default()
    };
    assert_eq!(list(by_label).await, [two]);
    let by_beginning = cri::PodSandboxFilter {
        id: one[..20].to_owned(),
        ..cri::PodSandboxFilter::default()
    };
    assert_eq!(list(by_beginning).await, [one]);
    assert_eq!(node.pods().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_is_the_signal_then_the_grace_then_the_kill() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let polite = node
        .run_container(
            &pod,
            "polite",
            &["sh", "-c", "trap 'exit 7' TERM; sleep infinity"],
        )
        .await;
    node.stop_container(&polite, 30).await.unwrap();
    assert_eq!(node.ended(&polite).await.exit_code, 7);

    let deaf = node
        .run_container(&pod, "deaf", &["sh", "-c", "trap '' TERM; sleep infinity"])
        .await;
    let began = std::time::Instant::now();
    node.stop_container(&deaf, 1).await.unwrap();
    assert!(began.elapsed().as_millis() >= 1000);
    assert_eq!(node.ended(&deaf).await.exit_code, 137);

    let quick = node.run_container(&pod, "quick", &["sleep", "infinity"]).await;
    node.stop_container(&quick, 0).await.unwrap();
    assert_eq!(node.ended(&quick).await.exit_code, 137);
    let signals = node.host.machine(&pod).unwrap().agent().signals(&quick);
    assert_eq!(signals, [9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grace_period_holds_nothing_else_up() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let deaf = node
        .run_container(&pod, "deaf", &["sh", "-c", "trap '' TERM; sleep infinity"])
        .await;
    let stopping = node.stop_container(&deaf, 3600);
    let others = async {
        let other = node.run_container(&pod, "other", &["sh", "-c", "exit 0"]).await;
        assert_eq!(node.ended(&other).await.reason, "Completed");
        // A second request in more of a hurry ends the first one too.
        node.stop_container(&deaf, 0).await.unwrap();
    };
    let (stopped, ()) = tokio::join!(stopping, others);
    stopped.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_reopened_after_rotation() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let command = "echo first; sleep 1; echo second; sleep infinity";
    let container = node.run_container(&pod, "c", &["sh", "-c", command]).await;
    assert_eq!(node.log("web", "c", 1).await, ["stdout F first"]);
    let (path, rotated) = (node.path("logs/web/c.log"), node.path("logs/web/c.log.1"));
    std::fs::rename(&path, &rotated).unwrap();
    let request = cri::ReopenContainerLogRequest {
        container_id: container.clone(),
    };
    node.runtime
        .clone()
        .reopen_container_log(request.clone())
        .await
        .unwrap();
    assert_eq!(node.log("web", "c", 1).await, ["stdout F second"]);
    node.stop_container(&container, 0).await.unwrap();
    let reopened = node.runtime.clone().reopen_container_log(request).await;
    refused(reopened, Code::FailedPrecondition, "not running");
    assert_eq!(std::fs::read_to_string(rotated).unwrap().lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_termination_message_reaches_the_file_that_kubelet_reads() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let path = node.path("termination");
    std::fs::write(&path, "").unwrap();
    let mut config = node.container_config("c", &["sh", "-c", "echo why > /dev/termination-log; exit 1"]);
    config.mounts.push(cri::Mount {
        container_path: "/dev/termination-log".to_owned(),
        host_path: path.display().to_string(),
        ..cri::Mount::default()
    });
    let container = node.create(&pod, config).await.unwrap();
    node.start_container(&container).await.unwrap();
    node.ended(&container).await;
    assert_eq!(std::fs::read_to_string(path).unwrap(), "why\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_known_by_the_same_id_everywhere() {
    let mut node = TestNode::start().await;
    let image = node.image.clone();
    let id = node.pull(&image).await.unwrap();
    let list = node
        .images
        .list_images(cri::ListImagesRequest::default())
        .await
        .unwrap();
    assert_eq!(list.into_inner().images[0].id, id);
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    let status = node.container_status(&container).await.unwrap();
    assert_eq!(
        (status.image_id, status.image.unwrap().image),
        (id.clone(), image.clone())
    );
    let request = cri::RemoveImageRequest {
        image: Some(image_spec(&image)),
    };
    for _ in 0..2 {
        node.images.remove_image(request.clone()).await.unwrap();
    }
    let request = cri::ImageStatusRequest {
        image: Some(image_spec(&image)),
        verbose: false,
    };
    assert!(
        node.images
            .image_status(request)
            .await
            .unwrap()
            .into_inner()
            .image
            .is_none()
    );
    refused(
        node.create(&pod, node.container_config("late", &["true"])).await,
        Code::NotFound,
        "image",
    );
    let info = node
        .images
        .image_fs_info(cri::ImageFsInfoRequest {})
        .await
        .unwrap();
    assert_eq!(info.into_inner().image_filesystems.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_says_what_it_is_and_what_it_lacks() {
    let node = TestNode::start().await;
    let mut runtime = node.runtime.clone();
    let version = runtime
        .version(cri::VersionRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (
            version.runtime_name.as_str(),
            version.runtime_api_version.as_str()
        ),
        ("clearpod", "v1")
    );
    let config = runtime
        .runtime_config(cri::RuntimeConfigRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver(), cri::CgroupDriver::Cgroupfs);
    let status = async |node: &TestNode| {
        let request = cri::StatusRequest { verbose: true };
        node.runtime.clone().status(request).await.unwrap().into_inner()
    };
    let conditions = |status: cri::StatusResponse| {
        let conditions = status.status.unwrap().conditions.into_iter();
        conditions
            .map(|condition| (condition.r#type, condition.status))
            .collect::<Vec<_>>()
    };
    let before = status(&node).await;
    assert!(
        before
            .runtime_handlers
            .iter()
            .any(|handler| handler.name.is_empty())
    );
    let ready = |network| {
        vec![
            ("RuntimeReady".to_owned(), true),
            ("NetworkReady".to_owned(), network),
        ]
    };
    assert_eq!(conditions(before), ready(true));
    node.network.set_not_ready(Some("no plugins".to_owned()));
    assert_eq!(conditions(status(&node).await), ready(false));
    refused(node.run_pod("web").await, Code::Internal, "no plugins");
    let restore = runtime.restore_pod(cri::RestorePodRequest::default()).await;
    refused(
        restore,
        Code::Unimplemented,
        "clearpod: RestorePod is not implemented",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layers_of_a_removed_image_stay_as_long_as_a_machine_has_them() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    let image = Some(image_spec(&node.image));
    let request = cri::RemoveImageRequest { image };
    node.images.remove_image(request).await.unwrap();
    let directory = node.path("state/images/layers");
    let layers = || std::fs::read_dir(&directory).unwrap().count();
    assert_eq!(layers(), 1);
    node.remove_pod(&pod).await.unwrap();
    eventually("the layer is gone", async || layers() == 0).await;
}
