//! What KVM emulates for the whole machine: interrupt controllers, timer, and the guest's clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::KvmError;

const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The state of all of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct ChipState {
    controllers: [kvm_irqchip; CONTROLLERS.len()],
    timer: kvm_pit_state2,
    /// Nanoseconds of the guest's clock.
    clock: u64,
}

impl ChipState {
    pub(super) fn save(machine: &VmFd) -> Result<Self, KvmError> {
        let mut controllers = CONTROLLERS.map(|chip_id| kvm_irqchip {
            chip_id,
            ..Default::default()
        });
        for controller in &mut controllers {
            machine
                .get_irqchip(controller)
                .map_err(KvmError::refused("tell an interrupt controller's state"))?;
        }
        let timer = machine
            .get_pit2()
            .map_err(KvmError::refused("tell the timer's state"))?;
        let clock = machine
            .get_clock()
            .map_err(KvmError::refused("tell the guest's clock"))?;
        Ok(Self {
            controllers,
            timer,
            clock: clock.clock,
        })
    }

    /// Of chips that were never used.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn sample() -> Self {
        let controllers = CONTROLLERS.map(|chip_id| kvm_irqchip {
            chip_id,
            ..Default::default()
        });
        Self {
            controllers,
            timer: kvm_pit_state2::default(),
            clock: 1,
        }
    }

    /// The processors are loaded already: their registers say where in guest memory the clock is.
    ///
    /// The clock goes on where it stood, and the time stamp counters do as well. KVM would add the time that has passed
    /// (KVM_CLOCK_REALTIME); a guest that was forked from a template of last week has not slept for a week, and its timers
    /// must not all run out at once. What time of day it is, it is told by the agent's ConfigureSandbox.
    pub(super) fn load(&self, machine: &VmFd) -> Result<(), KvmError> {
        for (controller, chip_id) in self.controllers.iter().zip(CONTROLLERS) {
            if controller.chip_id != chip_id {
                return Err(KvmError::SavedState("interrupt controllers"));
            }
            machine
                .set_irqchip(controller)
                .map_err(KvmError::refused("load an interrupt controller's state"))?;
        }
        machine
            .set_pit2(&self.timer)
            .map_err(KvmError::refused("load the timer's state"))?;
        let clock = kvm_clock_data {
            clock: self.clock,
            ..Default::default()
        };
        machine
            .set_clock(&clock)
            .map_err(KvmError::refused("set the guest's clock"))
    }
}
