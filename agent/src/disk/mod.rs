//! Disks that the VMM added: found by PCI address, mounted once, shared by all containers that use them.
//!
//! `pci` finds the device, `mounted` keeps the mounts and who uses them. Containers never see these mounts directly:
//! they get overlays and bind mounts of them.

mod mounted;
pub(crate) mod pci;

pub(crate) use mounted::{Disks, Lease};
