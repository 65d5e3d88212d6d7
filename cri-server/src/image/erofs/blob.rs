//! The growing blob: data is appended block by block while the layer streams in.
//!
//! Runs of zero blocks are skipped, so that they are holes in the host's file. Everything else is written in large
//! pieces in ascending order.

use std::{
    io::{self, Read, Seek as _},
    os::unix::fs::FileExt as _,
};

use fs_err::File;

use super::{format::BLOCK_SIZE, reader::Reader};

const BUFFER: usize = 256 * 1024;
const BLOCK: usize = BLOCK_SIZE as usize;

/// Why data could not be appended.
#[derive(Debug)]
pub(crate) enum AppendError {
    /// The blob could not be written.
    Write(io::Error),
    /// The source could not be read, or ended early.
    Read(io::Error),
    /// The blob would have more blocks than EROFS can address (16 TiB).
    Full,
}

#[derive(Debug)]
pub(crate) struct Blob {
    file: File,
    /// Where `buffer` begins in the file; a multiple of the block size.
    offset: u64,
    buffer: Vec<u8>,
}

impl Blob {
    /// Starts in an empty file. Block 0 stays free for the superblock.
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            offset: BLOCK_SIZE,
            buffer: Vec::with_capacity(BUFFER),
        }
    }

    /// Starts with the data of another blob, up to where that one's metadata begins.
    pub(crate) fn with_data_of(mut file: File, other: &Reader) -> io::Result<Self> {
        let offset = other.metadata_start();
        let mut source = other.file().try_clone()?;
        source.rewind()?;
        // On file systems with reflinks this shares the blocks: std asks for copy_file_range(2).
        let copied = io::copy(&mut source.take(offset), &mut file)?;
        if copied < offset {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self {
            file,
            offset,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// The block that the next piece of data will begin with. Call between pieces only.
    pub(crate) fn next_block(&self) -> Result<u32, AppendError> {
        u32::try_from((self.offset + self.buffer.len() as u64) / BLOCK_SIZE).map_err(|_| AppendError::Full)
    }

    /// Appends exactly `size` bytes of `source`, padded to whole blocks. `None` for no data.
    pub(crate) fn append(&mut self, source: &mut impl Read, size: u64) -> Result<Option<u32>, AppendError> {
        if size == 0 {
            return Ok(None);
        }
        let start = self.next_block()?;
        let mut left = size;
        while left > 0 {
            if self.buffer.len() == BUFFER {
                self.flush().map_err(AppendError::Write)?;
            }
            let filled = self.buffer.len();
            let room = (BUFFER - filled).min(usize::try_from(left).unwrap_or(usize::MAX));
            self.buffer.resize(filled + room, 0);
            let got = read_some(source, &mut self.buffer[filled..]).map_err(AppendError::Read)?;
            self.buffer.truncate(filled + got);
            if got == 0 {
                return Err(AppendError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            left -= got as u64;
        }
        self.pad();
        Ok(Some(start))
    }

    /// Appends bytes as they are. The caller pads.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), AppendError> {
        while !bytes.is_empty() {
            if self.buffer.len() == BUFFER {
                self.flush().map_err(AppendError::Write)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Fills the last block with zeros.
    pub(crate) fn pad(&mut self) {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK), 0);
    }

    /// Writes the first block and makes everything durable. Returns the blob's length in bytes.
    pub(crate) fn seal(mut self, superblock: &[u8]) -> Result<u64, AppendError> {
        self.pad();
        self.flush().map_err(AppendError::Write)?;
        let finish = || {
            self.file.file().write_all_at(superblock, 0)?;
            self.file.set_len(self.offset)?; // the last blocks may be a hole
            self.file.sync_all()
        };
        finish().map_err(AppendError::Write)?;
        Ok(self.offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut run_start = 0;
        let mut at = 0;
        for block in self.buffer.chunks(BLOCK) {
            if block.iter().all(|byte| *byte == 0) {
                self.write_run(run_start, at)?;
                run_start = at + block.len();
            }
            at += block.len();
        }
        self.write_run(run_start, at)?;
        self.offset += at as u64;
        self.buffer.clear();
        Ok(())
    }

    fn write_run(&self, from: usize, to: usize) -> io::Result<()> {
        if from < to {
            self.file
                .file()
                .write_all_at(&self.buffer[from..to], self.offset + from as u64)?;
        }
        Ok(())
    }
}

fn read_some(source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
