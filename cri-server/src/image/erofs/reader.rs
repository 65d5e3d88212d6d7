//! Reads our own blobs back: one path at a time, or the whole tree for rewriting a layer.
//!
//! Only what [`emit`](super::emit) writes is understood. A blob lies on the node's disk and may be damaged, so nothing
//! read from it is trusted with a panic or an allocation larger than the file.

use std::{collections::HashMap, io, os::unix::fs::FileExt as _, path::Path};

use fs_err::File;

use super::{
    format::{
        BLOCK_SIZE, Layout, SLOT_SIZE, SUPERBLOCK_OFFSET, StoredInode, stored_inode, stored_superblock,
        xattr_name,
    },
    tree::{Attributes, Content, DeviceKind, NodeId, Tree},
};

#[derive(Debug)]
pub(crate) struct Reader {
    file: File,
    length: u64,
    metadata: u64,
    root: u64,
}

/// One inode as it lies in the blob.
#[derive(Debug)]
pub(crate) struct Stored {
    inode: StoredInode,
    position: u64,
    pub(crate) attributes: Attributes,
}

/// What a path leads to in one layer. Symlinks are not followed.
#[derive(Debug)]
pub(crate) enum Sight {
    /// This layer says nothing about the path.
    Nothing,
    /// A directory on the way is opaque: lower layers have no say.
    Opaque,
    /// Something on the way is no directory.
    Blocked,
    Found(Stored),
}

impl Stored {
    pub(crate) fn is_directory(&self) -> bool {
        self.inode.mode & FILE_TYPE == DIRECTORY
    }

    pub(crate) fn is_symlink(&self) -> bool {
        self.inode.mode & FILE_TYPE == SYMLINK
    }
}

const FILE_TYPE: u16 = 0o170_000;
const DIRECTORY: u16 = 0o040_000;
const SYMLINK: u16 = 0o120_000;

impl Reader {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut block = [0; BLOCK_SIZE as usize];
        file.file().read_exact_at(&mut block, 0)?;
        let found = stored_superblock(&block[SUPERBLOCK_OFFSET..]).ok_or_else(|| damaged("superblock"))?;
        Ok(Self {
            file,
            length,
            metadata: u64::from(found.metadata_block) * BLOCK_SIZE,
            root: u64::from(found.root_slot),
        })
    }

    /// Where the metadata begins: what lies before it is file data, and blocks of large directories and symlinks.
    pub(crate) fn metadata_start(&self) -> u64 {
        self.metadata
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Looks for a path, given as its names. `opaque` is the attribute that hides lower layers.
    pub(crate) fn look(&self, names: &[&[u8]], opaque: &[u8]) -> io::Result<Sight> {
        let mut here = self.inode(self.root)?;
        let mut hides = here.attributes.xattr(opaque).is_some();
        for name in names {
            if !here.is_directory() {
                return Ok(Sight::Blocked);
            }
            let next = self
                .directory(&here)?
                .into_iter()
                .find(|(found, _)| found == name);
            let Some((_, slot)) = next else {
                return Ok(if hides { Sight::Opaque } else { Sight::Nothing });
            };
            here = self.inode(slot)?;
            hides |= here.attributes.xattr(opaque).is_some();
        }
        Ok(Sight::Found(here))
    }

    pub(crate) fn symlink_target(&self, symlink: &Stored) -> io::Result<Vec<u8>> {
        self.data(symlink)
    }

    /// The whole layer; file data stays where it is in the blob.
    pub(crate) fn load(&self) -> io::Result<Tree> {
        let mut tree = Tree::new();
        let mut known: HashMap<u64, NodeId> = HashMap::new();
        let mut pending = vec![(NodeId::ROOT, self.inode(self.root)?)];
        while let Some((id, directory)) = pending.pop() {
            for (name, slot) in self.directory(&directory)? {
                if name == b"." || name == b".." {
                    continue;
                }
                if let Some(known) = known.get(&slot) {
                    tree.link(id, &name, *known);
                    continue;
                }
                let stored = self.inode(slot)?;
                let content = self.content(&stored)?;
                let child = tree
                    .insert(id, &name, stored.attributes.clone(), content)
                    .ok_or_else(|| damaged("node count"))?;
                if stored.is_directory() {
                    pending.push((child, stored));
                } else {
                    known.insert(slot, child);
                }
            }
            let node = tree.node_mut(id);
            node.attributes = directory.attributes;
            node.implied = false;
        }
        Ok(tree)
    }

    fn content(&self, stored: &Stored) -> io::Result<Content> {
        let inode = &stored.inode;
        let device = |kind| Content::Device {
            kind,
            number: inode.union,
        };
        Ok(match inode.mode & FILE_TYPE {
            DIRECTORY => Content::Directory(std::collections::BTreeMap::new()),
            SYMLINK => Content::Symlink(self.data(stored)?),
            0o100_000 => Content::File {
                start: (inode.size > 0).then_some(inode.union),
                size: inode.size,
            },
            0o020_000 => device(DeviceKind::Character),
            0o060_000 => device(DeviceKind::Block),
            0o010_000 => Content::Fifo,
            _ => return Err(damaged("file type")),
        })
    }

    fn inode(&self, slot: u64) -> io::Result<Stored> {
        let position = slot
            .checked_mul(SLOT_SIZE)
            .and_then(|offset| offset.checked_add(self.metadata))
            .ok_or_else(|| damaged("inode number"))?;
        let mut record = [0; 64];
        self.file.file().read_exact_at(&mut record, position)?;
        let (inode, mut attributes) = stored_inode(&record).ok_or_else(|| damaged("inode"))?;
        let area = self.read(position + 64, inode.xattrs_size)?;
        read_xattrs(&area, &mut attributes).ok_or_else(|| damaged("extended attributes"))?;
        Ok(Stored {
            inode,
            position,
            attributes,
        })
    }

    fn data(&self, stored: &Stored) -> io::Result<Vec<u8>> {
        let inode = &stored.inode;
        let start = u64::from(inode.union) * BLOCK_SIZE;
        match inode.layout {
            Layout::Plain => self.read(start, inode.size),
            Layout::Inline => {
                let rest = inode.size % BLOCK_SIZE;
                let mut data = self.read(start, inode.size - rest)?;
                data.extend(self.read(stored.position + 64 + inode.xattrs_size, rest)?);
                Ok(data)
            }
        }
    }

    fn directory(&self, stored: &Stored) -> io::Result<Vec<(Vec<u8>, u64)>> {
        let data = self.data(stored)?;
        let mut entries = Vec::new();
        for block in data.chunks(BLOCK_SIZE as usize) {
            read_names(block, &mut entries).ok_or_else(|| damaged("directory"))?;
        }
        Ok(entries)
    }

    fn read(&self, position: u64, length: u64) -> io::Result<Vec<u8>> {
        if length == 0 {
            return Ok(Vec::new());
        }
        if position.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(damaged("extent"));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| damaged("size"))?];
        self.file.file().read_exact_at(&mut bytes, position)?;
        Ok(bytes)
    }
}

fn read_names(block: &[u8], entries: &mut Vec<(Vec<u8>, u64)>) -> Option<()> {
    const ENTRY: usize = 12;
    let name_at = |entry: usize| -> Option<usize> {
        Some(usize::from(u16::from_le_bytes(
            block
                .get(entry * ENTRY + 8..entry * ENTRY + 10)?
                .try_into()
                .ok()?,
        )))
    };
    let count = name_at(0)? / ENTRY;
    for entry in 0..count {
        let slot = u64::from_le_bytes(block.get(entry * ENTRY..entry * ENTRY + 8)?.try_into().ok()?);
        let end = if entry + 1 < count {
            name_at(entry + 1)?
        } else {
            block.len()
        };
        let name = block.get(name_at(entry)?..end)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or(name);
        entries.push((name.to_vec(), slot));
    }
    Some(())
}

fn read_xattrs(area: &[u8], attributes: &mut Attributes) -> Option<()> {
    const HEADER: usize = 12;
    let mut rest = area.get(HEADER..).unwrap_or_default();
    while !rest.is_empty() {
        let (name_len, index) = (usize::from(*rest.first()?), *rest.get(1)?);
        let value_len = usize::from(u16::from_le_bytes(rest.get(2..4)?.try_into().ok()?));
        let name = xattr_name(index, rest.get(4..4 + name_len)?)?;
        attributes
            .set_xattr(&name, rest.get(4 + name_len..4 + name_len + value_len)?)
            .ok()?;
        rest = rest.get((4 + name_len + value_len).next_multiple_of(4)..)?;
    }
    Some(())
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what} of the blob is damaged"),
    )
}
