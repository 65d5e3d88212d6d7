//! What becomes of a CRI container, field by field.

use super::*;

fn defaults() -> ContainerDefaults {
    ContainerDefaults {
        files_total_kib: 8,
        file_kib: 4,
        nofile: (1024, 4096),
    }
}

fn image() -> RunConfig {
    RunConfig {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["serve".into()],
        env: vec!["PATH=/image/bin".into(), "A=image".into()],
        working_dir: "/srv".into(),
        user: "www-data".into(),
        ..RunConfig::default()
    }
}

fn order(config: &cri::ContainerConfig) -> Result<agent::CreateContainerRequest, SpecError> {
    build(SpecInput {
        container_id: "c1",
        config,
        sandbox: &cri::PodSandboxConfig::default(),
        hostname: "web-0",
        image: &image(),
        layers: Vec::new(),
        defaults: &defaults(),
    })
}

fn with_context(context: cri::LinuxContainerSecurityContext) -> cri::ContainerConfig {
    let linux = cri::LinuxContainerConfig {
        security_context: Some(context),
        ..Default::default()
    };
    cri::ContainerConfig {
        linux: Some(linux),
        ..Default::default()
    }
}

fn with_mount(mount: cri::Mount) -> cri::ContainerConfig {
    cri::ContainerConfig {
        mounts: vec![mount],
        ..Default::default()
    }
}

#[test]
fn command_and_args_replace_the_images_as_kubernetes_says() {
    let args = |command: &[&str], args: &[&str]| {
        let text = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect();
        let config = cri::ContainerConfig {
            command: text(command),
            args: text(args),
            ..Default::default()
        };
        order(&config).unwrap().process.unwrap().args
    };
    assert_eq!(args(&[], &[]), ["/entry", "serve"]);
    assert_eq!(args(&[], &["x"]), ["/entry", "x"]);
    assert_eq!(args(&["sh"], &[]), ["sh"]);
    assert_eq!(args(&["sh"], &["-c"]), ["sh", "-c"]);
}

#[test]
fn the_pods_environment_wins_over_the_images() {
    let envs = vec![cri::KeyValue {
        key: "A".into(),
        value: b"pod\xff".to_vec(),
    }];
    let config = cri::ContainerConfig {
        envs,
        ..Default::default()
    };
    let env = order(&config).unwrap().process.unwrap().env;
    assert_eq!(
        env,
        [
            b"HOSTNAME=web-0".to_vec(),
            b"PATH=/image/bin".to_vec(),
            b"A=pod\xff".to_vec()
        ]
    );
}

#[test]
fn an_environment_name_with_an_equals_sign_is_refused() {
    let envs = vec![cri::KeyValue {
        key: "A=B".into(),
        value: Vec::new(),
    }];
    let config = cri::ContainerConfig {
        envs,
        ..Default::default()
    };
    assert_eq!(order(&config).unwrap_err().field, "config.envs[0].key");
}

#[test]
fn users_come_from_the_request_before_the_image() {
    let spec = |context| {
        order(&with_context(context))
            .unwrap()
            .process
            .unwrap()
            .user
            .unwrap()
    };
    assert_eq!(
        spec(cri::LinuxContainerSecurityContext::default()).spec,
        "www-data"
    );
    let user = spec(cri::LinuxContainerSecurityContext {
        run_as_user: Some(cri::Int64Value { value: 1000 }),
        run_as_group: Some(cri::Int64Value { value: 2000 }),
        supplemental_groups: vec![1234],
        supplemental_groups_policy: cri::SupplementalGroupsPolicy::Strict.into(),
        ..Default::default()
    });
    assert_eq!(
        (user.spec.as_str(), user.gid, user.strict_groups),
        ("1000", Some(2000), true)
    );
    assert_eq!(user.supplemental_gids, [1234]);
    let alone = cri::LinuxContainerSecurityContext {
        run_as_group: Some(cri::Int64Value { value: 2000 }),
        ..Default::default()
    };
    assert!(
        order(&with_context(alone))
            .unwrap_err()
            .field
            .ends_with("run_as_group")
    );
}

fn bounding(add: &[&str], drop: &[&str], privileged: bool) -> Vec<String> {
    let text = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect();
    let capabilities = cri::Capability {
        add_capabilities: text(add),
        drop_capabilities: text(drop),
        ..Default::default()
    };
    let context = cri::LinuxContainerSecurityContext {
        capabilities: Some(capabilities),
        privileged,
        ..Default::default()
    };
    order(&with_context(context))
        .unwrap()
        .security
        .unwrap()
        .capabilities
        .unwrap()
        .bounding
}

#[test]
fn capabilities_are_added_dropped_and_all() {
    assert_eq!(bounding(&[], &[], false).len(), 14);
    assert_eq!(bounding(&[], &[], true).len(), 41);
    assert_eq!(bounding(&["NET_ADMIN"], &["ALL"], false), ["CAP_NET_ADMIN"]);
    assert_eq!(bounding(&["ALL"], &["cap_chown"], false).len(), 40);
    assert!(!bounding(&[], &["NET_RAW"], false).contains(&"CAP_NET_RAW".to_owned()));
}

#[test]
fn an_unknown_capability_is_named() {
    let capabilities = cri::Capability {
        add_capabilities: vec!["NET_ADMIN".into(), "FLY".into()],
        ..Default::default()
    };
    let context = cri::LinuxContainerSecurityContext {
        capabilities: Some(capabilities),
        ..Default::default()
    };
    let error = order(&with_context(context)).unwrap_err();
    assert_eq!(
        error.field,
        "config.linux.security_context.capabilities.add_capabilities[1]"
    );
    assert!(error.problem.contains("FLY"));
}

#[test]
fn seccomp_profiles_are_made_read_or_left_out() {
    use cri::security_profile::ProfileType;
    let seccomp = |kind: ProfileType, localhost_ref: &str, privileged| {
        let profile = cri::SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: localhost_ref.into(),
        };
        let context = cri::LinuxContainerSecurityContext {
            seccomp: Some(profile),
            privileged,
            ..Default::default()
        };
        order(&with_context(context)).map(|order| order.security.unwrap().seccomp)
    };
    assert!(seccomp(ProfileType::Unconfined, "", false).unwrap().is_empty());
    let text = String::from_utf8(seccomp(ProfileType::RuntimeDefault, "", false).unwrap()).unwrap();
    assert!(text.contains("unshare") && text.contains("clone3"));
    assert!(seccomp(ProfileType::RuntimeDefault, "", true).unwrap().is_empty());
    assert!(
        seccomp(ProfileType::Localhost, "profile.json", false)
            .unwrap_err()
            .field
            .ends_with("localhost_ref")
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
    let path = file.path().display().to_string();
    assert_eq!(
        seccomp(ProfileType::Localhost, &path, false).unwrap(),
        br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#
    );
}

#[test]
fn paths_are_masked_by_default_and_open_when_privileged() {
    let masked = |context| {
        order(&with_context(context))
            .unwrap()
            .security
            .unwrap()
            .masked_paths
    };
    assert!(masked(cri::LinuxContainerSecurityContext::default()).contains(&"/proc/kcore".to_owned()));
    let privileged = cri::LinuxContainerSecurityContext {
        privileged: true,
        ..Default::default()
    };
    assert!(masked(privileged).is_empty());
    let own = cri::LinuxContainerSecurityContext {
        masked_paths: vec!["/bin/ls".into()],
        ..Default::default()
    };
    assert_eq!(masked(own), ["/bin/ls"]);
}

#[test]
fn what_lies_outside_of_the_machine_is_refused_by_name() {
    use cri::NamespaceMode::{Node, Pod};
    let namespaces = |options| {
        let context = cri::LinuxContainerSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        };
        order(&with_context(context)).unwrap_err().field
    };
    let user = cri::UserNamespace {
        mode: Pod.into(),
        ..Default::default()
    };
    for (options, name) in [
        (
            cri::NamespaceOption {
                network: Node.into(),
                ..Default::default()
            },
            "network",
        ),
        (
            cri::NamespaceOption {
                pid: Node.into(),
                ..Default::default()
            },
            "pid",
        ),
        (
            cri::NamespaceOption {
                ipc: Node.into(),
                ..Default::default()
            },
            "ipc",
        ),
        (
            cri::NamespaceOption {
                userns_options: Some(user),
                ..Default::default()
            },
            "userns_options",
        ),
    ] {
        assert_eq!(
            namespaces(options),
            format!("config.linux.security_context.namespace_options.{name}")
        );
    }
    let device = cri::Device {
        host_path: "/dev/fuse".into(),
        ..Default::default()
    };
    let config = cri::ContainerConfig {
        devices: vec![device],
        ..Default::default()
    };
    assert_eq!(order(&config).unwrap_err().kind, SpecErrorKind::Unsupported);
}

#[test]
fn a_small_file_is_sent_and_the_pods_own_files_fill_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("etc-hosts");
    fs_err::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let mounts = order(&with_mount(cri::Mount {
        container_path: "/etc/hosts".into(),
        host_path: hosts.display().to_string(),
        ..Default::default()
    }))
    .unwrap()
    .mounts;
    let destinations: Vec<_> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(destinations, ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]);
    let Some(agent::mount::Source::Files(files)) = &mounts[0].source else {
        panic!("{mounts:?}")
    };
    assert!(files.single_file && files.files[0].content == b"127.0.0.1 localhost\n");
}

#[test]
fn a_kubelet_volume_is_sent_without_its_swapping_links() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("..2026_01_01");
    fs_err::create_dir(&data).unwrap();
    fs_err::write(data.join("key"), "value").unwrap();
    std::os::unix::fs::symlink("..2026_01_01", dir.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/key", dir.path().join("key")).unwrap();
    let mount = |readonly| {
        with_mount(cri::Mount {
            container_path: "/config".into(),
            host_path: dir.path().display().to_string(),
            readonly,
            ..Default::default()
        })
    };
    let mounts = order(&mount(true)).unwrap().mounts;
    let config = mounts
        .iter()
        .find(|mount| mount.destination == "/config")
        .unwrap();
    let Some(agent::mount::Source::Files(files)) = &config.source else {
        panic!("{config:?}")
    };
    let names: Vec<_> = files.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, ["key"]);
    let error = order(&mount(false)).unwrap_err();
    assert_eq!(
        (error.field.as_str(), error.kind),
        ("config.mounts[0].host_path", SpecErrorKind::Unsupported)
    );
}

#[test]
fn content_beyond_the_budget_is_refused_with_the_numbers() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("big"), vec![0; 5000]).unwrap();
    let error = order(&with_mount(cri::Mount {
        container_path: "/config".into(),
        host_path: dir.path().display().to_string(),
        readonly: true,
        ..Default::default()
    }))
    .unwrap_err();
    assert!(
        error.problem.contains("5000") && error.problem.contains("4096"),
        "{error}"
    );
}
