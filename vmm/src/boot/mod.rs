//! The boot of a Machine, in boot order. [`boot`] is the story; `processors` makes processors, `payload` puts things into guest
//! memory, `beside` does two things at a time, `chassis` is what holds it all together. `restore` is the story of a guest that goes on
//! from a snapshot.

mod beside;
mod chassis;
mod elf;
mod payload;
mod processors;
mod restore;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use self::beside::{beside, create_vm_beside};
use self::chassis::{Chassis, watch_signals};
use self::processors::Processors;
use crate::config::{Payload, Plan};
use crate::devices::ring::ConsoleRing;
use crate::devices::table::BuildDeviceError;
use crate::devices::virtio::vsock::{Vsock, VsockError};
use crate::kvm::{self, KvmError, Vm};
use crate::machine::{AttachError, Machine};
use crate::memory::layout::RamLayout;
use crate::memory::{self, MemoryError};
use crate::pci::bus::BusFull;
use crate::snapshot::SnapshotError;

pub(crate) use self::payload::PayloadError;
pub(crate) use self::restore::restore;

/// Why a Machine cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error(transparent)]
    Bus(#[from] BusFull),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Device(#[from] BuildDeviceError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("cannot listen on the control socket {path}")]
    Control {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {operation}")]
    Host {
        /// Verb and object.
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot set the event loop up")]
    EventLoop(#[source] event_manager::Error),
}

impl BootError {
    fn host(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { operation, source }
    }
}

/// Builds what `plan` says and lets the guest run from `payload`.
pub(crate) fn boot(mut plan: Plan, payload: &Payload, process_started: u64) -> Result<Machine, BootError> {
    // Before any thread exists, so that every thread has the signals blocked and only the loop sees them.
    let signals = watch_signals()?;
    let kvm = kvm::open()?;
    let processors = Processors::ask(&kvm, plan.vcpus)?;

    let layout = layout(&plan, processors.address_bits())?;
    let ram = memory::map_ram(layout)?;
    let load = || payload::load(payload, plan.vcpus.max, &ram, layout);
    let populate = || {
        // Of a kernel that cannot be asked for its size there is less beforehand.
        let kernel = payload.kernel.metadata().map_or(0, |file| file.len());
        let touched = layout.touched_by_boot(kernel);
        touched.iter().for_each(|range| memory::populate(&ram, range));
    };
    let prepare = || Ok(beside("populate", populate, load)?.1?);
    let (fd, entry) = create_vm_beside(&kvm, prepare)?;
    let vm = Arc::new(Vm::new(&kvm, fd, ram, layout, processors.address_bits())?);
    let vcpus = processors.create(&vm, entry)?;

    let ring = ConsoleRing::new(plan.console_bytes);
    let chassis = Chassis::new(&vm, vcpus.first(), ring, None, process_started)?;
    let mut devices = Vec::new();
    if let Some(vsock) = &plan.vsock {
        let first = Arc::clone(&chassis.milestones.first_vsock);
        let device = Vsock::new(vsock.guest_cid, &vsock.socket, first)?;
        devices.push(chassis.add_own(Arc::new(Mutex::new(device)))?);
    }
    for prepared in std::mem::take(&mut plan.devices) {
        devices.push(chassis.add(prepared)?);
    }
    let mut machine = chassis.start(plan, signals, devices, vcpus)?;
    // Only a snapshot is the better for it.
    machine.read_only = elf::read_only_segments(&payload.kernel).unwrap_or_default();
    Ok(machine)
}

/// Where RAM lies, if the processors reach all of it.
fn layout(plan: &Plan, address_bits: u8) -> Result<RamLayout, KvmError> {
    let layout = RamLayout::new(plan.memory_bytes, plan.hotplug_bytes);
    if layout.fits(address_bits) {
        Ok(layout)
    } else {
        Err(KvmError::AddressSpace {
            size: plan.hotplug_bytes,
        })
    }
}
