//! What of CRI's configuration reaches the shim, and what is refused by which name.

use proto::cri::v1::security_profile::ProfileType;

use super::*;

const OWN: HostPlan = HostPlan {
    host_network: false,
    host_ipc: false,
};

async fn planned(config: &cri::ContainerConfig, host: HostPlan) -> Result<ContainerPlan, RequestError> {
    let sandbox = cri::PodSandboxConfig::default();
    let image = RunConfig {
        entrypoint: vec!["/entry".to_owned()],
        ..RunConfig::default()
    };
    plan(
        "c1",
        config,
        &sandbox,
        &image,
        &ContainerDefaults::default(),
        host,
    )
    .await
}

async fn refusal(config: cri::ContainerConfig) -> String {
    planned(&config, OWN).await.unwrap_err().to_string()
}

fn with_security(security_context: cri::LinuxContainerSecurityContext) -> cri::ContainerConfig {
    cri::ContainerConfig {
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(security_context),
            ..cri::LinuxContainerConfig::default()
        }),
        ..cri::ContainerConfig::default()
    }
}

fn with_namespaces(network: NamespaceMode, pid: NamespaceMode) -> cri::ContainerConfig {
    with_security(cri::LinuxContainerSecurityContext {
        namespace_options: Some(cri::NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            target_id: "c0".to_owned(),
            ..cri::NamespaceOption::default()
        }),
        ..cri::LinuxContainerSecurityContext::default()
    })
}

fn with_mount(mount: cri::Mount) -> cri::ContainerConfig {
    cri::ContainerConfig {
        mounts: vec![mount],
        ..cri::ContainerConfig::default()
    }
}

#[tokio::test]
async fn every_pid_namespace_can_be_had_and_the_network_is_the_sandboxs() {
    let network = HostPlan {
        host_network: true,
        host_ipc: false,
    };
    for (mode, expected) in [
        (NamespaceMode::Pod, agent::PidNamespace::Pod),
        (NamespaceMode::Container, agent::PidNamespace::Container),
        (NamespaceMode::Target, agent::PidNamespace::Target),
        (NamespaceMode::Node, agent::PidNamespace::Node),
    ] {
        let plan = planned(&with_namespaces(NamespaceMode::Node, mode), network)
            .await
            .unwrap();
        assert_eq!(plan.request.namespaces.unwrap().pid(), expected);
    }
    let error = refusal(with_namespaces(NamespaceMode::Node, NamespaceMode::Pod)).await;
    assert!(error.contains("namespace_options.network"), "{error}");
}

#[tokio::test]
async fn mounts_are_paths_of_the_host_with_their_links_followed() {
    let directory = tempfile::tempdir().unwrap();
    let real = fs_err::canonicalize(directory.path()).unwrap();
    std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
    let mount = cri::Mount {
        container_path: "/data".to_owned(),
        host_path: real.join("link").display().to_string(),
        propagation: cri::MountPropagation::PropagationBidirectional.into(),
        ..cri::Mount::default()
    };
    let plan = planned(&with_mount(mount.clone()), OWN).await.unwrap();
    let mounts = plan.request.mounts;
    let names: Vec<&str> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(
        names,
        ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/data"]
    );
    let host = agent::HostSource {
        path: real.display().to_string(),
        propagation: agent::Propagation::Shared.into(),
    };
    assert_eq!(mounts[3].source, Some(agent::mount::Source::Host(host)));

    let missing = cri::Mount {
        host_path: real.join("missing").display().to_string(),
        ..mount.clone()
    };
    let error = refusal(with_mount(missing)).await;
    assert!(error.contains("mounts[0].host_path"), "{error}");
    let recursive = cri::Mount {
        recursive_read_only: true,
        readonly: true,
        ..mount
    };
    let error = refusal(with_mount(recursive)).await;
    assert!(error.contains("mounts[0].recursive_read_only"), "{error}");
}

#[tokio::test]
async fn devices_are_looked_up_on_the_host() {
    let with = |host_path: &str| cri::ContainerConfig {
        devices: vec![cri::Device {
            container_path: "/dev/mine".to_owned(),
            host_path: host_path.to_owned(),
            permissions: "rw".to_owned(),
        }],
        ..cri::ContainerConfig::default()
    };
    let plan = planned(&with("/dev/null"), OWN).await.unwrap();
    let [device] = plan.request.devices.try_into().unwrap();
    assert_eq!(
        (device.path.as_str(), device.kind.as_str(), device.access.as_str()),
        ("/dev/mine", "c", "rw")
    );
    assert_eq!((device.major, device.minor), (1, 3));
    for wrong in ["/dev", "/no/such/device"] {
        let error = refusal(with(wrong)).await;
        assert!(error.contains("devices[0].host_path"), "{wrong}: {error}");
    }
}

#[tokio::test]
async fn processors_can_be_chosen() {
    let config = cri::ContainerConfig {
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources {
                cpuset_cpus: "0-1".to_owned(),
                cpu_shares: 1024,
                ..cri::LinuxContainerResources::default()
            }),
            ..cri::LinuxContainerConfig::default()
        }),
        ..cri::ContainerConfig::default()
    };
    let resources = planned(&config, OWN).await.unwrap().request.resources.unwrap();
    assert_eq!(
        (resources.cpuset_cpus.as_str(), resources.cpu_weight),
        ("0-1", 39)
    );
}

#[tokio::test]
async fn labels_are_refused_where_the_kernel_has_none() {
    let selinux = with_security(cri::LinuxContainerSecurityContext {
        selinux_options: Some(cri::SeLinuxOption {
            level: "s0:c1,c2".to_owned(),
            ..cri::SeLinuxOption::default()
        }),
        ..cri::LinuxContainerSecurityContext::default()
    });
    let apparmor = with_security(cri::LinuxContainerSecurityContext {
        apparmor: Some(cri::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: "localhost/mine".to_owned(),
        }),
        ..cri::LinuxContainerSecurityContext::default()
    });
    for (config, kernel, field) in [
        (selinux, SELINUX, "selinux_options"),
        (apparmor, APPARMOR, "apparmor"),
    ] {
        let planned = planned(&config, OWN).await;
        if Path::new(kernel).exists() {
            let labels = planned.unwrap().request.host_labels.unwrap();
            let both = [labels.selinux_process_label, labels.apparmor_profile];
            assert!(both.iter().any(|label| !label.is_empty()), "{field}");
        } else {
            let error = planned.unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
