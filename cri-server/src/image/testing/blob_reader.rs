//! Reads an EROFS blob as a whole: what a kernel would show, checked more strictly than a kernel does.

use std::{collections::BTreeMap, path::Path};

const BLOCK: usize = 4096;

/// What was found under one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub kind: FoundKind,
    /// Permission bits only.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub links: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Equal for names of the same file.
    pub inode: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundKind {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    /// Major and minor number.
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

#[derive(Debug)]
pub struct BlobReader {
    bytes: Vec<u8>,
    metadata: usize,
    root: u64,
    inodes: u64,
}

impl BlobReader {
    pub fn open(path: &Path) -> Self {
        Self::new(fs_err::read(path).expect("blob"))
    }

    pub fn new(bytes: Vec<u8>) -> Self {
        assert_eq!(bytes.len() % BLOCK, 0, "length");
        let reader = Self {
            bytes,
            metadata: 0,
            root: 0,
            inodes: 0,
        };
        assert_eq!(reader.u32(1024), 0xE0F5_E1E2, "magic");
        assert_eq!(reader.u32(1024 + 8), 3, "compatible features");
        assert_eq!(reader.bytes[1024 + 12], 12, "block size");
        assert_eq!(reader.u32(1024 + 80), 0, "incompatible features");
        assert_eq!(
            reader.u32(1024 + 36) as usize * BLOCK,
            reader.bytes.len(),
            "blocks"
        );
        let mut block = reader.bytes[1024..BLOCK].to_vec();
        block[4..8].fill(0);
        assert_eq!(reader.u32(1024 + 4), crc32c(&block), "checksum");
        let metadata = reader.u32(1024 + 40) as usize * BLOCK;
        let root = u64::from(reader.u16(1024 + 14));
        let inodes = reader.u64(1024 + 16);
        Self {
            metadata,
            root,
            inodes,
            ..reader
        }
    }

    /// Every path with what it is; the root's path is empty.
    pub fn tree(&self) -> BTreeMap<Vec<u8>, Found> {
        let mut tree = BTreeMap::new();
        let mut pending = vec![(Vec::new(), self.root, self.root)];
        while let Some((path, nid, parent)) = pending.pop() {
            assert_ne!(nid, 0, "inode 0 means no entry to programs");
            let (found, data) = self.inode(nid);
            if found.kind == FoundKind::Directory {
                for (name, child, file_type) in self.directory(&data) {
                    match name.as_slice() {
                        b"." => assert_eq!(child, nid),
                        b".." => assert_eq!(child, parent),
                        _ => {
                            assert_eq!(file_type, self.file_type(child), "type of {name:?}");
                            let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                            pending.push(([&path, separator, &name].concat(), child, nid));
                        }
                    }
                }
            }
            assert!(tree.insert(path, found).is_none(), "a name twice");
        }
        let distinct: std::collections::BTreeSet<u64> = tree.values().map(|found| found.inode).collect();
        assert_eq!(
            distinct.len() as u64,
            self.inodes,
            "inode count of the superblock"
        );
        tree
    }

    fn inode(&self, nid: u64) -> (Found, Vec<u8>) {
        let at = self.metadata + usize::try_from(nid).expect("nid") * 32;
        assert!(at % BLOCK + 64 <= BLOCK, "an inode crosses a block");
        let format = self.u16(at);
        assert_eq!(format & 1, 1, "extended inode");
        let mode = self.u16(at + 4);
        let size = usize::try_from(self.u64(at + 8)).expect("size");
        let union = self.u32(at + 16);
        let (xattrs, xattrs_size) = self.xattrs(at + 64, self.u16(at + 2));
        let device = ((union >> 8) & 0xfff, (union & 0xff) | ((union >> 12) & 0xfff00));
        let has_data = matches!(mode & 0o170_000, 0o040_000 | 0o100_000 | 0o120_000);
        let data = if has_data {
            self.data(format >> 1, union, size, at + 64 + xattrs_size)
        } else {
            Vec::new()
        };
        let kind = match mode & 0o170_000 {
            0o010_000 => FoundKind::Fifo,
            0o020_000 => FoundKind::Character(device.0, device.1),
            0o040_000 => FoundKind::Directory,
            0o060_000 => FoundKind::Block(device.0, device.1),
            0o100_000 => FoundKind::File(data.clone()),
            0o120_000 => FoundKind::Symlink(data.clone()),
            other => panic!("file type {other:o}"),
        };
        let found = Found {
            kind,
            mode: mode & 0o7777,
            uid: self.u32(at + 24),
            gid: self.u32(at + 28),
            mtime: (self.u64(at + 32).cast_signed(), self.u32(at + 40)),
            links: self.u32(at + 44),
            xattrs,
            inode: nid,
        };
        (found, data)
    }

    fn data(&self, layout: u16, block: u32, size: usize, inline_at: usize) -> Vec<u8> {
        let start = block as usize * BLOCK;
        match layout {
            0 if size == 0 => Vec::new(),
            0 => self.bytes[start..start + size].to_vec(),
            2 => {
                let whole = size / BLOCK * BLOCK;
                let rest = size - whole;
                assert!(
                    rest > 0 && inline_at % BLOCK + rest <= BLOCK,
                    "inline data crosses a block"
                );
                let mut data = if whole > 0 {
                    self.bytes[start..start + whole].to_vec()
                } else {
                    Vec::new()
                };
                data.extend_from_slice(&self.bytes[inline_at..inline_at + rest]);
                data
            }
            other => panic!("data layout {other}"),
        }
    }

    fn directory(&self, data: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
        let mut entries: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        for block in data.chunks(BLOCK) {
            let number = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]) as usize;
            let count = number(8) / 12;
            for index in 0..count {
                let at = index * 12;
                let end = if index + 1 < count {
                    number(at + 12 + 8)
                } else {
                    block.len()
                };
                let mut name = block[number(at + 8)..end].to_vec();
                if index + 1 == count {
                    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                }
                let nid = u64::from_le_bytes(block[at..at + 8].try_into().expect("8 bytes"));
                entries.push((name, nid, block[at + 10]));
            }
        }
        assert!(
            entries.is_sorted_by(|a, b| a.0 < b.0),
            "a directory is not sorted"
        );
        entries
    }

    fn xattrs(&self, at: usize, count: u16) -> (BTreeMap<Vec<u8>, Vec<u8>>, usize) {
        let mut found = BTreeMap::new();
        if count == 0 {
            return (found, 0);
        }
        let size = 12 + (usize::from(count) - 1) * 4;
        assert_eq!(self.bytes[at + 4], 0, "no shared attributes");
        let mut next = at + 12;
        while next < at + size {
            let (name_len, index) = (usize::from(self.bytes[next]), self.bytes[next + 1]);
            let value_len = usize::from(self.u16(next + 2));
            let prefix: &[u8] = match index {
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                other => panic!("attribute index {other}"),
            };
            let name = [prefix, &self.bytes[next + 4..next + 4 + name_len]].concat();
            let value = self.bytes[next + 4 + name_len..next + 4 + name_len + value_len].to_vec();
            found.insert(name, value);
            next += (4 + name_len + value_len).next_multiple_of(4);
        }
        assert_eq!(next, at + size, "attribute area");
        (found, size)
    }

    fn file_type(&self, nid: u64) -> u8 {
        let mode = self.u16(self.metadata + usize::try_from(nid).expect("nid") * 32 + 4);
        match mode & 0o170_000 {
            0o100_000 => 1,
            0o040_000 => 2,
            0o020_000 => 3,
            0o060_000 => 4,
            0o010_000 => 5,
            0o120_000 => 7,
            other => panic!("file type {other:o}"),
        }
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes[at..at + 2].try_into().expect("2 bytes"))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("4 bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().expect("8 bytes"))
    }
}

/// Castagnoli's polynomial, most significant bit last, never inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 0 {
                crc >> 1
            } else {
                (crc >> 1) ^ 0x82F6_3B78
            };
        }
    }
    crc
}
