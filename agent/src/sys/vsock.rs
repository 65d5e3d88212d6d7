//! `AF_VSOCK` sockets, vsock(7): listen, accept from the host only, connect to the host.
//!
//! Connections come back as `UnixStream`: tokio's stream type for "a stream socket that is already connected". Its
//! reads, writes and shutdown are the same system calls for every family; only its address methods are not, and nobody
//! calls those here.
#![expect(unsafe_code, reason = "rustix has no address type for AF_VSOCK")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The host's context id, `VMADDR_CID_HOST`.
const HOST: u32 = libc::VMADDR_CID_HOST;

struct Address(libc::sockaddr_vm);

impl Address {
    fn new(cid: u32, port: u32) -> Self {
        // SAFETY: sockaddr_vm is plain data for which all zeros is valid (its padding must be zero).
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = cid;
        address.svm_port = port;
        Self(address)
    }
}

// SAFETY: `with_sockaddr` passes a pointer to a whole, initialised sockaddr_vm and its size.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(
            (&raw const self.0).cast(),
            size_of::<libc::sockaddr_vm>() as SocketAddrLen,
        )
    }
}

/// A non-blocking listener on `port`.
///
/// # Errors
/// What socket(2), bind(2) and listen(2) answer; EAFNOSUPPORT without vsock in the kernel.
pub(crate) fn listen(port: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &Address::new(libc::VMADDR_CID_ANY, port))?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

/// Takes one waiting connection; `None` if its peer is not the host (a container may speak vsock, too).
///
/// # Errors
/// What accept4(2) answers: EAGAIN when nobody waits.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<Option<UnixStream>> {
    let (socket, peer) =
        rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let from_host = peer.is_some_and(|peer| {
        // SAFETY: the closure reads svm_cid only after it has checked family and length, at any alignment.
        unsafe { peer.with_sockaddr(|address, len| peer_cid(address, len) == Some(HOST)) }
    });
    Ok(from_host.then(|| UnixStream::from(socket)))
}

fn peer_cid(address: *const SocketAddrOpaque, len: SocketAddrLen) -> Option<u32> {
    if (len as usize) < size_of::<libc::sockaddr_vm>() {
        return None;
    }
    // SAFETY: the caller passes a sockaddr of `len` bytes, which is enough for a sockaddr_vm; any bytes are a valid one.
    let address = unsafe { address.cast::<libc::sockaddr_vm>().read_unaligned() };
    (i32::from(address.svm_family) == libc::AF_VSOCK).then_some(address.svm_cid)
}

/// Connects to `port` of the host; blocks.
///
/// # Errors
/// What connect(2) answers: ECONNRESET when nobody listens.
pub(crate) fn connect_to_host(port: u32) -> io::Result<UnixStream> {
    let socket = rustix::net::socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&socket, &Address::new(HOST, port))?;
    Ok(UnixStream::from(socket))
}
