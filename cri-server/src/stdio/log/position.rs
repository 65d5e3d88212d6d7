//! The position file: which log file has how many bytes, and how much of the output that is. Read at a restart.
//!
//! It lies in the daemon's state, not beside the log: kubelet takes every file named like a log for a rotated one and removes
//! it. Two slots are written in turn, each with a sequence number and a checksum, so that a write which a SIGKILL cut off
//! leaves the other one. Durability against power loss is not needed: the Machine and its unread output are gone then.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    time::{Duration, Instant},
};

use super::lines::Progress;

const MAGIC: u64 = u64::from_le_bytes(*b"cplogpos");
const FIELDS: usize = 9;
const SLOT_LEN: usize = FIELDS * 8;
const SLOT_PLACE: u64 = 128;
/// For a write of another writer that is under way, on a disk that writes back.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// What is known of a log at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// Which file: device and inode number; zeros when there is no log file.
    pub(super) file: (u64, u64),
    /// Its length in bytes, all of it complete lines.
    pub(super) len: u64,
    /// What these lines stand for.
    pub(super) progress: Progress,
}

/// An open position file.
#[derive(Debug)]
pub(super) struct PositionFile {
    file: File,
    sequence: u64,
    stored: Option<Position>,
}

impl PositionFile {
    /// Opens the file or makes it (mode 0600). Its directory exists. Waits for another writer of this log to let go: a task
    /// that was dropped may have a write under way.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        lock(&file)?;
        let newest = [0, SLOT_PLACE]
            .into_iter()
            .filter_map(|place| read_slot(&file, place))
            .max_by_key(|(sequence, _)| *sequence);
        Ok(Self {
            file,
            sequence: newest.map_or(0, |(sequence, _)| sequence),
            stored: newest.map(|(_, position)| position),
        })
    }

    /// The newest whole position.
    pub(super) fn stored(&self) -> Option<Position> {
        self.stored
    }

    /// Replaces the position; a failure leaves the last one.
    pub(super) fn store(&mut self, position: Position) -> io::Result<()> {
        if self.stored == Some(position) {
            return Ok(());
        }
        let sequence = self.sequence + 1;
        let place = if sequence.is_multiple_of(2) { 0 } else { SLOT_PLACE };
        self.file.write_all_at(&encode(sequence, &position), place)?;
        self.sequence = sequence;
        self.stored = Some(position);
        Ok(())
    }
}

/// Held until the file is closed.
fn lock(file: &File) -> io::Result<()> {
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another writer has the log of this container",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn read_slot(file: &File, place: u64) -> Option<(u64, Position)> {
    let mut bytes = [0; SLOT_LEN];
    file.read_exact_at(&mut bytes, place).ok()?;
    decode(&bytes)
}

fn encode(sequence: u64, position: &Position) -> Vec<u8> {
    let [stdout, stderr] = position.progress.logged;
    let fields = [
        MAGIC,
        sequence,
        position.file.0,
        position.file.1,
        position.len,
        position.progress.offset,
        stdout,
        stderr,
    ];
    let mut bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
    let checksum = checksum(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8; SLOT_LEN]) -> Option<(u64, Position)> {
    let (content, _) = bytes.split_at(SLOT_LEN - 8);
    let mut fields = [0; FIELDS];
    for (field, chunk) in fields.iter_mut().zip(bytes.chunks_exact(8)) {
        *field = u64::from_le_bytes(chunk.try_into().ok()?);
    }
    let [magic, sequence, device, inode, len, offset, stdout, stderr, sum] = fields;
    let position = Position {
        file: (device, inode),
        len,
        progress: Progress {
            offset,
            logged: [stdout, stderr],
        },
    };
    (magic == MAGIC && sum == checksum(content)).then_some((sequence, position))
}

/// FNV-1a with 64 bits: finds torn writes, defends against nobody.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(len: u64) -> Position {
        Position {
            file: (1, 2),
            len,
            progress: Progress {
                offset: 7 * len,
                logged: [3, 4],
            },
        }
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.position");
        let mut file = PositionFile::open(&path).unwrap();
        assert_eq!(file.stored(), None);
        for len in 1..=3 {
            file.store(position(len)).unwrap();
            drop(file);
            file = PositionFile::open(&path).unwrap();
            assert_eq!(file.stored(), Some(position(len)));
        }
        drop(file);
        // The third one lies in the second slot; torn at any byte, the second one is left.
        let whole = fs_err::read(&path).unwrap();
        for cut in 0..SLOT_LEN {
            let mut torn = whole.clone();
            torn[usize::try_from(SLOT_PLACE).unwrap() + cut] ^= 0x55;
            fs_err::write(&path, torn).unwrap();
            assert_eq!(
                PositionFile::open(&path).unwrap().stored(),
                Some(position(2)),
                "{cut}"
            );
        }
    }

    #[test]
    fn a_second_writer_waits_for_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.position");
        let mut first = PositionFile::open(&path).unwrap();
        let second = std::thread::Builder::new().spawn({
            let path = path.clone();
            move || PositionFile::open(&path).unwrap().stored()
        });
        std::thread::sleep(Duration::from_millis(20));
        first.store(position(5)).unwrap();
        drop(first);
        assert_eq!(second.unwrap().join().unwrap(), Some(position(5)));
    }

    #[test]
    fn a_file_that_is_no_position_is_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.position");
        for content in [&b""[..], b"short", &[0; 256], &[0xff; 300]] {
            fs_err::write(&path, content).unwrap();
            assert_eq!(PositionFile::open(&path).unwrap().stored(), None);
        }
    }
}
