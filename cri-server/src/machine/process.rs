//! A VMM process as the daemon holds it: who it is, how it ended, and the means to kill it and to weigh it.
//!
//! [`Process`] is a handle to be cloned; what watches the process belongs to the launcher. [`Identity`] is what is kept in
//! `process.json` so that a later daemon finds the same process, and never another one that was given the same pid.

use std::{fmt, io, path::Path, sync::Arc};

use proto::machine::ExitReason;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How a VMM process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineExit {
    /// It exited, and its exit code says why.
    Exited(ExitReason),
    /// A signal ended it.
    Signalled(i32),
    /// It is gone, and was another process's child: Linux tells the exit code to nobody else.
    Unobserved,
}

impl fmt::Display for MachineExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(ExitReason::Ended) => f.write_str("the guest ended"),
            Self::Exited(ExitReason::Failed) => f.write_str("the VMM met an error"),
            Self::Exited(ExitReason::BadConfig) => f.write_str("the VMM refused its configuration"),
            Self::Exited(ExitReason::GuestPanic) => f.write_str("the guest kernel panicked"),
            Self::Exited(ExitReason::GuestUnrunnable) => f.write_str("KVM could not run the guest"),
            Self::Exited(ExitReason::SnapshotRefused) => f.write_str("the VMM refused the snapshot"),
            Self::Exited(ExitReason::Other(code)) => write!(f, "the VMM exited with code {code}"),
            Self::Signalled(signal) => write!(f, "the VMM was killed by signal {signal}"),
            Self::Unobserved => f.write_str(
                "the VMM, which an earlier daemon had started, ended for a reason that is not known",
            ),
        }
    }
}

/// What can be done to a VMM process from outside, whatever it does.
pub trait ProcessControl: Send + Sync + fmt::Debug {
    /// Ends it at once, as SIGKILL: no answer is needed, and a process that has ended already is fine.
    ///
    /// # Errors
    /// When the operating system refuses.
    fn kill(&self) -> io::Result<()>;

    /// How soon the host's out-of-memory killer takes it: -1000 (never) to 1000 (first), proc_pid_oom_score_adj(5). A process
    /// that has ended already is fine.
    ///
    /// # Errors
    /// When the operating system refuses.
    fn set_oom_score_adj(&self, score: i32) -> io::Result<()>;
}

/// A VMM process that runs or has run.
#[derive(Debug, Clone)]
pub struct Process {
    pid: u32,
    exit: watch::Receiver<Option<MachineExit>>,
    control: Arc<dyn ProcessControl>,
}

impl Process {
    /// A process whose end is announced through `exit`.
    #[must_use]
    pub fn new(
        pid: u32,
        exit: watch::Receiver<Option<MachineExit>>,
        control: Arc<dyn ProcessControl>,
    ) -> Self {
        Self { pid, exit, control }
    }

    /// Its process id; for people, never to signal it by.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn try_exited(&self) -> Option<MachineExit> {
        *self.exit.borrow()
    }

    /// Returns when it has ended, at once if it has already; any number of callers, cancel-safe. When the launcher is
    /// dropped first (the daemon stops) this never returns: nothing is known then.
    pub async fn exited(&self) -> MachineExit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        match ended {
            Some(exit) => exit,
            None => std::future::pending().await,
        }
    }

    /// Kills it at once; wait for [`Self::exited`] to know that it is gone.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(&self) -> io::Result<()> {
        self.control.kill()
    }

    /// See [`ProcessControl::set_oom_score_adj`].
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn set_oom_score_adj(&self, score: i32) -> io::Result<()> {
        self.control.set_oom_score_adj(score)
    }
}

/// Records who a child is that was just started and not reaped. Unrecorded it would be lost to a later daemon, so it is
/// killed then.
pub(super) fn record(child: &mut std::process::Child, path: &Path) -> io::Result<Identity> {
    let pid = child.id();
    // The child is not reaped before this function ends, so its pid is its own.
    let recorded = Identity::read(pid).and_then(|identity| identity.store(path).map(|()| identity));
    if recorded.is_err()
        && let Err(error) = child.kill().and_then(|()| child.wait())
    {
        tracing::error!(pid, %error, "an unrecorded process could not be killed");
    }
    // The daemon may be protected from the host's out-of-memory killer (systemd's OOMScoreAdjust); a pod must not be.
    if recorded.is_ok()
        && let Err(error) = fs_err::write(format!("/proc/{pid}/oom_score_adj"), "0")
    {
        tracing::debug!(pid, %error, "oom_score_adj is the daemon's");
    }
    recorded
}

/// What tells a process from every other one that had or will have its pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot.
    pub(super) start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`: start times compare only within one boot.
    pub(super) boot_id: String,
}

impl Identity {
    /// Reads the identity of the process that has `pid` now.
    pub(super) fn read(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_time: start_time(pid)?,
            boot_id: boot_id()?,
        })
    }

    /// The pid as a system call takes it; `None` when the record holds a number that no process has.
    pub(super) fn raw_pid(&self) -> Option<Pid> {
        i32::try_from(self.pid).ok().and_then(Pid::from_raw)
    }

    /// Writes the record so that a reader finds all of it or none.
    pub(super) fn store(&self, path: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self)?;
        let unfinished = path.with_extension("json.new");
        fs_err::write(&unfinished, bytes)?;
        fs_err::rename(&unfinished, path)
    }

    /// Reads the record; `None` when there is none, `InvalidData` when it is no record.
    pub(super) fn load(path: &Path) -> io::Result<Option<Self>> {
        match fs_err::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs_err::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat has no start time"),
        )
    })
}

/// proc_pid_stat(5): the second field is the program's name in parentheses and may hold anything, so fields are counted
/// from the last ')'.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // The first field after the name is number 3, the start time is number 22.
    after_name.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_and_spaces_does_not_shift_the_start_time() {
        let mut fields: Vec<String> = (3..=52).map(|number| format!("{number}00")).collect();
        fields[0] = "S".to_owned();
        let stat = format!("17 (evil) S 1 (2)) {}", fields.join(" "));
        assert_eq!(parse_start_time(&stat), Some(2200));
        assert_eq!(parse_start_time("17 (x) S 1"), None);
    }

    #[test]
    fn an_identity_survives_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("process.json");
        assert_eq!(Identity::load(&path).unwrap(), None);
        let identity = Identity::read(std::process::id()).unwrap();
        identity.store(&path).unwrap();
        assert_eq!(Identity::load(&path).unwrap(), Some(identity));
    }

    #[tokio::test]
    async fn the_end_is_seen_by_every_handle_before_and_after() {
        #[derive(Debug)]
        struct Nothing;
        impl ProcessControl for Nothing {
            fn kill(&self) -> io::Result<()> {
                Ok(())
            }

            fn set_oom_score_adj(&self, _: i32) -> io::Result<()> {
                Ok(())
            }
        }
        let (sender, receiver) = watch::channel(None);
        let process = Process::new(1, receiver, Arc::new(Nothing));
        let (first, second) = (process.clone(), process.clone());
        assert_eq!(process.try_exited(), None);
        let exit = MachineExit::Signalled(9);
        let (seen, ()) = tokio::join!(first.exited(), async {
            sender.send_replace(Some(exit));
        });
        assert_eq!(
            (seen, second.exited().await, process.try_exited()),
            (exit, exit, Some(exit))
        );
    }
}
