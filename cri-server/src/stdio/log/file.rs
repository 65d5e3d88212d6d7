//! The log file of one container with its position: appends whole lines or nothing, rotates, and finds its place again.
//!
//! Order of writing: lines to the log, then the position. A daemon that dies in between leaves lines that the position does
//! not know; they are counted at the next start, and a line that was cut off is cut away. Blocking; called off the event loop.

use std::{
    fs::{DirBuilder, File},
    io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use proto::stdio::Stream;

use super::{
    lines::{self, Lines, Progress},
    position::{Position, PositionFile},
    timestamp::Timestamp,
};

/// Writes the log of one container; without a path it only keeps the position.
#[derive(Debug)]
pub(super) struct LogWriter {
    path: Option<PathBuf>,
    log: Option<LogFile>,
    lines: Lines,
    /// Lines that are not in the file yet.
    unwritten: Vec<u8>,
    position: PositionFile,
}

#[derive(Debug)]
struct LogFile {
    file: File,
    identity: (u64, u64),
    /// Up to here there are complete lines.
    len: u64,
    /// An append failed, and there may be bytes behind `len`.
    torn: bool,
}

impl LogWriter {
    /// Opens or makes the log and goes on where the position says.
    pub(super) fn open(path: Option<&Path>, position_path: &Path) -> io::Result<Self> {
        let mut position = PositionFile::open(position_path)?;
        let mut progress = position
            .stored()
            .map(|stored| stored.progress)
            .unwrap_or_default();
        if let (Some(path), Some(stored)) = (path, position.stored()) {
            recount(path, &stored, &mut progress)?;
        }
        let log = path.map(LogFile::open).transpose()?;
        position.store(at(log.as_ref(), progress))?;
        Ok(Self {
            path: path.map(Path::to_owned),
            log,
            lines: Lines::resume(progress),
            unwritten: Vec::new(),
            position,
        })
    }

    /// From where on the output is wanted; everything before it is stored.
    pub(super) fn stored_offset(&self) -> u64 {
        self.position.stored().map_or(0, |stored| stored.progress.offset)
    }

    /// Takes output; [`Self::commit`] writes it.
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) {
        self.lines
            .push(stream, bytes, &Timestamp::now(), &mut self.unwritten);
    }

    /// Takes the end of a stream; [`Self::commit`] writes what that completes.
    pub(super) fn end(&mut self, stream: Stream) {
        self.lines.end(stream, &Timestamp::now(), &mut self.unwritten);
    }

    /// Writes what was taken. After a failure (no space) nothing is lost: call it again.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        if let Some(log) = &mut self.log {
            log.append(&self.unwritten)?;
        }
        self.unwritten.clear();
        self.position.store(at(self.log.as_ref(), self.lines.progress()))
    }

    /// kubelet has renamed the log: goes on in a new file of the old name; lines that could not be written yet go there with
    /// the next [`Self::commit`]. After a failure the old file is written on.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let fresh = LogFile::open(path)?;
        if let Some(old) = &mut self.log {
            old.cut_torn_line()?;
        }
        // Before the first line goes to the new file: lines in a file that the position does not speak of are not counted.
        let stored = self
            .position
            .stored()
            .map(|stored| stored.progress)
            .unwrap_or_default();
        self.position.store(at(Some(&fresh), stored))?;
        self.log = Some(fresh);
        Ok(())
    }
}

fn at(log: Option<&LogFile>, progress: Progress) -> Position {
    Position {
        file: log.map(|log| log.identity).unwrap_or_default(),
        len: log.map(|log| log.len).unwrap_or_default(),
        progress,
    }
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            // kubelet makes it; crictl may not.
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let file = File::options().append(true).create(true).mode(0o640).open(path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            file,
            identity: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            torn: false,
        })
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.cut_torn_line()?;
        self.torn = true;
        self.file.write_all(lines)?;
        // Asked for and not added up: an operator may have truncated the file, and O_APPEND followed.
        self.len = self.file.metadata()?.len();
        self.torn = false;
        Ok(())
    }

    fn cut_torn_line(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.len)?;
            self.torn = false;
        }
        Ok(())
    }
}

/// Adds to `progress` the lines that were written after `stored`, and cuts away a line that was cut off.
fn recount(path: &Path, stored: &Position, progress: &mut Progress) -> io::Result<()> {
    let Some(file) = find(path, stored.file)? else {
        return Ok(());
    };
    let mut reader = BufReader::new(&file);
    reader.seek(SeekFrom::Start(stored.len))?;
    let (mut complete, mut line) = (stored.len, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        if line.pop() != Some(b'\n') {
            return file.set_len(complete);
        }
        complete += read as u64;
        if let Some((stream, bytes)) = lines::count(&line)
            && let Some(logged) = progress.logged.get_mut(lines::index(stream))
        {
            *logged += bytes;
        }
    }
}

/// The file that the position speaks of: the log itself or, when kubelet has renamed it and the daemon died before it was
/// told, a file beside it whose name begins with the log's. kubelet leaves the newest rotated file uncompressed.
fn find(path: &Path, identity: (u64, u64)) -> io::Result<Option<File>> {
    let open = |path: &Path| File::options().read(true).write(true).open(path);
    let is_it = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == identity && found.is_file())
    };
    if is_it(path) {
        return open(path).map(Some);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(None);
    };
    let entries = match std::fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let rotated = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(name.as_encoded_bytes());
        if rotated && is_it(&entry.path()) {
            return open(&entry.path()).map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
