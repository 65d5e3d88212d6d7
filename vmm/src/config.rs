//! The configuration file: read, checked, files opened. Errors name the field.
//!
//! `proto::machine::MachineConfig` is what the daemon wrote; [`Plan`] is what can be built: every number in range, every
//! file open, nothing left to refuse but what the host refuses.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{GetSockOpt, SockType, sockopt};
use proto::machine::{CONFIG_VERSION, Device, MachineConfig, Vcpus, Vsock};

use crate::files::{self, Descriptors, FileError};
use crate::memory::layout::COMMAND_LINE_SIZE;
use crate::x86_64::command_line;

/// A Machine ready to be built.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) kernel: File,
    pub(crate) initramfs: File,
    /// Complete.
    pub(crate) command_line: String,
    pub(crate) vcpus: Vcpus,
    pub(crate) memory_bytes: u64,
    pub(crate) hotplug_bytes: u64,
    pub(crate) memory_shared: bool,
    pub(crate) control: PathBuf,
    pub(crate) console_bytes: usize,
    pub(crate) console_dump: Option<PathBuf>,
    pub(crate) vsock: Option<Vsock>,
    pub(crate) devices: Vec<PreparedDevice>,
}

/// A device whose file is open, if it has one.
#[derive(Debug)]
pub(crate) struct PreparedDevice {
    pub(crate) id: String,
    pub(crate) kind: DeviceKind,
}

/// What is to be made.
#[derive(Debug)]
pub(crate) enum DeviceKind {
    Net { tap: File, mac: [u8; 6] },
    Block { file: File, read_only: bool },
    Pmem { file: File },
    Fs { socket: UnixStream, shape: FsShape },
    Memory,
    Balloon,
}

/// What the guest sees of a virtio-fs device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FsShape {
    /// 1 to [`FS_TAG_BYTES`] bytes.
    pub(crate) tag: String,
    /// Queues for requests; the one for urgent messages is extra.
    pub(crate) queues: u16,
    pub(crate) queue_size: u16,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration file {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the configuration file {path} is not valid")]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{field}: {problem}")]
    Field { field: &'static str, problem: String },
    #[error("devices: {0}")]
    Device(#[from] DeviceError),
    #[error("{field}")]
    File {
        field: &'static str,
        #[source]
        source: FileError,
    },
}

/// Why a device is refused, at start or at run time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error(
        "id {0:?} is empty, longer than 128 bytes, or has other characters than letters, digits, '-', '_' and '.'"
    )]
    Id(String),
    #[error("id {0:?} is in use")]
    Duplicate(String),
    #[error(
        "device {id}: mac {mac:?} is not six hexadecimal bytes of a unicast address, such as 02:00:00:00:00:01"
    )]
    Mac { id: String, mac: String },
    #[error("device {0}: the Machine has another of its kind, and one is all")]
    Second(String),
    #[error("device {id}: tag {tag:?} has not 1 to {FS_TAG_BYTES} bytes, or a NUL in it")]
    Tag { id: String, tag: String },
    #[error("device {id}: queues: {queues} is not within {FS_QUEUES:?}")]
    Queues { id: String, queues: u16 },
    #[error("device {id}: queue_size: {queue_size} is no power of two within {FS_QUEUE_SIZES:?}")]
    QueueSize { id: String, queue_size: u16 },
    #[error("device {id}: socket: it is not connected, or no unix stream socket")]
    Socket {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error("device {id}")]
    File {
        id: String,
        #[source]
        source: FileError,
    },
}

const MEMORY_MIB: std::ops::RangeInclusive<u64> = 32..=(1 << 20);
const HOTPLUG_MIB: std::ops::RangeInclusive<u64> = 0..=(1 << 20);
/// Linux's smallest unit of memory hot-plug on x86-64.
const HOTPLUG_UNIT_MIB: u64 = 128;
/// virtio 1.2, 5.11.4.
pub(crate) const FS_TAG_BYTES: usize = 36;
/// Each has a doorbell and an interrupt; a pod's guest has a processor or a few.
const FS_QUEUES: std::ops::RangeInclusive<u16> = 1..=16;
const FS_QUEUE_SIZES: std::ops::RangeInclusive<u16> = 16..=1024;
const CONSOLE_BYTES: std::ops::RangeInclusive<u32> = 4096..=(16 << 20);
/// Room for a digest with a word before it.
const ID_BYTES: usize = 128;
/// The MP table's APIC ids have eight bits, and one is the IOAPIC's.
const VCPUS_MAX: u8 = 254;
/// A configuration is a few kilobytes; one per image layer is the most that it grows.
const FILE_LIMIT: u64 = 1 << 20;

/// Reads and checks the file at `path`.
pub(crate) fn load(path: &Path) -> Result<Plan, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > FILE_LIMIT {
        return Err(read(io::ErrorKind::FileTooLarge.into()));
    }
    let text = std::fs::read(path).map_err(read)?;
    let config = serde_json::from_slice(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source,
    })?;
    check(&config)?;
    prepare(config, &mut Descriptors::inherited())
}

/// Everything that can be said without touching a file.
fn check(config: &MachineConfig) -> Result<(), ConfigError> {
    let field = |field, problem: String| Err(ConfigError::Field { field, problem });
    let Vcpus { boot, max } = config.vcpus;
    if config.version != CONFIG_VERSION {
        return field("version", format!("{} is not {CONFIG_VERSION}", config.version));
    }
    if check_id(&config.id).is_err() {
        return field("id", DeviceError::Id(config.id.clone()).to_string());
    }
    if boot == 0 || boot > max || max > VCPUS_MAX {
        return field(
            "vcpus",
            format!("boot {boot} and max {max} are not 1 <= boot <= max <= {VCPUS_MAX}"),
        );
    }
    if !MEMORY_MIB.contains(&config.memory_mib) {
        return field(
            "memory_mib",
            format!("{} is not within {MEMORY_MIB:?}", config.memory_mib),
        );
    }
    let hotplug = config.memory_hotplug_mib;
    if !HOTPLUG_MIB.contains(&hotplug) || !hotplug.is_multiple_of(HOTPLUG_UNIT_MIB) {
        return field(
            "memory_hotplug_mib",
            format!("{hotplug} is not within {HOTPLUG_MIB:?}, or no multiple of {HOTPLUG_UNIT_MIB}"),
        );
    }
    if !CONSOLE_BYTES.contains(&config.console.ring_bytes) {
        let bytes = config.console.ring_bytes;
        return field(
            "console.ring_bytes",
            format!("{bytes} is not within {CONSOLE_BYTES:?}"),
        );
    }
    // virtio 1.2, 5.10.4: 0, 1 and 2 are reserved, and all ones means any.
    if let Some(vsock) = &config.vsock
        && (vsock.guest_cid < 3 || vsock.guest_cid == u32::MAX)
    {
        return field("vsock.guest_cid", format!("{} is reserved", vsock.guest_cid));
    }
    let line = complete_command_line(config);
    if line.len() >= COMMAND_LINE_SIZE || line.contains(['\0', '\n']) {
        let problem = format!(
            "{} bytes with ours, or a NUL or line end in it; {COMMAND_LINE_SIZE} is too long",
            line.len()
        );
        return field("command_line", problem);
    }
    check_devices(&config.devices).map_err(ConfigError::Device)
}

fn check_devices(devices: &[Device]) -> Result<(), DeviceError> {
    let (mut ids, mut memories, mut balloons) = (BTreeSet::new(), 0, 0);
    for device in devices {
        if !ids.insert(device.id()) {
            return Err(DeviceError::Duplicate(device.id().to_owned()));
        }
        memories += u32::from(matches!(device, Device::Memory { .. }));
        balloons += u32::from(matches!(device, Device::Balloon { .. }));
        if memories > 1 || balloons > 1 {
            return Err(DeviceError::Second(device.id().to_owned()));
        }
    }
    Ok(())
}

fn complete_command_line(config: &MachineConfig) -> String {
    let Vcpus { boot, max } = config.vcpus;
    command_line::complete(boot, max, config.memory_hotplug_mib > 0, &config.command_line)
}

/// Opens the files of a checked configuration.
fn prepare(config: MachineConfig, descriptors: &mut Descriptors) -> Result<Plan, ConfigError> {
    let file = |field| move |source| ConfigError::File { field, source };
    let kernel = files::open(&config.kernel, descriptors, false).map_err(file("kernel"))?;
    let initramfs = files::open(&config.initramfs, descriptors, false).map_err(file("initramfs"))?;
    let devices = config
        .devices
        .iter()
        .map(|device| prepare_device(device, descriptors));
    let devices = devices.collect::<Result<_, _>>()?;
    Ok(Plan {
        command_line: complete_command_line(&config),
        id: config.id,
        kernel,
        initramfs,
        vcpus: config.vcpus,
        memory_bytes: config.memory_mib << 20,
        hotplug_bytes: config.memory_hotplug_mib << 20,
        memory_shared: config.memory_shared,
        control: config.control,
        console_bytes: config.console.ring_bytes as usize,
        console_dump: config.console.dump,
        vsock: config.vsock,
        devices,
    })
}

/// Checks a device and opens its file.
pub(crate) fn prepare_device(
    device: &Device,
    descriptors: &mut Descriptors,
) -> Result<PreparedDevice, DeviceError> {
    let id = device.id().to_owned();
    check_id(&id)?;
    let file = |source, descriptors: &mut Descriptors, writable| {
        let opened = files::open(source, descriptors, writable);
        opened.map_err(|source| DeviceError::File {
            id: id.clone(),
            source,
        })
    };
    let kind = match device {
        Device::Net { tap, mac, .. } => {
            let parsed = parse_mac(mac);
            let mac = parsed.ok_or_else(|| DeviceError::Mac {
                id: id.clone(),
                mac: mac.clone(),
            })?;
            DeviceKind::Net {
                tap: file(tap, descriptors, true)?,
                mac,
            }
        }
        Device::Block {
            file: source,
            read_only,
            ..
        } => DeviceKind::Block {
            file: file(source, descriptors, !read_only)?,
            read_only: *read_only,
        },
        Device::Pmem { file: source, .. } => DeviceKind::Pmem {
            file: file(source, descriptors, false)?,
        },
        Device::Fs {
            socket,
            tag,
            queues,
            queue_size,
            ..
        } => {
            let shape = fs_shape(&id, tag, *queues, *queue_size)?;
            let socket = file(socket, descriptors, true)?;
            let socket = connected(socket).map_err(|source| DeviceError::Socket {
                id: id.clone(),
                source,
            })?;
            DeviceKind::Fs { socket, shape }
        }
        Device::Memory { .. } => DeviceKind::Memory,
        Device::Balloon { .. } => DeviceKind::Balloon,
    };
    Ok(PreparedDevice { id, kind })
}

fn fs_shape(id: &str, tag: &str, queues: u16, queue_size: u16) -> Result<FsShape, DeviceError> {
    let id = id.to_owned();
    let tag = tag.to_owned();
    if tag.is_empty() || tag.len() > FS_TAG_BYTES || tag.contains('\0') {
        return Err(DeviceError::Tag { id, tag });
    }
    if !FS_QUEUES.contains(&queues) {
        return Err(DeviceError::Queues { id, queues });
    }
    if !FS_QUEUE_SIZES.contains(&queue_size) || !queue_size.is_power_of_two() {
        return Err(DeviceError::QueueSize { id, queue_size });
    }
    Ok(FsShape {
        tag,
        queues,
        queue_size,
    })
}

/// A stream socket with somebody at its other end.
fn connected(file: File) -> io::Result<UnixStream> {
    if sockopt::SockType.get(&file)? != SockType::Stream {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let socket = UnixStream::from(OwnedFd::from(file));
    socket.peer_addr()?;
    Ok(socket)
}

fn check_id(id: &str) -> Result<(), DeviceError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > ID_BYTES || !id.bytes().all(plain) {
        return Err(DeviceError::Id(id.to_owned()));
    }
    Ok(())
}

/// Six bytes in hexadecimal; a group address is no address of an interface.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts
            .next()
            .filter(|part| part.len() == 2 && !part.starts_with('+'))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

#[cfg(test)]
mod tests;
