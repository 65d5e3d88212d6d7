//! The image store: which images are complete, what names they have, who still needs their layers.
//!
//! Files and catalog change only here. A layer's file stays while an image lists it, a container leases it or a pull is
//! about to record it; [`ImageStore::remove`] and the end of a lease delete what nobody needs any more. How an image
//! comes in is `pull`'s story.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    catalog::{Catalog, CatalogError, Change, ImageRecord, LayerRecord},
    config::ImageConfig,
    digest::Digest,
    error::{OpenError, RemoveError},
    record::{FsUsage, Image, ImageId, ImageUser, Layer, now_nanos},
    reference::Reference,
};

/// All images of this node. Cheap to share in an `Arc`; every method may be called from any task.
#[derive(Debug)]
pub struct ImageStore {
    pub(super) shelf: Arc<Shelf>,
    pub(super) puller: super::pull::Puller,
}

impl ImageStore {
    /// Opens the store, creating it when there is none, and deletes what killed pulls left.
    ///
    /// Blocks on the disk. One process at a time may have a root open.
    pub fn open(config: ImageConfig) -> Result<Self, OpenError> {
        let puller = super::pull::Puller::new(&config)?;
        let shelf = Arc::new(Shelf::open(config)?);
        Ok(Self { shelf, puller })
    }

    /// The image that a tag, a digest reference, an id or an unambiguous prefix of an id means.
    pub fn resolve(&self, reference_or_id: &str) -> Option<Arc<Image>> {
        self.shelf.lock().resolve(reference_or_id).cloned()
    }

    /// All images, or the one that `filter` means, ordered by id.
    pub fn list(&self, filter: Option<&str>) -> Vec<Arc<Image>> {
        let state = self.shelf.lock();
        match filter {
            Some(filter) => state.resolve(filter).cloned().into_iter().collect(),
            None => state.visible().cloned().collect(),
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
        *self.shelf.lock().leases.entry(image.id.clone()).or_default() += 1;
        ImageLease {
            shelf: Arc::clone(&self.shelf),
            image: image.id.clone(),
        }
    }

    /// The image with exactly this id, leased, also when it was removed while a container used it.
    pub fn lease_id(&self, id: &str) -> Option<(Arc<Image>, ImageLease)> {
        let image = self
            .shelf
            .lock()
            .images
            .get(id)
            .map(|entry| Arc::clone(&entry.image))?;
        let lease = self.lease(&image);
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
        let unneeded = {
            let mut state = self.shelf.lock();
            release(&mut state.leases, &self.image);
            !state.leases.contains_key(&self.image)
                && state
                    .images
                    .get(&self.image)
                    .is_some_and(|entry| entry.record.removed)
        };
        if unneeded && let Err(error) = self.shelf.sweep() {
            tracing::warn!(image = %self.image, %error, "files of a removed image stay until the next clean-up");
        }
    }
}

/// Files, catalog and the state that mirrors it: the part of the store that leases and pulls share.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub(crate) config: ImageConfig,
    catalog: Catalog,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    images: BTreeMap<ImageId, Entry>,
    layers: BTreeMap<String, LayerRecord>,
    /// Containers per image.
    leases: HashMap<ImageId, usize>,
    /// Running pulls per layer id.
    holds: HashMap<String, usize>,
}

#[derive(Debug)]
struct Entry {
    record: ImageRecord,
    image: Arc<Image>,
}

/// Keeps one layer from being swept while a pull needs it.
#[derive(Debug)]
pub(crate) struct LayerHold {
    shelf: Arc<Shelf>,
    id: String,
}

impl Drop for LayerHold {
    fn drop(&mut self) {
        release(&mut self.shelf.lock().holds, &self.id);
    }
}

impl Shelf {
    fn open(config: ImageConfig) -> Result<Self, OpenError> {
        let layers_dir = config.root.join("layers");
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io {
                operation,
                path,
                source,
            }
        };
        fs_err::create_dir_all(&layers_dir).map_err(io("create", &layers_dir))?;
        let catalog = Catalog::open(&config.root.join("images.redb"))?;
        let contents = catalog.read()?;
        let shelf = Self {
            config,
            catalog,
            state: Mutex::default(),
        };
        let layers = shelf
            .reconcile(&layers_dir, contents.layers)
            .map_err(io("clean", &layers_dir))?;
        {
            let mut state = shelf.lock();
            state.layers = layers;
            for (id, record) in contents.images {
                match shelf.build(&id, &record, &state.layers) {
                    Some(image) => {
                        state.images.insert(
                            id,
                            Entry {
                                record,
                                image: Arc::new(image),
                            },
                        );
                    }
                    // Its tags are pulled again when they are wanted; a container must not start from half an image.
                    None => tracing::warn!(image = id, "a layer's file is gone: the image is not offered"),
                }
            }
        }
        Ok(shelf)
    }

    /// Deletes files without a record and drops records without their file.
    fn reconcile(
        &self,
        layers_dir: &Path,
        mut layers: BTreeMap<String, LayerRecord>,
    ) -> io::Result<BTreeMap<String, LayerRecord>> {
        layers.retain(|id, record| {
            fs_err::metadata(self.layer_path(id)).is_ok_and(|metadata| metadata.len() == record.size)
        });
        let known: BTreeSet<PathBuf> = layers.keys().map(|id| self.layer_path(id)).collect();
        for file in fs_err::read_dir(layers_dir)? {
            let path = file?.path();
            if !known.contains(&path) {
                tracing::info!(path = %path.display(), "removing what an interrupted pull left");
                fs_err::remove_file(path)?;
            }
        }
        Ok(layers)
    }

    /// Where the blob of a layer lies. `id` comes from a parsed [`Digest`], so it cannot leave the folder.
    pub(crate) fn layer_path(&self, id: &str) -> PathBuf {
        let hex = id.strip_prefix("sha256:").unwrap_or(id);
        self.config.root.join("layers").join(format!("{hex}.erofs"))
    }

    /// The record of a complete layer, which then cannot be swept while the hold lives.
    pub(crate) fn hold_layer(self: &Arc<Self>, id: &Digest) -> (LayerHold, Option<LayerRecord>) {
        let id = id.to_string();
        let mut state = self.lock();
        *state.holds.entry(id.clone()).or_default() += 1;
        let record = state.layers.get(&id).cloned();
        drop(state);
        (
            LayerHold {
                shelf: Arc::clone(self),
                id,
            },
            record,
        )
    }

    /// Records a layer whose blob was just renamed into place.
    pub(crate) fn record_layer(&self, id: &Digest, record: &LayerRecord) -> Result<(), CatalogError> {
        let id = id.to_string();
        let mut state = self.lock();
        self.catalog.apply(&Change {
            put_layers: vec![(&id, record)],
            ..Change::default()
        })?;
        state.layers.insert(id, record.clone());
        Ok(())
    }

    /// Records a pulled image: takes its tag away from any other image and joins names with what is known already.
    ///
    /// Every layer must be recorded and held by the caller.
    pub(crate) fn record_image(&self, id: &str, mut record: ImageRecord) -> Result<(), CatalogError> {
        let mut state = self.lock();
        let mut changed = BTreeMap::new();
        for (other, entry) in &state.images {
            if other == id {
                if !entry.record.removed {
                    record.tags.extend(entry.record.tags.iter().cloned());
                    record.digests.extend(entry.record.digests.iter().cloned());
                }
            } else if !entry.record.tags.is_disjoint(&record.tags) {
                let mut stripped = entry.record.clone();
                stripped.tags.retain(|tag| !record.tags.contains(tag));
                changed.insert(other.clone(), stripped);
            }
        }
        changed.insert(id.to_owned(), record);
        self.catalog.apply(&Change {
            put_images: changed.iter().map(|(id, record)| (id.as_str(), record)).collect(),
            ..Change::default()
        })?;
        for (id, record) in changed {
            if let Some(image) = self.build(&id, &record, &state.layers) {
                state.images.insert(
                    id,
                    Entry {
                        record,
                        image: Arc::new(image),
                    },
                );
            }
        }
        Ok(())
    }

    fn remove(&self, reference_or_id: &str) -> Result<(), RemoveError> {
        {
            let mut state = self.lock();
            let Some(id) = state.resolve(reference_or_id).map(|image| image.id.clone()) else {
                return Ok(());
            };
            if let Some(entry) = state.images.get_mut(&id) {
                let mut record = entry.record.clone();
                record.removed = true;
                record.tags.clear();
                record.digests.clear();
                let change = Change {
                    put_images: vec![(&id, &record)],
                    ..Change::default()
                };
                self.catalog
                    .apply(&change)
                    .map_err(|error| removal_failed(error, &id))?;
                entry.record = record;
            }
        }
        self.sweep()
    }

    /// Forgets removed images without leases and deletes layers that nothing refers to.
    ///
    /// The record goes before the file: a kill in between leaves a file without record, which the next open deletes.
    fn sweep(&self) -> Result<(), RemoveError> {
        let mut state = self.lock();
        let images: Vec<ImageId> = state
            .images
            .iter()
            .filter(|(id, entry)| entry.record.removed && !state.leases.contains_key(*id))
            .map(|(id, _)| id.clone())
            .collect();
        let needed: BTreeSet<&String> = state
            .images
            .iter()
            .filter(|(id, _)| !images.contains(id))
            .flat_map(|(_, entry)| &entry.record.layers)
            .chain(state.holds.keys())
            .collect();
        let layers: Vec<String> = state
            .layers
            .keys()
            .filter(|id| !needed.contains(id))
            .cloned()
            .collect();
        if images.is_empty() && layers.is_empty() {
            return Ok(());
        }
        let change = Change {
            drop_images: images.iter().map(String::as_str).collect(),
            drop_layers: layers.iter().map(String::as_str).collect(),
            ..Change::default()
        };
        let first = images.first().or(layers.first()).cloned().unwrap_or_default();
        self.catalog
            .apply(&change)
            .map_err(|error| removal_failed(error, &first))?;
        for id in images {
            state.images.remove(&id);
        }
        for id in layers {
            state.layers.remove(&id);
            if let Err(error) = fs_err::remove_file(self.layer_path(&id)) {
                tracing::warn!(layer = id, %error, "a layer's file stays until the next start");
            }
        }
        Ok(())
    }

    /// The public face of a record; `None` when a layer is missing.
    fn build(&self, id: &str, record: &ImageRecord, layers: &BTreeMap<String, LayerRecord>) -> Option<Image> {
        let layers: Vec<Layer> = record
            .layers
            .iter()
            .map(|id| {
                let known = layers.get(id)?;
                Some(Layer {
                    diff_id: id.clone(),
                    path: self.layer_path(id),
                    size: known.size,
                })
            })
            .collect::<Option<_>>()?;
        Some(Image {
            id: id.to_owned(),
            repo_tags: record.tags.iter().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size: layers.iter().map(|layer| layer.size).sum(),
            user: ImageUser::parse(&record.config.user),
            config: record.config.clone(),
            pinned: self.is_pinned(record),
            layers,
        })
    }

    fn is_pinned(&self, record: &ImageRecord) -> bool {
        self.config.pinned.iter().any(|pinned| {
            Reference::parse(pinned).is_ok_and(|reference| {
                let name = reference.to_string();
                record.tags.contains(&name) || record.digests.contains(&name)
            })
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section changes the maps only after the catalog has accepted the change, so a panic in one
        // leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn visible(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images
            .values()
            .filter(|entry| !entry.record.removed)
            .map(|entry| &entry.image)
    }

    /// Names first, ids second, as containerd does: an image called `cafe` is not shadowed by an id that begins so.
    fn resolve(&self, text: &str) -> Option<&Arc<Image>> {
        let by_name = |name: &str| {
            self.visible().find(|image| {
                image
                    .repo_tags
                    .iter()
                    .chain(&image.repo_digests)
                    .any(|known| known == name)
            })
        };
        if let Ok(reference) = Reference::parse(text)
            && let Some(image) = by_name(&reference.to_string())
        {
            return Some(image);
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.is_empty() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut matching = self.visible().filter(|image| {
            image
                .id
                .strip_prefix("sha256:")
                .is_some_and(|id| id.starts_with(hex))
        });
        matching.next().filter(|_| matching.next().is_none())
    }
}

fn release(counts: &mut HashMap<String, usize>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn removal_failed(error: CatalogError, id: &str) -> RemoveError {
    let id = id.to_owned();
    match error {
        CatalogError::Database(source) => RemoveError::Catalog { id, source },
        CatalogError::Record(source) => RemoveError::Record { id, source },
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
