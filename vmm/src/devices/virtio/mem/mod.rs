//! virtio-mem (virtio 1.2, section 5.15): memory that the guest plugs and unplugs in blocks of 2 MiB.
//!
//! # Protocol primer
//!
//! The device is a region of guest-physical addresses that the memory map does not tell of. The host sets how much of it it
//! would like to be plugged (`requested_size`, with a configuration interrupt); the driver chooses the blocks and asks for
//! each range on the one queue: PLUG, UNPLUG, UNPLUG_ALL, STATE. It may stay above a smaller request for as long as its
//! memory is in use.
//!
//! The whole region is guest memory of KVM's and of every device from the start, without a page behind it. An unplugged
//! block loses its pages. A guest that touches what it has not plugged reads zeros and gets pages, as for any memory of its
//! own: they are bounded by the region and counted in the Machine's cgroup, which is what limits a Machine.
//!
//! [`blocks`] decides what a request does, [`device`] is the device.

mod blocks;
mod device;

#[cfg(test)]
mod tests;

pub(crate) use device::{Mem, SavedMem};
