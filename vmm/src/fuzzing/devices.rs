//! Entry points for the data devices: the input is what the driver has put into its rings and buffers.
//!
//! The input's first bytes are the rings themselves (so that descriptors may be anything), at the addresses below; the
//! rest is the memory that sane descriptors would point to.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::answer_queue;
use crate::devices::virtio::fs::{bounce_queue, fail_queue};
use crate::devices::virtio::mem::Mem;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::testing::{DriverQueue, WRITE, activation_of, guest_memory};
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::{GuestMemory, VirtioDevice};

const MEMORY: usize = 1 << 20;
const QUEUE_SIZE: u16 = 16;
/// Per queue: descriptors, available ring, used ring, each at its offset.
const RINGS: u64 = 0x400;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;
/// Where orderly rings of the harness itself lie, beyond what the input reaches.
const HARNESS: u64 = 0x8_0000;
/// How much of an input a backend is.
const BACKEND_STEPS: usize = 256;
/// What the memory device can plug: where an address of the input may well be, with the zeros that it mostly consists of.
const PLUGGABLE: Range<u64> = 0x80_0000..0x100_0000;

/// Packets of a guest's vsock driver, and a host that answers some connections.
pub fn vsock_packet(input: &[u8]) {
    static RUN: AtomicU64 = AtomicU64::new(0);
    let Some(memory) = memory_with(input) else { return };
    let name = format!(
        "clearpod-fuzz-{}-{}",
        std::process::id(),
        RUN.fetch_add(1, Ordering::Relaxed)
    );
    let path = std::env::temp_dir().join(name);
    let Ok(mut device) = Vsock::new(3, &path, Arc::new(OnceLock::new())) else {
        return;
    };
    // The guest's port 0 is the easiest to hit.
    let service = PathBuf::from(format!("{}_0", path.display()));
    let listener = UnixListener::bind(&service).ok();
    let client = UnixStream::connect(&path).ok();
    let mut rx = DriverQueue::new(&memory, HARNESS, 128);
    for index in 0..64 {
        rx.add(&[(HARNESS + 0x1_0000 + 0x800 * index, 0x800, WRITE)]);
    }
    let events = DriverQueue::new(&memory, HARNESS + 0x5000, 16);
    let queues = vec![rx.device_queue(), hostile_queue(0), events.device_queue()];
    if device.activate(activation_of(&memory, queues, 0)).is_err() {
        return;
    }
    for round in 0..4 {
        device.host_pass();
        if let (1, Some(mut client)) = (round, client.as_ref()) {
            drop(std::io::Write::write(&mut client, b"CONNECT 7\nhello"));
        }
        if let Some(listener) = &listener
            && listener.set_nonblocking(true).is_ok()
            && let Ok((mut socket, _)) = listener.accept()
        {
            drop(std::io::Write::write(&mut socket, input));
        }
        for _used in rx.take_used() {
            rx.add(&[(HARNESS + 0x1_0000, 0x800, WRITE)]);
        }
        // The same packets again, as a driver could.
        drop(memory.write_obj(QUEUE_SIZE * (round + 2), GuestAddress(AVAILABLE + 2)));
    }
    device.deactivate();
    drop(std::fs::remove_file(service));
}

/// Requests of a guest's disk driver.
pub fn block_request(input: &[u8]) {
    let Some(memory) = memory_with(input) else { return };
    let Ok(file) = nix::sys::memfd::memfd_create("disk", nix::sys::memfd::MFdFlags::MFD_CLOEXEC) else {
        return;
    };
    let file = File::from(file);
    if file.set_len(1 << 16).is_ok() {
        answer_queue(&memory, &mut hostile_queue(0), file);
    }
}

/// Frames of a guest's network driver, and frames for the buffers that it posts.
pub fn net_tx(input: &[u8]) {
    let Some(memory) = memory_with(input) else { return };
    let Ok((wire, tap)) = UnixDatagram::pair() else {
        return;
    };
    if wire.set_nonblocking(true).is_err() {
        return;
    }
    let [features, ..] = input else { return };
    let Ok(mut device) = Net::on_socket([2, 0, 0, 0, 0, 1], OwnedFd::from(tap)) else {
        return;
    };
    // All that a driver may accept, with mergeable buffers or without.
    let features = if features & 1 == 0 { device.features() } else { 0 };
    let queues = vec![hostile_queue(RINGS), hostile_queue(0)];
    if device.activate(activation_of(&memory, queues, features)).is_err() {
        return;
    }
    for length in [14, 60, 1514, 9000] {
        drop(wire.send(&vec![0; 12 + length]));
        device.transmit();
        device.receive();
        let mut frame = [0; 12];
        while wire.recv(&mut frame).is_ok() {}
    }
}

/// Requests of a guest's memory driver.
pub fn mem_request(input: &[u8]) {
    let ranges = [
        (GuestAddress(0), MEMORY),
        (GuestAddress(PLUGGABLE.start), 8 << 20),
    ];
    let Ok(memory) = GuestMemory::from_ranges(&ranges) else {
        return;
    };
    if fill(&memory, input).is_none() {
        return;
    }
    let mut device = Mem::new(&PLUGGABLE);
    let wish = input.first().copied().map_or(0, u64::from);
    let activation = activation_of(&memory, vec![hostile_queue(0)], device.features());
    if device.activate(activation).is_err() {
        return;
    }
    for mib in [wish, 4, 0] {
        drop(device.resize(mib));
        device.pass();
        let stats = device.stats();
        assert!(stats.plugged_mib <= stats.max_mib, "{stats:?}");
    }
}

/// Pages that a guest's balloon driver gives away.
pub fn balloon_pages(input: &[u8]) {
    let Some(memory) = memory_with(input) else { return };
    let mut device = Balloon::new(1);
    let queues = [0, RINGS, RINGS, 0, RINGS].map(hostile_queue).into();
    let activation = activation_of(&memory, queues, device.features());
    if device.activate(activation).is_ok() {
        device.pass();
        device.deactivate();
    }
}

/// Requests of a guest's file system driver whose backend has gone.
pub fn fs_orphan(input: &[u8]) {
    let Some(memory) = memory_with(input) else { return };
    let mut activation = activation_of(&memory, vec![hostile_queue(0)], 0);
    if let Some(queue) = activation.queues.pop() {
        fail_queue(&memory, queue, activation.interrupt);
    }
}

/// Requests of a guest's file system driver, and what a backend does with them: both are the input's, the backend's steps
/// its end.
pub fn fs_bounce(input: &[u8]) {
    let Some(memory) = memory_with(input) else { return };
    let mut activation = activation_of(&memory, vec![hostile_queue(0)], 0);
    let steps = &input[input.len().saturating_sub(BACKEND_STEPS)..];
    if let Some(queue) = activation.queues.pop() {
        bounce_queue(&memory, queue, activation.interrupt, steps);
    }
}

/// Guest memory that begins with the input.
fn memory_with(input: &[u8]) -> Option<GuestMemory> {
    let memory = guest_memory(MEMORY);
    fill(&memory, input)?;
    Some(memory)
}

fn fill(memory: &GuestMemory, input: &[u8]) -> Option<()> {
    let image = &input[..input.len().min(HARNESS as usize)];
    memory.write_slice(image, GuestAddress(0)).ok()
}

/// A queue whose rings, at `base`, are the input's.
fn hostile_queue(base: u64) -> Queue {
    let mut queue = Queue::new(QUEUE_SIZE).expect("a power of two");
    let low = |address: u64| Some(u32::try_from(address).expect("a small address"));
    queue.set_desc_table_address(low(base), Some(0));
    queue.set_avail_ring_address(low(base + AVAILABLE), Some(0));
    queue.set_used_ring_address(low(base + USED), Some(0));
    queue.set_ready(true);
    queue
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of which some make sense: rings with chains in use, packets and requests with small numbers.
    fn driver_input() -> impl Strategy<Value = Vec<u8>> {
        let descriptor = (0_u64..0x3000, 0_u32..0x400, 0_u16..8, 0_u16..QUEUE_SIZE + 1);
        let descriptors = prop::collection::vec(descriptor, usize::from(QUEUE_SIZE));
        let heads = prop::collection::vec(0_u16..QUEUE_SIZE + 1, usize::from(QUEUE_SIZE));
        let buffers = prop::collection::vec(
            prop_oneof![6 => Just(0_u8), 2 => 0_u8..8, 1 => any::<u8>()],
            0x2000,
        );
        (
            descriptors.clone(),
            descriptors,
            heads,
            0_u16..QUEUE_SIZE + 2,
            buffers,
        )
            .prop_map(|(first, second, heads, count, buffers)| {
                let mut input = vec![0; 2 * RINGS as usize];
                for (base, descriptors) in [(0, first), (RINGS as usize, second)] {
                    for (index, (address, length, flags, next)) in descriptors.into_iter().enumerate() {
                        let at = base + 16 * index;
                        input[at..at + 8].copy_from_slice(&(address + 2 * RINGS).to_le_bytes());
                        input[at + 8..at + 12].copy_from_slice(&length.to_le_bytes());
                        input[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
                        input[at + 14..at + 16].copy_from_slice(&next.to_le_bytes());
                    }
                    let available = base + AVAILABLE as usize;
                    input[available + 2..available + 4].copy_from_slice(&count.to_le_bytes());
                    for (index, head) in heads.iter().enumerate() {
                        let at = available + 4 + 2 * index;
                        input[at..at + 2].copy_from_slice(&head.to_le_bytes());
                    }
                }
                input.extend(buffers);
                input
            })
    }

    /// Mostly a backend that uses the first slots in some order.
    fn backend_steps() -> impl Strategy<Value = Vec<u8>> {
        let step = (
            prop_oneof![20 => Just(0_u8), 1 => any::<u8>()],
            prop_oneof![20 => (0_u8..4).prop_map(|slot| 2 * slot), 1 => any::<u8>()],
            0_u8..32,
            Just(0_u8),
        );
        let steps = prop::collection::vec(step, BACKEND_STEPS / 4);
        steps.prop_map(|steps| steps.into_iter().flat_map(<[u8; 4]>::from).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn any_driver_is_survived(input in driver_input(), steps in backend_steps()) {
            vsock_packet(&input);
            block_request(&input);
            net_tx(&input);
            mem_request(&input);
            balloon_pages(&input);
            fs_orphan(&input);
            fs_bounce(&[&input[..], &steps].concat());
        }
    }
}
