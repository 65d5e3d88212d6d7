//! What the driver sends, as ranges of guest memory that the host takes back. Hostile: anything may be in it; what is no whole
//! page of guest memory is passed over.

use super::super::GuestMemory;
use super::super::buffers::Buffers;
use super::super::single_queue::Chain;
use crate::memory;

const PAGE: u64 = 4096;
/// Page numbers that are taken from one chain. Linux sends 256; who sends more pays with memory that stays his.
const CHAIN_PAGES: usize = 256;

/// Takes the pages back whose numbers a chain of the inflate queue has.
pub(super) fn inflate(memory: &GuestMemory, chain: Chain<'_>) {
    let Ok(Buffers { mut readable, .. }) = Buffers::collect(memory, chain) else {
        tracing::debug!("balloon: the guest sent no page numbers");
        return;
    };
    let mut numbers = Vec::new();
    while let Some(number) = readable.take_array().filter(|_| numbers.len() < CHAIN_PAGES) {
        numbers.push(u32::from_le_bytes(number));
    }
    numbers.sort_unstable();
    numbers.dedup();
    // Neighbours in one call: a driver that fills its balloon takes pages by the hundred.
    for run in numbers.chunk_by(|first, second| first + 1 == *second) {
        if let Some(first) = run.first() {
            discard(memory, u64::from(*first) * PAGE, run.len() as u64 * PAGE);
        }
    }
}

/// Takes the free pages back that a chain of the reporting queue consists of; returns how many bytes.
pub(super) fn report(memory: &GuestMemory, chain: Chain<'_>) -> u64 {
    chain
        .writable()
        .map(|descriptor| {
            let bytes = u64::from(descriptor.len());
            if discard(memory, descriptor.addr().0, bytes) {
                bytes
            } else {
                0
            }
        })
        .sum()
}

fn discard(memory: &GuestMemory, address: u64, bytes: u64) -> bool {
    let result = memory::discard(memory, address, bytes);
    if let Err(error) = &result {
        tracing::debug!(%error, "balloon: {bytes} bytes at {address:#x} are not taken back");
    }
    result.is_ok()
}
