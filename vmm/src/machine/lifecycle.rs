//! Devices come to life, are reset, appear and disappear. Everything here runs on the event loop's thread.

use std::sync::PoisonError;

use event_manager::SubscriberOps;

use super::{AttachedDevice, Machine};
use crate::devices::function::MachineFunction;
use crate::devices::table::BuiltDevice;
use crate::event_loop::{DeviceSubscriber, Subscriber};
use crate::pci::bus::{BusFull, PciBus, Slot};
use crate::pci::transport::{Services, SharedDevice, TransportError, VirtioFunction};

/// Why a device cannot be put on the bus.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error(transparent)]
    Bus(#[from] BusFull),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("two devices are at {0}")]
    Taken(Slot),
}

/// Puts a device on the bus.
pub(crate) fn attach(
    bus: &crate::bus::Bus,
    services: &Services,
    device: &SharedDevice,
) -> Result<Slot, AttachError> {
    let mut pci = bus.pci();
    let slot = pci.free_slot()?;
    insert(&mut pci, services, device, slot)
}

/// Puts a device on the bus where another Machine had it.
pub(crate) fn attach_at(
    bus: &crate::bus::Bus,
    services: &Services,
    device: &SharedDevice,
    slot: Slot,
) -> Result<Slot, AttachError> {
    let mut pci = bus.pci();
    if !pci.is_free(slot) {
        return Err(AttachError::Taken(slot));
    }
    insert(&mut pci, services, device, slot)
}

fn insert(
    pci: &mut PciBus<MachineFunction>,
    services: &Services,
    device: &SharedDevice,
    slot: Slot,
) -> Result<Slot, AttachError> {
    let function = VirtioFunction::new(slot, SharedDevice::clone(device), services)?;
    pci.insert(slot, MachineFunction::Virtio(Box::new(function)));
    Ok(slot)
}

impl Machine {
    /// Adds a built device to the running Machine.
    pub(super) fn attach(&mut self, built: BuiltDevice) -> Result<Slot, AttachError> {
        match attach(&self.bus, &self.services, &built.device) {
            Ok(slot) => {
                self.devices.push(AttachedDevice::named(built, slot));
                Ok(slot)
            }
            Err(error) => {
                self.unmap(built.region);
                Err(error)
            }
        }
    }

    /// Makes a device disappear, whatever the driver is doing with it.
    pub(super) fn detach(&mut self, attached: AttachedDevice) {
        let AttachedDevice {
            slot,
            device,
            subscription,
            region,
            ..
        } = attached;
        // First the way to it, so that no vCPU starts it again.
        let function = self.bus.pci().remove(slot);
        drop(function);
        self.unsubscribe(subscription);
        device.lock().unwrap_or_else(PoisonError::into_inner).deactivate();
        self.unmap(region);
    }

    /// The driver has set a device up.
    pub(super) fn activate_device(&mut self, slot: Slot) {
        let Some(attached) = self.devices.iter_mut().find(|attached| attached.slot == slot) else {
            return;
        };
        let activation = self
            .bus
            .pci()
            .get_mut(slot)
            .and_then(|function| function.virtio()?.begin_activation());
        let Some(activation) = activation else {
            return;
        };
        let result = attached
            .device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .activate(activation);
        match result {
            Ok(()) => {
                let subscriber = DeviceSubscriber(SharedDevice::clone(&attached.device));
                attached.subscription = Some(self.events.add_subscriber(Subscriber::Device(subscriber)));
                self.with_function(slot, VirtioFunction::activated);
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "device {slot} does not start"
                );
                self.with_function(slot, VirtioFunction::broken);
            }
        }
    }

    /// The driver resets a device and waits for it.
    pub(super) fn reset_device(&mut self, slot: Slot) {
        let wants = self
            .bus
            .pci()
            .get_mut(slot)
            .and_then(MachineFunction::virtio)
            .is_some_and(|f| f.wants_reset());
        let Some(attached) = self
            .devices
            .iter_mut()
            .find(|attached| attached.slot == slot && wants)
        else {
            return;
        };
        let subscription = attached.subscription.take();
        let device = SharedDevice::clone(&attached.device);
        self.unsubscribe(subscription);
        device.lock().unwrap_or_else(PoisonError::into_inner).deactivate();
        self.with_function(slot, VirtioFunction::reset_done);
    }

    fn with_function(&self, slot: Slot, act: impl FnOnce(&mut VirtioFunction)) {
        if let Some(function) = self.bus.pci().get_mut(slot).and_then(MachineFunction::virtio) {
            act(function);
        }
    }

    fn unsubscribe(&mut self, subscription: Option<event_manager::SubscriberId>) {
        if let Some(id) = subscription
            && let Err(error) = self.events.remove_subscriber(id)
        {
            tracing::error!(%error, "an active device was no subscriber");
        }
    }

    fn unmap(&self, region: Option<crate::kvm::FileRegion>) {
        if let Some(region) = region
            && let Err(error) = self.vm.unmap_file(region)
        {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a file stays in the guest's memory"
            );
        }
    }
}
