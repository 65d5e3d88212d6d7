//! A streaming reader of tar archives, as layers carry them: ustar, PAX and GNU extensions.
//!
//! Why not a crate: a layer is input from strangers and the usual ones read extension headers of any size into memory.
//! Here each is bounded, every number is checked, and what is not supported (sparse files, multi-volume archives) is
//! refused by name. Formats: POSIX pax(1), "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic
//! Tar Format".

mod header;
mod pax;

#[cfg(test)]
mod tests;

use std::io::{self, Read};

use header::{Header, RECORD};

use super::error::LayerError;

/// Bytes of one extension header; Go's archive/tar, which writes most layers, has the same bound.
const MAX_EXTENSION: u64 = 1 << 20;

/// One member of the archive, with all extensions applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The next `size` bytes come from [`Archive::data`].
    File {
        size: u64,
    },
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Character(u64, u64),
    Block(u64, u64),
    Directory,
    Fifo,
}

impl Entry {
    /// The path for messages.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }

    pub(crate) fn refuse(&self, reason: impl Into<String>) -> LayerError {
        LayerError::Entry {
            entry: self.shown(),
            reason: reason.into(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Archive<R> {
    source: R,
    /// Bytes of the current member that were not read yet, and the padding behind them.
    data_left: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(source: R) -> Self {
        Self {
            source,
            data_left: 0,
            padding: 0,
        }
    }

    /// The next member; what was not read of the one before is skipped. `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extensions = pax::Extensions::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            match header.type_flag() {
                b'x' => extensions.apply_pax(&self.read_extension(&header)?)?,
                b'L' => extensions.path = Some(until_nul(self.read_extension(&header)?)),
                b'K' => extensions.link = Some(until_nul(self.read_extension(&header)?)),
                // Global defaults (git archive writes a comment) and volume labels describe no member.
                b'g' | b'V' => self.begin_data(header.size()?),
                _ => {
                    let entry = extensions.complete(&header)?;
                    if let Kind::File { size } = entry.kind {
                        self.begin_data(size);
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The data of the member that [`Archive::next_entry`] returned last.
    pub(crate) fn data(&mut self) -> Data<'_, R> {
        Data { archive: self }
    }

    /// Reads the rest of the stream after the end of the archive: it is part of the layer's digest.
    pub(crate) fn into_source(self) -> R {
        self.source
    }

    fn begin_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = (RECORD - size % RECORD) % RECORD;
    }

    fn skip_data(&mut self) -> Result<(), LayerError> {
        // Not their sum: a size near 2^64 is a stranger's to choose.
        for amount in [
            std::mem::take(&mut self.data_left),
            std::mem::take(&mut self.padding),
        ] {
            let skipped = io::copy(&mut (&mut self.source).take(amount), &mut io::sink()).map_err(stream)?;
            if skipped < amount {
                return Err(stream(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }

    /// `None` at two blocks of zeros, or where the stream ends on a boundary (some writers leave the trailer away).
    fn read_header(&mut self) -> Result<Option<Header>, LayerError> {
        for _ in 0..2 {
            let mut record = [0; RECORD as usize];
            let filled = read_full(&mut self.source, &mut record).map_err(stream)?;
            if filled == 0 {
                return Ok(None);
            }
            if filled < record.len() {
                return Err(stream(io::ErrorKind::UnexpectedEof.into()));
            }
            if record.iter().any(|byte| *byte != 0) {
                return Header::parse(record).map(Some);
            }
        }
        Ok(None)
    }

    fn read_extension(&mut self, header: &Header) -> Result<Vec<u8>, LayerError> {
        let size = header.size()?;
        if size > MAX_EXTENSION {
            return Err(header.refuse(format!("extension header of {size} bytes")));
        }
        self.begin_data(size);
        let mut bytes = Vec::new();
        self.data().read_to_end(&mut bytes).map_err(stream)?;
        Ok(bytes)
    }
}

/// Reads one member's data and no further.
#[derive(Debug)]
pub(crate) struct Data<'a, R> {
    archive: &'a mut Archive<R>,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.archive.data_left).unwrap_or(usize::MAX);
        let room = into.len().min(left);
        if room == 0 {
            return Ok(0);
        }
        let got = self.archive.source.read(&mut into[..room])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.archive.data_left -= got as u64;
        Ok(got)
    }
}

fn read_full(source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match source.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn stream(source: io::Error) -> LayerError {
    LayerError::Stream { source }
}
