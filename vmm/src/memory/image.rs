//! Guest memory as a file: written by a Machine that stands still, mapped by those that go on from it.
//!
//! ```text
//! all ranges of the layout, one behind the other      what is zero is a hole
//! one page                                            magic, id of the snapshot
//! ```
//!
//! The mapping is private: nothing is read before the guest touches it, pages that are only read are the file's own, shared by
//! all Machines, and what a guest writes is its alone. Holes are anonymous memory, as in a Machine that has booted.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::unistd::{Whence, lseek};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::layout::{FILE_ALIGN, RamLayout};
use super::ram::{Backing, map_ranges};
use super::{FileMapping, MemoryError, PAGE};
use crate::devices::virtio::GuestMemory;

/// Names one snapshot: in its memory file and in its state.
pub(crate) type SnapshotId = [u8; 16];

const MAGIC: [u8; 8] = *b"clpdmem1";
/// Read and looked at in one go.
const CHUNK: usize = 256 << 10;
/// Mappings of one range: far below the 65,530 that Linux allows a process. With more pieces than this, holes are mapped, too.
const PIECES: usize = 4096;

const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// Why a file is not the memory that is wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("cannot read it")]
    Read(#[source] io::Error),
    #[error("it has {found} bytes instead of {wanted}")]
    Size { found: u64, wanted: u64 },
    #[error("it is no guest memory")]
    Foreign,
    #[error("it belongs to another snapshot")]
    OtherSnapshot,
    #[error(transparent)]
    Map(#[from] MemoryError),
}

/// Writes all of guest memory, of which nobody changes anything meanwhile, to an empty file.
pub(crate) fn write(memory: &GuestMemory, id: SnapshotId, file: &File) -> io::Result<()> {
    let mut offset = 0;
    for region in memory.iter() {
        write_part(region, 0..region.len(), offset, file)?;
        offset += region.len();
    }
    file.set_len(offset + PAGE)?;
    file.write_all_at(&trailer(id), offset)
}

/// Lets the host keep each 2 MiB that lies in `ranges` of guest memory, all of it below the hole, in one huge page: where a guest only reads,
/// one page fault then brings all of it, and there is one translation of it. A huge page that is written once is mapped in small
/// pages by whoever writes it, so it is for what is not written. It is none the worse for a host or a file system that cannot: Linux
/// before 6.1, and whatever is no tmpfs.
pub(crate) fn gather(file: &File, ranges: &[Range<u64>]) {
    let mapping = match FileMapping::new(file) {
        Ok(mapping) => mapping,
        Err(error) => return tracing::debug!(%error, "the kernel's text stays in small pages"),
    };
    let size = mapping.size() as u64;
    // Whatever a kernel's headers say.
    let within = ranges
        .iter()
        .flat_map(|range| huge_pages(range.start..range.end.min(size)));
    for start in within {
        if let Err(error) = mapping.collapse(start) {
            tracing::debug!(%error, start, "the kernel's text stays in small pages here");
        }
    }
}

/// Where those begin that lie in a range as a whole.
fn huge_pages(range: Range<u64>) -> impl Iterator<Item = u64> {
    let last = range.end.checked_sub(FILE_ALIGN);
    let starts = (range.start.div_ceil(FILE_ALIGN)..).map_while(|number| number.checked_mul(FILE_ALIGN));
    starts.take_while(move |start| last.is_some_and(|last| *start <= last))
}

/// Maps what [`write()`] wrote of a Machine with this layout.
pub(crate) fn map(layout: RamLayout, id: SnapshotId, file: &File) -> Result<GuestMemory, ImageError> {
    let ranges = layout.ranges();
    let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let (found, wanted) = (file.metadata().map_err(ImageError::Read)?.len(), bytes + PAGE);
    if found != wanted {
        return Err(ImageError::Size { found, wanted });
    }
    let mut end = [0; MAGIC.len() + size_of::<SnapshotId>()];
    file.read_exact_at(&mut end, bytes).map_err(ImageError::Read)?;
    if !end.starts_with(&MAGIC) {
        return Err(ImageError::Foreign);
    }
    if end != trailer(id) {
        return Err(ImageError::OtherSnapshot);
    }
    Ok(map_ranges(&ranges, |offset, bytes| {
        let parts = pieces(file, offset..offset + bytes, FILE_ALIGN)?;
        Ok(Backing::Private { file, parts })
    })?)
}

fn trailer(id: SnapshotId) -> [u8; MAGIC.len() + size_of::<SnapshotId>()] {
    let mut bytes = [0; MAGIC.len() + size_of::<SnapshotId>()];
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes[MAGIC.len()..].copy_from_slice(&id);
    bytes
}

/// Writes the pages of `part` of a region that are not zero, where the region begins at `base` of the file.
fn write_part(
    region: &vm_memory::GuestRegionMmap,
    part: Range<u64>,
    base: u64,
    file: &File,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = part.start;
    while at < part.end {
        let length = usize::try_from(part.end - at).map_or(CHUNK, |left| left.min(CHUNK));
        let bytes = &mut buffer[..length];
        let slice = region
            .get_slice(MemoryRegionAddress(at), length)
            .map_err(io::Error::other)?;
        slice.copy_to(bytes);
        for run in full_runs(bytes) {
            let start = run.start as u64;
            file.write_all_at(&bytes[run], base + at + start)?;
        }
        at += length as u64;
    }
    Ok(())
}

/// Runs of pages that are not all zero.
fn full_runs(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (number, page) in bytes.chunks(PAGE as usize).enumerate() {
        // One memcmp(3), which is fast in every build.
        if ZEROS.starts_with(page) {
            continue;
        }
        let start = number * PAGE as usize;
        let end = start + page.len();
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

/// The parts of `range` of a file that are no holes, in units of `unit` bytes from its start on. One part, where the file
/// system knows no holes or there are too many.
fn pieces(file: &File, range: Range<u64>, unit: u64) -> io::Result<Vec<Range<u64>>> {
    let mut pieces: Vec<Range<u64>> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let data = match seek(file, at, Whence::SeekData) {
            Ok(data) if data < range.end => data,
            Ok(_) | Err(nix::Error::ENXIO) => break,
            Err(nix::Error::EINVAL) => return Ok(vec![range]),
            Err(error) => return Err(error.into()),
        };
        let hole = seek(file, data, Whence::SeekHole)?;
        let start = range.start + (data - range.start) / unit * unit;
        let end = (range.start + (hole - range.start).next_multiple_of(unit)).min(range.end);
        match pieces.last_mut() {
            Some(last) if last.end >= start => last.end = end,
            _ => pieces.push(start..end),
        }
        at = end;
    }
    Ok(if pieces.len() > PIECES {
        vec![range]
    } else {
        pieces
    })
}

fn seek(file: &File, offset: u64, whence: Whence) -> nix::Result<u64> {
    let offset = i64::try_from(offset).map_err(|_too_large| nix::Error::EOVERFLOW)?;
    let found = lseek(file, offset, whence)?;
    u64::try_from(found).map_err(|_negative| nix::Error::EOVERFLOW)
}

#[cfg(test)]
mod tests;
