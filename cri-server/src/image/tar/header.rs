//! One 512-byte tar header: its fields, its checksum, its numbers.

use super::{Entry, Kind, until_nul};
use crate::image::error::LayerError;

pub(super) const RECORD: u64 = 512;

/// A header whose checksum was right.
#[derive(Debug)]
pub(super) struct Header {
    record: [u8; RECORD as usize],
}

impl Header {
    pub(super) fn parse(record: [u8; RECORD as usize]) -> Result<Self, LayerError> {
        let header = Self { record };
        // The sum is taken with its own field as spaces; old writers summed signed bytes.
        let blanked = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { b' ' } else { *byte };
        let unsigned: i64 = record.iter().enumerate().map(|it| i64::from(blanked(it))).sum();
        let signed: i64 = record
            .iter()
            .enumerate()
            .map(|it| i64::from(blanked(it).cast_signed()))
            .sum();
        let stored = header.number(148..156, "checksum")?;
        if stored == unsigned || stored == signed {
            Ok(header)
        } else {
            Err(header.refuse("header checksum is wrong: not a tar, or damaged"))
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.record[156]
    }

    pub(super) fn refuse(&self, reason: impl Into<String>) -> LayerError {
        LayerError::Entry {
            entry: String::from_utf8_lossy(&self.path()).into_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn size(&self) -> Result<u64, LayerError> {
        u64::try_from(self.number(124..136, "size")?).map_err(|_| self.refuse("negative size"))
    }

    /// The entry as this header alone describes it; `size` is known better by a PAX header.
    pub(super) fn entry(&self, size: Option<u64>) -> Result<Entry, LayerError> {
        let path = self.path();
        let kind = match self.type_flag() {
            // Before POSIX a directory was a file whose name ends in a slash.
            b'\0' if path.ends_with(b"/") => Kind::Directory,
            b'0' | b'\0' | b'7' => Kind::File {
                size: size.map_or_else(|| self.size(), Ok)?,
            },
            b'1' => Kind::HardLink(self.text(157..257)),
            b'2' => Kind::Symlink(self.text(157..257)),
            b'3' => Kind::Character(self.device(329..337)?, self.device(337..345)?),
            b'4' => Kind::Block(self.device(329..337)?, self.device(337..345)?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(self.refuse("sparse files (GNU type S) are not supported")),
            b'D' | b'M' => return Err(self.refuse("incremental and multi-volume archives are not supported")),
            other => return Err(self.refuse(format!("tar type {:?} is not supported", char::from(other)))),
        };
        Ok(Entry {
            path,
            kind,
            mode: self.mode()?,
            uid: self.id(108..116, "uid")?,
            gid: self.id(116..124, "gid")?,
            mtime: (self.number(136..148, "mtime")?, 0),
            xattrs: Vec::new(),
        })
    }

    /// The name, with POSIX's prefix before it. GNU headers keep other things where the prefix would be.
    fn path(&self) -> Vec<u8> {
        let name = self.text(0..100);
        if &self.record[257..263] != b"ustar\0" {
            return name;
        }
        // Schilling's star shortens the prefix to make room for times, and signs the header's end.
        let prefix_end = if &self.record[508..512] == b"tar\0" {
            476
        } else {
            500
        };
        let prefix = self.text(345..prefix_end);
        if prefix.is_empty() {
            name
        } else {
            [prefix, name].join(&b'/')
        }
    }

    fn text(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        until_nul(self.record[range].to_vec())
    }

    /// Some writers leave the file type in the upper bits.
    fn mode(&self) -> Result<u16, LayerError> {
        let mode = self.number(100..108, "mode")? & 0o7777;
        u16::try_from(mode).map_err(|_| self.refuse("mode is out of range"))
    }

    fn id(&self, range: std::ops::Range<usize>, field: &str) -> Result<u32, LayerError> {
        u32::try_from(self.number(range, field)?).map_err(|_| self.refuse(format!("{field} is out of range")))
    }

    fn device(&self, range: std::ops::Range<usize>) -> Result<u64, LayerError> {
        u64::try_from(self.number(range, "device")?).map_err(|_| self.refuse("device number is out of range"))
    }

    /// Octal digits between blanks, or GNU's big-endian two's complement when the top bit is set.
    fn number(&self, range: std::ops::Range<usize>, field: &str) -> Result<i64, LayerError> {
        let bytes = &self.record[range];
        let malformed = || self.refuse(format!("{field} is not a number"));
        if bytes[0] & 0x80 == 0 {
            let is_blank = |byte: &u8| *byte == b' ' || *byte == 0;
            let start = bytes.iter().take_while(|byte| is_blank(byte)).count();
            let digits = &bytes[start..];
            let end = digits.iter().position(is_blank).unwrap_or(digits.len());
            return digits[..end].iter().try_fold(0_i64, |value, digit| match digit {
                b'0'..=b'7' => value
                    .checked_mul(8)
                    .map(|value| value + i64::from(digit - b'0'))
                    .ok_or_else(malformed),
                _ => Err(malformed()),
            });
        }
        let negative = bytes[0] & 0x40 != 0;
        let first = if negative {
            i64::from(bytes[0]) - 0x100
        } else {
            i64::from(bytes[0] & 0x3f)
        };
        bytes[1..].iter().try_fold(first, |value, byte| {
            value
                .checked_mul(256)
                .and_then(|value| value.checked_add(i64::from(*byte)))
                .ok_or_else(malformed)
        })
    }
}
