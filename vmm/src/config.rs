//! The configuration file: read, checked, files opened. Errors name the field.
//!
//! `proto::machine::MachineConfig` is what the daemon wrote; [`Plan`] is what can be built: every number in range, every
//! file open, nothing left to refuse but what the host refuses.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use proto::machine::{CONFIG_VERSION, Device, FileSource, MachineConfig, Vcpus, Vsock};

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
    pub(crate) control: PathBuf,
    pub(crate) console_bytes: usize,
    pub(crate) console_dump: Option<PathBuf>,
    pub(crate) vsock: Option<Vsock>,
    pub(crate) devices: Vec<PreparedDevice>,
}

/// A device whose file is open.
#[derive(Debug)]
pub(crate) struct PreparedDevice {
    pub(crate) id: String,
    pub(crate) file: File,
    pub(crate) kind: DeviceKind,
}

/// What is made of a device's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Net { mac: [u8; 6] },
    Block { read_only: bool },
    Pmem,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration file {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
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
    #[error("device {id}")]
    File {
        id: String,
        #[source]
        source: FileError,
    },
}

const MEMORY_MIB: std::ops::RangeInclusive<u64> = 32..=(1 << 20);
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
        return Err(read(std::io::ErrorKind::FileTooLarge.into()));
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
    let line = command_line::complete(config.vcpus.boot, config.vcpus.max, &config.command_line);
    if line.len() >= COMMAND_LINE_SIZE || line.contains(['\0', '\n']) {
        let problem = format!(
            "{} bytes with ours, or a NUL or line end in it; {COMMAND_LINE_SIZE} is too long",
            line.len()
        );
        return field("command_line", problem);
    }
    let mut ids = BTreeSet::new();
    for device in &config.devices {
        if !ids.insert(device.id()) {
            return Err(DeviceError::Duplicate(device.id().to_owned()).into());
        }
    }
    Ok(())
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
        command_line: command_line::complete(config.vcpus.boot, config.vcpus.max, &config.command_line),
        id: config.id,
        kernel,
        initramfs,
        vcpus: config.vcpus,
        memory_bytes: config.memory_mib << 20,
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
    let (source, writable, kind): (&FileSource, bool, DeviceKind) = match device {
        Device::Net { tap, mac, .. } => {
            let parsed = parse_mac(mac);
            let mac = parsed.ok_or_else(|| DeviceError::Mac {
                id: id.clone(),
                mac: mac.clone(),
            })?;
            (tap, true, DeviceKind::Net { mac })
        }
        Device::Block { file, read_only, .. } => (
            file,
            !read_only,
            DeviceKind::Block {
                read_only: *read_only,
            },
        ),
        Device::Pmem { file, .. } => (file, false, DeviceKind::Pmem),
    };
    match files::open(source, descriptors, writable) {
        Ok(file) => Ok(PreparedDevice { id, file, kind }),
        Err(source) => Err(DeviceError::File { id, source }),
    }
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
