//! The kernel's random number generator, random(4).
#![expect(unsafe_code, reason = "the generator's ioctls have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use super::checked;

/// linux/random.h: `_IOW('R', 0x03, int[2])`.
const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;
/// linux/random.h: `_IO('R', 0x07)`.
const RESEED: libc::c_ulong = 0x5207;
/// Most bytes of [`reseed`].
pub(crate) const MAX_SEED: usize = 512;

/// `struct rand_pool_info` with room for the longest seed.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    seed: [u8; MAX_SEED],
}

/// Mixes `seed` in, trusts it, and makes every later random number depend on it: a restored guest has the generator's
/// state of its template until then. Bytes beyond [`MAX_SEED`] are not used.
///
/// # Errors
/// What ioctl(2) answers.
pub(crate) fn reseed(device: impl AsFd, seed: &[u8]) -> io::Result<()> {
    let mut info = PoolInfo {
        entropy_bits: 0,
        bytes: 0,
        seed: [0; MAX_SEED],
    };
    for (to, from) in info.seed.iter_mut().zip(seed) {
        *to = *from;
        info.bytes += 1;
    }
    info.entropy_bits = info.bytes * 8;
    let device = device.as_fd().as_raw_fd();
    // SAFETY: `info` is a rand_pool_info whose `bytes` is at most the length of its buffer.
    checked(unsafe { libc::ioctl(device, ADD_ENTROPY, &raw const info) }.into())?;
    // SAFETY: the request takes no argument.
    checked(unsafe { libc::ioctl(device, RESEED) }.into())?;
    Ok(())
}
