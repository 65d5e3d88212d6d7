//! Devices of a configuration or of a request: checked by field, files opened.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{GetSockOpt, SockType, sockopt};
use proto::machine::Device;

use crate::files::{self, Descriptors, FileError};

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

/// virtio 1.2, 5.11.4.
pub(crate) const FS_TAG_BYTES: usize = 36;
/// Each has a doorbell and an interrupt; a pod's guest has a processor or a few.
const FS_QUEUES: std::ops::RangeInclusive<u16> = 1..=16;
const FS_QUEUE_SIZES: std::ops::RangeInclusive<u16> = 16..=1024;
/// Room for a digest with a word before it.
const ID_BYTES: usize = 128;

/// Names are given once, and so are devices of which a Machine has one.
pub(super) fn check_devices(devices: &[Device]) -> Result<(), DeviceError> {
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

pub(super) fn check_id(id: &str) -> Result<(), DeviceError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > ID_BYTES || !id.bytes().all(plain) {
        return Err(DeviceError::Id(id.to_owned()));
    }
    Ok(())
}

/// Six bytes in hexadecimal; a group address is no address of an interface.
pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
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
