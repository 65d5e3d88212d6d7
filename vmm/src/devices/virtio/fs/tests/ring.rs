//! The backend's side of a shadow ring, through the file that it got.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Descriptors of a ring.
const SIZE: u16 = 128;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A ring as the backend sees it.
pub(super) struct ModelRing {
    memory: File,
    /// What the backend was told to be the address of the file's first byte.
    start: u64,
    descriptors: u64,
    available: u64,
    used: u64,
    taken: u16,
    answered: u16,
}

/// A request that the backend has taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) head: u32,
    pub(super) request: Vec<u8>,
    /// Place and length.
    pub(super) answer: (u64, u32),
}

impl ModelRing {
    pub(super) fn new(memory: File, start: u64, [descriptors, available, used]: [u64; 3]) -> Self {
        Self {
            memory,
            start,
            descriptors,
            available,
            used,
            taken: 0,
            answered: 0,
        }
    }

    /// The next request.
    pub(super) fn take(&mut self) -> Option<Taken> {
        if self.read::<2>(self.available + 2) == self.taken.to_le_bytes() {
            return None;
        }
        let place = self.available + 4 + 2 * u64::from(self.taken % SIZE);
        let head = u16::from_le_bytes(self.read(place));
        self.taken = self.taken.wrapping_add(1);
        let (mut request, mut answer, mut index) = (Vec::new(), (0, 0), head);
        loop {
            let at = self.descriptors + 16 * u64::from(index);
            let place = u64::from_le_bytes(self.read(at)) - self.start;
            let length = u32::from_le_bytes(self.read(at + 8));
            let flags = u16::from_le_bytes(self.read(at + 12));
            if flags & WRITE == 0 {
                let mut bytes = vec![0; length as usize];
                self.memory.read_exact_at(&mut bytes, place).unwrap();
                request.extend(bytes);
            } else {
                answer = (place, length);
            }
            if flags & NEXT == 0 {
                let head = u32::from(head);
                return Some(Taken {
                    head,
                    request,
                    answer,
                });
            }
            index = u16::from_le_bytes(self.read(at + 14));
        }
    }

    /// Everything that is there.
    pub(super) fn take_all(&mut self) -> Vec<Taken> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Answers a request with these bytes.
    pub(super) fn answer(&mut self, taken: &Taken, bytes: &[u8]) {
        assert!(bytes.len() <= taken.answer.1 as usize);
        self.memory.write_all_at(bytes, taken.answer.0).unwrap();
        self.put_used(taken.head, u32::try_from(bytes.len()).unwrap());
    }

    /// Puts anything into the used ring.
    pub(super) fn put_used(&mut self, head: u32, written: u32) {
        let place = self.used + 4 + 8 * u64::from(self.answered % SIZE);
        let element = u64::from(head) | u64::from(written) << 32;
        self.memory.write_all_at(&element.to_le_bytes(), place).unwrap();
        self.set_used(self.answered.wrapping_add(1));
    }

    /// Sets the used ring's index to anything.
    pub(super) fn set_used(&mut self, index: u16) {
        self.answered = index;
        self.memory
            .write_all_at(&index.to_le_bytes(), self.used + 2)
            .unwrap();
    }

    /// What the region costs, in pages.
    pub(super) fn pages(&self) -> u64 {
        std::os::unix::fs::MetadataExt::blocks(&self.memory.metadata().unwrap()) / 8
    }

    fn read<const N: usize>(&self, place: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_exact_at(&mut bytes, place).unwrap();
        bytes
    }
}
