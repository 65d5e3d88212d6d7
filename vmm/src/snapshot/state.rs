//! Everything that a snapshot keeps of a Machine but its memory, and what of it the configuration of another must match.

use proto::machine::Vcpus;
use serde::{Deserialize, Serialize};

use super::SnapshotError;
use crate::config::{DeviceKind, Plan};
use crate::devices::serial::SavedSerial;
use crate::devices::virtio::{SavedDevice, SavedState};
use crate::kvm::{ChipState, ProcessorState};
use crate::memory::image::SnapshotId;
use crate::pci::bus::Slot;
use crate::pci::transport::SavedFunction;

/// All of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct MachineState {
    /// Its memory file has the same.
    pub(crate) id: SnapshotId,
    /// What the guest was made of, in the words of whoever asked for the snapshot.
    pub(crate) origin: String,
    pub(crate) shape: Shape,
    pub(crate) chips: ChipState,
    pub(crate) processors: Vec<ProcessorState>,
    pub(crate) bus: SavedBus,
    /// In the order in which they were put on the bus.
    pub(crate) devices: Vec<PlacedDevice>,
    pub(crate) serial: SavedSerial,
    pub(crate) console: Vec<u8>,
    pub(crate) console_dropped: u64,
}

/// What cannot change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) boot: u8,
    pub(crate) max: u8,
    pub(crate) memory_bytes: u64,
    pub(crate) hotplug_bytes: u64,
}

/// The bus without its virtio devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedBus {
    pub(crate) address: u32,
    /// Configuration spaces of host bridge and pvpanic.
    pub(crate) fixed: Vec<(Slot, Vec<u8>)>,
}

/// A virtio device with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlacedDevice {
    /// `None`: the VMM's own.
    pub(crate) id: Option<String>,
    pub(crate) slot: Slot,
    pub(crate) function: SavedFunction,
    pub(crate) device: SavedDevice,
}

impl Shape {
    pub(crate) fn of(vcpus: Vcpus, memory_bytes: u64, hotplug_bytes: u64) -> Self {
        Self {
            boot: vcpus.boot,
            max: vcpus.max,
            memory_bytes,
            hotplug_bytes,
        }
    }
}

impl MachineState {
    /// Whether a guest of `origin` in a Machine of this plan can go on from here.
    pub(crate) fn fits(&self, plan: &Plan, origin: &str) -> Result<(), SnapshotError> {
        if self.origin != origin {
            return Err(SnapshotError::Origin {
                saved: self.origin.clone(),
                wanted: origin.to_owned(),
            });
        }
        let Shape {
            boot,
            max,
            memory_bytes,
            hotplug_bytes,
        } = self.shape;
        same("vcpus.boot", &boot, &plan.vcpus.boot)?;
        same("vcpus.max", &max, &plan.vcpus.max)?;
        same("memory_mib", &(memory_bytes >> 20), &(plan.memory_bytes >> 20))?;
        same(
            "memory_hotplug_mib",
            &(hotplug_bytes >> 20),
            &(plan.hotplug_bytes >> 20),
        )?;
        let has_vsock = self
            .devices
            .iter()
            .any(|placed| matches!(placed.device.own, SavedState::Vsock(_)));
        let presence = |is_there| if is_there { "there" } else { "absent" };
        same("vsock", &presence(has_vsock), &presence(plan.vsock.is_some()))?;
        same(
            "snapshot.state: processors",
            &self.processors.len(),
            &usize::from(max),
        )?;
        self.devices_fit(plan)
    }

    /// The configuration begins with the devices that were saved.
    fn devices_fit(&self, plan: &Plan) -> Result<(), SnapshotError> {
        let mut configured = plan.devices.iter();
        for (id, own) in self.named_devices() {
            let wanted = configured.next();
            let saved = format!("{} {id}", saved_kind(own));
            let wanted = wanted.map_or_else(
                || "nothing".to_owned(),
                |device| format!("{} {}", configured_kind(&device.kind), device.id),
            );
            same("devices", &saved, &wanted)?;
        }
        Ok(())
    }

    /// The devices of the configuration that was saved, with their names.
    pub(crate) fn named_devices(&self) -> impl Iterator<Item = (&str, &SavedState)> {
        let named = self.devices.iter();
        named.filter_map(|placed| Some((placed.id.as_deref()?, &placed.device.own)))
    }
}

fn same<V: PartialEq + std::fmt::Display>(
    field: &'static str,
    saved: &V,
    wanted: &V,
) -> Result<(), SnapshotError> {
    if saved == wanted {
        return Ok(());
    }
    Err(SnapshotError::Shape {
        field,
        saved: saved.to_string(),
        wanted: wanted.to_string(),
    })
}

fn saved_kind(own: &SavedState) -> &'static str {
    match own {
        SavedState::Vsock(_) => "vsock",
        SavedState::Balloon(_) => "balloon",
        SavedState::Memory(_) => "memory",
    }
}

fn configured_kind(kind: &DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Net { .. } => "net",
        DeviceKind::Block { .. } => "block",
        DeviceKind::Pmem { .. } => "pmem",
        DeviceKind::Fs { .. } => "fs",
        DeviceKind::Memory => "memory",
        DeviceKind::Balloon => "balloon",
    }
}

#[cfg(test)]
mod tests {
    use proto::machine::Vsock;

    use super::super::testing;
    use super::*;
    use crate::config::PreparedDevice;

    const MIB: u64 = 1 << 20;

    fn plan() -> Plan {
        let device = |id: &str, kind| PreparedDevice {
            id: id.to_owned(),
            kind,
        };
        Plan {
            id: "a".to_owned(),
            vcpus: Vcpus { boot: 1, max: 2 },
            memory_bytes: 128 * MIB,
            hotplug_bytes: 128 * MIB,
            control: "control".into(),
            console_bytes: 4096,
            console_dump: None,
            vsock: None,
            devices: vec![
                device("memory", DeviceKind::Memory),
                device("balloon", DeviceKind::Balloon),
                device("later", DeviceKind::Balloon),
            ],
        }
    }

    fn refusal(change: impl FnOnce(&mut Plan)) -> String {
        let mut plan = plan();
        change(&mut plan);
        let state = testing::state().unwrap();
        state.fits(&plan, "kernel 1").unwrap_err().to_string()
    }

    #[test]
    fn the_same_machine_goes_on_with_what_is_added_to_it() {
        let mut state = testing::state().unwrap();
        state.fits(&plan(), "kernel 1").unwrap();
        let other = state.fits(&plan(), "kernel 2").unwrap_err();
        assert!(matches!(other, SnapshotError::Origin { .. }), "{other}");
        drop(state.processors.pop());
        let fewer = state.fits(&plan(), "kernel 1").unwrap_err().to_string();
        assert!(fewer.contains("processors: 2 was 1"), "{fewer}");
    }

    #[test]
    fn another_machine_is_refused_by_field() {
        type Change = fn(&mut Plan);
        let cases: [(&str, Change); 8] = [
            ("vcpus.boot: 2 was 1", |plan| plan.vcpus.boot = 2),
            ("vcpus.max: 3 was 2", |plan| plan.vcpus.max = 3),
            ("memory_mib: 129 was 128", |plan| plan.memory_bytes += MIB),
            ("memory_hotplug_mib: 0 was 128", |plan| plan.hotplug_bytes = 0),
            ("vsock: there was absent", |plan| {
                plan.vsock = Some(Vsock {
                    guest_cid: 3,
                    socket: "v".into(),
                });
            }),
            ("devices: nothing was balloon balloon", |plan| {
                plan.devices.truncate(1);
            }),
            ("devices: balloon balloon was memory memory", |plan| {
                plan.devices.swap(0, 1);
            }),
            ("devices: memory ram was memory memory", |plan| {
                plan.devices[0].id = "ram".to_owned();
            }),
        ];
        for (reason, change) in cases {
            assert!(refusal(change).starts_with(reason), "{}", refusal(change));
        }
    }
}
