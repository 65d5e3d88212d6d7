//! What of CRI's configuration reaches the agent, and what is refused by which name.

use super::*;

fn image() -> RunConfig {
    RunConfig {
        entrypoint: vec!["/entry".to_owned()],
        cmd: vec!["default".to_owned()],
        env: vec!["PATH=/bin".to_owned(), "A=image".to_owned()],
        working_dir: "/srv".to_owned(),
        user: "www-data:www-data".to_owned(),
        ..RunConfig::default()
    }
}

async fn planned(config: &cri::ContainerConfig) -> Result<ContainerPlan, RequestError> {
    let sandbox = cri::PodSandboxConfig {
        log_directory: "/var/log/pods/p".to_owned(),
        ..cri::PodSandboxConfig::default()
    };
    let around = Surroundings {
        sandbox: &sandbox,
        vcpus: 1,
        id_map: None,
        image: &image(),
        defaults: &ContainerDefaults::default(),
        memory_homes: &MemoryHomes::default(),
    };
    plan("c1", config, &around).await
}

fn own(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

async fn args(command: &[&str], args: &[&str]) -> Vec<String> {
    let config = cri::ContainerConfig {
        command: own(command),
        args: own(args),
        ..cri::ContainerConfig::default()
    };
    planned(&config).await.unwrap().request.process.unwrap().args
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

async fn refusal(config: &cri::ContainerConfig) -> String {
    planned(config).await.unwrap_err().to_string()
}

#[tokio::test]
async fn commands_and_arguments_replace_the_images_as_in_docker() {
    assert_eq!(args(&[], &[]).await, ["/entry", "default"]);
    assert_eq!(args(&[], &["x"]).await, ["/entry", "x"]);
    assert_eq!(args(&["sh"], &[]).await, ["sh"]);
    assert_eq!(args(&["sh"], &["-c"]).await, ["sh", "-c"]);
}

#[tokio::test]
async fn the_pods_environment_wins_and_may_be_any_bytes() {
    let config = cri::ContainerConfig {
        envs: vec![
            cri::KeyValue {
                key: "A".to_owned(),
                value: b"\xff\xfe".to_vec(),
            },
            cri::KeyValue {
                key: "B".to_owned(),
                value: b"b".to_vec(),
            },
        ],
        ..cri::ContainerConfig::default()
    };
    let process = planned(&config).await.unwrap().request.process.unwrap();
    let expected: [&[u8]; 3] = [b"PATH=/bin", b"A=\xff\xfe", b"B=b"];
    assert_eq!(process.env, expected);
    assert_eq!(process.cwd, "/srv");
    assert_eq!(process.user.unwrap().spec, "www-data:www-data");
}

#[tokio::test]
async fn users_of_the_pod_replace_the_images() {
    let security = cri::LinuxContainerSecurityContext {
        run_as_user: Some(cri::Int64Value { value: 1000 }),
        run_as_group: Some(cri::Int64Value { value: 2000 }),
        supplemental_groups: vec![3000],
        ..cri::LinuxContainerSecurityContext::default()
    };
    let plan = planned(&with_security(security)).await.unwrap();
    let user = plan.request.process.unwrap().user.unwrap();
    assert_eq!((user.spec.as_str(), user.gid), ("1000", Some(2000)));
    assert_eq!(user.supplemental_gids, [3000]);
    let group_alone = cri::LinuxContainerSecurityContext {
        run_as_group: Some(cri::Int64Value { value: 1 }),
        ..cri::LinuxContainerSecurityContext::default()
    };
    assert!(
        refusal(&with_security(group_alone))
            .await
            .contains("run_as_group")
    );
}

#[tokio::test]
async fn what_the_guest_cannot_give_is_refused_by_its_field() {
    let host = |network: NamespaceMode, pid: NamespaceMode| {
        with_security(cri::LinuxContainerSecurityContext {
            namespace_options: Some(cri::NamespaceOption {
                network: network.into(),
                pid: pid.into(),
                ..cri::NamespaceOption::default()
            }),
            ..cri::LinuxContainerSecurityContext::default()
        })
    };
    let device = cri::ContainerConfig {
        devices: vec![cri::Device::default()],
        ..cri::ContainerConfig::default()
    };
    for (config, field) in [
        (host(NamespaceMode::Node, NamespaceMode::Pod), "options.network"),
        (host(NamespaceMode::Pod, NamespaceMode::Node), "options.pid"),
        (device, "devices[0].container_path"),
    ] {
        let text = refusal(&config).await;
        assert!(text.contains(field), "{field}: {text}");
    }
}

#[tokio::test]
async fn kubelets_own_files_are_sent_along() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        fs_err::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mount = |container_path: &str, host_path: String| cri::Mount {
        container_path: container_path.to_owned(),
        host_path,
        selinux_relabel: true,
        ..cri::Mount::default()
    };
    let config = cri::ContainerConfig {
        mounts: vec![
            mount("/etc/hosts", file("hosts", "127.0.0.1 localhost\n")),
            mount("/dev/termination-log", file("log", "")),
        ],
        ..cri::ContainerConfig::default()
    };
    let plan = planned(&config).await.unwrap();
    let destinations: Vec<&str> = plan
        .mounts
        .iter()
        .map(|planned| planned.mount.destination.as_str())
        .collect();
    assert_eq!(
        destinations,
        [
            "/etc/resolv.conf",
            "/etc/hostname",
            "/etc/hosts",
            "/dev/termination-log"
        ]
    );
    assert_eq!(plan.request.termination_log_path, "/dev/termination-log");
    assert_eq!(plan.termination_log, Some(directory.path().join("log")));
}

#[tokio::test]
async fn a_log_path_stays_below_the_pods_directory() {
    let config = |log_path: &str| cri::ContainerConfig {
        log_path: log_path.to_owned(),
        ..cri::ContainerConfig::default()
    };
    let plan = planned(&config("web/0.log")).await.unwrap();
    assert_eq!(plan.log_path, Some("/var/log/pods/p/web/0.log".into()));
    assert_eq!(planned(&config("")).await.unwrap().log_path, None);
    for evil in ["../x", "/etc/passwd", "a/../../b"] {
        assert!(refusal(&config(evil)).await.contains("log_path"));
    }
}

#[tokio::test]
async fn privileged_is_privileged_in_the_guest() {
    let security = cri::LinuxContainerSecurityContext {
        privileged: true,
        masked_paths: own(&["/proc/kcore"]),
        seccomp: Some(cri::SecurityProfile::default()),
        ..cri::LinuxContainerSecurityContext::default()
    };
    let security = planned(&with_security(security))
        .await
        .unwrap()
        .request
        .security
        .unwrap();
    assert!(security.privileged && security.seccomp.is_empty() && security.masked_paths.is_empty());
    assert_eq!(security.capabilities.unwrap().bounding.len(), 41);
}

#[test]
fn limits_are_translated_and_processor_sets_refused() {
    let wish = cri::LinuxContainerResources {
        cpu_shares: 1024,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 1 << 26,
        ..cri::LinuxContainerResources::default()
    };
    let limits = resources(Some(&wish), 1).unwrap();
    assert_eq!((limits.cpu_weight, limits.cpu_quota_us), (39, 50_000));
}

#[test]
fn processors_of_a_cpuset_are_the_guests() {
    let pinned = |cpus: &str, mems: &str, vcpus| {
        let wish = cri::LinuxContainerResources {
            cpuset_cpus: cpus.to_owned(),
            cpuset_mems: mems.to_owned(),
            ..cri::LinuxContainerResources::default()
        };
        resources(Some(&wish), vcpus)
    };
    assert_eq!(pinned("0-1,3", "0", 4).unwrap().cpuset_cpus, "0-1,3");
    for wrong in ["0-1", "1", "0,", "1-0", "a", "-"] {
        let refusal = pinned(wrong, "", 1).unwrap_err().to_string();
        assert!(refusal.starts_with("linux.resources.cpuset_cpus"), "{refusal}");
    }
    let refusal = pinned("", "0-1", 4).unwrap_err().to_string();
    assert!(refusal.starts_with("linux.resources.cpuset_mems"), "{refusal}");
}
