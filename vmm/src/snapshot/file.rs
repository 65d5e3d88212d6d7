//! How a state lies in a file, and what is refused before any of it is believed. Pure but for reading the file.
//!
//! ```text
//! 0    magic, 8 bytes                  12   length of the body, u32
//! 8    format, u32                     16   CRC-32C of all before and of the body, u32
//! 20   body: the state in postcard's encoding, as long as the file is
//! ```
//!
//! All numbers are little-endian. The format counts up with every change of what is in the body: a snapshot is made again
//! faster than it is converted.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::SnapshotError;
use super::checksum::crc32c;
use super::state::MachineState;

const MAGIC: [u8; 8] = *b"clpdsnap";
/// The only one that is read.
pub(crate) const FORMAT: u32 = 2;
/// Where the body begins.
pub(crate) const HEAD: usize = 20;
/// Far above 254 processors of 12 KiB and the largest console.
const LIMIT: usize = 64 << 20;

/// The bytes of a file.
pub(crate) fn encode(state: &MachineState) -> Result<Vec<u8>, postcard::Error> {
    let body = postcard::to_stdvec(state)?;
    frame(FORMAT, &body).ok_or(postcard::Error::SerializeBufferFull)
}

/// A body with what comes before it; `None`: it is longer than can be said.
pub(crate) fn frame(format: u32, body: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = head(format, u32::try_from(body.len()).ok()?);
    bytes.extend(crc32c(&[&bytes, body]).to_le_bytes());
    bytes.extend(body);
    Some(bytes)
}

/// Reads the state in `file`, whose position may be another process's as well.
pub(crate) fn read(file: &File) -> Result<MachineState, SnapshotError> {
    let length = file.metadata().map_err(SnapshotError::Read)?.len();
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > LIMIT {
        return Err(SnapshotError::TooLarge(LIMIT));
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).map_err(SnapshotError::Read)?;
    decode(&bytes)
}

/// The state in the bytes of a file.
pub(crate) fn decode(bytes: &[u8]) -> Result<MachineState, SnapshotError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(SnapshotError::Foreign);
    }
    let Some((first, body)) = bytes.split_first_chunk::<HEAD>() else {
        let (found, wanted) = (bytes.len(), HEAD);
        return Err(SnapshotError::Length { found, wanted });
    };
    let [.., f0, f1, f2, f3, l0, l1, l2, l3, c0, c1, c2, c3] = *first;
    let found = u32::from_le_bytes([f0, f1, f2, f3]);
    if found != FORMAT {
        let known = FORMAT;
        return Err(SnapshotError::Format { found, known });
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let wanted = (length as usize).saturating_add(HEAD);
    if bytes.len() != wanted {
        let found = bytes.len();
        return Err(SnapshotError::Length { found, wanted });
    }
    if crc32c(&[&head(found, length), body]) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(SnapshotError::Checksum);
    }
    let (state, rest) = postcard::take_from_bytes(body).map_err(SnapshotError::Content)?;
    if rest.is_empty() {
        Ok(state)
    } else {
        Err(SnapshotError::Trailing(rest.len()))
    }
}

/// What the checksum follows.
fn head(format: u32, length: u32) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(format.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests;
