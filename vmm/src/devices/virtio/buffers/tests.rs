//! Hostile chains, and the arithmetic of taking a stream apart.

use proptest::prelude::*;
use virtio_queue::QueueOwnedT as _;
use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{Descriptor, DriverQueue, NEXT, WRITE, guest_memory};
use super::*;

const SIZE: usize = 0x10_0000;

fn collect_stored(descriptors: &[(u16, Descriptor)]) -> Result<(usize, usize), BufferError> {
    let memory = guest_memory(SIZE);
    let mut driver = DriverQueue::new(&memory, 0, 16);
    for (index, descriptor) in descriptors {
        driver.store(*index, *descriptor);
    }
    driver.offer(0);
    let mut queue = driver.device_queue();
    let chain = queue.iter(&memory).unwrap().next().unwrap();
    Buffers::collect(&memory, chain).map(|buffers| (buffers.readable.len(), buffers.writable.len()))
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        length,
        flags,
        next,
    }
}

#[test]
fn a_chain_is_two_streams() {
    let chain = [
        (0, descriptor(0x8000, 10, NEXT, 3)),
        (3, descriptor(0x9000, 0, NEXT, 1)),
        (1, descriptor(0xa000, 20, NEXT | WRITE, 2)),
        (2, descriptor(0xb000, 30, WRITE, 0)),
    ];
    assert_eq!(collect_stored(&chain), Ok((10, 50)));
}

#[test]
fn a_loop_is_refused() {
    let chain = [
        (0, descriptor(0x8000, 10, NEXT, 1)),
        (1, descriptor(0x8000, 10, NEXT, 0)),
    ];
    assert_eq!(collect_stored(&chain), Err(BufferError::Broken));
}

#[test]
fn a_next_outside_of_the_table_is_refused() {
    assert_eq!(
        collect_stored(&[(0, descriptor(0x8000, 10, NEXT, 16))]),
        Err(BufferError::Broken)
    );
}

#[test]
fn a_buffer_outside_of_memory_is_refused() {
    for address in [SIZE as u64 - 5, SIZE as u64, u64::MAX - 3] {
        let result = collect_stored(&[(0, descriptor(address, 10, 0, 0))]);
        assert_eq!(result, Err(BufferError::OutOfMemory), "{address:#x}");
    }
}

#[test]
fn a_chain_of_more_than_4_gib_is_refused() {
    let chain = [
        (0, descriptor(0x8000, 10, NEXT, 1)),
        (1, descriptor(0x8000, u32::MAX, 0, 0)),
    ];
    assert_eq!(collect_stored(&chain), Err(BufferError::Broken));
}

#[test]
fn readable_behind_writable_is_refused() {
    let chain = [
        (0, descriptor(0x8000, 10, NEXT | WRITE, 1)),
        (1, descriptor(0x9000, 10, 0, 0)),
    ];
    assert_eq!(collect_stored(&chain), Err(BufferError::WrongOrder));
}

#[test]
fn an_indirect_table_longer_than_the_limit_is_refused() {
    const INDIRECT: u16 = 4;
    let memory = guest_memory(SIZE);
    let mut driver = DriverQueue::new(&memory, 0, 16);
    let entries = u16::try_from(MAX_SEGMENTS + 1).unwrap();
    let table = DriverQueue::new(&memory, 0x8000, entries);
    for index in 0..entries {
        let more = if index + 1 < entries { NEXT } else { 0 };
        table.store(index, descriptor(0x4000, 1, more, index + 1));
    }
    driver.store(0, descriptor(0x8000, u32::from(entries) * 16, INDIRECT, 0));
    driver.offer(0);
    let mut queue = driver.device_queue();
    let chain = queue.iter(&memory).unwrap().next().unwrap();
    assert_eq!(
        Buffers::collect(&memory, chain).unwrap_err(),
        BufferError::TooManySegments
    );
}

proptest! {
    /// However a stream is cut and taken, its bytes come out in order and once.
    #[test]
    fn taking_keeps_the_bytes(
        lengths in prop::collection::vec(0u32..40, 1..8),
        takes in prop::collection::vec(0usize..60, 0..12),
    ) {
        let memory = guest_memory(SIZE);
        let mut driver = DriverQueue::new(&memory, 0, 16);
        let content: Vec<u8> = (0..=255).cycle().take(lengths.iter().sum::<u32>() as usize).collect();
        let mut chain = Vec::new();
        let mut from = 0;
        for (index, length) in lengths.iter().enumerate() {
            let address = 0x8000 + 0x100 * index as u64;
            let piece = &content[from..from + *length as usize];
            memory.write_slice(piece, GuestAddress(address)).unwrap();
            from += piece.len();
            chain.push((address, *length, 0));
        }
        driver.add(&chain);
        let mut queue = driver.device_queue();
        let chain = queue.iter(&memory).unwrap().next().unwrap();
        let mut stream = Buffers::collect(&memory, chain).unwrap().readable;
        prop_assert_eq!(stream.len(), content.len());
        let mut seen = Vec::new();
        for take in takes {
            let before = stream.len();
            let taken = stream.take(take);
            prop_assert_eq!(taken.len(), take.min(before));
            prop_assert_eq!(stream.len(), before - taken.len());
            let mut bytes = vec![0; taken.len()];
            prop_assert_eq!(taken.copy_to(&mut bytes), bytes.len());
            seen.extend(bytes);
        }
        let mut rest = vec![0; stream.len()];
        stream.copy_to(&mut rest);
        seen.extend(rest);
        prop_assert_eq!(seen, content);
    }
}
