//! What the daemon and `clearpod-vmm` say to each other: the configuration file and the control socket. Data only.
//!
//! The VMM is started as `clearpod-vmm --config <file>` with the Machine's directory as its working directory; every
//! relative path is below that directory, so that the process can be chrooted into it. What needs privilege (a tap, an
//! image outside of the directory) arrives as a descriptor: inherited at start, or attached to a control request.
//!
//! The control socket is a unix stream socket; each request is one line of JSON ([`Request`]), each answer one line
//! ([`Response`]). Descriptors travel as `SCM_RIGHTS` with the first byte of the request that uses them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of [`MachineConfig`]; another one is refused.
pub const CONFIG_VERSION: u32 = 1;

/// Everything a Machine is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// [`CONFIG_VERSION`].
    pub version: u32,
    /// The sandbox's id; names the process's threads and log lines.
    pub id: String,
    /// Uncompressed ELF with a PVH note. Kernel and initramfs are there unless there is a snapshot.
    #[serde(default)]
    pub kernel: Option<FileSource>,
    /// cpio archive (newc) with the agent as /init.
    #[serde(default)]
    pub initramfs: Option<FileSource>,
    /// Appended to the words that the VMM itself needs. A guest from a snapshot has had its command line.
    #[serde(default)]
    pub command_line: String,
    /// Goes on from here instead of booting.
    #[serde(default)]
    pub snapshot: Option<Snapshot>,
    /// Processors.
    pub vcpus: Vcpus,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Most that a memory device can add to it, MiB, a multiple of 128. Address space: it costs nothing until the guest
    /// plugs it.
    #[serde(default)]
    pub memory_hotplug_mib: u64,
    /// Where the control socket is made.
    pub control: PathBuf,
    /// Guest console.
    pub console: Console,
    /// Absent: no vsock device.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// Present from the start, in this order.
    #[serde(default)]
    pub devices: Vec<Device>,
}

impl MachineConfig {
    /// The files that are no device's, with the fields that name them.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &FileSource)> {
        let snapshot = self.snapshot.as_ref();
        [
            ("kernel", self.kernel.as_ref()),
            ("initramfs", self.initramfs.as_ref()),
            ("snapshot.memory", snapshot.map(|snapshot| &snapshot.memory)),
            ("snapshot.state", snapshot.map(|snapshot| &snapshot.state)),
        ]
        .into_iter()
        .filter_map(|(field, source)| Some((field, source?)))
    }

    /// Likewise, to be changed.
    pub fn files_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut FileSource)> {
        let (memory, state) = match &mut self.snapshot {
            Some(snapshot) => (Some(&mut snapshot.memory), Some(&mut snapshot.state)),
            None => (None, None),
        };
        [
            ("kernel", self.kernel.as_mut()),
            ("initramfs", self.initramfs.as_mut()),
            ("snapshot.memory", memory),
            ("snapshot.state", state),
        ]
        .into_iter()
        .filter_map(|(field, source)| Some((field, source?)))
    }
}

/// A guest that was saved, to go on in a Machine of the same shape: processors, memory and vsock (yes or no) of the
/// configuration are those of the saved Machine, and [`MachineConfig::devices`] begins with the devices that it had. Its
/// memory is private; further devices are added before the guest goes on, and it finds them when it rescans its bus.
///
/// Any number of Machines can start from the same files, which must not change as long as one of them lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// What [`Request::Snapshot`] wrote as `memory`: mapped, and read as the guest touches it.
    pub memory: FileSource,
    /// What it wrote as `state`.
    pub state: FileSource,
    /// What it was told as `origin`. Another one is refused.
    pub origin: String,
    /// Pages that such guests write soon ([`Request::CopiedPages`] of an earlier one tells): copied before the guest runs, so that it is
    /// not stopped for each.
    #[serde(default)]
    pub written_soon: Vec<PageRun>,
}

/// Most runs of pages that are told or taken.
pub const MAX_PAGE_RUNS: usize = 4096;

/// Pages of guest memory that lie one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageRun {
    /// Guest-physical address of the first, by 4096.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// Processors of a Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vcpus {
    /// Online when the guest starts, at least 1.
    pub boot: u8,
    /// Listed for the guest, so that it can bring them online later.
    pub max: u8,
}

/// A file that the daemon prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSource {
    /// Opened by the VMM.
    Path(PathBuf),
    /// In the configuration file: an inherited descriptor. In a control request: an index into the descriptors that came
    /// with it.
    Fd(u32),
}

/// The guest's console is a ring in the VMM's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// Size of the ring.
    pub ring_bytes: u32,
    /// The ring is written here when the Machine ends.
    #[serde(default)]
    pub dump: Option<PathBuf>,
}

/// vsock, muxed to unix sockets.
///
/// Host to guest: connect to `socket`, send `CONNECT <port>\n`, read `OK <port>\n` (or the connection closes), then
/// bytes. Guest to host: a connection to CID 2 port N arrives at the unix socket `<socket>_<N>`, which the daemon listens
/// on; if nobody does, the guest gets a reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// At least 3.
    pub guest_cid: u32,
    /// Made by the VMM.
    pub socket: PathBuf,
}

/// A virtio device on the Machine's PCI bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Device {
    /// virtio-net on a tap that was opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    Net {
        /// Unique in the Machine.
        id: String,
        /// The tap's descriptor.
        tap: FileSource,
        /// "02:00:00:00:00:01"
        mac: String,
    },
    /// virtio-blk.
    Block {
        /// Unique in the Machine.
        id: String,
        /// A file or block device; its size is a multiple of 512 bytes.
        file: FileSource,
        /// The guest cannot write.
        read_only: bool,
    },
    /// virtio-pmem, mapped into the guest; never written to.
    Pmem {
        /// Unique in the Machine.
        id: String,
        /// Rounded up to 2 MiB in the guest's view; the rest reads as zeros.
        file: FileSource,
    },
    /// virtio-fs, served by a vhost-user backend.
    Fs {
        /// Unique in the Machine.
        id: String,
        /// A unix stream socket that is connected to the backend: always a descriptor. The VMM closes it with the device.
        socket: FileSource,
        /// What the guest mounts by; 1 to 36 bytes.
        tag: String,
        /// Request queues, 1 to 16.
        queues: u16,
        /// Descriptors of each queue, a power of two from 16 to 1024.
        queue_size: u16,
    },
    /// virtio-mem: all of [`MachineConfig::memory_hotplug_mib`], nothing of it plugged. One at most. It can be removed while
    /// nothing is plugged.
    Memory {
        /// Unique in the Machine.
        id: String,
    },
    /// virtio-balloon: memory that the guest frees goes back to the host (free page reporting). One at most.
    Balloon {
        /// Unique in the Machine.
        id: String,
    },
}

impl Device {
    /// The device's name in the Machine.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Net { id, .. }
            | Self::Block { id, .. }
            | Self::Pmem { id, .. }
            | Self::Fs { id, .. }
            | Self::Memory { id }
            | Self::Balloon { id } => id,
        }
    }

    /// The file that it is made of, if it is made of one.
    #[must_use]
    pub fn source(&self) -> Option<&FileSource> {
        match self {
            Self::Net { tap: file, .. }
            | Self::Block { file, .. }
            | Self::Pmem { file, .. }
            | Self::Fs { socket: file, .. } => Some(file),
            Self::Memory { .. } | Self::Balloon { .. } => None,
        }
    }

    /// Likewise, to be changed.
    pub fn source_mut(&mut self) -> Option<&mut FileSource> {
        match self {
            Self::Net { tap: file, .. }
            | Self::Block { file, .. }
            | Self::Pmem { file, .. }
            | Self::Fs { socket: file, .. } => Some(file),
            Self::Memory { .. } | Self::Balloon { .. } => None,
        }
    }
}

/// One line on the control socket, daemon to VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Which devices are where, and how far the Machine is.
    Describe {},
    /// Adds a function to the PCI bus; the agent rescans.
    AddDevice {
        /// What to add.
        device: Device,
    },
    /// Takes a device away; the agent has removed it in the guest before.
    RemoveDevice {
        /// Its name.
        id: String,
    },
    /// Asks the guest to have this much of the memory device plugged. The answer says that it was asked; how far it has
    /// got is in [`Stats`].
    ResizeMemory {
        /// MiB beyond [`MachineConfig::memory_mib`], a multiple of 2.
        plugged_mib: u64,
    },
    /// Asks the guest to have this much of its memory in the balloon, which it takes back before it runs out of memory.
    ResizeBalloon {
        /// MiB.
        held_mib: u64,
    },
    /// The console ring, oldest byte first.
    Console {},
    /// Counters.
    Stats {},
    /// Halts all processors. The host's time goes on, and so does the guest's clock.
    Pause {},
    /// Lets them go on.
    Resume {},
    /// Writes a paused Machine down, which stays as it is. Every device but memory device and balloon is refused by name, and
    /// no vsock connection goes along: a guest that goes on from a snapshot is told that its connections are lost.
    ///
    /// A path is made anew and must not exist; a descriptor is that of an empty file. After an error what was written is no
    /// snapshot.
    Snapshot {
        /// For guest memory: as long as all of it, with holes where it is zero.
        memory: FileSource,
        /// For everything else.
        state: FileSource,
        /// Names what the guest was made of (kernel, initramfs, configuration): 1 to 256 bytes that whoever goes on from the
        /// snapshot has to name, too.
        origin: String,
    },
    /// Which pages of its snapshot the Machine has copied, since its guest wrote them. One that has copied more than
    /// [`MAX_PAGE_RUNS`] runs is no measure for others, and is refused.
    CopiedPages {},
    /// Ends the Machine at once.
    Stop {},
}

/// One line on the control socket, VMM to daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Response {
    /// To `Describe`.
    Description(Description),
    /// To `AddDevice`.
    Added {
        /// "0000:00:05.0"
        pci_address: String,
    },
    /// To `RemoveDevice`, `ResizeMemory`, `ResizeBalloon`, `Pause`, `Resume`, `Snapshot` and `Stop`.
    Done {},
    /// To `Console`; bytes that are not UTF-8 are replaced.
    Console {
        /// What the guest wrote.
        text: String,
        /// Bytes that the ring has dropped.
        dropped: u64,
    },
    /// To `Stats`.
    Stats(Stats),
    /// To `CopiedPages`.
    CopiedPages {
        /// Lowest first.
        runs: Vec<PageRun>,
    },
    /// The request was refused and nothing has changed.
    Error {
        /// One line.
        message: String,
    },
}

/// Where a Machine is in its life, as `Describe` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The configured id.
    pub id: String,
    /// Process id of the VMM.
    pub pid: u32,
    /// When things happened, `CLOCK_MONOTONIC` nanoseconds of the host; absent: not yet.
    pub timeline: Timeline,
    /// Devices on the bus.
    pub devices: Vec<DevicePlace>,
}

/// `CLOCK_MONOTONIC` nanoseconds of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The VMM's main was entered.
    pub process_started_ns: u64,
    /// The first vCPU entered the guest.
    pub kernel_entered_ns: Option<u64>,
    /// The guest made its first vsock connection to the host.
    pub first_vsock_ns: Option<u64>,
}

/// A device and its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlace {
    /// Its name.
    pub id: String,
    /// "0000:00:05.0"
    pub pci_address: String,
}

/// Counters since the Machine's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// VM exits that reached the VMM, by kind.
    pub exits: std::collections::BTreeMap<String, u64>,
    /// Absent: there is no memory device.
    #[serde(default)]
    pub memory: Option<MemoryStats>,
    /// Absent: there is no balloon.
    #[serde(default)]
    pub balloon: Option<BalloonStats>,
}

/// How far a memory device has got; MiB beyond [`MachineConfig::memory_mib`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// What can be plugged.
    pub max_mib: u64,
    /// What the guest was asked for.
    pub requested_mib: u64,
    /// What it has plugged. It stays above a smaller request while the memory is in use.
    pub plugged_mib: u64,
}

/// What a balloon has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStats {
    /// What the guest was asked to hold, MiB.
    pub requested_mib: u64,
    /// What it says that it holds, MiB.
    pub held_mib: u64,
    /// Free memory that the guest reported and the host took back, bytes since the start; some of it more than once.
    pub reported_bytes: u64,
}

/// How a VMM process ended, as its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest shut down or rebooted, or the daemon asked for the end.
    Ended,
    /// The VMM met an error.
    Failed,
    /// The configuration was refused.
    BadConfig,
    /// The guest's kernel panicked.
    GuestPanic,
    /// KVM could not run the guest: emulation failure, unknown exit.
    GuestUnrunnable,
    /// The snapshot cannot be gone on from here; a boot may work.
    SnapshotRefused,
    /// A code that no VMM of this version uses, or a signal.
    Other(i32),
}

impl ExitReason {
    /// The exit code of the process.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Ended => 0,
            Self::Failed => 1,
            Self::BadConfig => 2,
            Self::GuestPanic => 3,
            Self::GuestUnrunnable => 4,
            Self::SnapshotRefused => 5,
            Self::Other(code) => code,
        }
    }

    /// What an exit code says.
    #[must_use]
    pub fn from_code(code: i32) -> Self {
        match code {
            0 => Self::Ended,
            1 => Self::Failed,
            2 => Self::BadConfig,
            3 => Self::GuestPanic,
            4 => Self::GuestUnrunnable,
            5 => Self::SnapshotRefused,
            other => Self::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_with_an_unknown_field_is_refused_by_name() {
        let text = r#"{"version":1,"id":"a","kernel":{"path":"k"},"initramfs":{"path":"i"},
            "vcpus":{"boot":1,"max":1},"memory_mib":128,"control":"c","console":{"ring_bytes":4096},"colour":1}"#;
        let error = serde_json::from_str::<MachineConfig>(text)
            .unwrap_err()
            .to_string();
        assert!(error.contains("colour"), "{error}");
    }

    #[test]
    fn requests_keep_their_shape_on_the_wire() {
        let request = Request::AddDevice {
            device: Device::Pmem {
                id: "layer-1".to_owned(),
                file: FileSource::Fd(0),
            },
        };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(
            line,
            r#"{"op":"add_device","device":{"kind":"pmem","id":"layer-1","file":{"fd":0}}}"#
        );
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
    }

    #[test]
    fn what_an_older_side_does_not_know_is_absent() {
        let text = r#"{"version":1,"id":"a","kernel":{"path":"k"},"initramfs":{"path":"i"},
            "vcpus":{"boot":1,"max":1},"memory_mib":128,"control":"c","console":{"ring_bytes":4096}}"#;
        let config: MachineConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.memory_hotplug_mib, 0);
        assert_eq!(config.snapshot, None);
        let stats: Stats = serde_json::from_str(r#"{"exits":{}}"#).unwrap();
        assert_eq!(stats, Stats::default());
    }

    #[test]
    fn a_file_of_a_device_can_be_renamed_where_there_is_one() {
        let mut device = Device::Fs {
            id: "v".to_owned(),
            socket: FileSource::Fd(0),
            tag: "v".to_owned(),
            queues: 1,
            queue_size: 128,
        };
        *device.source_mut().unwrap() = FileSource::Fd(7);
        assert_eq!(device.source(), Some(&FileSource::Fd(7)));
        let balloon = Device::Balloon { id: "b".to_owned() };
        assert_eq!((balloon.id(), balloon.source()), ("b", None));
    }

    #[test]
    fn the_files_of_a_snapshot_are_among_those_of_its_configuration() {
        let text = r#"{"version":1,"id":"a","snapshot":{"memory":{"fd":0},"state":{"fd":1},"origin":"o"},
            "vcpus":{"boot":1,"max":1},"memory_mib":128,"control":"c","console":{"ring_bytes":4096}}"#;
        let mut config: MachineConfig = serde_json::from_str(text).unwrap();
        config
            .files_mut()
            .for_each(|(_, source)| *source = FileSource::Fd(7));
        let files: Vec<_> = config.files().collect();
        let seven = FileSource::Fd(7);
        assert_eq!(files, [("snapshot.memory", &seven), ("snapshot.state", &seven)]);
    }

    #[test]
    fn exit_codes_and_reasons_are_one_to_one() {
        for code in -1..300 {
            assert_eq!(ExitReason::from_code(code).code(), code);
        }
    }
}
