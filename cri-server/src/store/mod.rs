//! What survives the daemon: one redb file with two tables per kind.
//!
//! A *request* is what the client sent, as CRI bytes, written once. A *record* is what became of it, JSON in a versioned
//! envelope, written anew at each change; a write returns when it is on the disk. `recovery` says what is made of it at
//! the next start. Nothing here decides anything.

mod record;
pub(crate) mod recovery;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use prost::Message as _;
use proto::cri::v1 as cri;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub(crate) use record::{ContainerRecord, SandboxRecord};

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

const SANDBOX_REQUESTS: Table = Table::new("sandbox_requests");
const SANDBOX_RECORDS: Table = Table::new("sandbox_records");
const CONTAINER_REQUESTS: Table = Table::new("container_requests");
const CONTAINER_RECORDS: Table = Table::new("container_records");

/// Version of the records' JSON.
const VERSION: u32 = 1;

/// Sandboxes and containers on disk. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    database: Arc<Database>,
}

/// The store refused or lost something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened; another daemon may have it.
    #[error("open the store {}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// A read or write failed.
    #[error("{operation} in the store")]
    Access {
        /// What was done.
        operation: &'static str,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// A record cannot be written as JSON.
    #[error("encode the record of {id}")]
    Encode {
        /// Whose.
        id: String,
        /// What serde says.
        source: serde_json::Error,
    },
    /// The blocking pool is gone: the daemon ends.
    #[error("the daemon stops")]
    Stopping,
}

/// One version of a record; others are not read.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    record: T,
}

/// What was in the store at start.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) sandboxes: Vec<(SandboxRecord, cri::RunPodSandboxRequest)>,
    pub(crate) containers: Vec<(ContainerRecord, cri::CreateContainerRequest)>,
    /// Sandboxes that this version cannot read, or whose containers it cannot: their Machines are left alone.
    pub(crate) unreadable: BTreeSet<String>,
}

impl Store {
    /// Opens or makes the file. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source: redb::Error| StoreError::Open {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let database = Database::create(path).map_err(|error| failed(error.into()))?;
        let store = Self {
            database: Arc::new(database),
        };
        store
            .transact(|write| {
                for table in [
                    SANDBOX_REQUESTS,
                    SANDBOX_RECORDS,
                    CONTAINER_REQUESTS,
                    CONTAINER_RECORDS,
                ] {
                    write.open_table(table)?;
                }
                Ok(())
            })
            .map_err(failed)?;
        Ok(store)
    }

    /// Reserves a sandbox: request and first record in one write.
    pub(crate) async fn add_sandbox(
        &self,
        record: &SandboxRecord,
        request: &cri::RunPodSandboxRequest,
    ) -> Result<(), StoreError> {
        let (id, request, record) = (
            record.id.clone(),
            request.encode_to_vec(),
            encode(&record.id, record)?,
        );
        self.write("add a sandbox", move |write| {
            write
                .open_table(SANDBOX_REQUESTS)?
                .insert(id.as_str(), request.as_slice())?;
            write
                .open_table(SANDBOX_RECORDS)?
                .insert(id.as_str(), record.as_slice())?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn put_sandbox(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        self.put("write a sandbox", SANDBOX_RECORDS, &record.id, record)
            .await
    }

    /// Drops a sandbox and these containers of it.
    pub(crate) async fn forget_sandbox(&self, id: &str, containers: Vec<String>) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.write("forget a sandbox", move |write| {
            for table in [CONTAINER_REQUESTS, CONTAINER_RECORDS] {
                let mut table = write.open_table(table)?;
                for container in &containers {
                    table.remove(container.as_str())?;
                }
            }
            for table in [SANDBOX_REQUESTS, SANDBOX_RECORDS] {
                write.open_table(table)?.remove(id.as_str())?;
            }
            Ok(())
        })
        .await
    }

    /// Reserves a container: request and first record in one write.
    pub(crate) async fn add_container(
        &self,
        record: &ContainerRecord,
        request: &cri::CreateContainerRequest,
    ) -> Result<(), StoreError> {
        let (id, request, record) = (
            record.id.clone(),
            request.encode_to_vec(),
            encode(&record.id, record)?,
        );
        self.write("add a container", move |write| {
            write
                .open_table(CONTAINER_REQUESTS)?
                .insert(id.as_str(), request.as_slice())?;
            write
                .open_table(CONTAINER_RECORDS)?
                .insert(id.as_str(), record.as_slice())?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn put_container(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        self.put("write a container", CONTAINER_RECORDS, &record.id, record)
            .await
    }

    pub(crate) async fn forget_container(&self, id: &str) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.write("forget a container", move |write| {
            for table in [CONTAINER_REQUESTS, CONTAINER_RECORDS] {
                write.open_table(table)?.remove(id.as_str())?;
            }
            Ok(())
        })
        .await
    }

    /// Everything. Blocks; for the daemon's start.
    pub(crate) fn load(&self) -> Result<Loaded, StoreError> {
        let mut loaded = Loaded::default();
        let sandboxes = self.pairs::<SandboxRecord, cri::RunPodSandboxRequest>(
            SANDBOX_RECORDS,
            SANDBOX_REQUESTS,
            "sandbox",
        )?;
        for (id, pair) in sandboxes {
            match pair {
                Some(pair) => loaded.sandboxes.push(pair),
                None => {
                    loaded.unreadable.insert(id);
                }
            }
        }
        let containers = self.pairs::<ContainerRecord, cri::CreateContainerRequest>(
            CONTAINER_RECORDS,
            CONTAINER_REQUESTS,
            "container",
        )?;
        loaded
            .containers
            .extend(containers.into_iter().filter_map(|(_, pair)| pair));
        Ok(loaded)
    }

    /// Records with their requests; `None` for what cannot be read, which the log tells.
    #[expect(
        clippy::type_complexity,
        reason = "a list of readable and unreadable pairs, used twice, just above"
    )]
    fn pairs<R: DeserializeOwned, Q: prost::Message + Default>(
        &self,
        records: Table,
        requests: Table,
        kind: &'static str,
    ) -> Result<Vec<(String, Option<(R, Q)>)>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let read = self.database.begin_read()?;
            let (records, requests) = (read.open_table(records)?, read.open_table(requests)?);
            let mut pairs = Vec::new();
            for entry in records.iter()? {
                let (id, record) = entry?;
                let id = id.value().to_owned();
                let request = requests.get(id.as_str())?;
                let pair = match (
                    decode::<R>(record.value()),
                    request.map(|bytes| Q::decode(bytes.value())),
                ) {
                    (Ok(record), Some(Ok(request))) => Some((record, request)),
                    (record, request) => {
                        let error = record.err().unwrap_or_else(|| match request {
                            Some(_) => "its request cannot be read".to_owned(),
                            None => "its request is missing".to_owned(),
                        });
                        tracing::error!(
                            kind,
                            id,
                            error,
                            "this record is left alone: another version wrote it?"
                        );
                        None
                    }
                };
                pairs.push((id, pair));
            }
            Ok(pairs)
        };
        read().map_err(|source| StoreError::Access {
            operation: "read everything",
            source: Box::new(source),
        })
    }

    async fn put<R: Serialize>(
        &self,
        operation: &'static str,
        table: Table,
        id: &str,
        record: &R,
    ) -> Result<(), StoreError> {
        let (id, record) = (id.to_owned(), encode(id, record)?);
        self.write(operation, move |write| {
            write.open_table(table)?.insert(id.as_str(), record.as_slice())?;
            Ok(())
        })
        .await
    }

    async fn write(
        &self,
        operation: &'static str,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error> + Send + 'static,
    ) -> Result<(), StoreError> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.transact(change))
            .await
            .map_err(|_| StoreError::Stopping)?
            .map_err(|source| StoreError::Access {
                operation,
                source: Box::new(source),
            })
    }

    fn transact(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        change(&write)?;
        write.commit()?;
        Ok(())
    }
}

fn encode<R: Serialize>(id: &str, record: R) -> Result<Vec<u8>, StoreError> {
    let envelope = Envelope {
        version: VERSION,
        record,
    };
    serde_json::to_vec(&envelope).map_err(|source| StoreError::Encode {
        id: id.to_owned(),
        source,
    })
}

fn decode<R: DeserializeOwned>(bytes: &[u8]) -> Result<R, String> {
    let envelope: Envelope<serde_json::Value> =
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if envelope.version != VERSION {
        return Err(format!(
            "record version {}, this daemon reads {VERSION}",
            envelope.version
        ));
    }
    serde_json::from_value(envelope.record).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
