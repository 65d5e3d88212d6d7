//! A process that does nothing but have namespaces, and the ids that a process makes files with.
#![expect(unsafe_code, reason = "clone3 and setfsuid have no safe wrapper")]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

use super::checked;
use super::clone::{CloneArgs, Spawned};

/// Starts a child in a new user namespace and new namespaces of the kinds `others` (`CLONE_NEW*`), which belong to it. It
/// waits until it is killed.
///
/// # Errors
/// What clone3(2) answers.
pub(crate) fn spawn_waiting(others: i32) -> io::Result<Spawned> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs::new(&mut pidfd);
    args.flags |= (libc::CLONE_NEWUSER | others) as u64;
    // SAFETY: `args` is a valid clone_args of the size given and outlives the call, as does `pidfd` that it points to.
    // Without CLONE_VM the child has a copy of this address space, and it only makes one async-signal-safe system call.
    let pid = checked(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        loop {
            // SAFETY: pause(2) touches no memory; handlers that a signal could run are the parent's, which has none that
            // is not async-signal-safe.
            unsafe { libc::pause() };
        }
    }
    // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor in `pidfd`; nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    Ok(Spawned { pid, pidfd })
}

/// Makes files with this owner from now on, and keeps what the thread is capable of: setfsuid(2) would take from it
/// what goes beyond an owner's rights.
///
/// # Errors
/// When the kernel does not take the ids, or what capset(2) answers.
pub(crate) fn own_files_as(uid: u32, gid: u32) -> io::Result<()> {
    let before = capabilities(None)?;
    // SAFETY: setfsgid takes an integer and touches no memory.
    unsafe { libc::setfsgid(gid) };
    // SAFETY: setfsuid takes an integer and touches no memory.
    unsafe { libc::setfsuid(uid) };
    // They report no failure: asked for an id that there cannot be, they say which one holds.
    // SAFETY: as above.
    let holds_uid = unsafe { libc::setfsuid(libc::uid_t::MAX) };
    // SAFETY: as above.
    let holds_gid = unsafe { libc::setfsgid(libc::gid_t::MAX) };
    if (holds_uid.cast_unsigned(), holds_gid.cast_unsigned()) != (uid, gid) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let sets = CapabilitySets {
        effective: before.permitted,
        ..before
    };
    Ok(set_capabilities(None, sets)?)
}
