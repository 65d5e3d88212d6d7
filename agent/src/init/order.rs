//! What the agent tells a stage to do, and what the stage answers: plain data that crosses the stage socket.
//!
//! Everything here was validated by `container/plan.rs`; the stage only carries it out. Paths that begin at the agent's
//! own directories are `PathBuf`, paths that a container or the daemon named are `String` and resolved inside a root.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::seccomp::Filter;

/// The agent's first message, with the descriptors that [`Order`]'s variants name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Build a container's world and wait for [`GO`] before exec. Descriptors: the user namespace if the process's ids are
    /// mapped, stdio.
    Container(Box<ContainerOrder>),
    /// Join a container's world and exec. Descriptors: pidfd of a process in it, stdio.
    Exec(Box<ProcessOrder>),
    /// Be PID 1 of the pod's PID namespace.
    HoldPidNamespace,
}

/// The agent's second message to a container's stage.
pub(crate) const GO: u8 = 1;

/// What a stage answers. End of file after [`Report::Ready`] means that execve succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Descriptors, in this order: the terminal's master, the termination log.
    Ready {
        user: Credentials,
        terminal: bool,
        termination_log: bool,
    },
    Failed(Failure),
}

/// Standard descriptors that travel with an order: stdin, stdout, stderr. None with a terminal.
pub(crate) const STDIO_DESCRIPTORS: usize = 3;

/// A container's file systems and its init process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerOrder {
    pub(crate) rootfs: Rootfs,
    /// In this order.
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<DeviceNode>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) read_only_paths: Vec<String>,
    /// Opened, so that the agent can read it after the end.
    pub(crate) termination_log: Option<String>,
    pub(crate) process: ProcessOrder,
}

/// An overlay of layers and a writable directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rootfs {
    /// An empty directory of the agent's, where the overlay is attached.
    pub(crate) target: PathBuf,
    /// Topmost first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) read_only: bool,
}

/// One mount below the container's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) destination: String,
    pub(crate) source: Source,
    pub(crate) attributes: Attributes,
    /// Read-only, with everything mounted below the source.
    pub(crate) recursive_read_only: bool,
    /// Symbolic links in `destination` are refused: proc and sysfs must be where the kernel's interfaces are expected.
    pub(crate) exact_destination: bool,
    /// What it binds shows the ids of the user namespace.
    pub(crate) id_mapped: bool,
}

/// Per-mount attributes, mount_setattr(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attributes {
    pub(crate) read_only: bool,
    pub(crate) no_suid: bool,
    pub(crate) no_dev: bool,
    pub(crate) no_exec: bool,
    pub(crate) no_atime: bool,
    pub(crate) strict_atime: bool,
    pub(crate) no_dir_atime: bool,
}

/// Where a mount's content comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    /// A new instance of a file system.
    New {
        filesystem: String,
        options: Vec<(String, Option<String>)>,
        content: Content,
    },
    /// What the agent has mounted or written at `base`, below it `path` ("" is `base` itself).
    Bind { base: PathBuf, path: String },
}

/// What a new file system is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Content {
    Empty,
    /// The nodes and links of a container's /dev.
    Devices,
}

/// A device node to be made in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceNode {
    pub(crate) path: String,
    pub(crate) kind: DeviceKind,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Character or block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DeviceKind {
    Character,
    Block,
}

/// A process and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessOrder {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<Vec<u8>>,
    pub(crate) cwd: String,
    pub(crate) user: UserSpec,
    pub(crate) terminal: Option<TerminalSize>,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) oom_score_adj: i32,
    pub(crate) security: Security,
    /// Of the pod's user namespace, if it has one: all ids here are those of inside.
    pub(crate) id_map: Option<IdMap>,
}

/// Columns and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TerminalSize {
    pub(crate) width: u16,
    pub(crate) height: u16,
}

/// Who the process is, before /etc/passwd was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserSpec {
    pub(crate) spec: String,
    pub(crate) gid: Option<u32>,
    pub(crate) supplemental_gids: Vec<u32>,
    pub(crate) strict_groups: bool,
}

/// Who the process is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) supplemental_gids: Vec<u32>,
}

/// What ids of a user namespace are outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    pub(crate) uids: IdRange,
    pub(crate) gids: IdRange,
}

/// Ids from 0 on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdRange {
    pub(crate) outside: u32,
    pub(crate) length: u32,
}

impl IdRange {
    /// What `id` of the namespace is outside; `None`: it is not mapped.
    pub(crate) fn outside(self, id: u32) -> Option<u32> {
        (id < self.length).then(|| self.outside.checked_add(id)).flatten()
    }
}

/// One limit of setrlimit(2); `None` is infinity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rlimit {
    /// A name that `identity::resource` knows.
    pub(crate) resource: String,
    pub(crate) soft: Option<u64>,
    pub(crate) hard: Option<u64>,
}

/// What an init process and everything exec'd beside it is confined by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Security {
    pub(crate) capabilities: Capabilities,
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: Option<Filter>,
    /// A profile of AppArmor that is loaded; empty: none.
    pub(crate) apparmor_profile: String,
}

/// Capability sets, one bit per capability number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capabilities {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}
