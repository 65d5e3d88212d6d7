//! The agent under test and what it needs: a layer, a place, and the words to ask for containers.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use agent::{AgentHandle, Settings};
use proto::agent::v1::agent_client::AgentClient;
use proto::agent::v1::*;

use crate::cases::{CASES, IN_USER_NAMESPACE};
use crate::client::{self, Connection, Output};

/// No case takes longer, also in an emulated guest.
const CASE_WITHIN: Duration = Duration::from_secs(120);

/// What a case works with.
pub(crate) struct Fixture {
    pub(crate) agent: AgentHandle,
    pub(crate) client: AgentClient<Connection>,
    pub(crate) settings: Settings,
    /// A guest's kernel is ours: controllers, devices and limits can be tested.
    pub(crate) in_guest: bool,
    /// The pod has a user namespace, of ids from [`OUTSIDE`] on.
    user_namespace: bool,
    layer: Disk,
}

/// What root of a pod with a user namespace is outside.
pub(crate) const OUTSIDE: u32 = 100_000;

/// What a guest's clock is set to: some day in 2031.
pub(crate) const GUEST_CLOCK_NS: u64 = 1_930_000_000_000_000_000;

const TOOLS: [&str; 3] = ["unshare", "losetup", "mkfs.erofs"];

pub(crate) fn missing_on_host() -> Option<String> {
    if !rustix::process::getuid().is_root() {
        return Some("needs root".to_owned());
    }
    if busybox().is_none() {
        return Some("needs a static busybox in PATH".to_owned());
    }
    let missing = TOOLS.iter().find(|tool| find(tool).is_none())?;
    Some(format!("needs {missing}"))
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let directories = path.split(':').chain(["/sbin", "/usr/sbin"]).map(PathBuf::from);
    directories
        .map(|directory| directory.join(tool))
        .find(|file| file.is_file())
}

fn busybox() -> Option<PathBuf> {
    let file = find("busybox")?;
    // A dynamically linked one names its interpreter.
    let bytes = fs::read(&file).ok()?;
    let dynamic = bytes
        .windows(b"/ld-linux".len())
        .any(|window| window == b"/ld-linux");
    (!dynamic).then_some(file)
}

/// An EROFS image of a small root file system, with a few traps.
pub(crate) fn make_layer(image: &Path) -> io::Result<()> {
    let root = tempfile::tempdir()?;
    let at = |path: &str| root.path().join(path);
    for directory in ["bin", "etc", "tmp", "home/user", "var", "usr/share"] {
        fs::create_dir_all(at(directory))?;
    }
    fs::copy(busybox().ok_or(io::ErrorKind::NotFound)?, at("bin/busybox"))?;
    for applet in [
        "sh", "echo", "cat", "id", "ls", "sleep", "mkdir", "tty", "stty", "rm", "umask", "env", "pwd",
        "true", "false", "ps", "kill", "grep", "head", "mknod", "hostname", "touch", "stat", "dd", "tail",
        "ip", "wc", "readlink", "mount", "umount", "test", "od", "seq", "trap", "chown",
    ] {
        symlink("busybox", at("bin").join(applet))?;
    }
    fs::write(
        at("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )?;
    fs::write(at("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")?;
    fs::write(at("etc/not-executable"), "text")?;
    fs::write(at("usr/share/secret"), "secret")?;
    symlink("../../../../../../tmp", at("escape"))?;
    symlink("/run", at("var/run"))?;
    let status = Command::new(find("mkfs.erofs").ok_or(io::ErrorKind::NotFound)?)
        .args(["--quiet", "--all-root"])
        .arg(image)
        .arg(root.path())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other("mkfs.erofs failed"))
    }
}

/// On a host: the layer on a loop device, found through a fake of sysfs.
pub(crate) fn run_on_host(filter: &str, user_namespace: bool) -> ExitCode {
    let place = tempfile::tempdir().expect("a directory");
    let at = |path: &str| place.path().join(path);
    make_layer(&at("layer.erofs")).expect("make the layer");
    let attached = Command::new(find("losetup").expect("losetup"))
        .args(["--find", "--show", "--read-only"])
        .arg(at("layer.erofs"))
        .output()
        .expect("run losetup");
    let device = PathBuf::from(String::from_utf8(attached.stdout).expect("a path").trim());
    let name = device.file_name().expect("a loop device").to_owned();
    fs::create_dir_all(at("sys/bus/pci/devices/0000:00:04.0/virtio0/block").join(name)).expect("fake sysfs");
    fs::create_dir_all(at("real-sys")).expect("mount point");
    // sysfs shows the network namespace that it was mounted in.
    mount("sysfs", &at("real-sys"));
    for real in ["class", "devices"] {
        symlink(at("real-sys").join(real), at("sys").join(real)).expect("fake sysfs");
    }
    fs::create_dir_all(at("run")).expect("mount point");
    mount("tmpfs", &at("run"));
    let cgroup_root = cgroup_root();
    let settings = Settings {
        run: at("run/agent"),
        cgroup_root: cgroup_root.clone(),
        sysfs: at("sys"),
        proc: "/proc".into(),
        dev: "/dev".into(),
    };
    let kind = Kind {
        in_guest: false,
        user_namespace,
    };
    let code = run(filter, "0000:00:04.0", kind, || {
        AgentHandle::new(settings.clone())
            .map(|agent| (agent, settings.clone()))
            .expect("start the agent")
    });
    // Lazily: the loop device goes when its last mount has gone with this namespace.
    Command::new(find("losetup").expect("losetup"))
        .arg("--detach")
        .arg(device)
        .status()
        .expect("run losetup");
    fs::remove_dir(cgroup_root.join("pod"))
        .and_then(|()| fs::remove_dir(&cgroup_root))
        .expect("cgroups are empty");
    code
}

fn mount(filesystem: &str, target: &Path) {
    let status = Command::new("mount")
        .args(["-t", filesystem, filesystem])
        .arg(target)
        .status();
    assert!(status.expect("run mount").success(), "mount {filesystem}");
}

/// A directory of our own in the host's cgroup v2 hierarchy.
fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc/mounts");
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .expect("a cgroup v2 mount");
    let root = PathBuf::from(line.split(' ').nth(1).expect("a path"));
    let unique = Instant::now();
    let root = root
        .join(format!("clearpod-agent-test-{unique:?}").replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    fs::create_dir(&root).expect("make a cgroup");
    root
}

/// As PID 1 of a guest: the kernel's command line says where the layer is (`layer=0000:00:04.0`), and it ends in a restart.
pub(crate) fn run_in_guest() -> ExitCode {
    let layer = std::env::var("layer").expect("layer= on the kernel's command line");
    let filter = std::env::var("filter").unwrap_or_default();
    let kind = Kind {
        in_guest: true,
        user_namespace: std::env::var("user_namespace").is_ok(),
    };
    let code = run(&filter, &layer, kind, || {
        (agent::boot::prepare().expect("boot"), Settings::guest())
    });
    println!(
        "guest tests: {}",
        if code == ExitCode::SUCCESS { "ok" } else { "FAILED" }
    );
    rustix::fs::sync();
    rustix::system::reboot(rustix::system::RebootCommand::Restart).expect("restart");
    code
}

/// Where the cases run, and which.
#[derive(Clone, Copy)]
struct Kind {
    in_guest: bool,
    user_namespace: bool,
}

fn run(filter: &str, layer: &str, kind: Kind, start: impl FnOnce() -> (AgentHandle, Settings)) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (agent, settings) = start();
        let reaping = agent.clone();
        agent.spawn(async move { reaping.reap().await.expect("SIGCHLD") });
        let client = client::rpc(&agent).await;
        let layer = Disk {
            pci_address: layer.to_owned(),
            filesystem: "erofs".to_owned(),
            read_only: true,
            ..Disk::default()
        };
        let fixture = Fixture {
            agent,
            client,
            settings,
            in_guest: kind.in_guest,
            user_namespace: kind.user_namespace,
            layer,
        };
        fixture.configure().await;
        let (mut passed, mut failed) = (0, 0);
        let cases = if kind.user_namespace {
            IN_USER_NAMESPACE
        } else {
            CASES
        };
        for (name, case) in cases.iter().filter(|(name, _)| name.contains(filter)) {
            let began = Instant::now();
            let fixture = fixture.clone_for_case();
            let outcome = tokio::task::LocalSet::new()
                .run_until(async move {
                    let case = tokio::task::spawn_local(case(fixture));
                    tokio::time::timeout(CASE_WITHIN, case).await
                })
                .await;
            let verdict = match outcome {
                Ok(Ok(())) => "ok",
                Ok(Err(_)) => "FAILED",
                Err(_) => "FAILED (timed out)",
            };
            if verdict == "ok" {
                passed += 1;
            } else {
                failed += 1;
            }
            println!("case {name} ... {verdict} ({} ms)", began.elapsed().as_millis());
        }
        println!("containers: {passed} passed, {failed} failed");
        // A filter may mean cases of the other kind only.
        if failed == 0 && (passed > 0 || !filter.is_empty()) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    })
}

impl Fixture {
    fn clone_for_case(&self) -> Self {
        Self {
            agent: self.agent.clone(),
            client: self.client.clone(),
            settings: self.settings.clone(),
            in_guest: self.in_guest,
            user_namespace: self.user_namespace,
            layer: self.layer.clone(),
        }
    }

    async fn configure(&self) {
        let request = ConfigureSandboxRequest {
            sandbox_id: "sandbox".to_owned(),
            hostname: "web-0".to_owned(),
            dns: Some(DnsConfig {
                servers: vec!["10.96.0.10".to_owned()],
                ..DnsConfig::default()
            }),
            interfaces: vec![Interface {
                name: "lo".to_owned(),
                addresses: vec!["10.88.0.5/16".to_owned(), "fd00::5/64".to_owned()],
                ..Interface::default()
            }],
            // Of the network namespace and of the IPC namespace, and one with ids in it.
            sysctls: [
                ("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned()),
                ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
                ("net.ipv4.ping_group_range".to_owned(), "0 1000".to_owned()),
            ]
            .into(),
            shm_size_bytes: 1 << 20,
            machine_id: "0123456789abcdef".repeat(2),
            entropy: if self.in_guest { vec![7; 64] } else { Vec::new() },
            realtime_ns: if self.in_guest { GUEST_CLOCK_NS } else { 0 },
            user_namespace: self.user_namespace.then(|| {
                let ids = IdRange {
                    outside: OUTSIDE,
                    length: 65_536,
                };
                UserNamespace {
                    uids: Some(ids),
                    gids: Some(ids),
                }
            }),
            ..ConfigureSandboxRequest::default()
        };
        let info = self.client.clone().info(InfoRequest {}).await.expect("info");
        assert_eq!(info.into_inner().boot_id, "", "nobody asks the kernel for it yet");
        self.client
            .clone()
            .configure_sandbox(request.clone())
            .await
            .expect("configure the sandbox");
        self.client
            .clone()
            .configure_sandbox(request)
            .await
            .expect("configure it again");
    }

    /// A container of the test layer that runs a shell command.
    pub(crate) fn shell(&self, id: &str, command: &str) -> CreateContainerRequest {
        CreateContainerRequest {
            container_id: id.to_owned(),
            layers: vec![self.layer.clone()],
            process: Some(process(&["sh", "-c", command])),
            security: Some(Security {
                capabilities: Some(default_capabilities()),
                ..Security::default()
            }),
            ..CreateContainerRequest::default()
        }
    }

    pub(crate) async fn create(&self, request: CreateContainerRequest) -> CreateContainerResponse {
        self.client
            .clone()
            .create_container(request)
            .await
            .expect("create")
            .into_inner()
    }

    pub(crate) async fn start(&self, id: &str) {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.client.clone().start_container(request).await.expect("start");
    }

    pub(crate) async fn wait(&self, id: &str, exec_id: &str) -> Exit {
        let request = WaitRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        self.client
            .clone()
            .wait(request)
            .await
            .expect("wait")
            .into_inner()
            .exit
            .expect("an exit")
    }

    pub(crate) async fn remove(&self, id: &str) {
        let request = RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        self.client
            .clone()
            .remove_container(request)
            .await
            .expect("remove");
    }

    pub(crate) async fn signal(&self, id: &str, signal: i32, all: bool) {
        let request = SignalRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
            signal: signal.unsigned_abs(),
            all,
        };
        self.client.clone().signal(request).await.expect("signal");
    }

    /// Create, start, wait, output, remove.
    pub(crate) async fn run(&self, request: CreateContainerRequest) -> (Exit, Output) {
        let id = request.container_id.clone();
        self.create(request).await;
        self.start(&id).await;
        let output = client::output(&self.agent, &id, "").await;
        let exit = self.wait(&id, "").await;
        self.remove(&id).await;
        (exit, output)
    }

    /// What a shell command in a new container writes; it must succeed.
    pub(crate) async fn stdout(&self, request: CreateContainerRequest) -> String {
        let (exit, output) = self.run(request).await;
        assert_eq!(
            (exit.code, output.stderr.as_str()),
            (0, ""),
            "stdout was {:?}",
            output.stdout
        );
        output.stdout
    }

    /// Mounts, cgroups and files that containers make.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for directory in ["disks", "volumes", "scratch"] {
            left.extend(names(&self.settings.run.join(directory)));
        }
        left.extend(
            names(&self.settings.cgroup_root.join("pod"))
                .into_iter()
                .filter(|name| !name.contains('.')),
        );
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
        left.push(format!("{} mounts", mounts.lines().count()));
        left
    }

    pub(crate) async fn exec(&self, id: &str, exec_id: &str, process: Process) -> Result<u32, tonic::Status> {
        let request = ExecRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            process: Some(process),
        };
        self.client
            .clone()
            .exec(request)
            .await
            .map(|response| response.into_inner().pid)
    }

    pub(crate) async fn exec_output(&self, id: &str, exec_id: &str, args: &[&str]) -> (Exit, Output) {
        self.exec(id, exec_id, process(args)).await.expect("exec");
        let output = client::output(&self.agent, id, exec_id).await;
        let exit = self.wait(id, exec_id).await;
        let request = RemoveExecRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        self.client
            .clone()
            .remove_exec(request)
            .await
            .expect("remove exec");
        (exit, output)
    }
}

pub(crate) fn process(args: &[&str]) -> Process {
    Process {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![b"PATH=/bin".to_vec()],
        ..Process::default()
    }
}

/// What containerd gives by default.
pub(crate) fn default_capabilities() -> Capabilities {
    let names = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ];
    let names: Vec<String> = names.iter().map(|name| format!("CAP_{name}")).collect();
    Capabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        ..Capabilities::default()
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory)
        .map(|entries| entries.flatten().collect::<Vec<_>>())
        .unwrap_or_default();
    entries
        .into_iter()
        .map(|entry| entry.path().display().to_string())
        .collect()
}
