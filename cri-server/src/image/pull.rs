//! The story of one pull: manifest, configuration, layers, record.
//!
//! Pulls of the same reference with the same credentials are one pull; it lives as long as somebody waits for it, and a
//! caller that goes away (kubelet's deadline) cancels it only if it was the last. Other credentials are another pull:
//! one tenant's secret must not open an image to another. Layers are shared over all pulls by their diff id.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared, try_join_all},
};
use tokio::sync::Semaphore;

use super::{
    catalog::{CatalogError, ImageRecord, LayerRecord},
    config::ImageConfig,
    digest::Digest,
    error::{LayerError, OpenError, PullError},
    layer::{self, Expected, UnpackFault},
    manifest::{self, Descriptor, DocumentFault, ImageSpec, Manifest},
    merge::{self, HeldLayer},
    record::{ImageId, RegistryAuth},
    reference::{Reference, Version},
    registry::{Directory, Document, Failure, Session, SessionError},
    shelf::{LayerHold, Shelf},
    store::ImageStore,
};

/// An index may point to an index; nobody needs more steps.
const MAX_INDEX_DEPTH: usize = 3;

type PullResult = Result<ImageId, Arc<PullError>>;
type PullFuture = BoxFuture<'static, PullResult>;
type PullKey = (Reference, Option<RegistryAuth>);

impl ImageStore {
    /// Makes the image of `reference` complete and returns its id. Layers that are here are not downloaded again.
    ///
    /// The registry is asked each time, so that a tag that moved is seen and credentials are checked.
    pub async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> PullResult {
        let reference = Reference::parse(reference).map_err(PullError::from)?;
        check_credentials(&reference, auth)?;
        self.puller
            .join(Arc::clone(&self.shelf), reference, auth.cloned())
            .await
    }
}

/// What all pulls share.
#[derive(Debug)]
pub(crate) struct Puller {
    parts: Arc<Parts>,
    running: Mutex<HashMap<PullKey, WeakShared<PullFuture>>>,
}

#[derive(Debug)]
struct Parts {
    directory: Directory,
    downloads: Semaphore,
    /// One task at a time makes a layer; the others find it made.
    layers: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Puller {
    pub(crate) fn new(config: &ImageConfig) -> Result<Self, OpenError> {
        let refuse = |field: &str, reason: &str| {
            Err(OpenError::Config {
                field: field.to_owned(),
                reason: reason.to_owned(),
            })
        };
        if config.max_concurrent_downloads == 0 {
            return refuse("max_concurrent_downloads", "must be at least 1");
        }
        if config.idle_timeout_seconds == 0 || config.connect_timeout_seconds == 0 {
            return refuse(
                "idle_timeout_seconds, connect_timeout_seconds",
                "must be at least 1",
            );
        }
        if config.platform.split('/').count() != 2 {
            return refuse("platform", "must be os/architecture");
        }
        if let Some(bad) = config.pinned.iter().find(|name| Reference::parse(name).is_err()) {
            return refuse("pinned", &format!("{bad:?} is no image reference"));
        }
        let parts = Parts {
            directory: Directory::new(config)?,
            downloads: Semaphore::new(config.max_concurrent_downloads),
            layers: Mutex::default(),
        };
        Ok(Self {
            parts: Arc::new(parts),
            running: Mutex::default(),
        })
    }

    /// The pull of this reference that is running, or a new one.
    fn join(
        &self,
        shelf: Arc<Shelf>,
        reference: Reference,
        auth: Option<RegistryAuth>,
    ) -> Shared<PullFuture> {
        let key = (reference.clone(), auth.clone());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, pull| pull.upgrade().is_some());
        if let Some(pull) = running.get(&key).and_then(WeakShared::upgrade)
            && pull.peek().is_none()
        {
            return pull;
        }
        let pull = Pull {
            shelf,
            parts: Arc::clone(&self.parts),
            reference,
            auth,
        };
        let pull = async move { pull.run().await.map_err(Arc::new) }.boxed().shared();
        if let Some(weak) = pull.downgrade() {
            running.insert(key, weak);
        }
        pull
    }
}

/// Credentials for another server are the caller's mistake, not something to try.
fn check_credentials(reference: &Reference, auth: Option<&RegistryAuth>) -> Result<(), PullError> {
    let Some(given) = auth
        .map(|auth| auth.server_address.as_str())
        .filter(|given| !given.is_empty())
    else {
        return Ok(());
    };
    let without_scheme = given.split_once("://").map_or(given, |(_, rest)| rest);
    let host = without_scheme.split('/').next().unwrap_or(without_scheme);
    let hub = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    if host == reference.registry() || (hub(host) && hub(reference.registry())) {
        return Ok(());
    }
    Err(PullError::ForeignCredentials {
        reference: reference.to_string(),
        given: given.to_owned(),
    })
}

struct Pull {
    shelf: Arc<Shelf>,
    parts: Arc<Parts>,
    reference: Reference,
    auth: Option<RegistryAuth>,
}

/// A manifest for our platform.
struct Found {
    /// Of the document that the reference itself means: the index, if there is one.
    digest: Digest,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

impl Pull {
    async fn run(self) -> Result<ImageId, PullError> {
        tracing::info!(reference = %self.reference, "pulling");
        let session = Session::new(
            &self.parts.directory,
            &self.reference,
            self.auth.as_ref(),
            &self.shelf.config,
        )
        .map_err(|error| self.no_session(error))?;
        let found = self.find_manifest(&session).await?;
        let id = found.config.digest.to_string();
        let (held, record) = match self.shelf.hold_image(&id) {
            // The id is the digest of the configuration, which names every layer: nothing else can have changed.
            Some((held, record)) => {
                tracing::debug!(image = id, "image is here already");
                (held, record)
            }
            None => self.fetch_image(&session, &found).await?,
        };
        self.record(&found, &id, record).await?;
        drop(held);
        tracing::info!(reference = %self.reference, image = id, "pulled");
        Ok(id)
    }

    /// Configuration and layers, as they will be stacked.
    async fn fetch_image(
        &self,
        session: &Session,
        found: &Found,
    ) -> Result<(Vec<LayerHold>, ImageRecord), PullError> {
        let spec = self.fetch_config(session, found).await?;
        let layers = spec
            .diff_ids
            .iter()
            .zip(&found.layers)
            .map(|(diff_id, descriptor)| self.fetch_layer(session, descriptor, diff_id).boxed());
        let fetched = try_join_all(layers).await?;
        let shelf = Arc::clone(&self.shelf);
        let settled = tokio::task::spawn_blocking(move || merge::settle(&shelf, fetched)).await;
        let settled = settled
            .map_err(|source| UnpackFault::Layer(LayerError::Thread { source }))
            .flatten()
            .map_err(|fault| self.not_unpacked(fault, &found.config.digest, &found.config.digest))?;
        let record = ImageRecord {
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            config: spec.run,
            layers: settled.iter().map(|layer| layer.id.to_string()).collect(),
            removed: false,
        };
        Ok((settled.into_iter().map(|layer| layer.hold).collect(), record))
    }

    /// Follows indexes to the manifest for our platform.
    async fn find_manifest(&self, session: &Session) -> Result<Found, PullError> {
        let config = &self.shelf.config;
        let mut version = self.reference.version().clone();
        let mut top = None;
        for _ in 0..MAX_INDEX_DEPTH {
            let what = "manifest".to_owned();
            let document = session
                .manifest(&version, config.limits.manifest_bytes)
                .await
                .map_err(|failure| self.failed(failure, &what, config.limits.manifest_bytes))?;
            self.check_document(&version, &document, &what)?;
            let digest = top.get_or_insert(document.digest).clone();
            let parsed = manifest::parse(
                &document.bytes,
                &document.media_type,
                &config.platform,
                config.limits.layers,
            );
            match parsed.map_err(|fault| self.bad_document(fault, &what))? {
                Manifest::Index(next) => version = Version::Digest(next.digest),
                Manifest::Image { config, layers } => {
                    return Ok(Found {
                        digest,
                        config,
                        layers,
                    });
                }
            }
        }
        Err(PullError::Malformed {
            reference: self.reference.to_string(),
            what: "index".to_owned(),
            reason: format!("nested more than {MAX_INDEX_DEPTH} deep"),
        })
    }

    async fn fetch_config(&self, session: &Session, found: &Found) -> Result<ImageSpec, PullError> {
        let config = &self.shelf.config;
        let what = "configuration".to_owned();
        let document = session
            .small_blob(&found.config.digest, config.limits.config_bytes)
            .await
            .map_err(|failure| self.failed(failure, &what, config.limits.config_bytes))?;
        self.check_document(&Version::Digest(found.config.digest.clone()), &document, &what)?;
        manifest::parse_config(&document.bytes, found.layers.len(), &config.platform)
            .map_err(|fault| self.bad_document(fault, &what))
    }

    /// Makes sure of one layer; while the hold lives it cannot be swept.
    async fn fetch_layer(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        diff_id: &Digest,
    ) -> Result<HeldLayer, PullError> {
        let gate = self.parts.gate(diff_id);
        let _only_one = gate.lock().await;
        let (hold, known) = self.shelf.hold_layer(diff_id);
        if let Some(record) = known {
            tracing::debug!(layer = %diff_id, "layer is here already");
            return Ok(HeldLayer {
                id: diff_id.clone(),
                record,
                hold,
            });
        }
        // The semaphore is never closed.
        let _slot = self.parts.downloads.acquire().await.ok();
        let record = self.download(session, descriptor, diff_id).await?;
        Ok(HeldLayer {
            id: diff_id.clone(),
            record,
            hold,
        })
    }

    async fn download(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        diff_id: &Digest,
    ) -> Result<LayerRecord, PullError> {
        let (mut feed, intake) = layer::queue();
        let expected = Expected {
            digest: descriptor.digest.clone(),
            diff_id: diff_id.clone(),
        };
        let temporary = self.shelf.temporary_path(diff_id);
        let shelf = Arc::clone(&self.shelf);
        // Ends with the queue: dropping this future drops `feed`, and the thread deletes its file.
        let unpacking =
            tokio::task::spawn_blocking(move || layer::unpack(&shelf, &expected, intake, &temporary));
        let sent = session.blob(&descriptor.digest, descriptor.size, &mut feed).await;
        match sent {
            Ok(()) => feed.end().await,
            Err(_) => drop(feed),
        }
        let unpacked = unpacking.await;
        match (sent, unpacked) {
            // The unpacker closed the queue, so its reason is the one.
            (Ok(()) | Err(Failure::SinkClosed), Ok(unpacked)) => {
                unpacked.map_err(|fault| self.not_unpacked(fault, &descriptor.digest, diff_id))
            }
            (Ok(()) | Err(Failure::SinkClosed), Err(source)) => {
                let fault = UnpackFault::Layer(LayerError::Thread { source });
                Err(self.not_unpacked(fault, &descriptor.digest, diff_id))
            }
            (Err(failure), _) => {
                Err(self.failed(failure, &format!("layer {}", descriptor.digest), descriptor.size))
            }
        }
    }

    /// Gives the complete image the names of this pull.
    async fn record(&self, found: &Found, id: &str, mut record: ImageRecord) -> Result<(), PullError> {
        record.tags.extend(self.reference.repo_tag());
        record.digests.insert(self.reference.repo_digest(&found.digest));
        record.removed = false;
        let id = id.to_owned();
        let shelf = Arc::clone(&self.shelf);
        let written = tokio::task::spawn_blocking(move || shelf.record_image(&id, record)).await;
        match written {
            Ok(written) => written.map_err(|error| self.not_recorded(error)),
            Err(source) => Err(PullError::Layer {
                reference: self.reference.to_string(),
                diff_id: found.config.digest.to_string(),
                source: LayerError::Thread { source },
            }),
        }
    }

    /// The digest that was asked for, and the one the server claims, must be what arrived.
    fn check_document(&self, version: &Version, document: &Document, what: &str) -> Result<(), PullError> {
        let asked = match version {
            Version::Digest(digest) => Some(digest.to_string()),
            Version::Tag(_) => document
                .claimed
                .clone()
                .filter(|claimed| claimed.starts_with("sha256:")),
        };
        match asked {
            Some(expected) if expected != document.digest.to_string() => Err(PullError::DigestMismatch {
                reference: self.reference.to_string(),
                what: what.to_owned(),
                expected,
                actual: document.digest.to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn no_session(&self, error: SessionError) -> PullError {
        let reference = self.reference.to_string();
        match error {
            SessionError::Credentials(reason) => PullError::BadCredentials { reference, reason },
            SessionError::Endpoints(source) => PullError::Registry {
                reference,
                what: "manifest".to_owned(),
                source,
            },
        }
    }

    fn failed(&self, failure: Failure, what: &str, limit: u64) -> PullError {
        let reference = self.reference.to_string();
        let what = what.to_owned();
        match failure {
            Failure::NotFound if what == "manifest" => PullError::NotFound { reference },
            Failure::NotFound => PullError::Malformed {
                reference,
                what,
                reason: "the registry does not have it although the manifest names it".to_owned(),
            },
            Failure::Denied(detail) => PullError::Unauthorized { reference, detail },
            Failure::TooLarge(size) => PullError::TooLarge {
                reference,
                what,
                size,
                limit,
            },
            Failure::Fault(source) => PullError::Registry {
                reference,
                what,
                source,
            },
            Failure::SinkClosed => PullError::Layer {
                reference,
                diff_id: what,
                source: LayerError::Aborted,
            },
        }
    }

    fn bad_document(&self, fault: DocumentFault, what: &str) -> PullError {
        let reference = self.reference.to_string();
        let what = what.to_owned();
        match fault {
            DocumentFault::Malformed(reason) => PullError::Malformed {
                reference,
                what,
                reason,
            },
            DocumentFault::MediaType(media_type) => PullError::UnsupportedMediaType {
                reference,
                what,
                media_type,
            },
            DocumentFault::NoPlatform { available } => PullError::NoPlatform {
                reference,
                wanted: self.shelf.config.platform.clone(),
                available,
            },
        }
    }

    fn not_unpacked(&self, fault: UnpackFault, digest: &Digest, diff_id: &Digest) -> PullError {
        let reference = self.reference.to_string();
        let diff_id = diff_id.to_string();
        match fault {
            UnpackFault::Digest {
                what,
                expected,
                actual,
            } => PullError::DigestMismatch {
                reference,
                what: format!("{what} of layer {digest}"),
                expected: expected.to_string(),
                actual: actual.to_string(),
            },
            UnpackFault::NoSpace { path, source } => PullError::NoSpace {
                reference,
                diff_id,
                path,
                source,
            },
            UnpackFault::Layer(source) => PullError::Layer {
                reference,
                diff_id,
                source,
            },
            UnpackFault::Catalog(error) => self.not_recorded(error),
        }
    }

    fn not_recorded(&self, error: CatalogError) -> PullError {
        let reference = self.reference.to_string();
        match error {
            CatalogError::Database(source) => PullError::Catalog { reference, source },
            CatalogError::Record(source) => PullError::Record { reference, source },
        }
    }
}

impl Parts {
    fn gate(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.retain(|_, gate| gate.strong_count() > 0);
        let id = diff_id.to_string();
        if let Some(gate) = layers.get(&id).and_then(Weak::upgrade) {
            return gate;
        }
        let gate = Arc::new(tokio::sync::Mutex::new(()));
        layers.insert(id, Arc::downgrade(&gate));
        gate
    }
}
