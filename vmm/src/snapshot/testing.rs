//! A snapshot without KVM, for tests and fuzz targets: a Machine whose guest has only just looked at its devices.

use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;

use super::state::{MachineState, PlacedDevice, SavedBus, Shape};
use crate::devices::ring::ConsoleRing;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::mem::Mem;
use crate::event_loop::Mailbox;
use crate::kvm::{ChipState, ProcessorState};
use crate::pci::bus::{Function, PciBus};
use crate::pci::host_bridge::HostBridge;
use crate::pci::transport::testing::FakeKvm;
use crate::pci::transport::{Services, SharedDevice, VirtioFunction};

const MIB: u64 = 1 << 20;

/// Devices as they can be in a snapshot, with their names.
fn devices() -> [(&'static str, SharedDevice); 2] {
    let region = 4096 * MIB..(4096 + 128) * MIB;
    [
        ("memory", Arc::new(Mutex::new(Mem::new(&region)))),
        ("balloon", Arc::new(Mutex::new(Balloon::new(128)))),
    ]
}

/// Functions with these devices, as a restored Machine has them before it takes anything over. `None`: the process has no
/// descriptors left.
pub(crate) fn functions() -> Option<Vec<(&'static str, SharedDevice, VirtioFunction)>> {
    let kvm = Arc::new(FakeKvm::default());
    let (mailbox, ..) = Mailbox::new().ok()?;
    let services = Services {
        memory: GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).ok()?,
        messages: Arc::<FakeKvm>::clone(&kvm),
        wiring: kvm,
        mailbox,
    };
    let mut pci = PciBus::<HostBridge>::new();
    let mut made = Vec::new();
    for (id, device) in devices() {
        let slot = pci.free_slot().ok()?;
        // Something that takes the place: the functions themselves are handed out.
        pci.insert(slot, HostBridge::new());
        let function = VirtioFunction::new(slot, SharedDevice::clone(&device), &services).ok()?;
        made.push((id, device, function));
    }
    Some(made)
}

/// Two processors, 128 MiB and as much to come, and what was written to the console.
pub(crate) fn state() -> Option<MachineState> {
    let mut pci = PciBus::<HostBridge>::new();
    let mut saved = Vec::new();
    for (id, device, mut function) in functions()? {
        function.write_config(4, &[6, 0]);
        let device = device.lock().ok()?.save()?;
        let slot = pci.free_slot().ok()?;
        pci.insert(slot, HostBridge::new());
        saved.push(PlacedDevice {
            id: Some(id.to_owned()),
            slot,
            function: function.save(&device.progress)?,
            device,
        });
    }
    let serial = SerialPort::new(Arc::new(Mutex::new(ConsoleRing::new(4096)))).ok()?;
    Some(MachineState {
        id: *b"0123456789abcdef",
        origin: "kernel 1".to_owned(),
        shape: Shape {
            boot: 1,
            max: 2,
            memory_bytes: 128 * MIB,
            hotplug_bytes: 128 * MIB,
        },
        chips: ChipState::sample(),
        processors: vec![ProcessorState::sample(), ProcessorState::sample()],
        bus: SavedBus {
            address: 0x8000_0000,
            fixed: Vec::new(),
        },
        devices: saved,
        serial: serial.save(),
        console: b"Linux version".to_vec(),
        console_dropped: 3,
    })
}
