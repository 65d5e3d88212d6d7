//! Guest RAM: mapped once, as large as it can ever become; given back to the host piece by piece.
//!
//! Private anonymous memory: it gets huge pages by the host's default, and a page of it is this process's alone. A page exists
//! only from its first touch on, and not any more after [`discard`].

use std::io;
use std::ops::Range;

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::layout::RamLayout;
use super::{HUGE_PAGE, MemoryError, align, reserve};
use crate::devices::virtio::GuestMemory;

const PROT: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
const PAGE: u64 = 4096;

/// Maps every range of `layout` without swap reservation, so that only what the guest touches is allocated.
///
/// Each begins at a multiple of 2 MiB here as it does for the guest: only then can KVM map the host's huge pages as huge
/// pages, and a boot takes twenty faults instead of seven thousand.
pub(crate) fn map_ram(layout: RamLayout) -> Result<GuestMemory, MemoryError> {
    let ranges = layout.ranges();
    let bytes = ranges.iter().map(|range| range.end - range.start).sum();
    let mut regions = Vec::new();
    for range in ranges {
        let region = map_range(&range).map_err(|source| MemoryError::Ram { bytes, source })?;
        regions.push(region.ok_or(MemoryError::Regions { bytes })?);
    }
    GuestMemory::from_regions(regions).map_err(|_| MemoryError::Regions { bytes })
}

/// `None`: the range does not fit the process's addresses.
fn map_range(range: &Range<u64>) -> io::Result<Option<GuestRegionMmap>> {
    let Ok(size) = usize::try_from(range.end - range.start) else {
        return Ok(None);
    };
    let Some(reserved) = size.checked_add(HUGE_PAGE) else {
        return Ok(None);
    };
    let start = align(reserve(reserved, PROT)?).as_ptr();
    let builder = MmapRegionBuilder::<()>::new(size)
        .with_mmap_prot(PROT)
        .with_mmap_flags(PRIVATE);
    // SAFETY: `size` bytes from `start` on lie in the reservation, which is never unmapped: guest memory lives as long as the
    // process.
    let builder = unsafe { builder.with_raw_mmap_pointer(start.cast()) };
    let mapping: MmapRegion = builder.build().map_err(io::Error::other)?;
    Ok(GuestRegionMmap::new(mapping, GuestAddress(range.start)))
}

/// Gives guest memory back to the host: it reads as zeros from now on and costs nothing until it is touched again. Whole
/// pages within one range of guest memory; anything else is `InvalidInput` and changes nothing.
pub(crate) fn discard(memory: &GuestMemory, address: u64, bytes: u64) -> io::Result<()> {
    let refused = || io::Error::from(io::ErrorKind::InvalidInput);
    let region = memory.find_region(GuestAddress(address)).ok_or_else(refused)?;
    let offset = address - region.start_addr().raw_value();
    let whole = address.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
    if !whole || bytes == 0 || bytes > region.len() - offset {
        return Err(refused());
    }
    let (offset, length) = (
        usize::try_from(offset).map_err(io::Error::other)?,
        usize::try_from(bytes).map_err(io::Error::other)?,
    );
    let start = region.as_ptr().wrapping_add(offset);
    // SAFETY: the bytes lie within a mapping of guest memory (checked above), which the guest can change at any time: nobody
    // holds a Rust reference into it, and zeros are as good a content as any.
    let result = unsafe { libc::madvise(start.cast(), length, libc::MADV_DONTNEED) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn ranges(memory: &GuestMemory) -> Vec<(u64, u64)> {
        let places = memory.iter().map(|region| (region.start_addr().0, region.len()));
        places.collect()
    }

    #[test]
    fn ram_has_the_layout_that_was_asked_for() {
        let memory = map_ram(RamLayout::new(4 * GIB, 128 * MIB)).unwrap();
        assert_eq!(
            ranges(&memory),
            [(0, 3 * GIB), (4 * GIB, GIB), (6 * GIB, 128 * MIB)]
        );
        let host = memory.iter().map(|region| region.as_ptr().addr());
        assert!(host.into_iter().all(|address| address.is_multiple_of(HUGE_PAGE)));
        assert!(memory.iter().all(|region| region.file_offset().is_none()));
    }

    #[test]
    fn what_is_discarded_reads_as_zeros_and_its_neighbours_stay() {
        let memory = map_ram(RamLayout::new(64 * MIB, 0)).unwrap();
        for page in 0..4 {
            memory.write_obj(page + 1, GuestAddress(page * PAGE)).unwrap();
        }
        discard(&memory, PAGE, 2 * PAGE).unwrap();
        let left = (0..4).map(|page| memory.read_obj::<u64>(GuestAddress(page * PAGE)).unwrap());
        assert_eq!(left.collect::<Vec<_>>(), [1, 0, 0, 4]);
    }

    #[test]
    fn only_whole_pages_of_one_range_are_discarded() {
        let memory = map_ram(RamLayout::new(64 * MIB, 128 * MIB)).unwrap();
        memory.write_obj(1_u8, GuestAddress(0)).unwrap();
        for (address, bytes) in [
            (1, PAGE),
            (0, 1),
            (0, 0),
            (0, 64 * MIB + PAGE),
            (64 * MIB, PAGE),
            (64 * MIB - PAGE, 2 * PAGE),
            (u64::MAX - PAGE + 1, PAGE),
            (0, u64::MAX - PAGE + 1),
        ] {
            let refused = discard(&memory, address, bytes).unwrap_err();
            assert_eq!(
                refused.kind(),
                io::ErrorKind::InvalidInput,
                "{address:#x} {bytes:#x}"
            );
        }
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 1);
        discard(&memory, 64 * MIB - PAGE, PAGE).unwrap();
    }
}
