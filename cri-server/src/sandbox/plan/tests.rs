//! Sizes, cgroups, ports and refusals of sandboxes.

use super::*;

fn request(linux: cri::LinuxPodSandboxConfig) -> cri::RunPodSandboxRequest {
    cri::RunPodSandboxRequest {
        config: Some(cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".to_owned(),
                ..cri::PodSandboxMetadata::default()
            }),
            linux: Some(linux),
            ..cri::PodSandboxConfig::default()
        }),
        runtime_handler: String::new(),
    }
}

fn planned(linux: cri::LinuxPodSandboxConfig, config: &Config) -> SandboxPlan {
    plan("a1", &request(linux), config).unwrap()
}

fn refusal(request: &cri::RunPodSandboxRequest) -> String {
    plan("a1", request, &Config::default()).unwrap_err().to_string()
}

fn limits(memory: i64, quota: i64) -> Option<cri::LinuxContainerResources> {
    Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_quota: quota,
        cpu_period: 100_000,
        ..cri::LinuxContainerResources::default()
    })
}

#[test]
fn a_pod_without_limits_gets_the_defaults() {
    let plan = planned(cri::LinuxPodSandboxConfig::default(), &Config::default());
    assert_eq!((plan.memory_mib, plan.vcpus), (512, 1));
    assert_eq!(plan.hostname, "web");
}

#[test]
fn a_machine_is_as_large_as_the_pods_limit_and_overhead() {
    let of = |memory, quota, overhead| {
        let linux = cri::LinuxPodSandboxConfig {
            resources: limits(memory, quota),
            overhead: limits(overhead, 0),
            ..cri::LinuxPodSandboxConfig::default()
        };
        let plan = planned(linux, &Config::default());
        (plan.memory_mib, plan.vcpus)
    };
    assert_eq!(of(1 << 30, 250_000, 0), (1024 + 64, 3));
    assert_eq!(of(1 << 30, 100_000, 100 << 20), (1024 + 100, 1));
    assert_eq!(of(1 << 20, -1, 0), (128, 1));
    assert_eq!(of(0, i64::MAX, 0), (512, 32));
}

#[test]
fn a_machine_can_grow_to_the_configured_maximum_within_its_cgroup() {
    let of = |memory, max| {
        let mut config = Config::default();
        config.machine.memory_max_mib = max;
        let linux = cri::LinuxPodSandboxConfig {
            resources: limits(memory, 0),
            ..cri::LinuxPodSandboxConfig::default()
        };
        let plan = planned(linux, &config);
        let bound = plan.cgroup.unwrap().limits.memory_max_bytes;
        assert_eq!(
            bound,
            (plan.memory_hotplug_mib > 0).then_some((plan.memory_mib + 64) << 20)
        );
        plan.memory_hotplug_mib
    };
    assert_eq!(of(0, Some(16 * 1024)), 16 * 1024 - 512);
    assert_eq!(of(0, Some(512)), 0);
    assert_eq!(of(0, Some(512 + 127)), 0);
    assert_eq!(of(1 << 30, Some(1024 + 64 + 300)), 256);
    assert_eq!(of(1 << 30, Some(1024)), 0, "larger from the start");
    let unasked = |controllers: Option<&str>| {
        let root = tempfile::tempdir().unwrap();
        fs_err::write(
            root.path().join("cgroup.controllers"),
            controllers.unwrap_or_default(),
        )
        .unwrap();
        let mut config = Config::default();
        config.machine.cgroup_root = controllers.map(|_| root.path().to_owned());
        planned(cri::LinuxPodSandboxConfig::default(), &config).memory_hotplug_mib
    };
    let host = capacity::memory_mib();
    assert_eq!(unasked(Some("cpu memory pids\n")), (host - 512) / 128 * 128);
    assert_eq!(unasked(Some("cpu pids\n")), 0, "nothing would bound it");
    assert_eq!(unasked(None), 0, "nothing would bound it");
}

#[test]
fn spare_processors_are_those_that_the_host_has() {
    let of = |quota, spare| {
        let mut config = Config::default();
        config.machine.vcpus_spare = spare;
        let linux = cri::LinuxPodSandboxConfig {
            resources: limits(0, quota),
            ..cri::LinuxPodSandboxConfig::default()
        };
        let plan = planned(linux, &config);
        (plan.vcpus, plan.vcpus_possible)
    };
    let host = capacity::processors();
    assert_eq!(of(0, 0), (1, 1));
    assert_eq!(of(0, 3), (1, host.min(4)));
    assert_eq!(of(2_000_000, 3).0, 20);
    assert!(of(2_000_000, 3).1 >= 20, "never fewer than from the start");
}

#[test]
fn cgroup_parents_of_both_drivers() {
    let of = |parent: &str, driver| {
        let config = Config {
            cgroup_driver: driver,
            ..Config::default()
        };
        let linux = cri::LinuxPodSandboxConfig {
            cgroup_parent: parent.to_owned(),
            ..cri::LinuxPodSandboxConfig::default()
        };
        plan("a1", &request(linux), &config).map(|plan| {
            plan.cgroup
                .unwrap()
                .cgroup
                .directory()
                .to_str()
                .unwrap()
                .to_owned()
        })
    };
    assert_eq!(
        of("/kubepods/pod1", CgroupDriver::Cgroupfs).unwrap(),
        "/sys/fs/cgroup/kubepods/pod1/clearpod-a1"
    );
    assert_eq!(
        of("", CgroupDriver::Systemd).unwrap(),
        "/sys/fs/cgroup/clearpod/clearpod-a1"
    );
    assert_eq!(
        of("kubepods-burstable-pod1.slice", CgroupDriver::Systemd).unwrap(),
        "/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/clearpod-a1"
    );
    for bad in ["kubepods", "-a.slice", "a--b.slice"] {
        assert!(of(bad, CgroupDriver::Systemd).is_err(), "{bad}");
    }
    assert!(of("/../..", CgroupDriver::Cgroupfs).is_err());
}

#[test]
fn only_ports_of_the_host_are_mapped() {
    let mapping = |host_port, container_port| cri::PortMapping {
        protocol: cri::Protocol::Udp.into(),
        container_port,
        host_port,
        host_ip: String::new(),
    };
    let ports = port_mappings(&[mapping(0, 80), mapping(8080, 80)]).unwrap();
    assert_eq!(ports.len(), 1);
    assert_eq!((ports[0].host_port, ports[0].protocol.as_str()), (8080, "udp"));
    let error = port_mappings(&[mapping(1, 1), mapping(70_000, 1)]).unwrap_err();
    assert!(
        error.to_string().contains("port_mappings[1].host_port"),
        "{error}"
    );
}

#[test]
fn what_a_machine_cannot_be_is_refused_by_field() {
    let mut nameless = request(cri::LinuxPodSandboxConfig::default());
    nameless.config.as_mut().unwrap().metadata = None;
    assert!(refusal(&nameless).contains("config.metadata.name"));
    assert!(refusal(&cri::RunPodSandboxRequest::default()).contains("config"));
    let mut other = request(cri::LinuxPodSandboxConfig::default());
    other.runtime_handler = "runc".to_owned();
    assert!(refusal(&other).contains("runtime_handler"));
    let host = cri::LinuxPodSandboxConfig {
        security_context: Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(cri::NamespaceOption {
                network: cri::NamespaceMode::Node.into(),
                ..cri::NamespaceOption::default()
            }),
            ..cri::LinuxSandboxSecurityContext::default()
        }),
        ..cri::LinuxPodSandboxConfig::default()
    };
    assert!(refusal(&request(host)).contains("namespace_options.network"));
}

#[test]
fn a_template_has_the_shape_of_the_pods_that_go_on_from_it() {
    for memory_max_mib in [None, Some(2048), Some(0)] {
        let mut config = Config::default();
        config.machine.memory_max_mib = memory_max_mib;
        let pod = planned(cri::LinuxPodSandboxConfig::default(), &config);
        assert_eq!(default_shape(&config), pod.shape());
        let linux = cri::LinuxPodSandboxConfig {
            resources: limits(1 << 30, 250_000),
            ..cri::LinuxPodSandboxConfig::default()
        };
        let large = planned(linux, &config);
        let template = of_template("b2", large.shape(), &config).unwrap();
        assert_eq!(template.shape(), large.shape());
        assert_ne!(template.shape(), default_shape(&config));
        let bound = |plan: &SandboxPlan| plan.cgroup.as_ref().map(|plan| plan.limits.memory_max_bytes);
        assert_eq!(bound(&template), bound(&large));
        assert!(template.layout.directory().ends_with("b2"));
    }
}

#[test]
fn only_a_cold_boot_can_be_asked_for() {
    let mut pod = request(cri::LinuxPodSandboxConfig::default());
    let is_cold = |pod: &cri::RunPodSandboxRequest| plan("a1", pod, &Config::default()).unwrap().cold;
    assert!(!is_cold(&pod));
    pod.runtime_handler = COLD_HANDLER.to_owned();
    assert!(is_cold(&pod));
    pod.runtime_handler = HANDLER.to_owned();
    assert!(!is_cold(&pod));
    let mut annotate = |value: &str| {
        let annotations = &mut pod.config.as_mut().unwrap().annotations;
        annotations.insert(BOOT_ANNOTATION.to_owned(), value.to_owned());
        pod.clone()
    };
    assert!(is_cold(&annotate(COLD)));
    for value in ["", "fork", "Cold"] {
        let text = refusal(&annotate(value));
        assert!(text.contains("config.annotations[clearpod.dev/boot]"), "{text}");
    }
}
