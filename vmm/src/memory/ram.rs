//! Guest RAM: mapped once, as large as it can ever become; given back to the host piece by piece.
//!
//! Private memory: a page of it is this process's alone. It asks for huge pages, but for what comes from a snapshot (`image`),
//! most of which is never written: there a page is copied at a time. A page exists only from its first touch on, and not any more
//! after [`discard`]; what was given back of a snapshot's is the snapshot's again when it is touched.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::layout::RamLayout;
use super::{HUGE_PAGE, MemoryError, PAGE, align, reserve};
use crate::devices::virtio::GuestMemory;

const PROT: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Maps every range of `layout` without swap reservation, so that only what the guest touches is allocated.
///
/// Each begins at a multiple of 2 MiB here as it does for the guest: only then can KVM map the host's huge pages as huge
/// pages, and a boot takes twenty faults instead of seven thousand.
pub(crate) fn map_ram(layout: RamLayout) -> Result<GuestMemory, MemoryError> {
    map_ranges(&layout.ranges(), |_, _| Ok(Backing::Anonymous))
}

/// What is behind a range of guest memory.
pub(super) enum Backing<'f> {
    Anonymous,
    /// Copied when it is written. What is not among `parts`, which are ranges of the file, is anonymous.
    Private {
        file: &'f File,
        parts: Vec<Range<u64>>,
    },
}

/// Maps `ranges`; `backing` is asked what is behind one by its offset among all of them and its length.
pub(super) fn map_ranges<'f>(
    ranges: &[Range<u64>],
    backing: impl Fn(u64, u64) -> io::Result<Backing<'f>>,
) -> Result<GuestMemory, MemoryError> {
    let bytes = length(ranges);
    let failed = |source| MemoryError::Ram { bytes, source };
    let mut regions = Vec::new();
    let mut offset = 0;
    for range in ranges {
        let size = range.end - range.start;
        let backing = backing(offset, size).map_err(failed)?;
        let region = map_range(range, offset, backing).map_err(failed)?;
        regions.push(region.ok_or(MemoryError::Regions { bytes })?);
        offset += size;
    }
    GuestMemory::from_regions(regions).map_err(|_| MemoryError::Regions { bytes })
}

fn length(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// `None`: the range does not fit the process's addresses.
fn map_range(range: &Range<u64>, offset: u64, backing: Backing<'_>) -> io::Result<Option<GuestRegionMmap>> {
    let Ok(size) = usize::try_from(range.end - range.start) else {
        return Ok(None);
    };
    let Some(reserved) = size.checked_add(HUGE_PAGE) else {
        return Ok(None);
    };
    let start = align(reserve(reserved, PROT)?).as_ptr();
    match backing {
        Backing::Anonymous => ask_for_huge_pages(start, size),
        Backing::Private { file, parts } => {
            for part in parts {
                map_private(start, size, part.start - offset, file, &part)?;
            }
        }
    }
    let builder = MmapRegionBuilder::<()>::new(size)
        .with_mmap_prot(PROT)
        .with_mmap_flags(PRIVATE);
    // SAFETY: `size` bytes from `start` on lie in the reservation, which is never unmapped: guest memory lives as long as the
    // process.
    let builder = unsafe { builder.with_raw_mmap_pointer(start.cast()) };
    let mapping: MmapRegion = builder.build().map_err(io::Error::other)?;
    Ok(GuestRegionMmap::new(mapping, GuestAddress(range.start)))
}

/// Where the host gives huge pages to whoever asks only ("madvise"). Without them everything works, with more faults.
fn ask_for_huge_pages(start: *mut libc::c_void, size: usize) {
    // SAFETY: the advice changes no content, and is about `size` bytes of our own reservation (`map_range`, the only caller).
    let advised = unsafe { libc::madvise(start, size, libc::MADV_HUGEPAGE) };
    if advised < 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "guest memory has no huge pages");
    }
}

/// Maps `part` of a file privately, `within` bytes behind `start`; the reservation there has `size` bytes.
fn map_private(
    start: *mut libc::c_void,
    size: usize,
    within: u64,
    file: &File,
    part: &Range<u64>,
) -> io::Result<()> {
    let within = usize::try_from(within).map_err(io::Error::other)?;
    let length = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
    let offset = libc::off_t::try_from(part.start).map_err(io::Error::other)?;
    if within.checked_add(length).is_none_or(|end| end > size) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let at = start.wrapping_byte_add(within);
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: MAP_FIXED replaces pages of our own reservation only: `length` bytes `within` its `size` (checked above).
    let mapped = unsafe { libc::mmap(at, length, PROT, flags, file.as_raw_fd(), offset) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives guest memory back to the host: it reads as zeros from now on (as the snapshot's, where the memory comes from one)
/// and costs nothing until it is touched again. Whole
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

/// Lets the host give the memory of `range` now, as far as it is RAM, so that the guest finds it there. It is none the worse for
/// a host that cannot (Linux before 5.14): then each page comes when it is touched.
pub(crate) fn populate(memory: &GuestMemory, range: &Range<u64>) {
    for region in memory.iter() {
        let (start, length) = (region.start_addr().raw_value(), region.len());
        let (from, to) = (range.start.max(start), range.end.min(start + length));
        let Some(bytes) = to.checked_sub(from).and_then(|bytes| usize::try_from(bytes).ok()) else {
            continue;
        };
        let at = region.as_ptr().wrapping_add((from - start) as usize);
        // SAFETY: the bytes lie within a mapping of guest memory (`from` and `to` are cut to it), and the advice changes none.
        let advised = unsafe { libc::madvise(at.cast(), bytes, libc::MADV_POPULATE_WRITE) };
        if advised < 0 {
            let error = io::Error::last_os_error();
            tracing::debug!(%error, "guest memory is not there beforehand");
        }
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

    /// The kernel's flags of the mapping at `address`, proc_pid_smaps(5); `None` where it knows no huge pages.
    fn flags_at(address: usize) -> Option<String> {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return None;
        }
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let range =
                range.map(|(from, to)| (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)));
            !matches!(range, Some((Ok(from), Ok(to))) if (from..to).contains(&address))
        });
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:"));
        Some(flags.unwrap().to_owned())
    }

    #[test]
    fn memory_that_no_file_is_behind_asks_for_huge_pages() {
        let memory = map_ram(RamLayout::new(64 * MIB, 0)).unwrap();
        let start = memory.iter().next().unwrap().as_ptr().addr();
        for address in [start, start + 64 * MIB as usize - 1] {
            let Some(flags) = flags_at(address) else {
                return;
            };
            assert!(flags.split(' ').any(|flag| flag == "hg"), "{flags}");
        }
    }

    #[test]
    fn what_is_populated_is_there_and_keeps_its_content() {
        let memory = map_ram(RamLayout::new(64 * MIB, 128 * MIB)).unwrap();
        memory.write_obj(7_u8, GuestAddress(33 * MIB)).unwrap();
        let start = memory.iter().next().unwrap().as_ptr();
        // Beyond RAM there is nothing to populate.
        populate(&memory, &(32 * MIB..GIB));
        let mut there = vec![0_u8; (64 * MIB / PAGE) as usize];
        // SAFETY: 64 MiB from `start` on are mapped, and `there` has a byte for each page of them.
        let told = unsafe { libc::mincore(start.cast(), 64 * MIB as usize, there.as_mut_ptr()) };
        assert_eq!(told, 0);
        let (before, populated) = there.split_at(there.len() / 2);
        assert!(populated.iter().all(|page| page & 1 == 1));
        assert!(before.iter().all(|page| page & 1 == 0));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(33 * MIB)).unwrap(), 7);
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
