//! The peer: Debian's containerd with runc, and with gVisor's runsc where that is installed, on the same network and registry.

use std::{env, fs::File, path::Path, process::Stdio};

use anyhow::{Context, Result};
use e2e::{Cri, Node, wait};
use proto::cri::v1 as cri;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// A containerd of its own. Killed when dropped; its pods are to be removed before.
#[derive(Debug)]
pub(crate) struct Containerd {
    pub(crate) cri: Cri,
    /// What it and runc call themselves.
    pub(crate) version: String,
    /// Whether it has the runtime handler `runsc`.
    pub(crate) has_runsc: bool,
    _process: Child,
    _directory: TempDir,
}

impl Containerd {
    /// `None` where it is not installed.
    pub(crate) async fn start(node: &Node) -> Result<Option<Self>> {
        if found("containerd").is_none() || found("runc").is_none() {
            return Ok(None);
        }
        let pause = node
            .push_another("e2e/pause:latest", "exec sleep 2000000000")
            .await?;
        let directory = tempfile::Builder::new().prefix("cppeer").tempdir_in("/var/lib")?;
        let has_runsc = found("runsc").is_some() && found("containerd-shim-runsc-v1").is_some();
        let at = directory.path();
        fs_err::write(at.join("config.toml"), configuration(node, at, &pause, has_runsc))?;
        let process = Command::new("containerd")
            .arg("--config")
            .arg(at.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(at.join("log"))?)
            .kill_on_drop(true)
            .spawn()
            .context("start containerd")?;
        let (cri, version) = wait::until(wait::SERVER, "containerd's answer", async || {
            let cri = Cri::connect(at.join("containerd.sock")).await.ok()?;
            let request = cri::VersionRequest::default();
            let version = cri.runtime.clone().version(request).await.ok()?.into_inner();
            let name = format!("{} {}", version.runtime_name, version.runtime_version);
            Some((cri, name))
        })
        .await
        .with_context(|| fs_err::read_to_string(at.join("log")).unwrap_or_default())?;
        cri.pull(&node.image()).await?;
        Ok(Some(Self {
            cri,
            version,
            has_runsc,
            _process: process,
            _directory: directory,
        }))
    }
}

fn configuration(node: &Node, at: &Path, pause: &str, runsc: bool) -> String {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    let (at, net) = (at.display(), node.cni_configuration());
    let mut text = format!(
        "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n[grpc]\naddress = \"{at}/containerd.sock\"\n\
         [{cri}]\nrestrict_oom_score_adj = true\nsandbox_image = \"{pause}\"\n\
         [{cri}.cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{}\"\n\
         [{cri}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n",
        net.display()
    );
    if runsc {
        text.push_str(&format!(
            "[{cri}.containerd.runtimes.runsc]\nruntime_type = \"io.containerd.runsc.v1\"\n"
        ));
    }
    text
}

/// The program's path, if PATH leads to one.
pub(crate) fn found(program: &str) -> Option<std::path::PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}
