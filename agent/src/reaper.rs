//! The duty of PID 1: every process that ends is waited for here, and nowhere else.
//!
//! Children of ours have a receiver of their exit; whatever else was orphaned (an exec'd shell's grandchildren) is only
//! reaped. Spawning takes the same lock as reaping, so that a child cannot be reaped before it is known.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use rustix::process::{WaitOptions, WaitStatus, wait};
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
    waiting: Mutex<HashMap<i32, oneshot::Sender<Ended>>>,
}

impl Reaper {
    /// Starts a stage whose end will be delivered.
    ///
    /// # Errors
    /// As [`spawn`].
    pub(crate) fn spawn(&self, stage: &Stage<'_>) -> io::Result<Child> {
        let mut waiting = lock(&self.waiting);
        let Spawned { pid, pidfd } = spawn(stage)?;
        let (sender, ended) = oneshot::channel();
        waiting.insert(pid, sender);
        Ok(Child { pid, pidfd, ended })
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
        let mut waiting = lock(&self.waiting);
        // An error means that there are no children at all.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(ended) = ended(status) else { continue };
            if let Some(sender) = waiting.remove(&pid.as_raw_nonzero().get()) {
                // Nobody listens when the creation of its container failed meanwhile.
                sender.send(ended).ok();
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
