//! What happens to a container between its creation and its removal: start, end, signals.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use proto::agent::v1::watch_event::Event;
use proto::agent::v1::{ContainerExited, Exit, SignalRequest};
use rustix::fs::FileType;
use tokio::sync::{oneshot, watch};

use crate::clock;
use crate::container::Container;
use crate::container::process::signal_number;
use crate::container::registry::Member as _;
use crate::error::Failure;
use crate::init::order::{DeviceKind, DeviceNode};
use crate::lock::lock;
use crate::pod::Pod;
use crate::reaper::Ended;

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
        self.cgroup.signal(number)
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

/// Directories of /dev that are file systems of their own; those of the container stand in their place.
const NOT_DEVICES: [&str; 4] = ["pts", "shm", "mqueue", "hugepages"];
/// Those that every container has, and the console, are made elsewhere.
const STANDARD_DEVICES: [&str; 8] = [
    "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx",
];
/// /dev/bus/usb/001/001 is four deep.
const MAX_DEVICE_DEPTH: usize = 6;

/// Every device node of the kernel that this runs on: what a privileged container sees.
pub(crate) fn all_devices() -> Vec<DeviceNode> {
    devices_below("/dev".as_ref(), MAX_DEVICE_DEPTH)
}

/// Every device node in a directory, down to `depth` directories below it.
fn devices_below(directory: &Path, depth: usize) -> Vec<DeviceNode> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let top = directory == Path::new("/dev");
        let left_out = |names: &[&str]| top && name.to_str().is_none_or(|name| names.contains(&name));
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() && depth > 0 && !left_out(&NOT_DEVICES) {
            devices.extend(devices_below(&entry.path(), depth - 1));
        } else if !left_out(&STANDARD_DEVICES) {
            devices.extend(device_node(&entry.path(), &metadata));
        }
    }
    devices
}

/// `None` for what is no device.
fn device_node(path: &Path, metadata: &fs::Metadata) -> Option<DeviceNode> {
    let kind = if metadata.file_type().is_char_device() {
        DeviceKind::Character
    } else if metadata.file_type().is_block_device() {
        DeviceKind::Block
    } else {
        return None;
    };
    Some(DeviceNode {
        path: path.to_str()?.to_owned(),
        kind,
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}
