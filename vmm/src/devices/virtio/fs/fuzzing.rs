//! Entry points of the fuzz targets.

use std::sync::Arc;

use vm_memory::Bytes;

use super::super::single_queue::ServedQueue;
use super::super::{ActiveQueue, GuestMemory, Interrupt};
use super::channel::{Channel, Room};
use super::orphan::Orphan;
use super::region::{PAGE, Region};
use super::relay::Relay;
use super::shadow::{RING_BYTES, SIZE, USED};

/// Small, so that it is full soon.
const ROOM: Room = Room {
    buffers: 8 * PAGE,
    largest: 6 * PAGE,
};

/// A queue whose backend has gone.
pub(crate) fn fail_queue(memory: &GuestMemory, active: ActiveQueue, interrupt: Arc<dyn Interrupt>) {
    let queue = ServedQueue::new(0, active, memory.clone(), interrupt);
    Orphan::new(queue).fail_all();
}

/// A queue whose backend does what these bytes say, four for each step: it uses a request, in the ring's order or not, or
/// writes to the ring.
pub(crate) fn bounce_queue(
    memory: &GuestMemory,
    active: ActiveQueue,
    interrupt: Arc<dyn Interrupt>,
    backend: &[u8],
) {
    let queue = ServedQueue::new(0, active, memory.clone(), interrupt);
    let Ok(region) = Region::new(ROOM.bytes()) else {
        return;
    };
    let Ok(channel) = Channel::new(&region, 0, ROOM) else {
        return;
    };
    let mut relay = Relay::new(0, queue, channel);
    let mut used = 0_u16;
    for step in backend.as_chunks::<4>().0 {
        let Some(ring) = region.slice(0..RING_BYTES) else {
            return;
        };
        let [what, a, b, c] = *step;
        let word = u16::from_le_bytes([b, c]);
        if what < 0xF0 {
            let place = USED + 4 + 8 * usize::from(used % SIZE);
            drop(ring.write_obj([u32::from(a), u32::from(word)], place));
            used = used.wrapping_add(1);
            drop(ring.write_obj(used, USED + 2));
        } else {
            let place = usize::from(what & 0xF) << 8 | usize::from(a);
            drop(ring.write_obj(word, place.min(RING_BYTES - 2)));
        }
        if relay.forward().and_then(|()| relay.backward()).is_err() {
            break;
        }
        relay.rest();
    }
    relay.orphan().fail_all();
}
