//! Guest memory in this process: RAM (`ram`), and read-only files that the guest sees as memory.

#![expect(
    unsafe_code,
    reason = "maps files into the address space at fixed places of our own reservation"
)]

mod copied;
pub(crate) mod image;
pub(crate) mod layout;
mod ram;
pub(crate) mod windows;

pub(crate) use self::copied::copied;
pub(crate) use self::ram::{discard, map_ram, populate};

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::num::NonZero;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::time::Duration;

use self::layout::FILE_ALIGN;

/// x86's; the alignment of everything that the guest sees as memory.
const HUGE_PAGE: usize = FILE_ALIGN as usize;
pub(crate) const PAGE: u64 = 4096;
const COLLAPSE_TRIES: u32 = 5;
const COLLAPSE_PAUSE: Duration = Duration::from_millis(2);

/// Why memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("cannot map {bytes} bytes of guest RAM")]
    Ram {
        bytes: u64,
        #[source]
        source: io::Error,
    },
    #[error("guest RAM of {bytes} bytes does not fit the address space")]
    Regions { bytes: u64 },
    #[error("cannot find the size of the file to be mapped")]
    FileSize(#[source] io::Error),
    #[error("the file to be mapped is empty")]
    EmptyFile,
    #[error("cannot map a file of {bytes} bytes")]
    File {
        bytes: u64,
        #[source]
        source: io::Error,
    },
}

/// A file mapped read-only and shared with the host's page cache, padded with zeros to a multiple of 2 MiB.
#[derive(Debug)]
pub(crate) struct FileMapping {
    /// Our reservation of address space; the mapping lies in it, at a multiple of 2 MiB.
    reservation: NonNull<libc::c_void>,
    reserved: usize,
    start: *const u8,
    size: usize,
}

// SAFETY: the mapping is read-only memory of the process, bound to no thread, and the struct gives out its address only.
unsafe impl Send for FileMapping {}

impl FileMapping {
    /// Maps `file` (a regular file or a block device). The descriptor may be closed afterwards.
    pub(crate) fn new(mut file: &File) -> Result<Self, MemoryError> {
        // A block device's metadata tells no size, its end does.
        let bytes = file.seek(SeekFrom::End(0)).map_err(MemoryError::FileSize)?;
        if bytes == 0 {
            return Err(MemoryError::EmptyFile);
        }
        let too_large = || MemoryError::File {
            bytes,
            source: io::ErrorKind::FileTooLarge.into(),
        };
        let padded = bytes.checked_next_multiple_of(FILE_ALIGN).ok_or_else(too_large)?;
        let length = usize::try_from(bytes).map_err(|_| too_large())?;
        let size = usize::try_from(padded).map_err(|_| too_large())?;
        let reserved = size.checked_add(HUGE_PAGE).ok_or_else(too_large)?;
        let failed = |source| MemoryError::File { bytes, source };
        let reservation = reserve(reserved, libc::PROT_READ).map_err(failed)?;
        let start = align(reservation).as_ptr();
        let mapping = Self {
            reservation,
            reserved,
            start: start.cast(),
            size,
        };
        mapping.place(file, length).map_err(failed)?;
        Ok(mapping)
    }

    /// Host address of the first byte.
    pub(crate) fn host_address(&self) -> *const u8 {
        self.start
    }

    /// Bytes, padding included.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Puts the 2 MiB from `offset` of the file on into a huge page of the page cache, madvise(2), whether its file system would do so by
    /// itself or not. Nothing of the content changes. Pages that somebody else looks at just then are busy: they are tried again.
    fn collapse(&self, offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        if offset.checked_add(HUGE_PAGE).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = self.start.wrapping_add(offset).cast_mut().cast();
        let advise = |advice| {
            // SAFETY: a huge page from `start` on lies within the mapping (checked above), and neither advice changes content.
            let advised = unsafe { libc::madvise(start, HUGE_PAGE, advice) };
            if advised < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        };
        // What is not mapped is collapsed, too, but told as a failure.
        advise(libc::MADV_POPULATE_READ)?;
        let mut left = COLLAPSE_TRIES;
        loop {
            left -= 1;
            match advise(libc::MADV_COLLAPSE) {
                Err(error) if left > 0 && error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(COLLAPSE_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn place(&self, file: &File, length: usize) -> io::Result<()> {
        let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: MAP_FIXED replaces pages of our own reservation only: `start` is aligned within it and `length` is at
        // most `size`, which the reservation holds behind any alignment (`new`).
        let mapped = unsafe {
            libc::mmap(
                self.start.cast_mut().cast(),
                length,
                prot,
                flags,
                file.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: the reservation is ours alone, and KVM's slot over it was removed before (`kvm::Vm::unmap_file` takes
        // the mapping by value).
        let result = unsafe { libc::munmap(self.reservation.as_ptr(), self.reserved) };
        debug_assert_eq!(result, 0);
    }
}

/// Address space that reads as zeros and holds no memory.
fn reserve(bytes: usize, prot: libc::c_int) -> io::Result<NonNull<libc::c_void>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, flags, -1, 0) };
    match NonNull::new(mapped) {
        Some(address) if mapped != libc::MAP_FAILED => Ok(address),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The next multiple of 2 MiB.
fn align(address: NonNull<libc::c_void>) -> NonNull<libc::c_void> {
    address.map_addr(|number| {
        let aligned = number.get().next_multiple_of(HUGE_PAGE);
        NonZero::new(aligned).unwrap_or(number)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_padded_with_zeros_to_two_mebibytes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"layer").unwrap();
        let mapping = FileMapping::new(&file).unwrap();
        assert_eq!(mapping.size(), 2 << 20);
        assert!(mapping.host_address().addr().is_multiple_of(2 << 20));
        // SAFETY: the mapping is `size` bytes of readable memory, and lives until the end of the test.
        let bytes = unsafe { std::slice::from_raw_parts(mapping.host_address(), mapping.size()) };
        assert_eq!(&bytes[..5], b"layer");
        assert!(bytes[5..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_empty_file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(FileMapping::new(&file), Err(MemoryError::EmptyFile)));
    }
}
