//! From a prepared device to a running one: the one place that knows every kind.

use std::sync::{Arc, Mutex};

use crate::config::{DeviceKind, PreparedDevice};
use crate::kvm::{FileRegion, KvmError, Vm};
use crate::memory::MemoryError;
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
    #[error("device {id}: this kind of device is not built in")]
    Unsupported { id: String },
}

/// A device, and what must be undone when it goes.
pub(crate) struct BuiltDevice {
    pub(crate) id: String,
    pub(crate) device: SharedDevice,
    pub(crate) region: Option<FileRegion>,
}

/// Builds `prepared`. What was mapped is unmapped if it fails.
pub(crate) fn build(prepared: PreparedDevice, vm: &Vm) -> Result<BuiltDevice, BuildDeviceError> {
    let _ = (vm, Arc::new(Mutex::new(())));
    match prepared.kind {
        DeviceKind::Net { .. } | DeviceKind::Block { .. } | DeviceKind::Pmem => {
            Err(BuildDeviceError::Unsupported { id: prepared.id })
        }
    }
}
