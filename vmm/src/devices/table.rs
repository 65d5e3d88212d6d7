//! From a prepared device to a running one: the one place that knows every kind.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use super::virtio::block::{Block, DiskError};
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
    #[error("cannot make device {id} a disk")]
    Disk {
        id: String,
        #[source]
        source: DiskError,
    },
}

/// A device, and what must be undone when it goes.
pub(crate) struct BuiltDevice {
    pub(crate) id: String,
    pub(crate) device: SharedDevice,
    pub(crate) region: Option<FileRegion>,
}

/// Builds `prepared`. What was mapped is unmapped if it fails.
pub(crate) fn build(prepared: PreparedDevice, vm: &Vm) -> Result<BuiltDevice, BuildDeviceError> {
    let PreparedDevice { id, file, kind } = prepared;
    let (device, region): (SharedDevice, _) = match kind {
        DeviceKind::Net { mac } => match Net::new(mac, OwnedFd::from(file)) {
            Ok(net) => (Arc::new(Mutex::new(net)), None),
            Err(source) => return Err(BuildDeviceError::Net { id, source }),
        },
        DeviceKind::Block { read_only } => match Block::new(&id, file, read_only) {
            Ok(block) => (Arc::new(Mutex::new(block)), None),
            Err(source) => return Err(BuildDeviceError::Disk { id, source }),
        },
        DeviceKind::Pmem => {
            let mapping = match FileMapping::new(&file) {
                Ok(mapping) => mapping,
                Err(source) => return Err(BuildDeviceError::Mapping { id, source }),
            };
            match vm.map_file(mapping) {
                Ok(region) => (
                    Arc::new(Mutex::new(Pmem::new(region.address, region.size))),
                    Some(region),
                ),
                Err(source) => return Err(BuildDeviceError::Region { id, source }),
            }
        }
    };
    Ok(BuiltDevice { id, device, region })
}
