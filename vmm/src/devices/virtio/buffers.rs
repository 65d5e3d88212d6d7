//! The buffers of one descriptor chain as slices of guest memory, checked once (virtio 1.2, 2.7.4-2.7.5).
//!
//! A device sees two byte streams, one to read and one to write, and never where the driver cut them into descriptors:
//! 2.7.4.1 forbids a device to depend on the framing. Chains are hostile: this module bounds their segments, follows no
//! loop (the iterator of virtio-queue counts down), and refuses what points outside of memory. Bytes stay in guest
//! memory, which the guest can change at any time: who needs a stable value copies it out.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory as _, Permissions, VolatileSlice};

use super::GuestMemory;

/// A piece of guest memory.
pub(crate) type Slice<'m> = VolatileSlice<'m, ()>;

/// Segments that one chain may have: what readv(2) takes in one call (`IOV_MAX`).
pub(crate) const MAX_SEGMENTS: usize = 1024;

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BufferError {
    #[error("the descriptor chain has a loop, ends early or is longer than 4 GiB")]
    Broken,
    #[error("a descriptor points outside of guest memory")]
    OutOfMemory,
    #[error("the descriptor chain has more than {MAX_SEGMENTS} segments")]
    TooManySegments,
    #[error("a readable descriptor follows a writable one")]
    WrongOrder,
}

/// One chain's buffers.
#[derive(Debug)]
pub(crate) struct Buffers<'m> {
    /// What the driver sends.
    pub(crate) readable: Segments<'m>,
    /// Where the device answers.
    pub(crate) writable: Segments<'m>,
}

impl<'m> Buffers<'m> {
    /// Walks `chain` to its end.
    pub(crate) fn collect<M>(memory: &'m GuestMemory, chain: DescriptorChain<M>) -> Result<Self, BufferError>
    where
        M: std::ops::Deref<Target = GuestMemory>,
    {
        let mut buffers = Self {
            readable: Segments::default(),
            writable: Segments::default(),
        };
        let mut complete = false;
        for descriptor in chain {
            complete = !descriptor.has_next();
            let (stream, access) = if descriptor.is_write_only() {
                (&mut buffers.writable, Permissions::Write)
            } else if buffers.writable.slices.is_empty() {
                (&mut buffers.readable, Permissions::Read)
            } else {
                // 2.7.4.2: readable descriptors come first.
                return Err(BufferError::WrongOrder);
            };
            let length = descriptor.len() as usize;
            if length == 0 {
                continue;
            }
            let slices = memory
                .get_slices(descriptor.addr(), length, access)
                .map_err(|_outside| BufferError::OutOfMemory)?;
            for slice in slices {
                stream.push(slice.map_err(|_outside| BufferError::OutOfMemory)?);
            }
            if buffers.readable.slices.len() + buffers.writable.slices.len() > MAX_SEGMENTS {
                return Err(BufferError::TooManySegments);
            }
        }
        if complete {
            Ok(buffers)
        } else {
            Err(BufferError::Broken)
        }
    }
}

/// A stream of bytes in guest memory, consumed from its front.
#[derive(Debug, Default)]
pub(crate) struct Segments<'m> {
    slices: Vec<Slice<'m>>,
    /// Slices before this one are consumed.
    first: usize,
    length: usize,
}

impl<'m> Segments<'m> {
    fn push(&mut self, slice: Slice<'m>) {
        // No overflow: virtio-queue ends a chain at 4 GiB, and usize has 64 bits.
        self.length += slice.len();
        self.slices.push(slice);
    }

    /// Bytes left.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// What is left.
    pub(crate) fn slices(&self) -> &[Slice<'m>] {
        self.slices.get(self.first..).unwrap_or_default()
    }

    /// Takes the first `count` bytes, or all if there are fewer.
    pub(crate) fn take(&mut self, count: usize) -> Segments<'m> {
        let mut taken = Segments::default();
        while let Some(slice) = self.slices.get_mut(self.first) {
            let wanted = (count - taken.length).min(slice.len());
            let (Ok(front), Ok(rest)) = (slice.subslice(0, wanted), slice.offset(wanted)) else {
                break;
            };
            if wanted > 0 {
                taken.push(front);
                self.length -= wanted;
            }
            if !rest.is_empty() {
                *slice = rest;
                break;
            }
            self.first += 1;
        }
        taken
    }

    /// Drops all but the first `count` bytes.
    pub(crate) fn truncate(&mut self, count: usize) {
        *self = self.take(count);
    }

    /// Takes `N` bytes and copies them, so that the guest cannot change them any more; `None` if there are fewer.
    pub(crate) fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.length < N {
            return None;
        }
        let mut bytes = [0; N];
        let copied = self.take(N).copy_to(&mut bytes);
        (copied == N).then_some(bytes)
    }

    /// Copies from the front without taking; returns how many bytes fitted.
    pub(crate) fn copy_to(&self, target: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            let Some(rest) = target.get_mut(done..) else { break };
            done += slice.copy_to(rest);
        }
        done
    }

    /// Writes `source` to the front without taking; returns how many bytes fitted.
    pub(crate) fn copy_from(&self, source: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            let Some(rest) = source.get(done..) else { break };
            // Writing to a slice of guest memory is short, never an error, when the slice is the smaller one.
            done += slice.write(rest, 0).unwrap_or(0);
        }
        done
    }
}

#[cfg(test)]
mod tests;
