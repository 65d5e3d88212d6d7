//! The duty of PID 1: every process that ends is waited for here, and nowhere else.
//!
//! Children of ours have a receiver of their exit; whatever else was orphaned (an exec'd shell's grandchildren) is only
//! reaped. Spawning takes the same lock as reaping, so that a child cannot be reaped before it is known.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Mutex;

use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::clock;
use crate::lock::lock;
use crate::sys::clone::{Spawned, Stage, spawn};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// As a shell shows it: 128 + signal when a signal ended it.
    pub(crate) code: i32,
    /// 0 when it exited by itself.
    pub(crate) signal: i32,
    /// CLOCK_REALTIME, nanoseconds.
    pub(crate) at_ns: u64,
}

/// A child of ours that may still run.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) ended: oneshot::Receiver<Ended>,
}

/// Who waits for which child.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    waits: Mutex<Waits>,
}

#[derive(Debug, Default)]
struct Waits {
    waiting: HashMap<i32, oneshot::Sender<Ended>>,
    /// How many [`Expecting`] there are.
    expecting: usize,
    /// Ends of processes that nobody waited for while somebody expected some; then they are forgotten.
    early: HashMap<i32, Ended>,
}

/// While it lives, no end is lost of a process that becomes a child of ours without being started by us: an OCI runtime
/// starts it, tells its number and exits, and it may be faster than the number.
#[derive(Debug)]
pub(crate) struct Expecting<'a>(&'a Reaper);

impl Expecting<'_> {
    /// The child that was expected.
    ///
    /// # Errors
    /// What pidfd_open(2) answers.
    pub(crate) fn adopt(&self, pid: i32) -> io::Result<Child> {
        let (sender, ended) = oneshot::channel();
        let number = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let mut waits = lock(&self.0.waits);
        // Reaping takes the lock: a number that is not among the early ones is still the process's own.
        let pidfd = match (waits.early.remove(&pid), pidfd_open(number, PidfdFlags::empty())) {
            (None, pidfd) => {
                let pidfd = pidfd?;
                waits.waiting.insert(pid, sender);
                pidfd
            }
            (Some(end), _) => {
                // The receiver is ours: it is there.
                sender.send(end).ok();
                ended_process()?
            }
        };
        Ok(Child { pid, pidfd, ended })
    }
}

impl Drop for Expecting<'_> {
    fn drop(&mut self) {
        let mut waits = lock(&self.0.waits);
        waits.expecting -= 1;
        if waits.expecting == 0 {
            waits.early.clear();
        }
    }
}

/// Stands for the pidfd of a process that has been reaped: to signal it is ESRCH or EBADF, and nobody does once its end is
/// known.
fn ended_process() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/dev/null")?.into())
}

impl Reaper {
    /// Starts a stage whose end will be delivered.
    ///
    /// # Errors
    /// As [`spawn`].
    pub(crate) fn spawn(&self, stage: &Stage<'_>) -> io::Result<Child> {
        let mut waits = lock(&self.waits);
        let Spawned { pid, pidfd } = spawn(stage)?;
        let (sender, ended) = oneshot::channel();
        waits.waiting.insert(pid, sender);
        Ok(Child { pid, pidfd, ended })
    }

    /// Starts a program whose end will be delivered.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn spawn_program(&self, command: &mut Command) -> io::Result<Child> {
        let mut waits = lock(&self.waits);
        let pid = i32::try_from(command.spawn()?.id()).map_err(io::Error::other)?;
        let number = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        let (sender, ended) = oneshot::channel();
        waits.waiting.insert(pid, sender);
        Ok(Child { pid, pidfd, ended })
    }

    /// From now on ends of processes that nobody waits for are kept.
    pub(crate) fn expect(&self) -> Expecting<'_> {
        lock(&self.waits).expecting += 1;
        Expecting(self)
    }

    /// Reaps for as long as the process lives.
    ///
    /// # Errors
    /// When SIGCHLD cannot be listened to; no failure later ends it.
    pub(crate) async fn run(&self) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.reap_all();
            children.recv().await;
        }
    }

    fn reap_all(&self) {
        let mut waits = lock(&self.waits);
        // An error means that there are no children at all.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(ended) = ended(status) else { continue };
            let pid = pid.as_raw_nonzero().get();
            if let Some(sender) = waits.waiting.remove(&pid) {
                // Nobody listens when the creation of its container failed meanwhile.
                sender.send(ended).ok();
            } else if waits.expecting > 0 {
                waits.early.insert(pid, ended);
            }
        }
    }
}

/// `None` for a process that was only stopped or continued.
fn ended(status: WaitStatus) -> Option<Ended> {
    let at_ns = clock::realtime_ns();
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Ended {
            code,
            signal: 0,
            at_ns,
        }),
        (None, Some(signal)) => Some(Ended {
            code: 128 + signal,
            signal,
            at_ns,
        }),
        (None, None) => None,
    }
}
