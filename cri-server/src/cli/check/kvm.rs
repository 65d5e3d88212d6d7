//! Whether KVM runs our guests: boots one, up to its agent.
//!
//! The presence of `/dev/kvm` says little. Some hosts have one that answers every question about its capabilities and then
//! interprets the guest instruction by instruction, until it meets one that it does not know.

use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proto::machine::{CONFIG_VERSION, Console, FileSource, MachineConfig, Vcpus, Vsock};

use super::{Finding, Subject};
use crate::{
    config::Config,
    guest::{Ready, ReadyListener},
    machine::{LaunchSpec, Launcher, Layout, VmmLauncher},
};

/// Hardware needs less than one second, the emulated node about three.
const DEADLINE: Duration = Duration::from_secs(12);
const MEMORY_MIB: u64 = 128;
const REMEDY: &str = "use a host with VMX or SVM (a cloud VM: switch on nested virtualisation) and load kvm_intel or \
                      kvm_amd; to try clearpod without, use the emulated node (deploy/demo chooses it by itself)";

/// The configured VMM, or the one beside this program when it was not installed.
pub(super) fn vmm(config: &Config) -> PathBuf {
    let configured = &config.machine.vmm;
    let sibling = env::current_exe().ok().and_then(|own| Some(own.parent()?.join("clearpod-vmm")));
    match sibling {
        Some(sibling) if !configured.is_file() && sibling.is_file() => sibling,
        _ => configured.clone(),
    }
}

pub(super) async fn boot(config: &Config) -> Finding {
    if !Path::new("/dev/kvm").exists() {
        return Finding::fails(Subject::Kvm, "there is no /dev/kvm", REMEDY);
    }
    let root = env::temp_dir();
    let layout = match Layout::new(&root, &format!("clearpod-check-{}", std::process::id())) {
        Ok(layout) => layout,
        Err(error) => return Finding::fails(Subject::Kvm, error, "set TMPDIR to a short path"),
    };
    let started = Instant::now();
    let result = boot_in(config, &layout).await;
    let left = layout.remove();
    match (result, left) {
        (Err(problem), _) => Finding::fails(Subject::Kvm, problem, REMEDY),
        (Ok(_), Err(error)) => Finding::fails(Subject::Kvm, error, "remove it by hand"),
        (Ok(ready), Ok(())) => Finding::works(
            Subject::Kvm,
            format!(
                "a guest's agent was ready after {} ms, {} ms of them in the guest",
                started.elapsed().as_millis(),
                ready.ready.as_millis()
            ),
        ),
    }
}

async fn boot_in(config: &Config, layout: &Layout) -> Result<Ready, String> {
    layout.create().map_err(|error| error.to_string())?;
    let listener = ReadyListener::bind(layout).map_err(|error| error.to_string())?;
    let launcher = VmmLauncher::new(vmm(config));
    let spec = LaunchSpec {
        layout: layout.clone(),
        config: machine(config, layout),
        inherited: Vec::new(),
        cgroup: None,
    };
    let process = launcher.launch(spec).await.map_err(|error| crate::sandbox::error_chain(&error))?;
    let ready = tokio::select! {
        ready = listener.wait(DEADLINE) => ready.map_err(|error| error.to_string()),
        exit = process.exited() => Err(format!("the VMM ended: {exit}{}", last_words(layout))),
    };
    if let Err(error) = process.kill() {
        return Err(format!("end the VMM: {error}"));
    }
    process.exited().await;
    ready
}

fn machine(config: &Config, layout: &Layout) -> MachineConfig {
    MachineConfig {
        version: CONFIG_VERSION,
        id: layout.id().to_owned(),
        kernel: FileSource::Path(config.machine.kernel.clone()),
        initramfs: FileSource::Path(config.machine.initramfs.clone()),
        command_line: config.machine.command_line.clone(),
        vcpus: Vcpus { boot: 1, max: 1 },
        memory_mib: MEMORY_MIB,
        control: Layout::CONTROL.into(),
        console: Console { ring_bytes: 16 * 1024, dump: None },
        vsock: Some(Vsock { guest_cid: 3, socket: Layout::VSOCK.into() }),
        devices: Vec::new(),
    }
}

fn last_words(layout: &Layout) -> String {
    let log = fs_err::read_to_string(layout.vmm_log()).unwrap_or_default();
    log.lines().last().map(|line| format!(": {line}")).unwrap_or_default()
}
