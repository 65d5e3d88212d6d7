//! What is in a template's memory, as one digest. A VMM that goes on from it reads none of it beforehand, so that what changed while no
//! daemon looked has to be found here. The state has a checksum that the VMM looks at each time.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::image::digest::{Digest, Hasher};

/// Read in one go; a whole number of pages.
const CHUNK: usize = 1 << 18;
const PAGE: usize = 4096;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// Of its length and of all pages that are not zero: whether these are holes is the file system's own affair.
pub(super) fn digest(file: &File) -> io::Result<Digest> {
    let length = file.metadata()?.len();
    let mut hasher = Hasher::default();
    hasher.update(&length.to_le_bytes());
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some(part) = next_part(file, at, length)? {
        let mut offset = part.start;
        while offset < part.end {
            let left = usize::try_from(part.end - offset).unwrap_or(CHUNK);
            let bytes = buffer.get_mut(..left.min(CHUNK)).unwrap_or_default();
            file.read_exact_at(bytes, offset)?;
            for page in bytes.chunks(PAGE) {
                if !ZEROS.starts_with(page) {
                    hasher.update(&offset.to_le_bytes());
                    hasher.update(page);
                }
                offset += page.len() as u64;
            }
        }
        at = part.end;
    }
    Ok(hasher.finish())
}

/// The next part from `at` on that is no hole, in whole pages.
fn next_part(file: &File, at: u64, length: u64) -> io::Result<Option<Range<u64>>> {
    let data = match seek(file, SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let hole = seek(file, SeekFrom::Hole(data))?;
    let page = PAGE as u64;
    let start = data / page * page;
    Ok(Some(start..hole.next_multiple_of(page).min(length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(parts: &[(u64, &[u8])], length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (offset, bytes) in parts {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    #[test]
    fn it_names_the_content_and_not_the_holes() {
        const MIB: u64 = 1 << 20;
        let first = digest(&file(&[(0, b"a"), (3 * MIB, b"b")], 8 * MIB)).unwrap();
        let zeros = vec![0; CHUNK + PAGE];
        let filled = file(&[(MIB, &zeros), (0, b"a"), (3 * MIB, b"b")], 8 * MIB);
        assert_eq!(digest(&filled).unwrap(), first);
        let others = [
            digest(&file(&[(0, b"a"), (3 * MIB, b"c")], 8 * MIB)),
            digest(&file(&[(0, b"a"), (2 * MIB, b"b")], 8 * MIB)),
            digest(&file(&[(0, b"a")], 8 * MIB)),
            digest(&file(&[(0, b"a"), (3 * MIB, b"b")], 8 * MIB + 1)),
            digest(&file(&[], 8 * MIB)),
            digest(&file(&[], 0)),
        ];
        let mut all: Vec<_> = others.map(Result::unwrap).into_iter().chain([first]).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn one_bit_anywhere_changes_it() {
        let bytes: Vec<u8> = (0..2 * CHUNK + 100).map(|at| (at % 251) as u8).collect();
        let whole = digest(&file(&[(0, &bytes)], bytes.len() as u64)).unwrap();
        for at in [0, PAGE, CHUNK - 1, CHUNK, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            let other = digest(&file(&[(0, &flipped)], bytes.len() as u64)).unwrap();
            assert_ne!(other, whole, "byte {at}");
        }
    }
}
