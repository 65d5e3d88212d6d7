//! What a long-lived child of the daemon does between fork and exec: a session of its own, its cgroup, and exactly the
//! descriptors it is meant to have.
//!
//! Descriptors keep the numbers that they have in the daemon. To give them fixed numbers with dup2 could overwrite the
//! pipe over which the standard library reports a failed exec, whose number nobody knows.

#![expect(unsafe_code, reason = "fork hooks and close_range(2) have no safe wrapper")]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
};

use rustix::io::{FdFlags, fcntl_setfd};

/// Makes `command` start in a new session, in the cgroup whose `cgroup.procs` is given (opened for writing), with no
/// descriptors but 0, 1, 2 and `keep`.
///
/// `keep` stays open in this process until `command` is dropped.
pub(crate) fn detach(command: &mut Command, cgroup_procs: Option<File>, keep: Vec<OwnedFd>) {
    let before_exec = move || {
        rustix::process::setsid()?;
        if let Some(procs) = &cgroup_procs {
            // "0" is the writing process itself: cgroups(7).
            rustix::io::write(procs, b"0")?;
        }
        close_all_on_exec()?;
        for descriptor in &keep {
            fcntl_setfd(descriptor.as_fd(), FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in the forked child of a threaded process, where only async-signal-safe calls are allowed:
    // it makes plain system calls on values that it owns, and neither allocates, locks nor panics.
    unsafe { command.pre_exec(before_exec) };
}

/// Marks every descriptor above 2 close-on-exec, also those that the daemon itself inherited without the flag.
fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: close_range(2) takes no pointers; with CLOEXEC it closes nothing now, so no owner loses its descriptor.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
