//! Watches processes of Machines through their pidfds and tells how they ended. No decision is made here.
//!
//! The pidfd is taken while the process cannot have been reaped (our child) or is checked against its recorded start time
//! afterwards (adoption), so that it always refers to the very process.

use std::{
    io::{self, Write as _},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use proto::machine::ExitReason;
use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::{io::unix::AsyncFd, sync::watch, task::JoinSet};

use super::process::{Identity, MachineExit, Process, ProcessControl};
use crate::sys::readiness;

/// The tasks that wait for processes; they end with this value.
#[derive(Debug, Default)]
pub(super) struct Monitors(Mutex<JoinSet<()>>);

impl Monitors {
    /// Watches the process of `identity` from now on; `None` when it is gone.
    pub(super) fn watch(&self, identity: &Identity) -> io::Result<Option<Process>> {
        let Some(watched) = Watched::open(identity)? else {
            return Ok(None);
        };
        let watched = Arc::new(watched);
        let (sender, receiver) = watch::channel(None);
        let mut monitors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while monitors.try_join_next().is_some() {}
        monitors.spawn(Arc::clone(&watched).publish_exit(sender));
        Ok(Some(Process::new(identity.pid, receiver, watched)))
    }
}

/// A process that cannot be mistaken for another one.
#[derive(Debug)]
pub(super) struct Watched {
    identity: Identity,
    pidfd: AsyncFd<OwnedFd>,
}

impl Watched {
    /// Opens the process of `identity`, if that very process still exists (or is a zombie).
    pub(super) fn open(identity: &Identity) -> io::Result<Option<Self>> {
        let Some(pid) = identity.raw_pid() else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Read after the pidfd was opened: had the pid been given to another process before, that one's start time is read.
        match Identity::read(identity.pid) {
            Ok(now) if now == *identity => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        }
        let pidfd = readiness::readable(pidfd)?;
        Ok(Some(Self {
            identity: identity.clone(),
            pidfd,
        }))
    }

    /// Waits for the end and publishes it.
    pub(super) async fn publish_exit(self: Arc<Self>, exit: watch::Sender<Option<MachineExit>>) {
        let ended = match self.pidfd.readable().await {
            Ok(_) => self.reap(),
            Err(error) => {
                tracing::error!(%error, "cannot wait for a process; taken for ended");
                MachineExit::Unobserved
            }
        };
        exit.send_replace(Some(ended));
    }

    /// pidfd_open(2): readable means that the process has ended; only its parent learns how.
    fn reap(&self) -> MachineExit {
        use std::os::fd::AsFd as _;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options) {
            Ok(Some(status)) => exit_of(&status),
            Ok(None) | Err(_) => MachineExit::Unobserved,
        }
    }
}

impl ProcessControl for Watched {
    fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn set_oom_score_adj(&self, score: i32) -> io::Result<()> {
        let opened = fs_err::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{}/oom_score_adj", self.identity.pid));
        // Had the pid been given to another process before, that one's start time is read now.
        let written = opened.and_then(|mut file| match Identity::read(self.identity.pid)? {
            // In one write: formatted into the file, the sign of a negative one would come alone.
            now if now == self.identity => file.write_all(score.to_string().as_bytes()),
            _ => Ok(()),
        });
        match written {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            written => written,
        }
    }
}

fn exit_of(status: &WaitIdStatus) -> MachineExit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => MachineExit::Exited(ExitReason::from_code(code)),
        (None, Some(signal)) => MachineExit::Signalled(signal),
        (None, None) => MachineExit::Unobserved,
    }
}
