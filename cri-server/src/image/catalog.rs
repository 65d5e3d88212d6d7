//! The store's memory on disk: one redb file with a record per image and per complete layer.
//!
//! A transaction is the only way in, so a tag that moves from one image to another is never on both or on neither, also
//! after a power cut. Blobs lie beside the catalog as files; a blob counts as present only once its record is here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::{
    error::OpenError,
    record::{ImageId, RunConfig},
};

/// Raised when a record changes its meaning; an older program then refuses the file instead of misreading it.
const FORMAT: u64 = 1;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");

/// What is remembered of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
    pub(crate) config: RunConfig,
    /// Ids of the layers, bottom first.
    pub(crate) layers: Vec<String>,
    /// Removed by the user while containers still run from it: kept for them alone.
    pub(crate) removed: bool,
}

/// What is remembered of a complete layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Bytes of the blob.
    pub(crate) size: u64,
    /// Directories that the tar uses but does not describe, as raw bytes of their paths: their attributes belong to the
    /// layers below.
    pub(crate) implied_dirs: Vec<Vec<u8>>,
}

/// Everything the catalog holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) images: BTreeMap<ImageId, ImageRecord>,
    pub(crate) layers: BTreeMap<String, LayerRecord>,
}

/// Changes that belong together.
#[derive(Debug, Default)]
pub(crate) struct Change<'a> {
    pub(crate) put_images: Vec<(&'a str, &'a ImageRecord)>,
    pub(crate) drop_images: Vec<&'a str>,
    pub(crate) put_layers: Vec<(&'a str, &'a LayerRecord)>,
    pub(crate) drop_layers: Vec<&'a str>,
}

/// A record could not be written.
#[derive(Debug)]
pub(crate) enum CatalogError {
    Database(Box<redb::Error>),
    Record(serde_json::Error),
}

impl<E: Into<redb::Error>> From<E> for CatalogError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

#[derive(Debug)]
pub(crate) struct Catalog {
    database: Database,
    path: PathBuf,
}

impl Catalog {
    /// Opens or creates the file; redb repairs what a kill left behind.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |operation, error: redb::Error| OpenError::Catalog {
            operation,
            path: path.to_owned(),
            source: Box::new(error),
        };
        let database = Database::create(path).map_err(|e| failed("opened", e.into()))?;
        let catalog = Self {
            database,
            path: path.to_owned(),
        };
        let found = catalog.prepare().map_err(|e| failed("prepared", e))?;
        if found == FORMAT {
            Ok(catalog)
        } else {
            Err(OpenError::Version {
                path: path.to_owned(),
                found,
                expected: FORMAT,
            })
        }
    }

    /// Creates the tables and returns the format that the file has.
    fn prepare(&self) -> Result<u64, redb::Error> {
        let transaction = self.database.begin_write()?;
        let found = {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get("format")?.map(|value| value.value());
            if found.is_none() {
                meta.insert("format", FORMAT)?;
            }
            transaction.open_table(IMAGES)?;
            transaction.open_table(LAYERS)?;
            found.unwrap_or(FORMAT)
        };
        transaction.commit()?;
        Ok(found)
    }

    pub(crate) fn read(&self) -> Result<Contents, OpenError> {
        let (images, layers) = self.read_raw().map_err(|error| OpenError::Catalog {
            operation: "read",
            path: self.path.clone(),
            source: Box::new(error),
        })?;
        Ok(Contents {
            images: self.decode(images)?,
            layers: self.decode(layers)?,
        })
    }

    pub(crate) fn apply(&self, change: &Change<'_>) -> Result<(), CatalogError> {
        let transaction = self.database.begin_write()?;
        {
            let mut images = transaction.open_table(IMAGES)?;
            for (id, record) in &change.put_images {
                images.insert(*id, encode(record)?.as_slice())?;
            }
            for id in &change.drop_images {
                images.remove(*id)?;
            }
            let mut layers = transaction.open_table(LAYERS)?;
            for (id, record) in &change.put_layers {
                layers.insert(*id, encode(record)?.as_slice())?;
            }
            for id in &change.drop_layers {
                layers.remove(*id)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn read_raw(&self) -> Result<(RawRecords, RawRecords), redb::Error> {
        let transaction = self.database.begin_read()?;
        let all = |definition: TableDefinition<'_, &'static str, &'static [u8]>| -> Result<RawRecords, redb::Error> {
            let mut records = RawRecords::new();
            for row in transaction.open_table(definition)?.iter()? {
                let (key, value) = row?;
                records.push((key.value().to_owned(), value.value().to_vec()));
            }
            Ok(records)
        };
        Ok((all(IMAGES)?, all(LAYERS)?))
    }

    fn decode<T: for<'de> Deserialize<'de>>(
        &self,
        records: RawRecords,
    ) -> Result<BTreeMap<String, T>, OpenError> {
        records
            .into_iter()
            .map(|(id, bytes)| match serde_json::from_slice(&bytes) {
                Ok(record) => Ok((id, record)),
                Err(source) => Err(OpenError::Record {
                    path: self.path.clone(),
                    id,
                    source,
                }),
            })
            .collect()
    }
}

type RawRecords = Vec<(String, Vec<u8>)>;

fn encode(record: &impl Serialize) -> Result<Vec<u8>, CatalogError> {
    serde_json::to_vec(record).map_err(CatalogError::Record)
}
