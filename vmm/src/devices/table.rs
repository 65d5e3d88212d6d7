//! From a prepared device to a running one: the one place that knows every kind.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::virtio::SavedState;
use super::virtio::balloon::Balloon;
use super::virtio::block::{Block, DiskError};
use super::virtio::fs::{Fs, FsError};
use super::virtio::mem::Mem;
use super::virtio::net::{Net, NetError};
use super::virtio::pmem::Pmem;
use crate::config::{DeviceKind, PreparedDevice};
use crate::kvm::{FileRegion, KvmError, Vm};
use crate::memory::{FileMapping, MemoryError};
use crate::pci::transport::SharedDevice;

/// Why a device cannot be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildDeviceError {
    #[error("cannot map the file of device {id}")]
    Mapping {
        id: String,
        #[source]
        source: MemoryError,
    },
    #[error("cannot show the file of device {id} to the guest")]
    Region {
        id: String,
        #[source]
        source: KvmError,
    },
    #[error("cannot make device {id} a network card")]
    Net {
        id: String,
        #[source]
        source: NetError,
    },
    #[error("cannot make device {id} a file system")]
    Fs {
        id: String,
        #[source]
        source: FsError,
    },
    #[error("device {id}: memory_hotplug_mib is 0, so there is nothing to plug")]
    NoHotplug { id: String },
    #[error("cannot make device {id} a disk")]
    Disk {
        id: String,
        #[source]
        source: DiskError,
    },
}

/// Builds a device of a snapshot anew, with what was saved of it. `None`: nothing like that can be saved, or it does not fit
/// the Machine.
pub(crate) fn restore(id: String, own: &SavedState, vm: &Vm) -> Option<BuiltDevice> {
    let (device, adjustable): (SharedDevice, _) = match own {
        SavedState::Memory(saved) => {
            let memory = Mem::restored(&vm.layout().hotplug(), saved.clone())?;
            let memory = Arc::new(Mutex::new(memory));
            (Arc::<Mutex<Mem>>::clone(&memory), Adjustable::Memory(memory))
        }
        SavedState::Balloon(saved) => {
            let balloon = Balloon::restored(memory_mib(vm), *saved);
            let balloon = Arc::new(Mutex::new(balloon));
            (
                Arc::<Mutex<Balloon>>::clone(&balloon),
                Adjustable::Balloon(balloon),
            )
        }
        SavedState::Vsock(_) => return None,
    };
    Some(BuiltDevice {
        id,
        device,
        region: None,
        adjustable: Some(adjustable),
    })
}

fn memory_mib(vm: &Vm) -> u64 {
    let bytes: u64 = vm.memory().iter().map(GuestMemoryRegion::len).sum();
    bytes >> 20
}

/// A device, and what must be undone when it goes.
pub(crate) struct BuiltDevice {
    pub(crate) id: String,
    pub(crate) device: SharedDevice,
    pub(crate) region: Option<FileRegion>,
    pub(crate) adjustable: Option<Adjustable>,
}

/// A device that the daemon changes while it runs.
#[derive(Debug, Clone)]
pub(crate) enum Adjustable {
    Memory(Arc<Mutex<Mem>>),
    Balloon(Arc<Mutex<Balloon>>),
}

/// Builds `prepared`. What was mapped is unmapped if it fails.
pub(crate) fn build(prepared: PreparedDevice, vm: &Vm) -> Result<BuiltDevice, BuildDeviceError> {
    let PreparedDevice { id, kind } = prepared;
    let (mut region, mut adjustable) = (None, None);
    let device: SharedDevice = match kind {
        DeviceKind::Net { tap, mac } => match Net::new(mac, OwnedFd::from(tap)) {
            Ok(net) => Arc::new(Mutex::new(net)),
            Err(source) => return Err(BuildDeviceError::Net { id, source }),
        },
        DeviceKind::Block { file, read_only } => match Block::new(&id, file, read_only) {
            Ok(block) => Arc::new(Mutex::new(block)),
            Err(source) => return Err(BuildDeviceError::Disk { id, source }),
        },
        DeviceKind::Pmem { file } => {
            let mapping = match FileMapping::new(&file) {
                Ok(mapping) => mapping,
                Err(source) => return Err(BuildDeviceError::Mapping { id, source }),
            };
            match vm.map_file(mapping) {
                Ok(mapped) => {
                    let device = Pmem::new(mapped.address, mapped.size);
                    region = Some(mapped);
                    Arc::new(Mutex::new(device))
                }
                Err(source) => return Err(BuildDeviceError::Region { id, source }),
            }
        }
        DeviceKind::Fs { socket, shape } => match Fs::new(socket, shape) {
            Ok(fs) => Arc::new(Mutex::new(fs)),
            Err(source) => return Err(BuildDeviceError::Fs { id, source }),
        },
        DeviceKind::Memory => {
            let hotplug = vm.layout().hotplug();
            if hotplug.is_empty() {
                return Err(BuildDeviceError::NoHotplug { id });
            }
            let memory = Arc::new(Mutex::new(Mem::new(&hotplug)));
            adjustable = Some(Adjustable::Memory(Arc::clone(&memory)));
            memory
        }
        DeviceKind::Balloon => {
            let balloon = Arc::new(Mutex::new(Balloon::new(memory_mib(vm))));
            adjustable = Some(Adjustable::Balloon(Arc::clone(&balloon)));
            balloon
        }
    };
    Ok(BuiltDevice {
        id,
        device,
        region,
        adjustable,
    })
}
