//! virtio-blk (virtio 1.2, section 5.2) on a file or block device that the daemon opened.
//!
//! # Protocol primer
//!
//! One queue. A request is a chain: a 16-byte header to read (type, reserved, sector), data to read or write, and one
//! status byte to write at the very end. Sectors are 512 bytes whatever the block size says.
//!
//! Requests are done one after the other with preadv(2) and pwritev(2) straight between the file and the guest's
//! buffers, on a thread of the device's own: a slow disk must not hold up vsock and net, which share the event loop.
//!
//! [`request`] reads and answers chains, [`disk`] is the file, [`worker`] the thread, [`device`] the device.

mod device;
mod disk;
mod request;
mod worker;

#[cfg(test)]
mod tests;

pub(crate) use device::Block;
pub(crate) use disk::DiskError;

/// What the worker does with a queue, without its thread.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn answer_queue(
    memory: &super::GuestMemory,
    queue: &mut virtio_queue::Queue,
    file: std::fs::File,
) {
    use virtio_queue::{QueueOwnedT as _, QueueT as _};
    let Ok(disk) = disk::Disk::new("disk", file, false) else {
        return;
    };
    let context = request::Context {
        disk: disk.into(),
        id: [0; request::ID_BYTES],
        write_through: true,
    };
    while let Ok(Some(chain)) = queue.iter(memory).map(|mut chains| chains.next()) {
        let head = chain.head_index();
        let written = request::serve(&context, super::buffers::Buffers::collect(memory, chain));
        if queue.add_used(memory, head, written.unwrap_or(0)).is_err() {
            return;
        }
    }
}
