//! System calls that move bytes between a descriptor and guest memory.
//!
//! Guest memory is shared with running vCPUs, so no `&[u8]` may point into it and the slices of std and nix are out: these
//! calls hand raw addresses to the kernel. Nothing else of the devices needs `unsafe`.
#![expect(
    unsafe_code,
    reason = "readv, writev and their kin with addresses of guest memory; tun's ioctls"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::iovec;

use super::buffers::{MAX_SEGMENTS, Slice};

/// readv(2): fills `slices` in order; a short count is not an error.
pub(crate) fn read_vectored(fd: BorrowedFd<'_>, slices: &[Slice<'_>]) -> io::Result<usize> {
    let vectors = Vectors::new(&[], slices);
    // SAFETY: `vectors` describes memory that its lifetime keeps mapped, and that nobody holds a Rust reference to.
    retry(|| unsafe { libc::readv(fd.as_raw_fd(), vectors.as_ptr(), vectors.count()) })
}

/// writev(2): `prefix`, then `slices`.
pub(crate) fn write_vectored(fd: BorrowedFd<'_>, prefix: &[u8], slices: &[Slice<'_>]) -> io::Result<usize> {
    let vectors = Vectors::new(prefix, slices);
    // SAFETY: as in `read_vectored`; the kernel only reads.
    retry(|| unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), vectors.count()) })
}

/// preadv(2) at byte `offset`.
pub(crate) fn read_vectored_at(fd: BorrowedFd<'_>, slices: &[Slice<'_>], offset: u64) -> io::Result<usize> {
    let vectors = Vectors::new(&[], slices);
    let offset = file_offset(offset)?;
    // SAFETY: as in `read_vectored`.
    retry(|| unsafe { libc::preadv(fd.as_raw_fd(), vectors.as_ptr(), vectors.count(), offset) })
}

/// pwritev(2) at byte `offset`.
pub(crate) fn write_vectored_at(fd: BorrowedFd<'_>, slices: &[Slice<'_>], offset: u64) -> io::Result<usize> {
    let vectors = Vectors::new(&[], slices);
    let offset = file_offset(offset)?;
    // SAFETY: as in `write_vectored`.
    retry(|| unsafe { libc::pwritev(fd.as_raw_fd(), vectors.as_ptr(), vectors.count(), offset) })
}

/// sendmsg(2) on a stream socket; a peer that is gone is an error, never a SIGPIPE.
pub(crate) fn send_vectored(fd: BorrowedFd<'_>, slices: &[Slice<'_>]) -> io::Result<usize> {
    let vectors = Vectors::new(&[], slices);
    // SAFETY: all-zero is a valid msghdr: no address, no data, no control messages.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = vectors.0.len();
    // SAFETY: `message` points to `vectors`, which outlives the call; see `read_vectored` for what these point to.
    retry(|| unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
}

/// TUNSETOFFLOAD: what the reader of the tap can take unfinished (`TUN_F_*`).
pub(crate) fn tun_set_offload(tap: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: this request takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// TUNSETVNETHDRSZ: the length of the header before each frame.
pub(crate) fn tun_set_header_length(tap: BorrowedFd<'_>, length: i32) -> io::Result<()> {
    // SAFETY: this request reads one int from the address, which is that of a live local variable.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const length) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

// linux/if_tun.h: _IOW('T', 208, unsigned int) and _IOW('T', 216, int).
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// Addresses for one call. Borrowing is by comment: the constructor's arguments outlive every use in this file, because
/// each function above builds one, passes it to one system call and returns.
struct Vectors(Vec<iovec>);

impl Vectors {
    fn new(prefix: &[u8], slices: &[Slice<'_>]) -> Self {
        let mut vectors = Vec::with_capacity(slices.len() + 1);
        if !prefix.is_empty() {
            vectors.push(iovec {
                iov_base: prefix.as_ptr().cast_mut().cast(),
                iov_len: prefix.len(),
            });
        }
        // The kernel refuses more than IOV_MAX; what is left out makes the call short, which every caller handles.
        for slice in slices.iter().take(MAX_SEGMENTS - vectors.len()) {
            vectors.push(iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        Self(vectors)
    }

    fn as_ptr(&self) -> *const iovec {
        self.0.as_ptr()
    }

    fn count(&self) -> libc::c_int {
        // At most IOV_MAX by construction.
        libc::c_int::try_from(self.0.len()).unwrap_or(0)
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_too_large| io::Error::from(io::ErrorKind::InvalidInput))
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_negative) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
