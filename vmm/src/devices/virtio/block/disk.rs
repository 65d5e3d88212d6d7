//! The file behind a disk: bytes at offsets, durability, and space given back. No queue and no request here.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{FallocateFlags, fallocate};

use super::super::buffers::Segments;
use super::super::sys;

/// A sector, the unit of every address of the protocol (5.2.4).
pub(super) const SECTOR: u64 = 512;

/// Why a file is no disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("cannot find the size of the disk {id}")]
    Size {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error("the size of the disk {id} is {bytes} bytes, which is not a positive multiple of 512")]
    OddSize { id: String, bytes: u64 },
}

#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    sectors: u64,
    block_bytes: u64,
    read_only: bool,
}

/// Bytes of a disk, inside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    offset: u64,
    length: u64,
}

impl Disk {
    pub(super) fn new(id: &str, mut file: File, read_only: bool) -> Result<Self, DiskError> {
        let unknown = |source| DiskError::Size {
            id: id.to_owned(),
            source,
        };
        // Unlike metadata, this gives the size of a block device too.
        let bytes = file.seek(SeekFrom::End(0)).map_err(unknown)?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return Err(DiskError::OddSize {
                id: id.to_owned(),
                bytes,
            });
        }
        let block_bytes = file.metadata().map_err(unknown)?.blksize();
        Ok(Self {
            file,
            sectors: bytes / SECTOR,
            block_bytes,
            read_only,
        })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// How many sectors the file system below writes at once, as a power of two, if it is sane.
    pub(super) fn block_exponent(&self) -> Option<u8> {
        let sectors = self.block_bytes / SECTOR;
        (sectors.is_power_of_two() && sectors <= 128).then(|| u8::try_from(sectors.ilog2()).unwrap_or(0))
    }

    /// `None`: not all of it is on the disk.
    pub(super) fn extent(&self, sector: u64, length: u64) -> Option<Extent> {
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(length)?;
        (length.is_multiple_of(SECTOR) && end <= self.sectors * SECTOR).then_some(Extent { offset, length })
    }

    /// Reads `extent` to the front of `target`, which is at least as long.
    pub(super) fn read(&self, extent: Extent, target: &mut Segments<'_>) -> io::Result<()> {
        self.transfer(extent, target, |pieces, offset| {
            sys::read_vectored_at(self.file.as_fd(), pieces.slices(), offset)
        })
    }

    /// Writes `extent` from the front of `source`, which is at least as long.
    pub(super) fn write(&self, extent: Extent, source: &mut Segments<'_>) -> io::Result<()> {
        self.transfer(extent, source, |pieces, offset| {
            sys::write_vectored_at(self.file.as_fd(), pieces.slices(), offset)
        })
    }

    /// What was written before is on stable storage when this returns.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The content of `extent` is not needed any more; it reads as zeros from now on.
    pub(super) fn discard(&self, extent: Extent) -> io::Result<()> {
        self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, extent)
    }

    /// `extent` reads as zeros. Its space stays allocated unless `may_unmap`.
    pub(super) fn write_zeroes(&self, extent: Extent, may_unmap: bool) -> io::Result<()> {
        let mode = if may_unmap {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE
        } else {
            FallocateFlags::FALLOC_FL_ZERO_RANGE
        };
        match self.allocate(mode, extent) {
            // tmpfs has no ZERO_RANGE, some file systems neither.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => self.write_zeroes_by_hand(extent),
            result => result,
        }
    }

    fn allocate(&self, mode: FallocateFlags, extent: Extent) -> io::Result<()> {
        let overflow = |_too_large| io::Error::from(io::ErrorKind::InvalidInput);
        let offset = libc::off_t::try_from(extent.offset).map_err(overflow)?;
        let length = libc::off_t::try_from(extent.length).map_err(overflow)?;
        if length == 0 {
            return Ok(());
        }
        // PUNCH_HOLE demands KEEP_SIZE (fallocate(2)); the extent lies inside of the file anyway.
        Ok(fallocate(
            &self.file,
            mode | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            offset,
            length,
        )?)
    }

    fn write_zeroes_by_hand(&self, extent: Extent) -> io::Result<()> {
        static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
        let mut done = 0;
        while done < extent.length {
            let count = (extent.length - done).min(ZEROES.len() as u64);
            let piece = usize::try_from(count)
                .ok()
                .and_then(|count| ZEROES.get(..count))
                .unwrap_or(&ZEROES);
            std::os::unix::fs::FileExt::write_all_at(&self.file, piece, extent.offset + done)?;
            done += count;
        }
        Ok(())
    }

    /// Repeats `step` until all of `extent` is done; both calls below may do less than asked.
    fn transfer(
        &self,
        extent: Extent,
        memory: &mut Segments<'_>,
        step: impl Fn(&Segments<'_>, u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        // Longer than any chain: a u32 of bytes.
        let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
        let mut pieces = memory.take(length);
        let mut offset = extent.offset;
        while pieces.len() > 0 {
            let count = step(&pieces, offset)?;
            if count == 0 {
                // The file was made shorter behind our back.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            pieces.take(count);
            offset += count as u64;
        }
        Ok(())
    }
}
