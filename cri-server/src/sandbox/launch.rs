//! What a VMM is started with. Every file outside of the Machine's directory reaches it as a descriptor, so that it needs no path
//! there.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use proto::machine::{CONFIG_VERSION, Console, Device, FileSource, MachineConfig, Snapshot, Vcpus, Vsock};

use super::{
    error::RequestError,
    live::{BALLOON, NET, SCRATCH},
    plan::SandboxPlan,
};
use crate::{
    config::Config,
    machine::{LaunchSpec, Layout},
    network::Prepared,
    template::Fork,
};

/// What a Machine has of its pod.
#[derive(Debug)]
pub(super) struct Equipment {
    pub(super) network: Prepared,
    pub(super) scratch: PathBuf,
}

/// The VMM of `plan`: it boots, or goes on from `fork`. Without `equipment` there is nothing of a pod in it.
pub(super) fn launch_spec(
    config: &Config,
    plan: &SandboxPlan,
    equipment: Option<Equipment>,
    fork: Option<&Fork>,
) -> Result<LaunchSpec, RequestError> {
    let mut files = Files::default();
    let defaults = &config.machine;
    let mut machine = shell(plan, defaults.console_kib);
    match fork {
        None => {
            machine.kernel = Some(files.open(&defaults.kernel, false)?);
            machine.initramfs = Some(files.open(&defaults.initramfs, false)?);
            machine.command_line.clone_from(&defaults.command_line);
        }
        Some(fork) => {
            let [memory, state] = fork
                .open()
                .map_err(RequestError::failed("open the template's files"))?;
            machine.snapshot = Some(Snapshot {
                memory: files.give(memory),
                state: files.give(state),
                origin: fork.origin().to_owned(),
                written_soon: fork.pages().runs().to_vec(),
            });
        }
    }
    // A template has had the balloon; what is behind it is new to its guest, which finds it when it is told of it.
    // A memory device comes when the Machine first grows (`grow`): most never do.
    machine.devices.push(Device::Balloon {
        id: BALLOON.to_owned(),
    });
    if let Some(Equipment { network, scratch }) = equipment {
        machine.devices.push(Device::Net {
            id: NET.to_owned(),
            tap: files.give(network.tap),
            mac: first_mac(&plan.id),
        });
        machine.devices.push(Device::Block {
            id: SCRATCH.to_owned(),
            file: files.open(&scratch, true)?,
            read_only: false,
        });
    }
    Ok(LaunchSpec {
        layout: plan.layout.clone(),
        config: machine,
        inherited: files.0,
        cgroup: plan
            .cgroup
            .as_ref()
            .map(|plan| plan.cgroup.directory().to_owned()),
    })
}

/// What the VMM inherits. A configuration names each by its place.
#[derive(Debug, Default)]
struct Files(Vec<OwnedFd>);

impl Files {
    fn give(&mut self, descriptor: OwnedFd) -> FileSource {
        // A handful.
        let index = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.push(descriptor);
        FileSource::Fd(index)
    }

    fn open(&mut self, path: &Path, write: bool) -> Result<FileSource, RequestError> {
        let opened = fs_err::OpenOptions::new().read(true).write(write).open(path);
        let file = opened.map_err(RequestError::failed("open the machine's files"))?;
        Ok(self.give(file.into_parts().0.into()))
    }
}

/// A Machine that has nothing yet.
fn shell(plan: &SandboxPlan, console_kib: u32) -> MachineConfig {
    MachineConfig {
        version: CONFIG_VERSION,
        id: plan.id.clone(),
        kernel: None,
        initramfs: None,
        command_line: String::new(),
        snapshot: None,
        vcpus: Vcpus {
            boot: plan.vcpus,
            max: plan.vcpus_possible,
        },
        memory_mib: plan.memory_mib,
        memory_hotplug_mib: plan.memory_hotplug_mib,
        control: Layout::CONTROL.into(),
        console: Console {
            ring_bytes: console_kib * 1024,
            dump: Some(Layout::CONSOLE_LOG.into()),
        },
        vsock: Some(Vsock {
            // Each VMM muxes its own guest, so all guests may have the same number.
            guest_cid: 3,
            socket: Layout::VSOCK.into(),
        }),
        devices: Vec::new(),
    }
}

/// The guest starts before the plugins have chosen its address; this one is replaced when it is configured.
fn first_mac(id: &str) -> String {
    let digits = |at: usize| id.get(at..at + 2).unwrap_or("00");
    format!(
        "02:{}:{}:{}:{}:{}",
        digits(0),
        digits(2),
        digits(4),
        digits(6),
        digits(8)
    )
}
