//! What pods mount: shared, followed, of images, in memory, and refused. The shares of the host are fakes.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cri_server::{
    guest::fake::{Fault, FaultPoint},
    machine::{Propagation, View},
};
use proto::{
    agent::v1::{self as agent, mount::Source},
    cri::v1 as cri,
};
use tonic::Code;

use crate::support::{TestNode, eventually, image_spec, refused};

fn mount(container_path: &str, host_path: &Path, readonly: bool) -> cri::Mount {
    cri::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.display().to_string(),
        readonly,
        ..cri::Mount::default()
    }
}

fn with(node: &TestNode, name: &str, mounts: Vec<cri::Mount>) -> cri::ContainerConfig {
    cri::ContainerConfig {
        mounts,
        ..node.container_config(name, &["sleep", "infinity"])
    }
}

/// What the guest was told to mount there.
fn source(node: &TestNode, pod: &str, container: &str, destination: &str) -> Source {
    let machine = node.host.machine(pod).unwrap();
    let request = machine.agent().container(container).unwrap();
    let mount = request
        .mounts
        .into_iter()
        .find(|mount| mount.destination == destination);
    mount.unwrap().source.unwrap()
}

fn shared(node: &TestNode, pod: &str, container: &str) -> agent::SharedSource {
    match source(node, pod, container, "/data") {
        Source::Shared(shared) => shared,
        other => panic!("{other:?}"),
    }
}

fn generation(volume: &Path, name: &str, files: &[(&str, &str)]) {
    fs_err::create_dir_all(volume.join(name)).unwrap();
    for (file, content) in files {
        fs_err::write(volume.join(name).join(file), content).unwrap();
    }
    symlink(name, volume.join("..data_tmp")).unwrap();
    fs_err::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

fn config_map(node: &TestNode) -> PathBuf {
    let volume = node.path("kubelet/pods/u/volumes/kubernetes.io~configmap/config");
    generation(&volume, "..1", &[("key", "one")]);
    volume
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_shared_once_and_as_long_as_a_container_has_it() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let data = node.path("data");
    assert_eq!(node.shares.machines(), Vec::<String>::new());
    let writable = vec![mount("/data", &data, false)];
    let first = node
        .create(&pod, with(&node, "a", writable.clone()))
        .await
        .unwrap();
    let second = node.create(&pod, with(&node, "b", writable)).await.unwrap();
    let real = fs_err::canonicalize(&data).unwrap();
    let bound = node.shares.bound(&pod);
    assert_eq!(bound.len(), 1, "{bound:?}");
    let view = View {
        propagation: Propagation::Private,
        id_map: None,
    };
    assert_eq!(bound["0"], (real, view));
    let place = shared(&node, &pod, &first);
    assert_eq!(
        (place.tag.as_str(), place.path.as_str(), place.submounts.len()),
        ("shares", "0", 0)
    );
    assert!(place.pci_address.starts_with("0000:"));
    assert_eq!(shared(&node, &pod, &second), place);
    let devices = node.host.machine(&pod).unwrap().devices();
    assert_eq!(
        devices.iter().filter(|id| *id == "shares").count(),
        1,
        "{devices:?}"
    );
    let status = node.container_status(&first).await.unwrap();
    assert_eq!(status.mounts.len(), 1);
    assert_eq!(status.mounts[0].container_path, "/data");
    node.remove_container(&first).await.unwrap();
    assert_eq!(node.shares.bound(&pod).len(), 1);
    node.remove_container(&second).await.unwrap();
    assert_eq!(node.shares.bound(&pod).len(), 0);
    let other = node.path("other");
    let third = with(&node, "c", vec![mount("/data", &other, false)]);
    let third = node.create(&pod, third).await.unwrap();
    assert_eq!(shared(&node, &pod, &third).path, "1", "no name comes twice");
    node.stop_pod(&pod).await.unwrap();
    assert_eq!(node.shares.machines(), Vec::<String>::new());
    node.remove_pod(&pod).await.unwrap();
    assert!(data.is_dir() && other.is_dir());
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_outlive_the_daemon() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let data = node.path("data");
    let config = with(&node, "a", vec![mount("/data", &data, false)]);
    let first = node.create(&pod, config).await.unwrap();
    node.kill_daemon().await;
    let config = with(&node, "b", vec![mount("/data", &data, false)]);
    let second = node.create(&pod, config).await.unwrap();
    assert_eq!(shared(&node, &pod, &second), shared(&node, &pod, &first));
    let other = with(&node, "c", vec![mount("/data", &node.path("other"), false)]);
    let other = node.create(&pod, other).await.unwrap();
    assert_eq!(shared(&node, &pod, &other).path, "1");
    node.stop_daemon().await;
    node.shares.kill(&pod);
    node.start_daemon().await;
    assert_eq!(node.pod_state(&pod).await, cri::PodSandboxState::SandboxNotready);
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_ends_with_the_server_of_its_volumes() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let config = with(&node, "a", vec![mount("/data", &node.path("data"), false)]);
    let container = node.create(&pod, config).await.unwrap();
    node.start_container(&container).await.unwrap();
    node.shares.kill(&pod);
    eventually("the pod is not ready", async || {
        node.pod_state(&pod).await == cri::PodSandboxState::SandboxNotready
    })
    .await;
    let message = node.ended(&container).await.message;
    assert!(message.contains("virtiofsd"), "{message}");
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_virtiofsd_only_pods_that_need_it_are_refused() {
    let node = TestNode::start().await;
    node.shares.set_missing(true);
    let pod = node.run_pod("web").await.unwrap();
    node.run_container(&pod, "a", &["sleep", "infinity"]).await;
    let config = || with(&node, "b", vec![mount("/data", &node.path("data"), false)]);
    let text = "machine.virtiofsd: /no/virtiofsd";
    refused(node.create(&pod, config()).await, Code::Unimplemented, text);
    node.shares.set_missing(false);
    node.create(&pod, config()).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn config_maps_follow_the_host_also_over_a_restart() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let volume = config_map(&node);
    let config = with(&node, "a", vec![mount("/data", &volume, true)]);
    let container = node.create(&pod, config).await.unwrap();
    match source(&node, &pod, &container, "/data") {
        Source::Files(files) => assert_eq!((files.generation.as_str(), files.files.len()), ("..1", 1)),
        other => panic!("{other:?}"),
    }
    let machine = node.host.machine(&pod).unwrap();
    let told = || machine.agent().file_updates();
    generation(&volume, "..2", &[("key", "two"), ("more", "")]);
    eventually("the guest has the second generation", async || told().len() == 1).await;
    assert_eq!((told()[0].generation.as_str(), told()[0].files.len()), ("..2", 2));
    assert_eq!(told()[0].files[0].content, b"two");
    node.stop_daemon().await;
    generation(&volume, "..3", &[("key", "three")]);
    node.start_daemon().await;
    let newest = || told().last().map(|update| update.generation.clone());
    eventually("what was missed is made up for", async || {
        newest().as_deref() == Some("..3")
    })
    .await;
    generation(&volume, "..4", &[("key", "four")]);
    eventually("it goes on", async || newest().as_deref() == Some("..4")).await;
    node.remove_container(&container).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    assert_eq!(node.shares.machines(), Vec::<String>::new(), "it needs none");
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_a_volume_and_its_digest_is_told() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let image = |readonly| cri::Mount {
        container_path: "/data".to_owned(),
        readonly,
        image: Some(image_spec(&node.image)),
        image_sub_path: "bin".to_owned(),
        ..cri::Mount::default()
    };
    let writable = with(&node, "a", vec![image(false)]);
    refused(
        node.create(&pod, writable).await,
        Code::InvalidArgument,
        "mounts[0].readonly",
    );
    let missing = cri::Mount {
        image: Some(image_spec("registry.example/none:1")),
        ..image(true)
    };
    let missing = with(&node, "a", vec![missing]);
    refused(node.create(&pod, missing).await, Code::NotFound, "none:1");
    let container = node
        .create(&pod, with(&node, "a", vec![image(true)]))
        .await
        .unwrap();
    match source(&node, &pod, &container, "/data") {
        Source::Image(source) => assert_eq!((source.layers.len(), source.path.as_str()), (1, "bin")),
        other => panic!("{other:?}"),
    }
    node.kill_daemon().await;
    let status = node.container_status(&container).await.unwrap();
    let mounted = status.mounts[0].image.clone().unwrap();
    assert_eq!(mounted.image, node.image);
    let name = node.image.clone();
    assert_eq!(mounted.image_ref, node.pull(&name).await.unwrap());
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_not_made_holds_no_volume() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    node.host
        .inject(FaultPoint::Call("CreateContainer"), Fault::Fail, 1);
    let config = with(&node, "a", vec![mount("/data", &node.path("data"), false)]);
    refused(
        node.create(&pod, config).await,
        Code::Internal,
        "a test wanted this",
    );
    assert_eq!(node.shares.bound(&pod).len(), 0);
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_devices_than_disks_are_refused_by_name() {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let mut config = node.container_config("a", &["true"]);
    config.devices = vec![cri::Device {
        container_path: "/dev/tty0".to_owned(),
        host_path: "/dev/null".to_owned(),
        permissions: "rwm".to_owned(),
    }];
    let text = "devices[0].host_path is not supported";
    refused(node.create(&pod, config).await, Code::Unimplemented, text);
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}
