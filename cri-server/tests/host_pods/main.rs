//! Pods on this host: the daemon over its real socket, the real shim, crun, EROFS layers and overlays mounted by the kernel.
//! Needs root, crun and a static busybox; without them each test says that it is skipped, and with `CLEARPOD_REQUIRE=root` it
//! fails instead.
//!
//! Each test starts itself again in a mount namespace of its own with cgroup v2 at /sys/fs/cgroup, whatever this host has there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

#[path = "../cri/support.rs"]
#[expect(
    dead_code,
    reason = "shared with the larger test program, which uses all of it"
)]
mod support;

mod host;

use host::{HostNode, isolated, mount, mounts_below};
use proto::cri::v1::{self as cri, NamespaceMode};
use support::eventually;

const NODE: NamespaceMode = NamespaceMode::Node;
const POD: NamespaceMode = NamespaceMode::Pod;
const CONTAINER: NamespaceMode = NamespaceMode::Container;

fn link(path: &str) -> String {
    std::fs::read_link(path).unwrap().display().to_string()
}

#[test]
fn a_pod_of_the_hosts_network_runs_and_leaves_nothing() {
    isolated("a_pod_of_the_hosts_network_runs_and_leaves_nothing", async {
        let node = HostNode::start().await;
        let pod = node.run_pod("proxy", NODE, CONTAINER, false).await;

        let app = node.run(&pod, "app", "echo out; echo err >&2; exit 7").await;
        assert_eq!(node.ended(&app).await.exit_code, 7);
        let mut log = node.log("proxy", "app", 2).await;
        log.sort();
        assert_eq!(log, ["stderr F err", "stdout F out"]);

        let script = "trap 'exit 5' TERM; echo up; while true; do sleep 0.1; done";
        let long = node.run(&pod, "long", script).await;
        node.log("proxy", "long", 1).await;
        let told = node
            .exec(&long, &["readlink", "/proc/self/ns/net"], 20)
            .await
            .unwrap();
        assert_eq!(
            String::from_utf8(told.stdout).unwrap().trim(),
            link("/proc/self/ns/net")
        );
        let told = node
            .exec(&long, &["readlink", "/proc/self/ns/ipc"], 20)
            .await
            .unwrap();
        assert_ne!(
            String::from_utf8(told.stdout).unwrap().trim(),
            link("/proc/self/ns/ipc")
        );
        let told = node
            .exec(
                &long,
                &["sh", "-c", "echo to stderr >&2; echo $HOME $$; exit 3"],
                20,
            )
            .await
            .unwrap();
        assert_eq!(
            (told.exit_code, told.stderr.as_slice()),
            (3, b"to stderr\n".as_slice())
        );
        assert!(told.stdout.starts_with(b"/root "), "{:?}", told.stdout);
        let told = node.exec(&long, &["no-such-program"], 20).await.unwrap();
        assert_eq!(told.exit_code, 127);
        node.stop_container(&long, 20).await.unwrap();
        assert_eq!(node.ended(&long).await.exit_code, 5);

        let stubborn = node
            .run(
                &pod,
                "stubborn",
                "trap '' TERM; echo up; while true; do sleep 0.1; done",
            )
            .await;
        node.log("proxy", "stubborn", 1).await;
        node.stop_container(&stubborn, 1).await.unwrap();
        assert_eq!(node.ended(&stubborn).await.exit_code, 137);

        let mut config = node.config("term", "tty; echo typed");
        config.tty = true;
        let term = node.start_config(&pod, config).await;
        assert_eq!(node.ended(&term).await.exit_code, 0);
        assert_eq!(
            node.log("proxy", "term", 2).await,
            ["stdout F /dev/pts/0", "stdout F typed"]
        );

        node.end(&pod).await;
    });
}

#[test]
fn what_confines_a_container_is_as_asked_for() {
    isolated("what_confines_a_container_is_as_asked_for", async {
        let node = HostNode::start().await;
        let pod = node.run_pod("confined", NODE, CONTAINER, false).await;
        let mut config = node.config(
            "app",
            "id -u; id -G; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; \
             touch /x; cat /proc/self/oom_score_adj; ulimit -n; touch /proc/sys/kernel/x; ls /dev | wc -l",
        );
        config.linux = Some(cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                run_as_user: Some(cri::Int64Value { value: 1000 }),
                run_as_group: Some(cri::Int64Value { value: 1001 }),
                supplemental_groups: vec![1002],
                no_new_privs: true,
                readonly_rootfs: true,
                seccomp: Some(cri::SecurityProfile::default()),
                capabilities: Some(cri::Capability {
                    drop_capabilities: vec!["ALL".to_owned()],
                    ..cri::Capability::default()
                }),
                namespace_options: Some(cri::NamespaceOption {
                    network: NODE.into(),
                    pid: CONTAINER.into(),
                    ..cri::NamespaceOption::default()
                }),
                ..cri::LinuxContainerSecurityContext::default()
            }),
            resources: Some(cri::LinuxContainerResources {
                oom_score_adj: 123,
                ..cri::LinuxContainerResources::default()
            }),
        });
        let app = node.start_config(&pod, config).await;
        node.ended(&app).await;
        let log = node.log("confined", "app", 9).await.join("\n");
        for expected in [
            "stdout F 1000",
            "stdout F 1001 1002",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "Read-only file system",
            "stdout F 123",
            "stdout F 1024",
        ] {
            assert!(log.contains(expected), "{expected:?} in {log}");
        }
        node.end(&pod).await;
    });
}

#[test]
fn a_pod_goes_on_when_the_daemon_is_killed() {
    isolated("a_pod_goes_on_when_the_daemon_is_killed", async {
        let mut node = HostNode::start().await;
        let pod = node.run_pod("proxy", NODE, POD, false).await;
        let script = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done";
        let app = node.run(&pod, "app", script).await;
        node.log("proxy", "app", 5).await;
        node.kill_daemon().await;
        assert_eq!(node.pod_state(&pod).await, cri::PodSandboxState::SandboxReady);
        let seen = node.log("proxy", "app", 1).await.len();
        let log = node.log("proxy", "app", seen + 20).await;
        for (index, line) in log.iter().enumerate() {
            assert_eq!(
                *line,
                format!("stdout F line {}", index + 1),
                "no line lost or doubled"
            );
        }
        let told = node.exec(&app, &["echo", "again"], 20).await.unwrap();
        assert_eq!(told.stdout, b"again\n");
        // PID 1 of the pod's namespace is the shim's, not the container's.
        let told = node.exec(&app, &["cat", "/proc/1/comm"], 20).await.unwrap();
        assert!(
            told.stdout.starts_with(b"clearpod"),
            "{:?}",
            String::from_utf8_lossy(&told.stdout)
        );
        node.end(&pod).await;
    });
}

#[test]
fn a_killed_shim_takes_its_containers_along() {
    isolated("a_killed_shim_takes_its_containers_along", async {
        let node = HostNode::start().await;
        let pod = node.run_pod("proxy", NODE, NODE, false).await;
        let app = node.run(&pod, "app", "echo up; sleep 98765").await;
        node.log("proxy", "app", 1).await;
        let info = node.pod_status(&pod).await.unwrap().info["info"].clone();
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let shim = i32::try_from(info["shim_pid"].as_i64().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::SIGKILL).unwrap();
        assert_eq!(node.ended(&app).await.exit_code, 137);
        assert_eq!(node.pod_state(&pod).await, cri::PodSandboxState::SandboxNotready);
        eventually("the container's processes are gone", async || {
            !host::runs("sleep\u{0}98765")
        })
        .await;
        node.end(&pod).await;
    });
}

#[test]
fn processes_are_the_hosts_the_pods_or_the_containers_own() {
    isolated("processes_are_the_hosts_the_pods_or_the_containers_own", async {
        let node = HostNode::start().await;
        let own = std::process::id().to_string();
        let pod = node.run_pod("seeing", NODE, NODE, false).await;
        let app = node.run(&pod, "app", "echo up; sleep 1000").await;
        let told = node
            .exec(&app, &["cat", &format!("/proc/{own}/cmdline")], 20)
            .await
            .unwrap();
        assert_eq!(told.stdout, std::fs::read("/proc/self/cmdline").unwrap());
        node.end(&pod).await;

        let pod = node.run_pod("shared", NODE, POD, false).await;
        node.run(&pod, "first", "echo up; exec sleep 4321").await;
        node.log("shared", "first", 1).await;
        let second = node.run(&pod, "second", "echo up; sleep 1000").await;
        let told = node.exec(&second, &["ps"], 20).await.unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        assert!(told.contains("sleep 4321"), "{told}");
        node.end(&pod).await;

        let pod = node.run_pod("alone", NODE, CONTAINER, false).await;
        let app = node.run(&pod, "app", "echo up; exec sleep 1000").await;
        node.log("alone", "app", 1).await;
        let told = node.exec(&app, &["cat", "/proc/1/cmdline"], 20).await.unwrap();
        assert_eq!(told.stdout, b"sleep\x001000\x00");
        node.end(&pod).await;
    });
}

#[test]
fn a_pod_of_the_hosts_processes_has_a_network_and_a_name_of_its_own() {
    isolated(
        "a_pod_of_the_hosts_processes_has_a_network_and_a_name_of_its_own",
        async {
            let node = HostNode::start().await;
            let namespace = node.path("netns");
            std::fs::write(&namespace, "").unwrap();
            let network = format!("--net={}", namespace.display());
            let made = std::process::Command::new("unshare")
                .args([network.as_str(), "true"])
                .status();
            assert!(made.unwrap().success());
            node.network.set_namespace(namespace.clone());

            let pod = node.run_pod("own", POD, NODE, false).await;
            let mut config = node.config("app", "echo up; sleep 1000");
            config.linux = Some(host::in_namespaces(POD, NODE));
            let app = node.start_config(&pod, config).await;
            let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&namespace).unwrap());
            for (command, expected) in [
                (&["readlink", "/proc/self/ns/net"][..], format!("net:[{inode}]\n")),
                (&["cat", "/proc/sys/kernel/hostname"], "own\n".to_owned()),
                (&["cat", "/etc/hostname"], "own\n".to_owned()),
                // What the kernel says of a loopback interface that is up.
                (&["cat", "/sys/class/net/lo/operstate"], "unknown\n".to_owned()),
            ] {
                let told = node.exec(&app, command, 20).await.unwrap();
                assert_eq!(String::from_utf8(told.stdout).unwrap(), expected, "{command:?}");
            }
            node.end(&pod).await;
            let unmounted = std::process::Command::new("umount").arg(&namespace).status();
            assert!(unmounted.unwrap().success());
        },
    );
}

#[test]
fn mounts_propagate_both_ways_where_that_is_asked_for() {
    isolated("mounts_propagate_both_ways_where_that_is_asked_for", async {
        let node = HostNode::start().await;
        let (shared, private) = (node.path("shared"), node.path("private"));
        for directory in [&shared, &private] {
            mount(&["-t", "tmpfs", "tmpfs"], directory);
        }
        let made = std::process::Command::new("mount")
            .arg("--make-rshared")
            .arg(&shared)
            .status();
        assert!(made.unwrap().success());

        let pod = node.run_pod("csi", NODE, CONTAINER, true).await;
        let with = |name: &str, path: &std::path::Path, propagation: cri::MountPropagation| {
            let mut config = node.config(name, "echo up; sleep 1000");
            config.mounts = vec![cri::Mount {
                container_path: "/vol".to_owned(),
                host_path: path.display().to_string(),
                propagation: propagation.into(),
                ..cri::Mount::default()
            }];
            host::privileged(config)
        };
        let both = cri::MountPropagation::PropagationBidirectional;
        let down = cri::MountPropagation::PropagationHostToContainer;
        let refusal = node
            .create(&pod, with("private", &private, both))
            .await
            .unwrap_err();
        assert!(refusal.message().contains("propagation"), "{refusal:?}");

        let up = node.start_config(&pod, with("both", &shared, both)).await;
        let listener = node.start_config(&pod, with("down", &shared, down)).await;
        let script = "mkdir /vol/sub && mount -t tmpfs tmpfs /vol/sub && echo seen > /vol/sub/file";
        let told = node.exec(&up, &["sh", "-c", script], 20).await.unwrap();
        assert_eq!(told.exit_code, 0, "{:?}", String::from_utf8_lossy(&told.stderr));
        assert_eq!(
            std::fs::read_to_string(shared.join("sub/file")).unwrap(),
            "seen\n"
        );
        let told = node.exec(&listener, &["cat", "/vol/sub/file"], 20).await.unwrap();
        assert_eq!(told.stdout, b"seen\n");
        let told = node
            .exec(&up, &["test", "-c", "/dev/loop-control"], 20)
            .await
            .unwrap();
        assert_eq!(told.exit_code, 0, "a privileged container has the host's devices");

        for mounted in [shared.join("sub"), shared, private] {
            assert!(
                std::process::Command::new("umount")
                    .arg("-l")
                    .arg(mounted)
                    .status()
                    .unwrap()
                    .success()
            );
        }
        node.end(&pod).await;
        assert_eq!(mounts_below(node.directory.path()), Vec::<String>::new());
    });
}
