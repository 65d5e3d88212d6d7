//! What confines containers as it reaches the guest: user namespaces and AppArmor's profiles.

use std::path::Path;

use cri_server::id_map::{IdMap, IdRange};
use proto::{
    agent::v1 as agent,
    cri::v1::{self as cri, NamespaceMode, security_profile::ProfileType},
};
use tonic::Code;

use crate::{
    host_pod,
    support::{TestNode, refused},
};

fn mapping(host_id: u32) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping {
        host_id,
        container_id: 0,
        length: 65_536,
    }]
}

fn users(mode: NamespaceMode, mappings: Vec<cri::IdMapping>) -> Option<cri::NamespaceOption> {
    Some(cri::NamespaceOption {
        userns_options: Some(cri::UserNamespace {
            mode: mode.into(),
            uids: mappings.clone(),
            gids: mappings,
        }),
        ..cri::NamespaceOption::default()
    })
}

fn pod(node: &TestNode, options: Option<cri::NamespaceOption>) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: options,
                ..cri::LinuxSandboxSecurityContext::default()
            }),
            ..cri::LinuxPodSandboxConfig::default()
        }),
        ..node.pod_config("web")
    }
}

fn container(
    node: &TestNode,
    name: &str,
    security: cri::LinuxContainerSecurityContext,
) -> cri::ContainerConfig {
    cri::ContainerConfig {
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(security),
            ..cri::LinuxContainerConfig::default()
        }),
        ..node.container_config(name, &["sleep", "infinity"])
    }
}

fn created(node: &TestNode, pod: &str, container: &str) -> agent::CreateContainerRequest {
    let agent = node.host.machine(pod).unwrap();
    agent.agent().container(container).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_gets_the_pods_user_namespace_and_volumes_their_mapped_ids() {
    let mut node = TestNode::start().await;
    let status = cri::StatusRequest::default();
    let status = node.runtime.status(status).await.unwrap().into_inner();
    let offered = |handler: &cri::RuntimeHandler| handler.features.unwrap().user_namespaces;
    assert!(status.runtime_handlers.iter().all(offered));
    let id = node
        .run_pod_with(pod(&node, users(NamespaceMode::Pod, mapping(1000))))
        .await
        .unwrap();
    let range = Some(agent::IdRange {
        outside: 1000,
        length: 65_536,
    });
    let expected = agent::UserNamespace {
        uids: range,
        gids: range,
    };
    let configured = node.host.machine(&id).unwrap().agent().configured().unwrap();
    assert_eq!(configured.user_namespace, Some(expected));

    let data = node.path("data");
    fs_err::create_dir(&data).unwrap();
    fs_err::write(node.path("hosts"), "127.0.0.1 localhost").unwrap();
    let mount = |path: &str, name: &str| cri::Mount {
        container_path: path.to_owned(),
        host_path: node.path(name).display().to_string(),
        uid_mappings: mapping(1000),
        gid_mappings: mapping(1000),
        ..cri::Mount::default()
    };
    let mut config = container(&node, "a", cri::LinuxContainerSecurityContext::default());
    config.mounts = vec![mount("/data", "data"), mount("/etc/hosts", "hosts")];
    let made = node.create(&id, config).await.unwrap();
    let mapped = |path: &str| {
        let mounts = created(&node, &id, &made).mounts;
        mounts
            .into_iter()
            .find(|mount| mount.destination == path)
            .unwrap()
            .id_mapped
    };
    assert!(!mapped("/data"), "the host has mapped it");
    assert!(mapped("/etc/hosts"), "a copy in the guest");
    let range = IdRange {
        outside: 1000,
        length: 65_536,
    };
    let map = IdMap {
        uids: range,
        gids: range,
    };
    assert_eq!(node.shares.bound(&id)["0"].1.id_map, Some(map));
    node.remove_pod(&id).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn user_namespaces_that_cannot_be_are_refused_by_field() {
    let node = host_pod::node_with_host_pods().await;
    for (options, code, field) in [
        (
            users(NamespaceMode::Container, Vec::new()),
            Code::Unimplemented,
            "userns_options.mode",
        ),
        (
            users(NamespaceMode::Target, Vec::new()),
            Code::Unimplemented,
            "userns_options.mode",
        ),
        (
            users(NamespaceMode::Pod, Vec::new()),
            Code::Unimplemented,
            "userns_options.uids",
        ),
        (
            users(NamespaceMode::Node, mapping(1000)),
            Code::InvalidArgument,
            "userns_options.uids",
        ),
    ] {
        refused(node.run_pod_with(pod(&node, options)).await, code, field);
    }
    let mut on_host = users(NamespaceMode::Pod, mapping(1000)).unwrap();
    on_host.network = NamespaceMode::Node.into();
    refused(
        node.run_pod_with(pod(&node, Some(on_host))).await,
        Code::Unimplemented,
        "userns_options.mode",
    );
    let id = node
        .run_pod_with(pod(&node, users(NamespaceMode::Node, Vec::new())))
        .await
        .unwrap();
    let other = cri::LinuxContainerSecurityContext {
        namespace_options: users(NamespaceMode::Pod, mapping(1000)),
        ..cri::LinuxContainerSecurityContext::default()
    };
    refused(
        node.create(&id, container(&node, "a", other)).await,
        Code::InvalidArgument,
        "linux.security_context.namespace_options.userns_options",
    );
    node.remove_pod(&id).await.unwrap();
    node.assert_nothing_is_left();
}

/// As the kernel shows a loaded profile.
fn load_profile(kernel: &Path, name: &str, policy: &[u8]) {
    let directory = kernel.join("policy/profiles").join(format!("{name}.1"));
    fs_err::create_dir_all(&directory).unwrap();
    fs_err::write(directory.join("name"), format!("{name}\n")).unwrap();
    fs_err::write(directory.join("raw_data"), policy).unwrap();
}

fn profile(name: &str) -> cri::LinuxContainerSecurityContext {
    cri::LinuxContainerSecurityContext {
        apparmor: Some(cri::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: format!("localhost/{name}"),
        }),
        ..cri::LinuxContainerSecurityContext::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_of_the_host_goes_to_the_guest_with_its_policy() {
    let kernel = tempfile::tempdir().unwrap();
    let apparmor = kernel.path().to_owned();
    let node = TestNode::start_with(move |config| config.container.apparmor = apparmor).await;
    let id = node.run_pod("web").await.unwrap();
    let field = "linux.security_context.apparmor.localhost_ref";
    let off = node.create(&id, container(&node, "a", profile("web"))).await;
    refused(off, Code::Unimplemented, field);
    load_profile(kernel.path(), "web", b"compiled");
    let missing = node.create(&id, container(&node, "a", profile("none"))).await;
    refused(missing, Code::InvalidArgument, field);
    let made = node
        .create(&id, container(&node, "a", profile("web")))
        .await
        .unwrap();
    let security = created(&node, &id, &made).security.unwrap();
    assert_eq!(
        (
            security.apparmor_profile.as_str(),
            security.apparmor_policy.as_slice()
        ),
        ("web", b"compiled".as_slice())
    );
    let plain = container(&node, "b", cri::LinuxContainerSecurityContext::default());
    let made = node.create(&id, plain).await.unwrap();
    let security = created(&node, &id, &made).security.unwrap();
    assert_eq!(
        (security.apparmor_profile.as_str(), security.apparmor_policy.len()),
        ("", 0)
    );
    node.remove_pod(&id).await.unwrap();
    node.assert_nothing_is_left();
}
