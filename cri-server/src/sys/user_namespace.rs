//! User namespaces that nobody is in: for mounts whose ids are mapped.

#![expect(unsafe_code, reason = "clone3(2) and mount_setattr(2) have no safe wrapper")]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::id_map::{IdMap, IdRange};

/// `struct clone_args` of linux/sched.h, as of Linux 5.3: the oldest that the call takes.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// A new user namespace. It takes a process to make one, which is gone when this returns.
pub(crate) fn make(map: IdMap) -> io::Result<OwnedFd> {
    let (pid, pidfd) = spawn_waiting()?;
    let take = || -> io::Result<OwnedFd> {
        let line = |range: IdRange| format!("0 {} {}\n", range.outside, range.length);
        std::fs::write(format!("/proc/{pid}/uid_map"), line(map.uids))?;
        std::fs::write(format!("/proc/{pid}/gid_map"), line(map.gids))?;
        Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
    };
    let taken = take();
    pidfd_send_signal(&pidfd, Signal::KILL)?;
    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
    taken
}

/// A child in a new user namespace, which waits until it is killed.
fn spawn_waiting() -> io::Result<(libc::c_long, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: (libc::CLONE_PIDFD | libc::CLONE_NEWUSER) as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a valid clone_args of the size given and outlives the call, as does `pidfd` that it points to.
    // Without CLONE_VM the child has a copy of this address space, and it only makes async-signal-safe system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    if pid == -1 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // Not longer than the thread that made it.
        // SAFETY: PR_SET_PDEATHSIG takes an integer and touches no memory.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        loop {
            // SAFETY: pause(2) touches no memory.
            unsafe { libc::pause() };
        }
    }
    // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor in `pidfd`; nobody else owns it.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Makes a detached mount's tree show its files with the ids of `namespace`: 0 on disk is its root.
pub(crate) fn map_ids(mount: impl AsFd, namespace: impl AsFd) -> io::Result<()> {
    super::mount::change(
        mount,
        libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: u64::try_from(namespace.as_fd().as_raw_fd()).map_err(io::Error::other)?,
        },
        true,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id_map::tests::map;

    #[test]
    fn a_namespace_is_left_without_its_process() {
        if !rustix::process::getuid().is_root() {
            println!("SKIPPED a_namespace_is_left_without_its_process: needs root");
            return;
        }
        let namespace = make(map(100_000, 65_536)).unwrap();
        let name = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        let link = |path: &str| std::fs::read_link(path).unwrap();
        assert!(link(&name).to_str().unwrap().starts_with("user:["));
        assert_ne!(link(&name), link("/proc/self/ns/user"));
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        assert_eq!(children, "");
    }
}
