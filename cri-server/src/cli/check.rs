//! `clearpod check`: tries each thing that pods need on this host, by doing it. KVM is checked by booting the guest kernel:
//! there are hosts whose /dev/kvm exists, answers, and cannot run one.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use proto::machine::{CONFIG_VERSION, Console, FileSource, MachineConfig, Vcpus, Vsock};

use super::speed;
use crate::{
    config::Config,
    guest::ReadyListener,
    host::HostPodsConfig,
    machine::{LaunchSpec, Launcher as _, Layout, MachineCgroup, ScratchTemplate, VmmLauncher},
    network::CniNetwork,
    sandbox::{chain, new_id},
};

/// What can be checked alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// VMM, virtiofsd, kernel and initramfs; the shim and the OCI runtime where pods may run on the host
    Files,
    /// The guest kernel boots and its agent answers
    Kvm,
    /// cgroup v2
    Cgroup,
    /// CNI configuration, plugins and /dev/net/tun
    Network,
    /// State directory and mkfs.ext4
    Disk,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) name: &'static str,
    pub(super) result: Result<String, Problem>,
}

#[derive(Debug)]
pub(super) struct Problem {
    what: String,
    remedy: String,
}

/// What a program begins with.
const ELF: &[u8] = b"\x7fELF";
/// Free space that a node should have, bytes.
const FREE: u64 = 1024 * 1024 * 1024;

pub(super) async fn run(
    config: &Config,
    part: Option<Part>,
    deadline: u64,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let wanted = |other| part.is_none_or(|part| part == other);
    let mut failed = false;
    for candidate in [Part::Files, Part::Cgroup, Part::Network, Part::Disk, Part::Kvm] {
        if !wanted(candidate) {
            continue;
        }
        let findings = match candidate {
            Part::Files => files(config),
            Part::Kvm => vec![
                kvm(config, Duration::from_secs(deadline)).await,
                speed::huge_pages(),
            ],
            Part::Cgroup => vec![cgroup(config), speed::cgroup_changes()],
            Part::Network => network(config),
            Part::Disk => disk(config).await,
        };
        for finding in &findings {
            failed |= finding.result.is_err();
            tell(finding, out)?;
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn tell(finding: &Finding, out: &mut dyn Write) -> std::io::Result<()> {
    match &finding.result {
        Ok(detail) => writeln!(out, "ok      {:<12} {detail}", finding.name),
        Err(problem) => {
            writeln!(out, "FAILED  {:<12} {}", finding.name, problem.what)?;
            writeln!(out, "        {:<12} remedy: {}", "", problem.remedy)
        }
    }
}

fn problem(what: impl Into<String>, remedy: impl Into<String>) -> Problem {
    Problem {
        what: what.into(),
        remedy: remedy.into(),
    }
}

fn files(config: &Config) -> Vec<Finding> {
    let machine = &config.machine;
    let mut findings: Vec<Finding> = [
        (
            "vmm",
            &machine.vmm,
            ELF,
            "install clearpod-vmm, or set machine.vmm",
        ),
        (
            "virtiofsd",
            &machine.virtiofsd,
            ELF,
            "build it with deploy/lib/virtiofsd, or set machine.virtiofsd; only pods that share files of the host need it",
        ),
        (
            "kernel",
            &machine.kernel,
            ELF,
            "build it with deploy/kernel/build, or set machine.kernel",
        ),
        (
            "initramfs",
            &machine.initramfs,
            b"07070",
            "build it with deploy/initramfs/build, or set machine.initramfs",
        ),
    ]
    .into_iter()
    .map(|(name, path, magic, remedy)| Finding {
        name,
        result: begins_with(path, magic).map_err(|what| problem(what, remedy)),
    })
    .collect();
    if config.host_pods.enabled {
        findings.extend(host_pods(&config.host_pods));
    }
    findings
}

/// Only where pods may run on the host.
fn host_pods(config: &HostPodsConfig) -> [Finding; 2] {
    let shim = begins_with(&config.shim(), ELF);
    let runtime = config
        .find_runtime()
        .map(|path| path.display().to_string())
        .ok_or_else(|| format!("there is no {}", config.runtime.display()));
    [
        Finding {
            name: "shim",
            result: shim.map_err(|what| problem(what, "install clearpod-shim, or set host_pods.shim")),
        },
        Finding {
            name: "oci-runtime",
            result: runtime.map_err(|what| problem(what, "install crun or runc, or set host_pods.runtime")),
        },
    ]
}

fn begins_with(path: &Path, magic: &[u8]) -> Result<String, String> {
    use std::io::Read as _;
    let mut start = vec![0; magic.len()];
    fs_err::File::open(path)
        .and_then(|mut file| file.read_exact(&mut start))
        .map_err(|error| error.to_string())?;
    if start == magic {
        Ok(path.display().to_string())
    } else {
        Err(format!("{} is of another format", path.display()))
    }
}

fn cgroup(config: &Config) -> Finding {
    let result = match &config.machine.cgroup_root {
        None => Ok("not used: machine.cgroup_root is unset".to_owned()),
        Some(root) if MachineCgroup::is_v2(root) => Ok(root.display().to_string()),
        Some(root) => Err(problem(
            format!("{} is no cgroup v2 file system", root.display()),
            "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 there",
        )),
    };
    Finding {
        name: "cgroup",
        result,
    }
}

fn network(config: &Config) -> Vec<Finding> {
    let conf_dir = config.network.conf_dir.display();
    let cni = match CniNetwork::new(config.network.clone()).inspect() {
        Ok(report) if report.missing_plugins.is_empty() => {
            Ok(format!("{} from {}", report.network, report.file.display()))
        }
        Ok(report) => Err(problem(
            format!("plugins are missing: {}", report.missing_plugins.join(", ")),
            format!(
                "install them (Debian: containernetworking-plugins) in one of {:?}",
                config.network.bin_dirs
            ),
        )),
        Err(error) => Err(problem(
            chain(&error),
            format!("install a network add-on, or write a conflist to {conf_dir}"),
        )),
    };
    let tun = PathBuf::from("/dev/net/tun");
    let tun = match fs_err::OpenOptions::new().read(true).write(true).open(&tun) {
        Ok(_) => Ok(tun.display().to_string()),
        Err(error) => Err(problem(error.to_string(), "modprobe tun, and run as root")),
    };
    vec![
        Finding {
            name: "cni",
            result: cni,
        },
        Finding {
            name: "tun",
            result: tun,
        },
    ]
}

async fn disk(config: &Config) -> Vec<Finding> {
    vec![
        Finding {
            name: "state",
            result: space(&config.state),
        },
        Finding {
            name: "scratch",
            result: scratch(config).await,
        },
    ]
}

fn space(state: &Path) -> Result<String, Problem> {
    let remedy = "run as root, or set state to a directory of a disk with space";
    fs_err::create_dir_all(state).map_err(|error| problem(error.to_string(), remedy))?;
    let stat = rustix::fs::statvfs(state).map_err(|error| problem(error.to_string(), remedy))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let text = format!("{} has {} MiB free", state.display(), free >> 20);
    if free < FREE {
        return Err(problem(text, remedy));
    }
    Ok(text)
}

async fn scratch(config: &Config) -> Result<String, Problem> {
    let remedy = "install e2fsprogs (mkfs.ext4); see the message for what else";
    let size = config.machine.scratch_mib.saturating_mul(1 << 20);
    let template = ScratchTemplate::new(config.state.join("scratch-template"), size)
        .map_err(|error| problem(chain(&error), "set machine.scratch_mib"))?;
    let path = template
        .prepare()
        .await
        .map_err(|error| problem(chain(&error), remedy))?;
    Ok(format!("template {}", path.display()))
}

async fn kvm(config: &Config, deadline: Duration) -> Finding {
    let device = fs_err::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let result = match device {
        Err(error) => Err(problem(
            error.to_string(),
            "enable virtualisation in the firmware (or nested in the hypervisor), modprobe kvm_intel or kvm_amd, run as root; \
             without hardware support use the emulated node (deploy/node)",
        )),
        Ok(_) => boot(config, deadline).await.map_err(|what| {
            problem(
                what,
                "this /dev/kvm does not run a stock kernel: use another host, or the emulated node (deploy/node)",
            )
        }),
    };
    Finding { name: "kvm", result }
}

/// Boots the guest kernel with nothing but a vsock device, and waits for its agent.
async fn boot(config: &Config, deadline: Duration) -> Result<String, String> {
    let id = new_id().map_err(|error| chain(&error))?;
    let layout = Layout::new(&config.run.join("check"), &id).map_err(|error| chain(&error))?;
    layout.create().map_err(|error| chain(&error))?;
    let outcome = boot_in(config, &layout, deadline).await;
    let removed = layout.remove().map_err(|error| chain(&error));
    outcome.and_then(|detail| removed.map(|()| detail))
}

async fn boot_in(config: &Config, layout: &Layout, deadline: Duration) -> Result<String, String> {
    let listener = ReadyListener::bind(layout).map_err(|error| chain(&error))?;
    let spec = LaunchSpec {
        layout: layout.clone(),
        config: MachineConfig {
            version: CONFIG_VERSION,
            id: layout.id().to_owned(),
            kernel: Some(FileSource::Path(config.machine.kernel.clone())),
            initramfs: Some(FileSource::Path(config.machine.initramfs.clone())),
            command_line: config.machine.command_line.clone(),
            snapshot: None,
            vcpus: Vcpus { boot: 1, max: 1 },
            memory_mib: config.machine.memory_min_mib,
            memory_hotplug_mib: 0,
            control: Layout::CONTROL.into(),
            console: Console {
                ring_bytes: config.machine.console_kib * 1024,
                dump: Some(Layout::CONSOLE_LOG.into()),
            },
            vsock: Some(Vsock {
                guest_cid: 3,
                socket: Layout::VSOCK.into(),
            }),
            devices: Vec::new(),
        },
        inherited: Vec::new(),
        cgroup: None,
    };
    let began = Instant::now();
    let launcher = VmmLauncher::new(config.machine.vmm.clone());
    let process = launcher.launch(spec).await.map_err(|error| chain(&error))?;
    let outcome = tokio::select! {
        ready = listener.wait(deadline) => ready.map_err(|error| chain(&error)),
        exit = process.exited() => Err(exit.to_string()),
    };
    if let Err(error) = process.kill() {
        tracing::warn!(%error, "the VMM of the check could not be killed");
    }
    process.exited().await;
    let log = fs_err::read_to_string(layout.vmm_log()).unwrap_or_default();
    match outcome {
        Ok(ready) => Ok(format!(
            "guest ready after {} ms, agent {}",
            began.elapsed().as_millis(),
            ready.agent_version
        )),
        Err(what) => Err(match log.trim() {
            "" => what,
            log => format!("{what}; VMM: {log}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_is_told_with_its_remedy_and_fails() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.machine.kernel = directory.path().join("no-kernel");
        config.machine.vmm = directory.path().join("vmm");
        config.machine.virtiofsd = directory.path().join("virtiofsd");
        fs_err::write(&config.machine.vmm, "#!/bin/sh").unwrap();
        let mut out = Vec::new();
        let code = run(&config, Some(Part::Files), 1, &mut out).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE));
        assert!(
            text.contains("no-kernel") && text.contains("another format"),
            "{text}"
        );
        assert_eq!(text.matches("remedy:").count(), 4, "{text}");
    }
}
