//! One node under test: the daemon, a registry with a busybox image, a pod network; everything below two directories of its
//! own, and gone when it is dropped.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{
    cri::{Cri, PodSpec},
    crictl, require, traces, wait,
};

/// Name of the image in the node's registry.
const IMAGE: &str = "e2e/busybox:latest";
const BRIDGE: &str = "cpe2e0";
/// How long a CNI plugin may take.
pub const PLUGIN_SECONDS: u64 = 20;
const CONFLIST: &str = "net.d/10-e2e.conflist";
/// Nearly every test has a daemon of its own, whose template would be made for longer than most tests take.
const HASTY: &str = "[machine.templates]\nrest_seconds = 0\n";

/// A daemon and what it needs.
#[derive(Debug)]
pub struct Node {
    bundle: PathBuf,
    run: TempDir,
    state: TempDir,
    registry: Child,
    registry_port: u16,
    daemon: Option<Child>,
    cri: Option<Cri>,
}

impl Node {
    /// Starts registry and daemon, pushes the image, pulls it. Templates are written as soon as they can be.
    ///
    /// # Errors
    /// With what did not start, and the end of its log.
    pub async fn start() -> Result<Self> {
        Self::start_with(HASTY).await
    }

    /// The same with templates that are made as they are by default.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub async fn start_as_shipped() -> Result<Self> {
        Self::start_with("").await
    }

    async fn start_with(extra: &str) -> Result<Self> {
        let bundle = require::bundle().context("CLEARPOD_BUNDLE is not set")?;
        // Short, because unix sockets lie below it.
        let run = tempfile::Builder::new().prefix("cpe2e").tempdir_in("/run")?;
        fs_err::create_dir_all("/var/lib")?;
        let state = tempfile::Builder::new().prefix("cpe2e").tempdir_in("/var/lib")?;
        let registry_port = free_port()?;
        let registry = Command::new(bundle.join("deploy/registry/serve"))
            .arg(registry_port.to_string())
            .arg(state.path().join("registry"))
            .env("PATH", search_path(&bundle))
            .stdin(Stdio::null())
            .stdout(log(&run, "registry.log")?)
            .stderr(log(&run, "registry.log")?)
            .kill_on_drop(true)
            .spawn()
            .context("start the registry")?;
        let mut node = Self {
            bundle,
            run,
            state,
            registry,
            registry_port,
            daemon: None,
            cri: None,
        };
        node.write_config(extra)?;
        node.push(&[IMAGE], None).await?;
        node.start_daemon().await?;
        node.cri().pull(&node.image()).await?;
        Ok(node)
    }

    /// Where the programs and files under test lie.
    #[must_use]
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// The image's name for CRI.
    #[must_use]
    pub fn image(&self) -> String {
        self.image_of(IMAGE)
    }

    /// A client of the daemon.
    ///
    /// # Panics
    /// While no daemon runs.
    #[must_use]
    pub fn cri(&self) -> Cri {
        self.cri.clone().expect("the daemon runs")
    }

    /// A pod of that name that logs below the node's directory.
    #[must_use]
    pub fn pod(&self, name: &str) -> PodSpec {
        PodSpec::new(name, &self.run.path().join("logs"))
    }

    /// What the container wrote, one `(stream, text)` a line of its CRI log.
    #[must_use]
    pub fn log(&self, pod: &str, container: &str) -> Vec<(String, String)> {
        let path = self
            .run
            .path()
            .join("logs")
            .join(pod)
            .join(format!("{container}.log"));
        let text = fs_err::read_to_string(path).unwrap_or_default();
        let line = |line: &str| {
            let mut parts = line.splitn(4, ' ').skip(1);
            let stream = parts.next()?.to_owned();
            Some((stream, parts.nth(1)?.to_owned()))
        };
        text.lines().filter_map(line).collect()
    }

    /// Runs the real crictl.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn crictl(&self, args: &[&str]) -> Result<String> {
        crictl::run(&self.bundle.join("bin/crictl"), &self.socket(), args).await
    }

    /// The real crictl, not run yet: for commands that go on.
    #[must_use]
    pub fn crictl_command(&self, args: &[&str]) -> Command {
        crictl::command(&self.bundle.join("bin/crictl"), &self.socket(), args)
    }

    /// The node's own directory, for files of a test.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.run.path()
    }

    /// Where the daemon keeps image layers, which guests map.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.state.path().join("images")
    }

    /// Where the pod network's CNI configuration lies, for another runtime beside.
    #[must_use]
    pub fn cni_configuration(&self) -> PathBuf {
        self.run.path().join("net.d")
    }

    /// The directory of a sandbox's Machine.
    #[must_use]
    pub fn machine(&self, sandbox: &str) -> PathBuf {
        self.run.path().join("machines").join(sandbox)
    }

    /// What pods have left on the node until now.
    #[must_use]
    pub fn traces(&self) -> Vec<String> {
        traces::list(self.run.path(), self.state.path())
    }

    /// That pods have left nothing since [`Self::traces`] said this.
    ///
    /// # Errors
    /// When there is more, or less.
    pub fn is_as_before(&self, before: &[String]) -> Result<()> {
        let after = self.traces();
        ensure!(before == after, "left behind: {after:#?}\ninstead of {before:#?}");
        Ok(())
    }

    /// Pid of the daemon.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().and_then(Child::id)
    }

    /// Ends the daemon with SIGKILL.
    ///
    /// # Errors
    /// Of the system calls.
    pub async fn kill_daemon(&mut self) -> Result<()> {
        self.cri = None;
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().await.context("kill the daemon")?;
        }
        Ok(())
    }

    /// Starts a daemon on the same directories and waits until it has found its pods again.
    ///
    /// # Errors
    /// With the end of its log.
    pub async fn start_daemon(&mut self) -> Result<()> {
        let program = self.bundle.join("bin/clearpod");
        self.start_daemon_with(&program, &[]).await
    }

    /// The same with another build of it and more of an environment. Its log begins anew.
    ///
    /// # Errors
    /// With the end of its log.
    pub async fn start_daemon_with(&mut self, program: &Path, environment: &[(&str, String)]) -> Result<()> {
        fs_err::write(self.run.path().join("daemon.log"), "")?;
        let daemon = Command::new(program)
            .arg("--config")
            .arg(self.run.path().join("config.toml"))
            .arg("serve")
            .env("PATH", search_path(&self.bundle))
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(&self.run, "daemon.log")?)
            .kill_on_drop(true)
            .spawn()
            .context("start clearpod")?;
        self.daemon = Some(daemon);
        let cri = wait::until(wait::SERVER, "the daemon's answer", async || {
            let cri = Cri::connect(self.socket()).await.ok()?;
            cri.runtime
                .clone()
                .list_pod_sandbox(proto::cri::v1::ListPodSandboxRequest::default())
                .await
                .ok()?;
            Some(cri)
        })
        .await
        .with_context(|| self.daemon_log())?;
        self.cri = Some(cri);
        // What it makes for pods to come would be taken for what pods have left.
        wait::until(wait::SERVER, "the daemon's templates", async || {
            let templates = self.templates().await.ok()?;
            let is_settled =
                |template: &Value| ["ready", "failed"].map(Value::from).contains(&template["state"]);
            templates.iter().all(is_settled).then_some(())
        })
        .await
        .with_context(|| self.daemon_log())
    }

    /// What pods go on from, as the daemon tells.
    ///
    /// # Errors
    /// With the status of the call, or when it tells nothing.
    pub async fn templates(&self) -> Result<Vec<Value>> {
        let request = proto::cri::v1::StatusRequest { verbose: true };
        let answer = self.cri().runtime.status(request).await?.into_inner();
        let text = answer.info.get("templates").context("templates")?;
        Ok(serde_json::from_str(text)?)
    }

    /// "fork" or "boot": how the guest of a sandbox came to run.
    ///
    /// # Errors
    /// With the status of the call, or when it tells nothing.
    pub async fn start_of(&self, sandbox: &str) -> Result<String> {
        let info = self.info_of(sandbox).await?;
        Ok(info["start"].as_str().context("start")?.to_owned())
    }

    /// The process of a sandbox's VMM.
    ///
    /// # Errors
    /// With the status of the call, or when it tells nothing.
    pub async fn vmm_pid(&self, sandbox: &str) -> Result<u32> {
        let info = self.info_of(sandbox).await?;
        Ok(info["vmm_pid"].as_u64().context("vmm_pid")?.try_into()?)
    }

    /// What the daemon tells of a sandbox beyond CRI.
    ///
    /// # Errors
    /// With the status of the call, or when it tells nothing.
    pub async fn info_of(&self, sandbox: &str) -> Result<Value> {
        let answer = self.cri().pod(sandbox).await?;
        Ok(serde_json::from_str(answer.info.get("info").context("info")?)?)
    }

    /// Where the daemon's log is; each daemon begins it anew.
    #[must_use]
    pub fn daemon_log_path(&self) -> PathBuf {
        self.run.path().join("daemon.log")
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn daemon_log(&self) -> String {
        let text = fs_err::read_to_string(self.daemon_log_path()).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(40).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Writes the daemon's configuration; `extra` is appended.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write_config(&self, extra: &str) -> Result<()> {
        let (run, state, bundle) = (
            self.run.path().display(),
            self.state.path().display(),
            self.bundle.display(),
        );
        self.write_network()?;
        let config = format!(
            "state = \"{state}\"\nrun = \"{run}\"\n[machine]\nvmm = \"{bundle}/bin/clearpod-vmm\"\n\
             virtiofsd = \"{bundle}/bin/virtiofsd\"\nkernel = \"{bundle}/share/vmlinux\"\n\
             initramfs = \"{bundle}/share/initramfs.cpio\"\n\
             [network]\nconf_dir = \"{run}/net.d\"\ncache_dir = \"{run}/cni\"\nplugin_seconds = {PLUGIN_SECONDS}\n\
             bin_dirs = [\"/opt/cni/bin\", \"/usr/lib/cni\", \"{run}/cni-bin\"]\n{extra}"
        );
        Ok(fs_err::write(self.run.path().join("config.toml"), config)?)
    }

    /// Adds a CNI plugin to the end of the chain: a shell script that gets `CNI_COMMAND`. Another one replaces it.
    ///
    /// # Errors
    /// Of the file system, or of a configuration that has no list of plugins.
    pub fn set_last_plugin(&self, script: Option<&str>) -> Result<()> {
        self.write_network()?;
        let Some(script) = script else {
            return Ok(());
        };
        let directory = self.run.path().join("cni-bin");
        fs_err::create_dir_all(&directory)?;
        let program = directory.join("e2e-plugin");
        fs_err::write(&program, format!("#!/bin/sh\n{script}\n"))?;
        fs_err::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        self.change_plugins(|plugins| plugins.push(serde_json::json!({"type": "e2e-plugin"})))
    }

    /// Pods get no more than a link to the bridge and addresses from now on: address translation and host ports take most of the
    /// time of a pod's life in the emulated node.
    ///
    /// # Errors
    /// As for [`Self::set_last_plugin`].
    pub fn set_plain_network(&self) -> Result<()> {
        self.write_network()?;
        self.change_plugins(|plugins| {
            plugins.truncate(1);
            plugins[0]["ipMasq"] = false.into();
        })
    }

    fn change_plugins(&self, change: impl FnOnce(&mut Vec<Value>)) -> Result<()> {
        let path = self.run.path().join(CONFLIST);
        let mut list: Value = serde_json::from_str(&fs_err::read_to_string(&path)?)?;
        change(list["plugins"].as_array_mut().context("plugins")?);
        Ok(fs_err::write(path, list.to_string())?)
    }

    fn write_network(&self) -> Result<()> {
        let run = self.run.path();
        fs_err::create_dir_all(run.join("net.d"))?;
        let list = fs_err::read_to_string(self.bundle.join("deploy/cni/10-clearpod.conflist"))?
            .replace("\"cni0\"", &format!("\"{BRIDGE}\""))
            .replace("/run/cni/networks", &format!("{}/ipam", run.display()))
            .replace("10.88.", "10.214.")
            .replace("fd00:10:88:", "fd00:10:214:");
        Ok(fs_err::write(run.join(CONFLIST), list)?)
    }

    fn socket(&self) -> PathBuf {
        self.run.path().join("clearpod.sock")
    }

    /// Pushes the same image by another name, with a shell script as its command; its name for CRI.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn push_another(&self, name: &str, command: &str) -> Result<String> {
        self.push(&[name, command], None).await?;
        Ok(self.image_of(name))
    }

    /// Pushes an image of the same and of everything in `files`; its name for CRI.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn push_with(&self, name: &str, files: &Path) -> Result<String> {
        self.push(&[name], Some(("FILES", files.as_os_str()))).await?;
        Ok(self.image_of(name))
    }

    /// Pushes another image that has these programs of the node as well, and pulls it; its name for CRI.
    ///
    /// # Errors
    /// When the registry does not take it, or a program is not there; of the call.
    pub async fn pull_with_programs(&self, name: &str, programs: &str) -> Result<String> {
        self.push(&[name], Some(("PROGRAMS", programs.as_ref()))).await?;
        let image = self.image_of(name);
        self.cri().pull(&image).await?;
        Ok(image)
    }

    fn image_of(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.registry_port)
    }

    /// `more` is what goes into the image beside busybox, in the script's words.
    async fn push(&self, arguments: &[&str], more: Option<(&str, &OsStr)>) -> Result<()> {
        let registry = format!("http://127.0.0.1:{}", self.registry_port);
        let last = wait::until(wait::SERVER, "the registry's answer", async || {
            let output = Command::new(self.bundle.join("deploy/registry/push-busybox"))
                .arg(&registry)
                .args(arguments)
                .env("BUSYBOX", self.bundle.join("bin/busybox"))
                .envs(more)
                .stdin(Stdio::null())
                .output()
                .await
                .ok()?;
            output.status.success().then_some(())
        });
        last.await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Pods of a test that failed must not outlive it.
        for trace in self.traces() {
            let pid = trace.strip_prefix("process ").and_then(|pid| pid.parse().ok());
            if let Some(pid) = pid {
                // It may have ended by itself since.
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                    .ok();
            }
        }
        drop(self.registry.start_kill());
        drop(
            std::process::Command::new("ip")
                .args(["link", "delete", BRIDGE])
                .output(),
        );
        // A directory of the host that a pod had may still be bound below ours: nothing may be deleted through that.
        if !unmount_below(self.run.path()) {
            self.run.disable_cleanup(true);
        }
    }
}

/// Whether nothing is mounted below `directory` any more.
fn unmount_below(directory: &Path) -> bool {
    let below = || {
        let mounts = fs_err::read_to_string("/proc/self/mounts").ok()?;
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let below = places.filter(|place| Path::new(place).starts_with(directory));
        Some(below.map(str::to_owned).collect::<Vec<_>>())
    };
    for place in below().into_iter().flatten().rev() {
        drop(
            std::process::Command::new("umount")
                .args(["--lazy", &place])
                .output(),
        );
    }
    below().is_some_and(|left| left.is_empty())
}

fn search_path(bundle: &Path) -> String {
    format!(
        "{}/bin:{}",
        bundle.display(),
        std::env::var("PATH").unwrap_or_default()
    )
}

fn log(dir: &TempDir, name: &str) -> Result<File> {
    let file = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.path().join(name))?;
    Ok(file.into_parts().0)
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
