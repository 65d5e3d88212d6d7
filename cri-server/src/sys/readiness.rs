//! Waiting on the event loop until a descriptor that the daemon owns becomes readable. It is not read here.

#![expect(
    unsafe_code,
    reason = "tokio leaves it to the caller that the descriptor stays open"
)]

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers `descriptor` for readability; needs a tokio runtime.
pub(crate) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, stays so and keeps its number until it is dropped; the AsyncFd owns it and deregisters
    // before it drops it.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    registered.map_err(io::Error::from)
}
