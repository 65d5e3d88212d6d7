//! One request: from a chain to a status byte (5.2.6). Runs on the worker's thread.

use std::io;

use tracing::debug;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::super::buffers::{BufferError, Buffers, Segments};
use super::disk::{Disk, SECTOR};

/// Length of a device id (VIRTIO_BLK_ID_BYTES).
pub(super) const ID_BYTES: usize = 20;
/// Ranges that one DISCARD may have.
pub(super) const MAX_DISCARD_RANGES: u32 = 32;
/// Ranges that one WRITE_ZEROES may have.
pub(super) const MAX_ZERO_RANGES: u32 = 1;
/// Longest range of DISCARD: 1 GiB, so that one request does not keep the worker for long.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Longest range of WRITE_ZEROES: 64 MiB, because it may have to be written, and a reset waits for it.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 17;

/// `struct virtio_blk_discard_write_zeroes`: sector, count, flags.
const RANGE_BYTES: usize = 16;

/// What a worker needs to answer.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) disk: std::sync::Arc<Disk>,
    pub(super) id: [u8; ID_BYTES],
    /// The driver did not accept VIRTIO_BLK_F_FLUSH, so each write must be stable when it is answered (5.2.6.2).
    pub(super) write_through: bool,
}

/// A chain that cannot be answered, because it has no place for the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    #[error("the chain has no usable buffers")]
    Buffers(#[source] BufferError),
    #[error("the chain has no byte for the status")]
    NoStatus,
}

/// What becomes of a request that was refused.
#[derive(Debug)]
enum Failure {
    /// VIRTIO_BLK_S_UNSUPP
    Unsupported,
    /// VIRTIO_BLK_S_IOERR: against the specification.
    Invalid(&'static str),
    /// VIRTIO_BLK_S_IOERR: the file's fault.
    Host(io::Error),
}

/// Does what the chain asks. Returns the bytes written to it, for the used ring.
pub(super) fn serve(
    context: &Context,
    buffers: Result<Buffers<'_>, BufferError>,
) -> Result<u32, RequestError> {
    let Buffers {
        mut readable,
        mut writable,
    } = buffers.map_err(RequestError::Buffers)?;
    // The status is the last byte, wherever the driver cut the chain (2.7.4.1).
    let room = writable.len().checked_sub(1).ok_or(RequestError::NoStatus)?;
    let mut data = writable.take(room);
    let (status, written) = match perform(context, &mut readable, &mut data) {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        Err(Failure::Invalid(reason)) => {
            debug!(reason, "block: the guest's request is refused");
            (VIRTIO_BLK_S_IOERR, 0)
        }
        Err(Failure::Host(error)) => {
            debug!(%error, "block: the host's file refuses a request");
            (VIRTIO_BLK_S_IOERR, 0)
        }
    };
    writable.copy_from(&status.to_le_bytes()[..1]);
    // With everything before it, although a failed read leaves that as it was: the driver asked for that much.
    Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
}

fn perform(
    context: &Context,
    readable: &mut Segments<'_>,
    data: &mut Segments<'_>,
) -> Result<usize, Failure> {
    let header = readable.take_array::<16>().ok_or(Failure::Invalid("no header"))?;
    let [kind @ .., _, _, _, _, _, _, _, _, _, _, _, _] = header;
    let [_, _, _, _, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let disk = &context.disk;
    match u32::from_le_bytes(kind) {
        VIRTIO_BLK_T_IN => {
            let length = data.len();
            let extent = disk
                .extent(sector, length as u64)
                .ok_or(Failure::Invalid("read off the disk"))?;
            disk.read(extent, data).map_err(Failure::Host)?;
            Ok(length)
        }
        VIRTIO_BLK_T_OUT => {
            writable_disk(disk)?;
            let extent = disk
                .extent(sector, readable.len() as u64)
                .ok_or(Failure::Invalid("write off the disk"))?;
            disk.write(extent, readable).map_err(Failure::Host)?;
            settle(context)
        }
        VIRTIO_BLK_T_FLUSH => {
            disk.flush().map_err(Failure::Host)?;
            Ok(0)
        }
        VIRTIO_BLK_T_GET_ID => Ok(data.copy_from(&context.id)),
        VIRTIO_BLK_T_DISCARD => {
            writable_disk(disk)?;
            for_each_range(
                readable,
                (MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS),
                |sector, length, flags| {
                    // 5.2.6.2: unmap is a bit of WRITE_ZEROES only.
                    if flags != 0 {
                        return Err(Failure::Unsupported);
                    }
                    let extent = disk
                        .extent(sector, length)
                        .ok_or(Failure::Invalid("discard off the disk"))?;
                    disk.discard(extent).map_err(unsupported_or_failed)
                },
            )?;
            settle(context)
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            writable_disk(disk)?;
            for_each_range(
                readable,
                (MAX_ZERO_RANGES, MAX_ZERO_SECTORS),
                |sector, length, flags| {
                    if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                        return Err(Failure::Unsupported);
                    }
                    let extent = disk
                        .extent(sector, length)
                        .ok_or(Failure::Invalid("zeroes off the disk"))?;
                    disk.write_zeroes(extent, flags != 0)
                        .map_err(unsupported_or_failed)
                },
            )?;
            settle(context)
        }
        _ => Err(Failure::Unsupported),
    }
}

/// 5.2.6.2: a read-only device fails every write with IOERR.
fn writable_disk(disk: &Disk) -> Result<(), Failure> {
    if disk.is_read_only() {
        Err(Failure::Invalid("write to a read-only disk"))
    } else {
        Ok(())
    }
}

/// Ends a request that changed the disk.
fn settle(context: &Context) -> Result<usize, Failure> {
    if context.write_through {
        context.disk.flush().map_err(Failure::Host)?;
    }
    Ok(0)
}

/// Calls `action` with (sector, bytes, flags) of each range, within the limits that the configuration told.
fn for_each_range(
    readable: &mut Segments<'_>,
    (max_ranges, max_sectors): (u32, u32),
    action: impl Fn(u64, u64, u32) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if !readable.len().is_multiple_of(RANGE_BYTES) || readable.len() > RANGE_BYTES * max_ranges as usize {
        return Err(Failure::Invalid("ranges of odd or excessive length"));
    }
    while let Some(range) = readable.take_array::<RANGE_BYTES>() {
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, f0, f1, f2, f3] = range;
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        if count > max_sectors {
            return Err(Failure::Invalid("range longer than the device's maximum"));
        }
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        action(
            sector,
            u64::from(count) * SECTOR,
            u32::from_le_bytes([f0, f1, f2, f3]),
        )?;
    }
    Ok(())
}

/// A file system that cannot do it is not a broken disk: the driver stops asking.
fn unsupported_or_failed(error: io::Error) -> Failure {
    if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
        Failure::Unsupported
    } else {
        Failure::Host(error)
    }
}
