//! Extension headers: PAX records and GNU long names, collected until the member they describe arrives.

use super::{Entry, Kind, header::Header};
use crate::image::error::LayerError;

/// Prefix under which tars carry extended attributes: star's invention, used by Go and GNU tar.
const XATTR: &[u8] = b"SCHILY.xattr.";

#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
}

impl Extensions {
    /// Takes the records of one PAX header: `length key=value\n`, where length counts itself.
    pub(super) fn apply_pax(&mut self, mut records: &[u8]) -> Result<(), LayerError> {
        while !records.is_empty() {
            let (key, value, rest) = split_record(records).ok_or_else(|| malformed("record"))?;
            self.apply(key, value)?;
            records = rest;
        }
        Ok(())
    }

    /// The member that `header` begins, as the extensions before it correct it.
    pub(super) fn complete(self, header: &Header) -> Result<Entry, LayerError> {
        let mut entry = header.entry(self.size)?;
        if let Some(path) = self.path {
            entry.path = path;
        }
        if self.sparse {
            return Err(entry.refuse("sparse files (PAX GNU.sparse) are not supported"));
        }
        if let (Kind::HardLink(target) | Kind::Symlink(target), Some(link)) = (&mut entry.kind, self.link) {
            *target = link;
        }
        entry.uid = self.uid.unwrap_or(entry.uid);
        entry.gid = self.gid.unwrap_or(entry.gid);
        entry.mtime = self.mtime.unwrap_or(entry.mtime);
        entry.xattrs = self.xattrs;
        Ok(entry)
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), LayerError> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value).ok_or_else(|| malformed("size"))?),
            b"uid" => self.uid = Some(number(value).ok_or_else(|| malformed("uid"))?),
            b"gid" => self.gid = Some(number(value).ok_or_else(|| malformed("gid"))?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(|| malformed("mtime"))?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
                // Others (atime, uname, comments, libarchive's own) have no place in the file system.
            }
        }
        Ok(())
    }
}

fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = number(&records[..space])?;
    let record = records.get(..length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &records[length..]))
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    let digits = text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

/// Decimal seconds with an optional fraction, possibly negative. Digits beyond nanoseconds are cut.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let (negative, digits) = whole
        .strip_prefix(b"-")
        .map_or((false, whole), |digits| (true, digits));
    let seconds: i64 = number(digits)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0, |nanos, at| {
        nanos * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'))
    });
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

fn malformed(what: &str) -> LayerError {
    LayerError::Entry {
        entry: "PAX header".to_owned(),
        reason: format!("{what} is malformed"),
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn times_keep_nanoseconds_and_signs() {
        assert_eq!(time(b"1350244992.023960108"), Some((1_350_244_992, 23_960_108)));
        assert_eq!(time(b"7"), Some((7, 0)));
        assert_eq!(time(b"7.5"), Some((7, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        for bad in [&b""[..], b"x", b"1.x", b"--1", b"99999999999999999999"] {
            assert_eq!(time(bad), None);
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"5 a=b\n"[..],
            b"99 a=b\n",
            b"6 a=b",
            b"a=b\n",
            b"6 abc\n",
            b"0 =\n",
            b"18446744073709551616 a=b\n",
        ] {
            assert!(
                Extensions::default().apply_pax(bad).is_err(),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
        assert!(Extensions::default().apply_pax(b"6 a=b\n8 c=d\nx\n").is_ok());
    }
}
