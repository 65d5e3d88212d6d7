//! The driver's side of a split ring (virtio 1.2, 2.7) in the bounce region: what is offered there, the backend serves.
//!
//! A request has a slot, and a slot has two descriptors that are always the same ones: what to read, where to write. The used
//! ring is the backend's and hostile: an index or a number that cannot be ends the backend's service.

use std::ops::Range;
use std::sync::atomic::Ordering;

use vhost::VringConfigData;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, VolatileMemoryError};

use super::region::{PAGE, Region};

/// Requests that the backend has at one time. virtiofsd serves one after the other, so more would only wait there instead of
/// in the guest's queue.
pub(super) const SLOTS: u16 = 64;
pub(super) const SIZE: u16 = 2 * SLOTS;
/// 2.7.5, 2.7.6, 2.7.8: 16 bytes per descriptor; flags, index, 2 bytes per number; flags, index, 8 bytes per element.
const AVAILABLE: usize = 16 * SIZE as usize;
pub(super) const USED: usize = (AVAILABLE + 6 + 2 * SIZE as usize).next_multiple_of(4);
/// What a ring takes of the region.
pub(super) const RING_BYTES: usize = PAGE;
const _: () = assert!(USED + 6 + 8 * SIZE as usize <= RING_BYTES);

/// What a backend has put into the used ring.
#[derive(Debug, thiserror::Error)]
pub(super) enum RingError {
    #[error("the used ring's index has gone from {seen} to {index}")]
    Index { seen: u16, index: u16 },
    #[error("the used ring names {0}, which no request begins with")]
    Head(u32),
    #[error("the ring is outside of the region")]
    Outside,
    #[error("the ring cannot be accessed")]
    Access(#[from] VolatileMemoryError),
}

/// One request's places in the region.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// Never empty.
    pub(super) readable: Range<usize>,
    pub(super) writable: Range<usize>,
}

/// One ring.
#[derive(Debug)]
pub(super) struct ShadowRing {
    region: Region,
    /// The ring's page.
    place: Range<usize>,
    available: u16,
    seen: u16,
}

impl ShadowRing {
    /// A ring at this offset, where the region has zeros.
    pub(super) fn new(region: Region, offset: usize) -> Self {
        Self {
            region,
            place: offset..offset + RING_BYTES,
            available: 0,
            seen: 0,
        }
    }

    /// What the backend has to know.
    pub(super) fn places(&self) -> VringConfigData {
        let host = |offset| self.region.host_address(self.place.start + offset);
        VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: host(0),
            used_ring_addr: host(USED),
            avail_ring_addr: host(AVAILABLE),
            log_addr: None,
        }
    }

    /// Offers a request in a slot that the backend does not have; it is to be kicked then.
    pub(super) fn offer(&mut self, slot: u16, message: &Message) -> Result<(), RingError> {
        let page = self.region.slice(self.place.clone()).ok_or(RingError::Outside)?;
        let head = 2 * (slot % SLOTS);
        let answered = !message.writable.is_empty();
        let next = if answered { VRING_DESC_F_NEXT } else { 0 };
        let parts = [(&message.readable, next), (&message.writable, VRING_DESC_F_WRITE)];
        for (index, (part, flags)) in (head..).zip(parts) {
            let at = 16 * usize::from(index);
            page.write_obj(Region::address(part.start).to_le(), at)?;
            // Both at most the region's size, of a few MiB; flags are of 16 bits.
            page.write_obj((part.len() as u32).to_le(), at + 8)?;
            page.write_obj((flags as u16).to_le(), at + 12)?;
            page.write_obj((index + 1).to_le(), at + 14)?;
        }
        let place = AVAILABLE + 4 + 2 * usize::from(self.available % SIZE);
        page.write_obj(head.to_le(), place)?;
        self.available = self.available.wrapping_add(1);
        // With it the backend sees all that was written before.
        page.store(self.available.to_le(), AVAILABLE + 2, Ordering::Release)?;
        Ok(())
    }

    /// The next request that the backend has done: its slot, and how many bytes it says it wrote.
    pub(super) fn take_used(&mut self) -> Result<Option<(u16, u32)>, RingError> {
        let page = self.region.slice(self.place.clone()).ok_or(RingError::Outside)?;
        let index = u16::from_le(page.load(USED + 2, Ordering::Acquire)?);
        let seen = self.seen;
        if index == seen {
            return Ok(None);
        }
        if index.wrapping_sub(seen) > SLOTS {
            return Err(RingError::Index { seen, index });
        }
        let place = USED + 4 + 8 * usize::from(seen % SIZE);
        let head = u32::from_le(page.read_obj(place)?);
        let written = u32::from_le(page.read_obj(place + 4)?);
        let slot = u16::try_from(head / 2).ok().filter(|slot| *slot < SLOTS);
        let slot = slot
            .filter(|_| head.is_multiple_of(2))
            .ok_or(RingError::Head(head))?;
        self.seen = seen.wrapping_add(1);
        Ok(Some((slot, written)))
    }
}
