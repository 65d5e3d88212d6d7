//! Our own writer of EROFS, the read-only file system in which a layer reaches the guest.
//!
//! Why not `mkfs.erofs`: Debian 12's cannot read a tar, and unpacking first needs root and writes everything twice.
//! Here file data goes into the blob as it arrives and the metadata follows it:
//!
//! ```text
//! block 0   superblock at byte 1024
//! block 1…  data of regular files, each beginning on a block of 4 KiB
//!           directories and symlinks too large to lie beside their inode
//! meta      inodes with extended attributes, small directories and symlinks inline
//! ```
//!
//! Regular files are never packed into the metadata (which would save on average 2 KiB per file on the host's disk):
//! only whole, aligned blocks can be mapped with DAX, and a mapped block costs the guest no memory while an inline one
//! costs it a page of its own. Blocks of zeros are left as holes in the blob.
//!
//! The format: Linux `fs/erofs/erofs_fs.h` and Documentation/filesystems/erofs.rst. We write uncompressed extended
//! inodes and no feature that Linux 5.10 would not know.

mod blob;
mod emit;
mod format;
mod plan;
mod reader;
mod tree;

#[cfg(test)]
mod tests;

pub(crate) use blob::{AppendError, Blob};
pub(crate) use emit::finish;
pub(crate) use reader::{Reader, Sight, Stored};
pub(crate) use tree::{Attributes, Content, DeviceKind, NodeId, Tree, XattrRefusal};
