//! A node whose host pods are real, and this host as the tests see it.

use std::{
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::Command,
};

use cri_server::image::testing::{TarBuilder, TestImage};
use proto::cri::v1::{self as cri, NamespaceMode};

use crate::support::{TestNode, eventually, image_spec};

/// Set in the process that a test starts of itself.
const INSIDE: &str = "CLEARPOD_HOST_POD_TEST";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Runs `scenario` in a mount namespace with cgroup v2, or says why not.
pub(crate) fn isolated(test: &str, scenario: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(scenario);
    }
    if let Some(missing) = missing() {
        let required = std::env::var("CLEARPOD_REQUIRE").unwrap_or_default();
        assert!(
            !required.split(',').any(|need| need == "root"),
            "{test} needs {missing}"
        );
        eprintln!("SKIPPED {test}: needs {missing}");
        return;
    }
    build_shim();
    let status = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            "mount -t cgroup2 cgroup2 \"$0\" && exec \"$@\"",
            CGROUPS,
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}");
}

fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root");
    }
    let erofs = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !erofs.contains("erofs")
        && !Command::new("modprobe")
            .arg("erofs")
            .status()
            .is_ok_and(|status| status.success())
    {
        return Some("a kernel with EROFS");
    }
    if find("crun").is_none() {
        return Some("crun");
    }
    busybox().is_none().then_some("a static busybox")
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|program| program.is_file())
}

/// A dynamically linked one names its interpreter.
fn busybox() -> Option<Vec<u8>> {
    let bytes = std::fs::read(find("busybox")?).ok()?;
    let dynamic = bytes.windows(9).any(|window| window == b"/ld-linux");
    (!dynamic).then_some(bytes)
}

/// The shim is another package's program: cargo builds it beside this test.
fn build_shim() {
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--locked",
            "-p",
            "agent",
            "--bin",
            "clearpod-shim",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(status.unwrap().success(), "build the shim");
}

fn shim() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    this.parent()
        .and_then(Path::parent)
        .unwrap()
        .join("clearpod-shim")
}

/// CAP_SYS_RESOURCE of capability.h: crun needs it to load a device filter.
const SYS_RESOURCE: u64 = 1 << 24;

/// Takes out of the configuration what this root cannot do, then is crun.
const WITHOUT_RULES: &str = r#"#!/bin/sh
for word; do
  case $last in
    --bundle) file=$word/config.json ;;
    --process) file=$word ;;
  esac
  last=$word
done
[ -z "$file" ] || sed -i -e 's/"resources":{"devices":\[[^]]*\]},*//' \
  -e 's/"CAP_SYS_RESOURCE",//g' -e 's/,"CAP_SYS_RESOURCE"//g' "$file"
exec CRUN "$@"
"#;

/// crun, and around it what is left out where root is not all of root: rules for devices, and the capability itself.
fn runtime(directory: &Path) -> PathBuf {
    let crun = find("crun").unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    if u64::from_str_radix(line.trim(), 16).unwrap() & SYS_RESOURCE != 0 {
        return crun;
    }
    eprintln!("SKIPPED: device rules of host pods: root has no CAP_SYS_RESOURCE here");
    let script = WITHOUT_RULES.replace("CRUN", &crun.display().to_string());
    let path = directory.join("crun");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// A node with busybox for an image.
pub(crate) struct HostNode {
    node: TestNode,
    busybox: String,
    cgroup_parent: String,
}

impl Deref for HostNode {
    type Target = TestNode;

    fn deref(&self) -> &TestNode {
        &self.node
    }
}

impl DerefMut for HostNode {
    fn deref_mut(&mut self) -> &mut TestNode {
        &mut self.node
    }
}

impl HostNode {
    pub(crate) async fn start() -> Self {
        let cgroup_parent = format!("/clearpod-test-{}", std::process::id());
        let parent = cgroup_parent.clone();
        let mut node = TestNode::start_with(|config| {
            config.host_pods.enabled = true;
            config.host_pods.privileged = true;
            config.host_pods.shim = Some(shim());
            config.host_pods.runtime = runtime(config.state.parent().unwrap());
            config.machine.cgroup_root = Some(CGROUPS.into());
            config.machine.cgroup_parent = parent;
            // Less than what whoever runs the tests may have, so that it can be set.
            config.container.nofile = (1024, 2048);
            config.deadlines.boot_s = 30;
            config.deadlines.shutdown_s = 20;
        })
        .await;
        node.registry
            .push("test/busybox", "1", &TestImage::of_layer(&layer()));
        let busybox = format!("{}/test/busybox:1", node.registry.host());
        node.pull(&busybox).await.unwrap();
        Self {
            node,
            busybox,
            cgroup_parent,
        }
    }

    pub(crate) async fn run_pod(
        &self,
        name: &str,
        network: NamespaceMode,
        pid: NamespaceMode,
        privileged: bool,
    ) -> String {
        let config = cri::PodSandboxConfig {
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(network, pid)),
                    privileged,
                    ..cri::LinuxSandboxSecurityContext::default()
                }),
                ..cri::LinuxPodSandboxConfig::default()
            }),
            annotations: [("pid".to_owned(), (pid as i32).to_string())].into(),
            ..self.pod_config(name)
        };
        self.run_pod_with(config).await.unwrap()
    }

    /// A container that runs `script`.
    pub(crate) fn config(&self, name: &str, script: &str) -> cri::ContainerConfig {
        cri::ContainerConfig {
            image: Some(image_spec(&self.busybox)),
            ..self.container_config(name, &["sh", "-c", script])
        }
    }

    /// Runs `script` in the PID namespace that the pod was asked for.
    pub(crate) async fn run(&self, pod: &str, name: &str, script: &str) -> String {
        let sandbox = self.pod_status(pod).await.unwrap().status.unwrap();
        let pid = sandbox.annotations["pid"].parse::<i32>().unwrap();
        let mut config = self.config(name, script);
        let pid = NamespaceMode::try_from(pid).unwrap();
        config.linux = Some(in_namespaces(NamespaceMode::Node, pid));
        self.start_config(pod, config).await
    }

    pub(crate) async fn start_config(&self, pod: &str, config: cri::ContainerConfig) -> String {
        let id = self.create(pod, config).await.unwrap();
        self.start_container(&id).await.unwrap();
        id
    }

    /// Removes the pod; nothing of it is left on this host.
    pub(crate) async fn end(&self, pod: &str) {
        self.stop_pod(pod).await.unwrap();
        self.remove_pod(pod).await.unwrap();
        self.assert_nothing_is_left();
        let directory = self.directory.path();
        let ours: Vec<String> = mounts_below(&directory.join("run"));
        assert_eq!(ours, Vec::<String>::new(), "mounts are left");
        let parent = format!("{CGROUPS}{}", self.cgroup_parent);
        let cgroups = std::fs::read_dir(&parent).unwrap();
        let cgroups: Vec<PathBuf> = cgroups
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect();
        assert_eq!(cgroups, Vec::<PathBuf>::new(), "cgroups are left");
        eventually("the pod's processes are gone", async || {
            works_in(&directory.join("run/machines")).is_empty()
        })
        .await;
    }
}

impl Drop for HostNode {
    fn drop(&mut self) {
        // Fails when a test has failed before the pod was gone.
        drop(std::fs::remove_dir(format!("{CGROUPS}{}", self.cgroup_parent)));
    }
}

fn namespaces(network: NamespaceMode, pid: NamespaceMode) -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: network.into(),
        pid: pid.into(),
        ..cri::NamespaceOption::default()
    }
}

/// For a container of such a pod.
pub(crate) fn in_namespaces(network: NamespaceMode, pid: NamespaceMode) -> cri::LinuxContainerConfig {
    cri::LinuxContainerConfig {
        security_context: Some(cri::LinuxContainerSecurityContext {
            namespace_options: Some(namespaces(network, pid)),
            ..cri::LinuxContainerSecurityContext::default()
        }),
        ..cri::LinuxContainerConfig::default()
    }
}

/// The same container with everything allowed.
pub(crate) fn privileged(config: cri::ContainerConfig) -> cri::ContainerConfig {
    cri::ContainerConfig {
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                privileged: true,
                namespace_options: Some(namespaces(NamespaceMode::Node, NamespaceMode::Container)),
                ..cri::LinuxContainerSecurityContext::default()
            }),
            ..cri::LinuxContainerConfig::default()
        }),
        ..config
    }
}

fn layer() -> Vec<u8> {
    let mut tar = TarBuilder::new();
    for directory in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        tar = tar.dir(directory, 0o755);
    }
    tar = tar
        .file("bin/busybox", 0o755, busybox().unwrap())
        .file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n")
        .file("etc/group", 0o644, "root:x:0:\n");
    for applet in [
        "cat", "echo", "grep", "id", "ls", "mkdir", "mount", "ps", "readlink", "sh", "sleep", "test",
        "touch", "tty", "wc",
    ] {
        tar = tar.symlink(&format!("bin/{applet}"), "busybox");
    }
    tar.finish()
}

/// Mounts on `directory`, which is made.
pub(crate) fn mount(arguments: &[&str], directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    let status = Command::new("mount").args(arguments).arg(directory).status();
    assert!(status.unwrap().success(), "mount {arguments:?}");
}

/// What is mounted below `directory`.
pub(crate) fn mounts_below(directory: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|point| Path::new(point).starts_with(directory))
        .map(str::to_owned)
        .collect()
}

/// Processes whose working directory is below `directory`.
fn works_in(directory: &Path) -> Vec<PathBuf> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read_link(process.path().join("cwd")).ok())
        .filter(|cwd| cwd.starts_with(directory))
        .collect()
}

/// Whether a process has exactly these arguments, separated by zeros.
pub(crate) fn runs(arguments: &str) -> bool {
    let mut processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.any(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.strip_suffix(b"\0") == Some(arguments.as_bytes())
    })
}
