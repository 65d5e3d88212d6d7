//! The memory that a backend sees: a memfd of the device's own, mapped here as in the backend. A page of it exists from its
//! first touch on, and not any more after [`Region::forget`].
//!
//! The backend may write all of it at any time: nothing that is read here may be believed.

use std::fs::File;
use std::io;
use std::ops::Range;

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
    MmapRegion,
};

use super::super::GuestMemory;
use super::super::buffers::Slice;

pub(super) const PAGE: usize = 4096;
/// Where the backend is told that the region lies: what it takes for an address of the guest. Not 0, which in a ring's place
/// means that there is none.
const START: u64 = 1 << 32;

/// Cheap to clone: all clones are the same memory, which lives as long as one of them.
#[derive(Debug, Clone)]
pub(super) struct Region {
    memory: GuestMemory,
}

impl Region {
    /// All zeros.
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        let file = FileOffset::new(sealed_file(bytes as u64)?, 0);
        let mapping = MmapRegion::from_file(file, bytes).map_err(io::Error::other)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(START));
        let region = region.ok_or(io::ErrorKind::InvalidInput)?;
        let memory = GuestMemory::from_regions(vec![region]).map_err(io::Error::other)?;
        Ok(Self { memory })
    }

    /// As the backend is told of it.
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The place that a descriptor names to the backend.
    pub(super) fn address(offset: usize) -> u64 {
        START + offset as u64
    }

    /// The place that the backend's set-up names: where it is in this process.
    pub(super) fn host_address(&self, offset: usize) -> u64 {
        let start = self.memory.iter().next().map(|region| region.as_ptr());
        start.map_or(0, |start| start.addr() as u64) + offset as u64
    }

    /// `None`: outside of it.
    pub(super) fn slice(&self, range: Range<usize>) -> Option<Slice<'_>> {
        let region = self.memory.iter().next()?;
        let start = MemoryRegionAddress(range.start as u64);
        region.get_slice(start, range.len()).ok()
    }

    /// Gives whole pages back to the host; they read as zeros from now on.
    pub(super) fn forget(&self, range: Range<usize>) -> io::Result<()> {
        let region = self.memory.iter().next();
        let Some(file) = region.and_then(GuestRegionMmap::file_offset) else {
            return Ok(());
        };
        let [start, length] = [range.start, range.len()].map(libc::off_t::try_from);
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (start, length) = start
            .and_then(|start| Ok((start, length?)))
            .map_err(io::Error::other)?;
        Ok(fallocate(file.file(), hole, start, length)?)
    }
}

/// A backend that was taken over cannot cut it off under us.
fn sealed_file(bytes: u64) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create("fs-bounce", flags)?);
    file.set_len(bytes)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn it_is_one_file_whose_size_nobody_changes() {
        let region = Region::new(4 * PAGE).unwrap();
        let slice = region.slice(PAGE..PAGE + 8).unwrap();
        slice.write_obj(0x1234_u64, 0).unwrap();
        let mapped = region.memory().iter().next().unwrap();
        let file = mapped.file_offset().unwrap().file();
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, PAGE as u64).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 0x1234);
        assert!(file.set_len(1).is_err());
        assert!(file.set_len(1 << 20).is_err());
        assert!(region.slice(4 * PAGE - 1..4 * PAGE + 1).is_none());
        assert_eq!(Region::address(PAGE), mapped.start_addr().0 + PAGE as u64);
    }

    #[test]
    fn pages_cost_nothing_before_and_after() {
        let region = Region::new(64 * PAGE).unwrap();
        let blocks = || {
            let mapped = region.memory().iter().next().unwrap();
            mapped.file_offset().unwrap().file().metadata().unwrap().blocks()
        };
        assert_eq!(blocks(), 0);
        for page in 0..4 {
            let slice = region.slice(page * PAGE..page * PAGE + 1).unwrap();
            slice.write_obj(7_u8, 0).unwrap();
        }
        assert_eq!(blocks(), 4 * 8);
        region.forget(PAGE..3 * PAGE).unwrap();
        assert_eq!(blocks(), 2 * 8);
        let left = (0..4).map(|page| {
            let slice = region.slice(page * PAGE..page * PAGE + 1).unwrap();
            slice.read_obj::<u8>(0).unwrap()
        });
        assert_eq!(left.collect::<Vec<_>>(), [7, 0, 0, 7]);
    }
}
