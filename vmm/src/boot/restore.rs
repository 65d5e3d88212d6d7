//! A guest goes on from a snapshot, in the order of its boot: the story of [`restore`].
//!
//! Whatever the snapshot has was checked as far as it can be before the first processor is made; what only KVM can judge it
//! refuses while nothing runs yet.

use std::sync::{Arc, Mutex};
use std::thread::{self, Scope};

use kvm_ioctls::VcpuFd;
use proto::machine::PageRun;

use super::beside::create_vm_beside;
use super::chassis::{Chassis, watch_signals};
use super::processors::Processors;
use super::{BootError, layout};
use crate::config::{Plan, SnapshotFiles};
use crate::devices::function::MachineFunction;
use crate::devices::ring::ConsoleRing;
use crate::devices::table;
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::{GuestMemory, SavedState};
use crate::kvm::{self, Vm};
use crate::machine::{AttachedDevice, Machine, attach_at};
use crate::memory::{self, PAGE, image};
use crate::pci::transport::SharedDevice;
use crate::snapshot::SnapshotError;
use crate::snapshot::file;
use crate::snapshot::state::{MachineState, PlacedDevice, SavedBus};

/// Builds what `plan` says around the guest in `files`, and lets it go on.
pub(crate) fn restore(
    mut plan: Plan,
    files: &SnapshotFiles,
    process_started: u64,
) -> Result<Machine, BootError> {
    // Before any thread exists, so that every thread has the signals blocked and only the loop sees them.
    let signals = watch_signals()?;
    // Whoever populates memory meanwhile has ended then.
    let (chassis, devices, vcpus) = thread::scope(|scope| build(scope, &mut plan, files, process_started))?;
    chassis.start(plan, signals, devices, vcpus)
}

/// A Machine whose processors do not run yet.
type Built = (Chassis, Vec<AttachedDevice>, Vec<VcpuFd>);

fn build<'scope>(
    scope: &'scope Scope<'scope, '_>,
    plan: &mut Plan,
    files: &'scope SnapshotFiles,
    process_started: u64,
) -> Result<Built, BootError> {
    let kvm = kvm::open()?;
    let prepare = || {
        let state = file::read(&files.state)?;
        state.fits(plan, &files.origin)?;
        let processors = Processors::ask(&kvm, plan.vcpus)?;
        let layout = layout(plan, processors.address_bits())?;
        let ram = image::map(layout, state.id, &files.memory).map_err(SnapshotError::Memory)?;
        let (memory, runs) = (ram.clone(), &files.written_soon);
        thread::Builder::new()
            .name("populate".to_owned())
            .spawn_scoped(scope, move || populate(&memory, runs))
            .map_err(BootError::host("start a thread"))?;
        Ok((state, processors, layout, ram))
    };
    let (fd, (state, processors, layout, ram)) = create_vm_beside(&kvm, prepare)?;
    let vm = Arc::new(Vm::new(&kvm, fd, ram, layout, processors.address_bits())?);
    let vcpus = processors.restore(&vm, &state.processors)?;
    vm.load_chips(&state.chips).map_err(SnapshotError::Kvm)?;

    let mut ring = ConsoleRing::new(plan.console_bytes);
    ring.restore(&state.console, state.console_dropped);
    let chassis = Chassis::new(&vm, vcpus.first(), ring, Some(&state.serial), process_started)?;
    restore_bus(&chassis, &state.bus)?;
    let mut devices = restore_devices(&chassis, plan, &state)?;
    // The others are new to the guest, which finds them when it looks for them.
    let saved = state.named_devices().count();
    for prepared in std::mem::take(&mut plan.devices).into_iter().skip(saved) {
        devices.push(chassis.add(prepared)?);
    }
    Ok((chassis, devices, vcpus))
}

/// Copies the pages that the guest is going to write, so that it is not stopped for each.
fn populate(memory: &GuestMemory, runs: &[PageRun]) {
    for PageRun { first, count } in runs {
        memory::populate(memory, &(first * PAGE..(first + count) * PAGE));
    }
}

fn restore_bus(chassis: &Chassis, saved: &SavedBus) -> Result<(), SnapshotError> {
    let mut pci = chassis.bus.pci();
    pci.restore_address(saved.address);
    for (slot, config) in &saved.fixed {
        let function = pci.get_mut(*slot);
        if !function.is_some_and(|function| function.restore_fixed(config)) {
            return Err(part(
                format!("function {slot}"),
                "this Machine has no such function",
            ));
        }
    }
    Ok(())
}

/// The devices that the guest knows, each where it was. Those that were running are started by the event loop.
fn restore_devices(
    chassis: &Chassis,
    plan: &Plan,
    state: &MachineState,
) -> Result<Vec<AttachedDevice>, BootError> {
    let mut devices = Vec::new();
    for placed in &state.devices {
        let mut attached = rebuild(chassis, plan, placed)?;
        let what = || format!("the device at {}", placed.slot);
        attached.slot = attach_at(&chassis.bus, &chassis.services, &attached.device, placed.slot)?;
        let mut pci = chassis.bus.pci();
        let function = pci.get_mut(placed.slot).and_then(MachineFunction::virtio);
        let function = function.ok_or_else(|| part(what(), "it is none of virtio"))?;
        function
            .restore(&placed.function)
            .map_err(|problem| part(what(), problem))?;
        devices.push(attached);
    }
    Ok(devices)
}

fn rebuild(chassis: &Chassis, plan: &Plan, placed: &PlacedDevice) -> Result<AttachedDevice, BootError> {
    let own: SharedDevice = match (&placed.device.own, &plan.vsock) {
        (SavedState::Vsock(saved), Some(vsock)) => {
            let first = Arc::clone(&chassis.milestones.first_vsock);
            let device = Vsock::new(vsock.guest_cid, &vsock.socket, first)?;
            Arc::new(Mutex::new(device.restored(*saved)))
        }
        (own, _) => {
            let id = placed.id.clone().unwrap_or_default();
            let built = table::restore(id, own, &chassis.vm);
            let problem = "it is none of this Machine's";
            let built = built.ok_or_else(|| part(format!("the device at {}", placed.slot), problem))?;
            return Ok(AttachedDevice::named(built, placed.slot));
        }
    };
    Ok(AttachedDevice::own(own, placed.slot))
}

fn part(what: String, problem: &'static str) -> SnapshotError {
    SnapshotError::Part { what, problem }
}
