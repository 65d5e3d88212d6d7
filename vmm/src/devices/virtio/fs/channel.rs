//! One queue's way to the backend and back: requests are copied into the bounce region, answers out of it.
//!
//! Of a request the channel keeps where the driver wants the answer, as guest addresses: they are looked up again when the
//! answer comes, since guest memory is the guest's in the meantime.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use tracing::debug;
use vm_memory::{GuestAddress, GuestMemory as _, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::super::GuestMemory;
use super::super::buffers::{Buffers, MAX_SEGMENTS, Segments, Slice};
use super::super::single_queue::{Chain, Serving};
use super::arena::Arena;
use super::backend::QueueEvents;
use super::orphan::{ANSWER_HEADER, REQUEST_HEADER, failure, refuse};
use super::region::{PAGE, Region};
use super::shadow::{Message, RING_BYTES, RingError, SLOTS, ShadowRing};

/// Data begins at a multiple of this, so that copies are fast.
const ALIGNMENT: usize = 64;

/// Why the backend is not to be used any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("shadow ring")]
    Ring(#[from] RingError),
    #[error("the backend returns a request that it does not have")]
    NotSent,
    #[error("the backend says that it wrote {written} bytes where there is room for {room}")]
    Length { written: u32, room: usize },
}

/// How much of the region a queue has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Its buffers; a multiple of the page size, and not less than `largest` and two alignments.
    pub(super) buffers: usize,
    /// What a request and the answer's room have together at most.
    pub(super) largest: usize,
}

impl Room {
    /// With the ring.
    pub(super) const fn bytes(self) -> usize {
        RING_BYTES + self.buffers
    }
}

/// What the backend has.
#[derive(Debug)]
struct InFlight {
    head: u16,
    unique: [u8; 8],
    pages: Range<usize>,
    message: Message,
    /// Where the driver wants the answer.
    answer: Vec<(GuestAddress, u32)>,
}

/// One queue of the backend.
#[derive(Debug)]
pub(super) struct Channel {
    region: Region,
    ring: ShadowRing,
    arena: Arena,
    /// Where page 0 of the arena is.
    buffers: usize,
    largest: usize,
    /// One per slot.
    in_flight: Vec<Option<InFlight>>,
    kick: Arc<EventFd>,
    call: Arc<EventFd>,
}

impl Channel {
    /// A channel in the part of `region` that begins at `offset`.
    pub(super) fn new(region: &Region, offset: usize, room: Room) -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
        Ok(Self {
            region: region.clone(),
            ring: ShadowRing::new(region.clone(), offset),
            arena: Arena::new(room.buffers / PAGE),
            buffers: offset + RING_BYTES,
            largest: room.largest,
            in_flight: (0..SLOTS).map(|_| None).collect(),
            kick: event()?,
            call: event()?,
        })
    }

    pub(super) fn ring(&self) -> &ShadowRing {
        &self.ring
    }

    pub(super) fn events(&self) -> QueueEvents {
        QueueEvents {
            kick: Arc::clone(&self.kick),
            call: Arc::clone(&self.call),
        }
    }

    /// Readable when the backend has used buffers.
    pub(super) fn call(&self) -> &EventFd {
        &self.call
    }

    /// Tells the backend of what was sent.
    pub(super) fn kick(&self) {
        // Fails only when the counter is full: then it is readable already.
        drop(self.kick.write(1));
    }

    /// Copies a request for the backend and offers it. What cannot be one is answered here.
    pub(super) fn send(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> Result<Serving, Fault> {
        let head = chain.head_index();
        let places = chain.clone().writable();
        let Ok(mut buffers) = Buffers::collect(memory, chain) else {
            return Ok(Serving::Done(0));
        };
        let (readable, writable) = (buffers.readable.len(), buffers.writable.len());
        if readable < REQUEST_HEADER || readable + writable > self.largest {
            debug!(readable, writable, "fs: a request that no backend could take");
            return Ok(Serving::Done(refuse(buffers)));
        }
        let Some(slot) = self.in_flight.iter().position(Option::is_none) else {
            return Ok(Serving::Left);
        };
        let answer_at = readable.next_multiple_of(ALIGNMENT);
        let Some(pages) = self.arena.take((answer_at + writable).div_ceil(PAGE)) else {
            return Ok(Serving::Left);
        };
        let start = self.buffers + PAGE * pages.start;
        let message = Message {
            readable: start..start + readable,
            writable: start + answer_at..start + answer_at + writable,
        };
        let target = self
            .region
            .slice(message.readable.clone())
            .ok_or(RingError::Outside)?;
        let unique = copy_request(&mut buffers.readable, target);
        // Less than the number of slots.
        self.ring.offer(slot as u16, &message)?;
        // The driver may have changed its descriptors since they were counted; whatever they say now is used with bounds.
        let answer = places.take(MAX_SEGMENTS).map(|place| (place.addr(), place.len()));
        self.in_flight[slot] = Some(InFlight {
            head,
            unique,
            pages,
            message,
            answer: answer.collect(),
        });
        Ok(Serving::Kept)
    }

    /// Copies the answers that have come; what was answered is returned with the bytes written, in any case.
    pub(super) fn receive(&mut self, memory: &GuestMemory) -> (Vec<(u16, u32)>, Result<(), Fault>) {
        // Fails only when another wake-up took the count.
        drop(self.call.read());
        let mut answered = Vec::new();
        loop {
            // Ends: each takes a request out of the slots, and none is put there meanwhile.
            match self.receive_one(memory) {
                Ok(Some(chain)) => answered.push(chain),
                Ok(None) => return (answered, Ok(())),
                Err(fault) => return (answered, Err(fault)),
            }
        }
    }

    fn receive_one(&mut self, memory: &GuestMemory) -> Result<Option<(u16, u32)>, Fault> {
        let Some((slot, written)) = self.ring.take_used()? else {
            return Ok(None);
        };
        let entry = self.in_flight.get_mut(usize::from(slot)).ok_or(Fault::NotSent)?;
        let request = entry.as_ref().ok_or(Fault::NotSent)?;
        let place = &request.message.writable;
        if written as usize > place.len() {
            // It stays in flight: what becomes of it is `fail_all`'s.
            let room = place.len();
            return Err(Fault::Length { written, room });
        }
        let source = place.start..place.start + written as usize;
        let source = self.region.slice(source).ok_or(RingError::Outside)?;
        let delivered = deliver(memory, &request.answer, &source);
        let chain = (request.head, delivered);
        self.arena.put(request.pages.clone());
        *entry = None;
        Ok(Some(chain))
    }

    /// Answers with an error what the backend has; the backend is gone.
    pub(super) fn fail_all(&mut self, memory: &GuestMemory) -> Vec<(u16, u32)> {
        let taken = self.in_flight.iter_mut().filter_map(Option::take);
        let failed = taken.map(|request| {
            let mut answer = failure(request.unique);
            // FORGET has no room for an answer and gets none.
            let fits = request.message.writable.len() >= ANSWER_HEADER;
            let answer = &mut answer[..if fits { ANSWER_HEADER } else { 0 }];
            (
                request.head,
                deliver(memory, &request.answer, &Slice::from(answer)),
            )
        });
        failed.collect()
    }

    /// Gives the buffers that nobody uses back to the host.
    pub(super) fn rest(&mut self) {
        for pages in self.arena.rest() {
            let range = self.buffers + PAGE * pages.start..self.buffers + PAGE * pages.end;
            if let Err(error) = self.region.forget(range) {
                debug!(%error, "fs: buffers cannot be given back");
            }
        }
    }
}

/// Returns the request's unique number. There are at least [`REQUEST_HEADER`] bytes, and as many as `target` has.
fn copy_request(readable: &mut Segments<'_>, target: Slice<'_>) -> [u8; 8] {
    let mut header = [0; REQUEST_HEADER];
    readable.copy_to(&mut header);
    let mut target = target;
    for slice in readable.slices() {
        slice.copy_to_volatile_slice(target);
        let Ok(rest) = target.offset(slice.len()) else {
            break;
        };
        target = rest;
    }
    let mut unique = [0; 8];
    unique.copy_from_slice(&header[8..]);
    unique
}

/// Copies `source` to the driver's buffers as far as they reach; returns how many bytes.
fn deliver(memory: &GuestMemory, places: &[(GuestAddress, u32)], source: &Slice<'_>) -> u32 {
    let mut done = 0;
    for (address, length) in places {
        let count = (*length as usize).min(source.len() - done);
        if count == 0 {
            continue;
        }
        let Ok(slices) = memory.get_slices(*address, count, Permissions::Write) else {
            break;
        };
        for target in slices {
            let (Ok(target), Ok(rest)) = (target, source.offset(done)) else {
                return done as u32;
            };
            rest.copy_to_volatile_slice(target);
            done += target.len();
        }
    }
    // At most what one request may have.
    done as u32
}
