//! The bytes of EROFS: constants and fixed-size records, little-endian, as `fs/erofs/erofs_fs.h` lays them out.
//!
//! No decisions here: `plan` says where things go.

use super::tree::{Attributes, Content, DeviceKind};

pub(crate) const BLOCK_SIZE: u64 = 4096;
pub(crate) const BLOCK_BITS: u8 = 12;
/// Inode numbers count slots of this size from the start of the metadata area.
pub(crate) const SLOT_SIZE: u64 = 32;
pub(crate) const SUPERBLOCK_OFFSET: usize = 1024;
pub(crate) const INODE_SIZE: u64 = 64;
pub(crate) const DIRENT_SIZE: usize = 12;
/// Block address of a file without data.
const NO_BLOCK: u32 = u32::MAX;

const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_CHECKSUM: u32 = 1 << 0;
/// Inode times are modification times.
const COMPAT_MTIME: u32 = 1 << 1;

const XATTR_HEADER_SIZE: usize = 12;
const XATTR_ENTRY_SIZE: usize = 4;

/// How the content of an inode is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Whole blocks from here; `None` when there is no data.
    Plain(Option<u32>),
    /// Whole blocks from here, then the rest behind the inode itself.
    Inline(Option<u32>),
}

/// What the superblock says of the file system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    pub(crate) root_slot: u16,
    pub(crate) inodes: u64,
    pub(crate) blocks: u32,
    pub(crate) metadata_block: u32,
    pub(crate) uuid: [u8; 16],
}

/// The whole first block, checksum included.
pub(crate) fn superblock(summary: &Summary) -> Vec<u8> {
    let mut fields = Vec::with_capacity(128);
    fields.extend(MAGIC.to_le_bytes());
    fields.extend(0_u32.to_le_bytes()); // checksum, below
    fields.extend((COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
    fields.extend([BLOCK_BITS, 0]); // no extra slots
    fields.extend(summary.root_slot.to_le_bytes());
    fields.extend(summary.inodes.to_le_bytes());
    fields.extend([0; 12]); // build time: equal input gives equal bytes
    fields.extend(summary.blocks.to_le_bytes());
    fields.extend(summary.metadata_block.to_le_bytes());
    fields.extend(0_u32.to_le_bytes()); // no shared extended attributes
    fields.extend(summary.uuid);
    // Volume name, incompatible features, compression, devices, prefixes: all absent.
    let mut block = vec![0; BLOCK_SIZE as usize];
    block[SUPERBLOCK_OFFSET..][..fields.len()].copy_from_slice(&fields);
    let checksum = crc32c(&block[SUPERBLOCK_OFFSET..]);
    block[SUPERBLOCK_OFFSET + 4..][..4].copy_from_slice(&checksum.to_le_bytes());
    block
}

/// What an inode record needs beside the node's attributes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InodeFields {
    pub(crate) placement: Placement,
    pub(crate) size: u64,
    pub(crate) links: u32,
    /// Number shown by 32-bit `stat`; any unique one does.
    pub(crate) number: u32,
}

/// An extended inode (64 bytes), without what follows it.
pub(crate) fn inode(attributes: &Attributes, content: &Content, fields: &InodeFields) -> Vec<u8> {
    const EXTENDED: u16 = 1;
    let (layout, block): (u16, u32) = match fields.placement {
        Placement::Plain(block) => (0, block.unwrap_or(NO_BLOCK)),
        Placement::Inline(block) => (2, block.unwrap_or(NO_BLOCK)),
    };
    let union = match content {
        Content::Device { number, .. } => *number,
        Content::Fifo => 0,
        Content::Directory(_) | Content::File { .. } | Content::Symlink(_) => block,
    };
    let mut out = Vec::with_capacity(64);
    out.extend((EXTENDED | layout << 1).to_le_bytes());
    out.extend(xattr_count(attributes).to_le_bytes());
    out.extend((file_type_bits(content) | attributes.mode & 0o7777).to_le_bytes());
    out.extend(0_u16.to_le_bytes());
    out.extend(fields.size.to_le_bytes());
    out.extend(union.to_le_bytes());
    out.extend(fields.number.to_le_bytes());
    out.extend(attributes.uid.to_le_bytes());
    out.extend(attributes.gid.to_le_bytes());
    out.extend(attributes.mtime.to_le_bytes());
    out.extend(attributes.mtime_nanos.to_le_bytes());
    out.extend(fields.links.to_le_bytes());
    out.resize(INODE_SIZE as usize, 0);
    out
}

/// One directory entry without its name.
pub(crate) fn dirent(slot: u64, name_offset: u16, content: &Content) -> [u8; DIRENT_SIZE] {
    let mut out = [0; DIRENT_SIZE];
    out[..8].copy_from_slice(&slot.to_le_bytes());
    out[8..10].copy_from_slice(&name_offset.to_le_bytes());
    out[10] = match content {
        Content::File { .. } => 1,
        Content::Directory(_) => 2,
        Content::Device {
            kind: DeviceKind::Character,
            ..
        } => 3,
        Content::Device {
            kind: DeviceKind::Block,
            ..
        } => 4,
        Content::Fifo => 5,
        Content::Symlink(_) => 7,
    };
    out
}

fn file_type_bits(content: &Content) -> u16 {
    match content {
        Content::Fifo => 0o010_000,
        Content::Device {
            kind: DeviceKind::Character,
            ..
        } => 0o020_000,
        Content::Directory(_) => 0o040_000,
        Content::Device {
            kind: DeviceKind::Block,
            ..
        } => 0o060_000,
        Content::File { .. } => 0o100_000,
        Content::Symlink(_) => 0o120_000,
    }
}

/// What a reader needs of the superblock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredSuperblock {
    pub(crate) root_slot: u16,
    pub(crate) metadata_block: u32,
}

/// Reads back what [`superblock`] wrote from byte 1024 on.
pub(crate) fn stored_superblock(bytes: &[u8]) -> Option<StoredSuperblock> {
    if u32_at(bytes, 0)? != MAGIC || *bytes.get(12)? != BLOCK_BITS {
        return None;
    }
    Some(StoredSuperblock {
        root_slot: u16_at(bytes, 14)?,
        metadata_block: u32_at(bytes, 40)?,
    })
}

/// The two ways in which we lay out data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    Plain,
    Inline,
}

/// The fields of an inode that are no attributes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredInode {
    /// File type and permissions.
    pub(crate) mode: u16,
    pub(crate) size: u64,
    pub(crate) layout: Layout,
    /// Start block or device number.
    pub(crate) union: u32,
    pub(crate) xattrs_size: u64,
}

/// Reads back what [`inode`] wrote; extended attributes are left to the caller.
pub(crate) fn stored_inode(bytes: &[u8]) -> Option<(StoredInode, Attributes)> {
    let layout = match u16_at(bytes, 0)? {
        1 => Layout::Plain,
        5 => Layout::Inline,
        _ => return None,
    };
    let xattrs_size = match u64::from(u16_at(bytes, 2)?) {
        0 => 0,
        count => XATTR_HEADER_SIZE as u64 + (count - 1) * 4,
    };
    let mode = u16_at(bytes, 4)?;
    let mtime = (u64_at(bytes, 32)?.cast_signed(), u32_at(bytes, 40)?);
    let attributes = Attributes::new(mode & 0o7777, u32_at(bytes, 24)?, u32_at(bytes, 28)?, mtime);
    let inode = StoredInode {
        mode,
        size: u64_at(bytes, 8)?,
        layout,
        union: u32_at(bytes, 16)?,
        xattrs_size,
    };
    Some((inode, attributes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A device number as the kernel's `new_encode_dev` packs it; `None` when Linux has no such number.
pub(crate) fn device_number(major: u64, minor: u64) -> Option<u32> {
    let (major, minor) = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    let representable = major < 1 << 12 && minor < 1 << 20;
    representable.then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The index that stands for an extended attribute's prefix, and the rest of its name.
///
/// `None` for names that EROFS (and no other Linux file system) can hold.
pub(crate) fn xattr_index(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|(index, prefix)| {
        let suffix = name.strip_prefix(*prefix)?;
        // The two without a dot are whole names.
        (prefix.ends_with(b".") || suffix.is_empty()).then_some((*index, suffix))
    })
}

/// The full name that an index and a suffix stand for.
pub(crate) fn xattr_name(index: u8, suffix: &[u8]) -> Option<Vec<u8>> {
    let (_, prefix) = XATTR_PREFIXES.iter().find(|(known, _)| *known == index)?;
    Some([prefix, suffix].concat())
}

const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// The attribute area that follows an inode; empty when there are none.
pub(crate) fn xattrs(attributes: &Attributes) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in &attributes.xattrs {
        // Names and lengths were checked by `Attributes::set_xattr`.
        let Some((index, suffix)) = xattr_index(name) else {
            continue;
        };
        let (Ok(name_len), Ok(value_len)) = (u8::try_from(suffix.len()), u16::try_from(value.len())) else {
            continue;
        };
        if out.is_empty() {
            out.resize(XATTR_HEADER_SIZE, 0);
        }
        out.extend([name_len, index]);
        out.extend(value_len.to_le_bytes());
        out.extend_from_slice(suffix);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// Bytes of [`xattrs`], without building them.
pub(crate) fn xattrs_size(attributes: &Attributes) -> u64 {
    let entry = |(name, value): (&Vec<u8>, &Vec<u8>)| {
        let suffix = xattr_index(name).map_or(0, |(_, suffix)| suffix.len());
        (XATTR_ENTRY_SIZE + suffix + value.len()).next_multiple_of(4) as u64
    };
    if attributes.xattrs.is_empty() {
        return 0;
    }
    XATTR_HEADER_SIZE as u64 + attributes.xattrs.iter().map(entry).sum::<u64>()
}

/// `i_xattr_icount`: 0, or the number of 4-byte units after the header, plus one.
fn xattr_count(attributes: &Attributes) -> u16 {
    match xattrs_size(attributes) {
        0 => 0,
        size => u16::try_from((size - XATTR_HEADER_SIZE as u64) / 4 + 1).unwrap_or(u16::MAX),
    }
}

/// CRC-32C as the kernel computes it: started with all ones, not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82F6_3B78;
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            let carry = if crc & 1 == 1 { REVERSED_POLYNOMIAL } else { 0 };
            (crc >> 1) ^ carry
        })
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn crc32c_matches_the_published_check_value() {
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn device_numbers_are_packed_as_the_kernel_does() {
        assert_eq!(device_number(0, 0), Some(0));
        assert_eq!(device_number(1, 3), Some(0x103));
        assert_eq!(device_number(8, 0x1_23), Some(0x0010_0823));
        assert_eq!(device_number(1 << 12, 0), None);
        assert_eq!(device_number(0, 1 << 20), None);
    }
}
