//! Where every inode, directory and symlink goes: decided before a byte of metadata is written.
//!
//! Directory entries carry inode numbers, inode numbers are positions, and positions depend only on sizes; so one pass
//! over the tree in a fixed order settles everything, and equal trees give equal blobs.

use super::{
    format::{BLOCK_SIZE, DIRENT_SIZE, INODE_SIZE, Placement, SLOT_SIZE, xattrs_size},
    tree::{Content, NodeId, Tree},
};

const BLOCK: usize = BLOCK_SIZE as usize;

/// The decided position of one inode.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat {
    pub(crate) id: NodeId,
    pub(crate) parent: NodeId,
    /// Bytes from the start of the metadata area; the inode number is this divided by the slot size.
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) placement: Placement,
}

impl Seat {
    pub(crate) fn slot(&self) -> u64 {
        self.offset / SLOT_SIZE
    }
}

#[derive(Debug)]
pub(crate) struct Plan {
    /// In the order in which they are written.
    pub(crate) seats: Vec<Seat>,
    /// Inode numbers by node index; 0 for nodes without a name.
    slots: Vec<u64>,
    /// Bytes of the metadata area.
    pub(crate) metadata_size: u64,
    /// Blocks for directories and symlinks that do not fit beside their inode.
    pub(crate) data_blocks: u64,
}

impl Plan {
    /// `first_block` is where data that is not inline will begin. `None` when EROFS cannot address it all.
    pub(crate) fn of(tree: &Tree, first_block: u32) -> Option<Self> {
        let mut plan = Self {
            seats: Vec::with_capacity(tree.len()),
            slots: vec![0; tree.len()],
            // The kernel takes a node's number for its inode number, and programs take 0 for "no entry".
            metadata_size: SLOT_SIZE,
            data_blocks: 0,
        };
        for (id, parent) in tree.walk() {
            let node = tree.node(id);
            let xattrs = xattrs_size(&node.attributes);
            let (size, placement, inline) = match &node.content {
                Content::File { start, size } => (*size, Placement::Plain(*start), 0),
                Content::Device { .. } | Content::Fifo => (0, Placement::Plain(None), 0),
                Content::Directory(_) => plan.place_data(directory_size(tree, id), xattrs, first_block)?,
                Content::Symlink(target) => plan.place_data(target.len() as u64, xattrs, first_block)?,
            };
            let offset = plan.take_slots(INODE_SIZE + xattrs + inline);
            plan.slots[id.index()] = offset / SLOT_SIZE;
            plan.seats.push(Seat {
                id,
                parent,
                offset,
                size,
                placement,
            });
        }
        // fsck.erofs 1.5 looks for attributes behind every inode, also where the file would end.
        plan.metadata_size += SLOT_SIZE;
        Some(plan)
    }

    pub(crate) fn slot(&self, id: NodeId) -> u64 {
        self.slots[id.index()]
    }

    /// Whole blocks go to the data area; the rest lies behind the inode if both fit into one block.
    fn place_data(&mut self, size: u64, xattrs: u64, first_block: u32) -> Option<(u64, Placement, u64)> {
        let rest = size % BLOCK_SIZE;
        let inline = rest > 0 && INODE_SIZE + xattrs + rest <= BLOCK_SIZE;
        let blocks = if inline {
            size / BLOCK_SIZE
        } else {
            size.div_ceil(BLOCK_SIZE)
        };
        let start = u64::from(first_block) + self.data_blocks;
        self.data_blocks += blocks;
        u32::try_from(start + blocks).ok()?;
        let start = if blocks == 0 {
            None
        } else {
            Some(u32::try_from(start).ok()?)
        };
        let placement = if inline {
            Placement::Inline(start)
        } else {
            Placement::Plain(start)
        };
        Some((size, placement, if inline { rest } else { 0 }))
    }

    /// Reserves room for an inode and what follows it, so that no inode record and no inline data crosses a block.
    fn take_slots(&mut self, length: u64) -> u64 {
        let within = self.metadata_size % BLOCK_SIZE;
        // Only attributes may cross: an inode with more than a block of them never has inline data.
        let unbroken = if length > BLOCK_SIZE { INODE_SIZE } else { length };
        if within + unbroken > BLOCK_SIZE {
            self.metadata_size = self.metadata_size.next_multiple_of(BLOCK_SIZE);
        }
        let offset = self.metadata_size;
        self.metadata_size = (offset + length).next_multiple_of(SLOT_SIZE);
        offset
    }
}

/// One name of a directory, `.` and `..` included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirectoryName<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) id: NodeId,
}

/// The names of a directory in blocks, in the order that EROFS searches: by bytes, `.` and `..` among the others.
pub(crate) fn directory_blocks(tree: &Tree, id: NodeId, parent: NodeId) -> Vec<Vec<DirectoryName<'_>>> {
    let mut names: Vec<DirectoryName<'_>> = tree
        .names(id)
        .map(|(name, id)| DirectoryName { name, id })
        .collect();
    names.push(DirectoryName { name: b".", id });
    names.push(DirectoryName {
        name: b"..",
        id: parent,
    });
    names.sort_unstable_by(|a, b| a.name.cmp(b.name));
    let mut blocks = vec![Vec::new()];
    let mut used = 0;
    for name in names {
        let needed = DIRENT_SIZE + name.name.len();
        if used + needed > BLOCK {
            blocks.push(Vec::new());
            used = 0;
        }
        used += needed;
        if let Some(block) = blocks.last_mut() {
            block.push(name);
        }
    }
    blocks
}

/// `i_size` of a directory: whole blocks and what the last one uses.
fn directory_size(tree: &Tree, id: NodeId) -> u64 {
    let blocks = directory_blocks(tree, id, id);
    let last: usize = blocks
        .last()
        .into_iter()
        .flatten()
        .map(|entry| DIRENT_SIZE + entry.name.len())
        .sum();
    (blocks.len() as u64 - 1) * BLOCK_SIZE + last as u64
}
