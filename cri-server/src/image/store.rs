//! The image store: which images are complete, what names they have, who still needs their layers.
//!
//! Files and catalog change in `shelf` only. A layer's file stays while an image lists it, a container leases it or a pull is
//! about to record it; [`ImageStore::remove`] and the end of a lease delete what nobody needs any more. How an image
//! comes in is `pull`'s story.

use std::{fmt, io, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use super::{
    config::ImageConfig,
    error::{OpenError, RemoveError},
    pull::Puller,
    record::{FsUsage, Image, ImageId, now_nanos},
    shelf::Shelf,
};

/// All images of this node. Cheap to share in an `Arc`; every method may be called from any task.
#[derive(Debug)]
pub struct ImageStore {
    pub(super) shelf: Arc<Shelf>,
    pub(super) puller: Puller,
}

impl ImageStore {
    /// Opens the store, creating it when there is none, and deletes what killed pulls left.
    ///
    /// Blocks on the disk. One process at a time may have a root open.
    pub fn open(config: ImageConfig) -> Result<Self, OpenError> {
        let puller = Puller::new(&config)?;
        let shelf = Arc::new(Shelf::open(config)?);
        Ok(Self { shelf, puller })
    }

    /// The image that a tag, a digest reference, an id or an unambiguous prefix of an id means.
    pub fn resolve(&self, reference_or_id: &str) -> Option<Arc<Image>> {
        self.shelf.resolve(reference_or_id)
    }

    /// All images, or the one that `filter` means, ordered by id.
    pub fn list(&self, filter: Option<&str>) -> Vec<Arc<Image>> {
        match filter {
            Some(filter) => self.shelf.resolve(filter).into_iter().collect(),
            None => self.shelf.visible(),
        }
    }

    /// Removes an image with all its names. An image that is not there is no error.
    ///
    /// Layers that other images share or containers lease stay. Blocks on the disk.
    pub fn remove(&self, reference_or_id: &str) -> Result<(), RemoveError> {
        self.shelf.remove(reference_or_id)
    }

    /// Keeps the layers of `image` until the lease is dropped, whatever is removed meanwhile.
    ///
    /// Leases live in memory: after a restart take them again with [`ImageStore::lease_id`] before
    /// [`ImageStore::collect_garbage`].
    pub fn lease(&self, image: &Image) -> ImageLease {
        self.shelf.add_lease(&image.id);
        ImageLease {
            shelf: Arc::clone(&self.shelf),
            image: image.id.clone(),
        }
    }

    /// The image with exactly this id, leased, also when it was removed while a container used it.
    pub fn lease_id(&self, id: &str) -> Option<(Arc<Image>, ImageLease)> {
        let image = self.shelf.lease_known(id)?;
        let lease = ImageLease {
            shelf: Arc::clone(&self.shelf),
            image: id.to_owned(),
        };
        Some((image, lease))
    }

    /// Deletes removed images that nobody leases, and layers of no image. To be called once recovery has its leases.
    ///
    /// Blocks on the disk.
    pub fn collect_garbage(&self) -> Result<(), RemoveError> {
        self.shelf.sweep()
    }

    /// Disk and inodes that the store takes, for `ImageFsInfo`. Blocks on the disk.
    pub fn usage(&self) -> io::Result<FsUsage> {
        let root = &self.shelf.config.root;
        let mut usage = FsUsage {
            timestamp: now_nanos(),
            mountpoint: root.clone(),
            bytes: 0,
            inodes: 0,
        };
        add_usage(root, &mut usage)?;
        Ok(usage)
    }
}

/// Keeps an image's layers on disk while it lives. Dropping the last lease of a removed image deletes its files.
pub struct ImageLease {
    shelf: Arc<Shelf>,
    image: ImageId,
}

impl ImageLease {
    /// Id of the leased image.
    pub fn image_id(&self) -> &str {
        &self.image
    }
}

impl fmt::Debug for ImageLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ImageLease").field(&self.image).finish()
    }
}

impl Drop for ImageLease {
    fn drop(&mut self) {
        let unneeded = self.shelf.end_lease(&self.image);
        if unneeded && let Err(error) = self.shelf.sweep() {
            tracing::warn!(image = %self.image, %error, "files of a removed image stay until the next clean-up");
        }
    }
}

fn add_usage(folder: &Path, usage: &mut FsUsage) -> io::Result<()> {
    const BLOCK: u64 = 512; // st_blocks counts these whatever the file system's block size is: stat(3type)
    usage.inodes += 1;
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // a pull's temporary file
            Err(error) => return Err(error),
        };
        if metadata.is_dir() {
            add_usage(&entry.path(), usage)?;
        } else {
            usage.inodes += 1;
            usage.bytes += metadata.blocks() * BLOCK;
        }
    }
    Ok(())
}
