//! What is on disk and in the catalog, and the state that mirrors it: the part of the store that leases and pulls share.
//!
//! Every change goes to the catalog first and to memory second, under one lock. A layer's file stays while an image lists
//! it or a pull holds it; [`Shelf::sweep`] deletes what nobody needs any more.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    catalog::{Catalog, CatalogError, Change, ImageRecord, LayerRecord},
    config::ImageConfig,
    digest::Digest,
    error::{OpenError, RemoveError},
    record::{Image, ImageId, ImageUser, Layer},
    reference::Reference,
};

/// Files, catalog and the state that mirrors it: the part of the store that leases and pulls share.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub(crate) config: ImageConfig,
    catalog: Catalog,
    state: Mutex<State>,
    temporaries: AtomicU64,
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
    pub(super) fn open(config: ImageConfig) -> Result<Self, OpenError> {
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
            temporaries: AtomicU64::new(0),
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

    pub(super) fn resolve(&self, reference_or_id: &str) -> Option<Arc<Image>> {
        self.lock().resolve(reference_or_id).cloned()
    }

    pub(super) fn visible(&self) -> Vec<Arc<Image>> {
        self.lock().visible().cloned().collect()
    }

    pub(super) fn add_lease(&self, id: &str) {
        *self.lock().leases.entry(id.to_owned()).or_default() += 1;
    }

    /// Leases an image, also one that was removed, if it is known.
    pub(super) fn lease_known(&self, id: &str) -> Option<Arc<Image>> {
        let mut state = self.lock();
        let image = Arc::clone(&state.images.get(id)?.image);
        *state.leases.entry(id.to_owned()).or_default() += 1;
        Some(image)
    }

    /// Whether that was the last lease of a removed image: then it is time to sweep.
    pub(super) fn end_lease(&self, id: &str) -> bool {
        let mut state = self.lock();
        release(&mut state.leases, id);
        !state.leases.contains_key(id) && state.images.get(id).is_some_and(|entry| entry.record.removed)
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

    /// A complete image by its id, its layers held. Also one that was removed but is leased.
    pub(crate) fn hold_image(self: &Arc<Self>, id: &str) -> Option<(Vec<LayerHold>, ImageRecord)> {
        let mut state = self.lock();
        let record = state.images.get(id)?.record.clone();
        for layer in &record.layers {
            *state.holds.entry(layer.clone()).or_default() += 1;
        }
        drop(state);
        let hold = |id: &String| LayerHold {
            shelf: Arc::clone(self),
            id: id.clone(),
        };
        Some((record.layers.iter().map(hold).collect(), record))
    }

    /// Where an unfinished blob of a layer is written. Deleted at the next start if it stays.
    pub(crate) fn temporary_path(&self, id: &Digest) -> PathBuf {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        self.layer_path(&id.to_string())
            .with_extension(format!("{number}.tmp"))
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

    pub(super) fn remove(&self, reference_or_id: &str) -> Result<(), RemoveError> {
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
    pub(super) fn sweep(&self) -> Result<(), RemoveError> {
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
