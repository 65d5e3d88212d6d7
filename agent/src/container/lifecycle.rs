//! What happens to a container between its creation and its removal: start, end, signals.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use proto::agent::v1::watch_event::Event;
use proto::agent::v1::{ContainerExited, ErrorCode, Exit, SignalRequest};
use rustix::fs::FileType;
use tokio::sync::{oneshot, watch};

use crate::clock;
use crate::container::Container;
use crate::container::process::signal_number;
use crate::error::{Context as _, Failure};
use crate::init::order::{DeviceKind, DeviceNode};
use crate::lock::lock;
use crate::pod::Pod;
use crate::reaper::Ended;
use crate::sys;

/// What comes back of a termination message, as CRI limits it.
const MAX_TERMINATION_MESSAGE: u64 = 4096;

impl Container {
    /// Lets the init process execve. CLOCK_REALTIME of it, nanoseconds.
    ///
    /// # Errors
    /// `WrongState`; `Exec` with execve's errno: the container has then exited.
    pub(crate) async fn start(&self) -> Result<u64, Failure> {
        let gate = lock(&self.state).start(&self.id)?;
        gate.open().await?;
        let started_at_ns = clock::realtime_ns();
        lock(&self.state).started(started_at_ns);
        Ok(started_at_ns)
    }

    /// # Errors
    /// `InvalidArgument`, `NotFound`, `WrongState`.
    pub(crate) fn signal(&self, request: &SignalRequest) -> Result<(), Failure> {
        if !request.all {
            return self.process(&request.exec_id)?.signal(request.signal);
        }
        let number = signal_number(request.signal)?;
        if number == libc::SIGKILL {
            return self.cgroup.kill();
        }
        for pid in self.cgroup.processes()? {
            // Through a pidfd, and only if it is still in the cgroup then: numbers are used again.
            let Some(pid) = rustix::process::Pid::from_raw(pid) else {
                continue;
            };
            let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
                continue;
            };
            if !self.cgroup.processes()?.contains(&pid.as_raw_nonzero().get()) {
                continue;
            }
            match sys::signal::send(&pidfd, number) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(error)
                        .context(ErrorCode::System, || format!("send signal {number} to {pid:?}"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Waits for the end of the init process and tells everybody.
pub(super) async fn await_init(
    pod: Arc<Pod>,
    container: Arc<Container>,
    ended: oneshot::Receiver<Ended>,
    termination_log: Option<OwnedFd>,
    told: watch::Sender<Option<Exit>>,
) {
    let Ok(ended) = ended.await else { return };
    let message = termination_log.and_then(|log| match read_end(&log) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::warn!(container = %container.id, %error, "termination log cannot be read");
            None
        }
    });
    let exit = Exit {
        code: ended.code,
        signal: ended.signal,
        // A kill that the program survived (a child of it was chosen) and that it ended well after is no reason.
        oom_killed: ended.code != 0 && container.cgroup.oom_kills() > 0,
        finished_at_ns: ended.at_ns,
        termination_message: message.unwrap_or_default(),
    };
    container.ended(&exit);
    told.send_replace(Some(exit.clone()));
    tracing::info!(container = %container.id, code = exit.code, oom = exit.oom_killed, "container exited");
    pod.events.publish(&Event::Exited(ContainerExited {
        container_id: container.id.clone(),
        exit: Some(exit),
    }));
}

/// The last bytes of a regular file.
fn read_end(log: &OwnedFd) -> io::Result<Vec<u8>> {
    let stat = rustix::fs::fstat(log)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Vec::new());
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let length = size.min(MAX_TERMINATION_MESSAGE);
    let mut message = vec![0; usize::try_from(length).unwrap_or(0)];
    let got = rustix::io::pread(log, &mut message, size - length)?;
    message.truncate(got);
    Ok(message)
}

/// Every device node of the guest: what a privileged container sees.
pub(super) fn all_devices() -> Vec<DeviceNode> {
    let mut devices = Vec::new();
    for directory in ["/dev", "/dev/net", "/dev/mapper", "/dev/vfio"] {
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let kind = if metadata.file_type().is_char_device() {
                DeviceKind::Character
            } else if metadata.file_type().is_block_device() {
                DeviceKind::Block
            } else {
                continue;
            };
            // Those that every container has, and the console, are made elsewhere.
            let name = entry.file_name();
            let standard = [
                "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx",
            ];
            let (Some(name), Some(path)) = (name.to_str(), entry.path().to_str().map(str::to_owned)) else {
                continue;
            };
            if standard.contains(&name) {
                continue;
            }
            devices.push(DeviceNode {
                path,
                kind,
                major: rustix::fs::major(metadata.rdev()),
                minor: rustix::fs::minor(metadata.rdev()),
                mode: metadata.mode() & 0o777,
                uid: metadata.uid(),
                gid: metadata.gid(),
            });
        }
    }
    devices
}
