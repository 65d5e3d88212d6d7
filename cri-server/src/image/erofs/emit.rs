//! Writes what [`plan`](super::plan) decided behind the file data, and the superblock last.
//!
//! The superblock is the only thing that makes a blob mountable, so a blob cut short is never one.

use super::{
    blob::{AppendError, Blob},
    format::{self, DIRENT_SIZE, InodeFields, Placement, Summary},
    plan::{DirectoryName, Plan, Seat, directory_blocks},
    tree::{Content, Tree},
};

const BLOCK: usize = format::BLOCK_SIZE as usize;

/// Completes the blob of `tree` and makes it durable. Returns its length in bytes, a multiple of the block size.
pub(crate) fn finish(mut blob: Blob, tree: &Tree, uuid: [u8; 16]) -> Result<u64, AppendError> {
    let plan = Plan::of(tree, blob.next_block()?).ok_or(AppendError::Full)?;
    for seat in &plan.seats {
        write_blocks(&mut blob, tree, &plan, seat)?;
    }
    let metadata_block = blob.next_block()?;
    write_inodes(&mut blob, tree, &plan)?;
    blob.pad();
    let root = plan.seats.first().map_or(0, Seat::slot);
    let superblock = format::superblock(&Summary {
        root_slot: u16::try_from(root).map_err(|_| AppendError::Full)?,
        inodes: plan.seats.len() as u64,
        blocks: blob.next_block()?,
        metadata_block,
        uuid,
    });
    blob.seal(&superblock)
}

/// The whole blocks of a directory or symlink, padded.
fn write_blocks(blob: &mut Blob, tree: &Tree, plan: &Plan, seat: &Seat) -> Result<(), AppendError> {
    let (Placement::Plain(Some(_)) | Placement::Inline(Some(_))) = seat.placement else {
        return Ok(());
    };
    if matches!(tree.node(seat.id).content, Content::File { .. }) {
        return Ok(()); // written as it arrived
    }
    let bytes = content_bytes(tree, plan, seat);
    blob.write(&bytes[..bytes.len() - inline_length(seat)])?;
    blob.pad();
    Ok(())
}

fn write_inodes(blob: &mut Blob, tree: &Tree, plan: &Plan) -> Result<(), AppendError> {
    let mut written = 0;
    for (seat, number) in plan.seats.iter().zip(1_u32..) {
        let node = tree.node(seat.id);
        let fields = InodeFields {
            placement: seat.placement,
            size: seat.size,
            links: tree.links(seat.id),
            number,
        };
        let mut record = format::inode(&node.attributes, &node.content, &fields);
        record.extend(format::xattrs(&node.attributes));
        let inline = inline_length(seat);
        if inline > 0 {
            let bytes = content_bytes(tree, plan, seat);
            record.extend_from_slice(&bytes[bytes.len() - inline..]);
        }
        write_zeros(blob, seat.offset - written)?;
        blob.write(&record)?;
        written = seat.offset + record.len() as u64;
    }
    write_zeros(blob, plan.metadata_size - written)
}

/// Gaps between inodes are shorter than a block.
fn write_zeros(blob: &mut Blob, count: u64) -> Result<(), AppendError> {
    let zeros = [0; BLOCK];
    let count = usize::try_from(count).unwrap_or(BLOCK).min(BLOCK);
    blob.write(&zeros[..count])
}

/// Bytes that lie behind the inode.
fn inline_length(seat: &Seat) -> usize {
    match seat.placement {
        Placement::Inline(_) => usize::try_from(seat.size).unwrap_or(usize::MAX) % BLOCK,
        Placement::Plain(_) => 0,
    }
}

fn content_bytes(tree: &Tree, plan: &Plan, seat: &Seat) -> Vec<u8> {
    match &tree.node(seat.id).content {
        Content::Symlink(target) => target.clone(),
        Content::Directory(_) => {
            let mut bytes = Vec::new();
            for block in directory_blocks(tree, seat.id, seat.parent) {
                bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
                append_directory_block(&mut bytes, tree, plan, &block);
            }
            bytes
        }
        Content::File { .. } | Content::Device { .. } | Content::Fifo => Vec::new(),
    }
}

/// All entries, then all names. A name ends where the next begins.
fn append_directory_block(bytes: &mut Vec<u8>, tree: &Tree, plan: &Plan, block: &[DirectoryName<'_>]) {
    let mut name_offset = block.len() * DIRENT_SIZE;
    for entry in block {
        // At most 4096: `directory_blocks` counts the bytes.
        let offset = u16::try_from(name_offset).unwrap_or(u16::MAX);
        bytes.extend(format::dirent(
            plan.slot(entry.id),
            offset,
            &tree.node(entry.id).content,
        ));
        name_offset += entry.name.len();
    }
    for entry in block {
        bytes.extend_from_slice(entry.name);
    }
}
