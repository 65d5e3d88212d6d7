//! Which pages of guest memory are this process's own: what was mapped of a snapshot is shared until it is written, and copied then.
//! Told by /proc/self/pagemap (proc_pid_pagemap(5), the kernel's Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use proto::machine::PageRun;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::PAGE;
use crate::devices::virtio::GuestMemory;

const PAGEMAP: &str = "/proc/self/pagemap";
const ENTRY: usize = size_of::<u64>();
/// Of entries, read in one go.
const CHUNK: usize = 64 << 10;

/// Bits of an entry: the page is in memory; it is in swap; it is a file's, or shared.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// Runs of them, lowest first. With more than `most` runs it is `QuotaExceeded`: how many there are is the guest's choice.
pub(crate) fn copied(memory: &GuestMemory, most: usize) -> io::Result<Vec<PageRun>> {
    let pagemap = File::open(PAGEMAP)?;
    let mut runs = Runs::new(most);
    let mut buffer = vec![0; CHUNK];
    for region in memory.iter() {
        let mut guest_page = region.start_addr().raw_value() / PAGE;
        let end = guest_page + region.len() / PAGE;
        let mut host_page = region.as_ptr().addr() as u64 / PAGE;
        while guest_page < end {
            let pages = (end - guest_page).min((CHUNK / ENTRY) as u64);
            let entries = &mut buffer[..pages as usize * ENTRY];
            pagemap.read_exact_at(entries, host_page * ENTRY as u64)?;
            let (entries, _) = entries.as_chunks::<ENTRY>();
            for (page, entry) in (guest_page..).zip(entries) {
                if is_copied(u64::from_le_bytes(*entry)) {
                    runs.add(page)?;
                }
            }
            (guest_page, host_page) = (guest_page + pages, host_page + pages);
        }
    }
    Ok(runs.runs)
}

fn is_copied(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & OF_A_FILE == 0
}

struct Runs {
    runs: Vec<PageRun>,
    most: usize,
}

impl Runs {
    fn new(most: usize) -> Self {
        Self {
            runs: Vec::new(),
            most,
        }
    }

    /// Pages come in order.
    fn add(&mut self, page: u64) -> io::Result<()> {
        let is_full = self.runs.len() == self.most;
        match self.runs.last_mut() {
            Some(last) if last.first + last.count == page => last.count += 1,
            _ if is_full => return Err(io::ErrorKind::QuotaExceeded.into()),
            _ => self.runs.push(PageRun {
                first: page,
                count: 1,
            }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use vm_memory::{Bytes, GuestAddress};

    use super::super::image;
    use super::super::layout::RamLayout;
    use super::super::map_ram;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first, count }
    }

    #[test]
    fn what_was_written_of_a_snapshot_is_copied_and_what_was_read_is_not() {
        let layout = RamLayout::new(64 * MIB, 128 * MIB);
        let saved = map_ram(layout).unwrap();
        saved
            .write_slice(&vec![1; 4 << 20], GuestAddress(8 * MIB))
            .unwrap();
        let file = tempfile::tempfile().unwrap();
        image::write(&saved, [7; 16], &file).unwrap();
        let memory = image::map(layout, [7; 16], &file).unwrap();
        for page in [2048, 2050, 2051, 3071] {
            memory.write_obj(5_u8, GuestAddress(page * PAGE + 9)).unwrap();
        }
        for page in [2049, 2060] {
            assert_eq!(memory.read_obj::<u8>(GuestAddress(page * PAGE)).unwrap(), 1);
        }
        let hotplugged = layout.hotplug().start;
        memory.write_obj(5_u8, GuestAddress(hotplugged)).unwrap();
        let found = copied(&memory, 4).unwrap();
        let expected = [
            run(2048, 1),
            run(2050, 2),
            run(3071, 1),
            run(hotplugged / PAGE, 1),
        ];
        assert_eq!(found, expected);
        let refused = copied(&memory, 3).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::QuotaExceeded);
        let mut byte = [0];
        file.read_exact_at(&mut byte, 2048 * PAGE + 9).unwrap();
        assert_eq!(byte, [1], "the snapshot stays as it is");
    }

    #[test]
    fn a_page_in_swap_is_there_and_a_page_of_a_file_is_not_ours() {
        assert!(is_copied(PRESENT) && is_copied(SWAPPED));
        assert!(!is_copied(PRESENT | OF_A_FILE) && !is_copied(0) && !is_copied(OF_A_FILE));
    }
}
