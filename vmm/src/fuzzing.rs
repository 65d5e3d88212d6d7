//! Entry points of the fuzz targets in `vmm/fuzz`: a guest that does what the input says. No KVM.

mod devices;
mod snapshot;

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use vm_memory::{Bytes, GuestAddress};

use crate::control;
use crate::devices::function::MachineFunction;
use crate::devices::pvpanic::PvPanic;
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::mem::Mem;
use crate::event_loop::{DeviceSubscriber, Mailbox, Message, Subscriber};
use crate::pci::bus::{PciBus, Slot};
use crate::pci::host_bridge::HostBridge;
use crate::pci::transport::testing::FakeKvm;
use crate::pci::transport::{Services, SharedDevice, VirtioFunction};

pub use self::devices::{
    balloon_pages, block_request, fs_bounce, fs_orphan, mem_request, net_tx, vsock_packet,
};
pub use self::snapshot::snapshot_state;

const MEMORY: usize = 1 << 16;
/// Where memory can be plugged: a block of it, and none that is mapped.
const HOTPLUG: std::ops::Range<u64> = 0x1_0000_0000..0x1_0800_0000;
/// Operation, address, length of the data that follows.
const HEAD: usize = 6;

/// A guest that accesses PCI ports and BARs, with the rings that the input puts into its memory.
pub fn pci_accesses(input: &[u8]) {
    let Some(mut machine) = MachineModel::new(input) else {
        return;
    };
    let mut rest = input;
    while let Some((head, tail)) = rest.split_first_chunk::<HEAD>() {
        let [operation, a, b, c, d, length] = *head;
        let address = u32::from_le_bytes([a, b, c, d]);
        let (data, tail) = tail.split_at(usize::from(length % 9).min(tail.len()));
        machine.step(operation, address, data);
        rest = tail;
    }
}

/// A client of the control socket that sends the input in pieces.
pub fn control_lines(input: &[u8]) {
    control::feed(input);
}

/// The bus with two devices, and the event loop's part for them.
struct MachineModel {
    pci: PciBus<MachineFunction>,
    devices: Vec<(Slot, SharedDevice, Option<SubscriberId>)>,
    events: EventManager<Subscriber>,
    mail: Receiver<Message>,
}

impl MachineModel {
    /// `None`: the process has no descriptors left.
    fn new(memory_image: &[u8]) -> Option<Self> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).ok()?;
        let image = &memory_image[..memory_image.len().min(MEMORY)];
        memory.write_slice(image, GuestAddress(0)).ok()?;
        let (mailbox, mail, _) = Mailbox::new().ok()?;
        let kvm = Arc::new(FakeKvm::default());
        let services = Services {
            memory,
            messages: Arc::<FakeKvm>::clone(&kvm),
            wiring: kvm,
            mailbox: mailbox.clone(),
        };
        let mut pci = PciBus::new();
        let slot = pci.free_slot().ok()?;
        pci.insert(slot, MachineFunction::HostBridge(HostBridge::new()));
        let slot = pci.free_slot().ok()?;
        pci.insert(slot, MachineFunction::PvPanic(PvPanic::new(slot, mailbox)));
        let own: [SharedDevice; 2] = [
            Arc::new(Mutex::new(Balloon::new(1))),
            Arc::new(Mutex::new(Mem::new(&HOTPLUG))),
        ];
        let mut devices = Vec::new();
        for device in own {
            let slot = pci.free_slot().ok()?;
            let function = VirtioFunction::new(slot, SharedDevice::clone(&device), &services).ok()?;
            pci.insert(slot, MachineFunction::Virtio(Box::new(function)));
            devices.push((slot, device, None));
        }
        Some(Self {
            pci,
            devices,
            events: EventManager::new().ok()?,
            mail,
        })
    }

    fn step(&mut self, operation: u8, address: u32, data: &[u8]) {
        let mut buffer = data.to_vec();
        let port = 0xCF8 + (address & 7) as u16;
        // The first four functions' BARs, at their preset places or where the guest has moved them.
        let place = 0xC000_0000 | u64::from(address & 0x1_FFFF);
        match operation % 8 {
            0 => self.pci.write_port(port, data),
            1 => self.pci.read_port(port, &mut buffer),
            2 => self
                .pci
                .write_port(0xCF8, &(1 << 31 | address & 0x7FF).to_le_bytes()),
            3 => drop(self.pci.write_memory(place, data)),
            4 => drop(self.pci.read_memory(place, &mut buffer)),
            5 if address & 1 == 0 => drop(self.pci.write_memory(u64::from(address), data)),
            5 => drop(self.pci.write_decoded_port((address >> 1) as u16, data)),
            6 => self.deliver_mail(),
            _ => drop(self.events.run_with_timeout(0)),
        }
    }

    fn deliver_mail(&mut self) {
        while let Ok(message) = self.mail.try_recv() {
            match message {
                Message::ActivateDevice(slot) => self.activate(slot),
                Message::ResetDevice(slot) => self.reset(slot),
                Message::GuestPanicked | Message::GuestEnded(_) => {}
            }
        }
    }

    fn activate(&mut self, slot: Slot) {
        let function = self.pci.get_mut(slot).and_then(MachineFunction::virtio);
        let entry = self.devices.iter_mut().find(|(at, ..)| *at == slot);
        let Some((function, (_, device, subscription))) = function.zip(entry) else {
            return;
        };
        let Some(activation) = function.begin_activation() else {
            return;
        };
        let result = device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .activate(activation);
        if result.is_err() {
            return function.broken();
        }
        let subscriber = Subscriber::Device(DeviceSubscriber(SharedDevice::clone(device)));
        assert!(
            subscription
                .replace(self.events.add_subscriber(subscriber))
                .is_none(),
            "started twice"
        );
        function.activated();
    }

    fn reset(&mut self, slot: Slot) {
        let function = self.pci.get_mut(slot).and_then(MachineFunction::virtio);
        let entry = self.devices.iter_mut().find(|(at, ..)| *at == slot);
        let Some((function, (_, device, subscription))) = function.zip(entry) else {
            return;
        };
        if function.wants_reset() {
            let subscription = subscription.take();
            drop(subscription.map(|id| self.events.remove_subscriber(id)));
            device.lock().unwrap_or_else(PoisonError::into_inner).deactivate();
            function.reset_done();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_input_panics(input in prop::collection::vec(any::<u8>(), 0..2000)) {
            pci_accesses(&input);
            control_lines(&input);
        }
    }
}
