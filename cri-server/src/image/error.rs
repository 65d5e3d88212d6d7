//! What can go wrong with images, in the words a user of crictl reads.
//!
//! Each text names the operation and its values; the cause is the `source`. The core maps [`PullError`] to gRPC codes.
//! Errors of a pull are shared by every caller that waited for it, so they travel in an `Arc`.

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;

/// A reference that names no image.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("image reference {reference:?}: {reason}")]
pub struct ReferenceError {
    pub reference: String,
    pub reason: &'static str,
}

/// The store cannot be used.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("configuration image.{field}: {reason}")]
    Config { field: String, reason: String },
    #[error("cannot {operation} {path:?}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("image catalog {path:?} cannot be {operation}")]
    Catalog {
        operation: &'static str,
        path: PathBuf,
        source: Box<redb::Error>,
    },
    #[error("image catalog {path:?}: record of {id} is not readable")]
    Record {
        path: PathBuf,
        id: String,
        source: serde_json::Error,
    },
    #[error("image catalog {path:?} has format {found}, this program reads {expected}")]
    Version {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
}

/// An image was not removed.
#[derive(Debug, Error)]
pub enum RemoveError {
    #[error("cannot record the removal of image {id}")]
    Catalog { id: String, source: Box<redb::Error> },
    #[error("cannot write the record of image {id}")]
    Record { id: String, source: serde_json::Error },
}

/// An image was not pulled. Nothing of it is left but complete layers, which the next pull uses.
#[derive(Debug, Error)]
pub enum PullError {
    #[error("invalid image reference")]
    Reference(#[from] ReferenceError),
    #[error("credentials for {given} cannot be used for {reference}")]
    ForeignCredentials { reference: String, given: String },
    #[error("credentials for {reference}: {reason}")]
    BadCredentials { reference: String, reason: &'static str },
    #[error("image {reference} not found")]
    NotFound { reference: String },
    #[error("no access to image {reference}: {detail}")]
    Unauthorized { reference: String, detail: String },
    #[error("cannot fetch {what} of {reference}")]
    Registry {
        reference: String,
        what: String,
        source: RegistryFault,
    },
    #[error("{what} of {reference} is not valid: {reason}")]
    Malformed {
        reference: String,
        what: String,
        reason: String,
    },
    #[error("{what} of {reference} has {size} bytes, more than the {limit} that are allowed")]
    TooLarge {
        reference: String,
        what: String,
        size: u64,
        limit: u64,
    },
    #[error("{what} of {reference} has media type {media_type:?}, which is not supported")]
    UnsupportedMediaType {
        reference: String,
        what: String,
        media_type: String,
    },
    #[error("{reference} has no image for {wanted}; it has {available}")]
    NoPlatform {
        reference: String,
        wanted: String,
        available: String,
    },
    #[error("{what} of {reference}: expected {expected}, got {actual}")]
    DigestMismatch {
        reference: String,
        what: String,
        expected: String,
        actual: String,
    },
    #[error("no space left on the file system of {path:?} for layer {diff_id} of {reference}")]
    NoSpace {
        reference: String,
        diff_id: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot unpack layer {diff_id} of {reference}")]
    Layer {
        reference: String,
        diff_id: String,
        source: LayerError,
    },
    #[error("cannot record image {reference}")]
    Catalog {
        reference: String,
        source: Box<redb::Error>,
    },
    #[error("cannot write the record of image {reference}")]
    Record {
        reference: String,
        source: serde_json::Error,
    },
}

/// One exchange with one registry server failed for good.
#[derive(Debug, Error)]
pub enum RegistryFault {
    #[error("{url} answered {status}: {detail}")]
    Status {
        url: String,
        status: u16,
        detail: String,
    },
    #[error("{url} could not be reached")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("{url} cut the connection after {received} bytes")]
    ConnectionCut {
        url: String,
        received: u64,
        source: Option<reqwest::Error>,
    },
    #[error("{url} sent nothing for {idle:?}")]
    TimedOut { url: String, idle: Duration },
    #[error("{url} sent more than the {expected} bytes that were announced")]
    TooLong { url: String, expected: u64 },
    #[error("{url}: {reason}")]
    Protocol { url: String, reason: String },
    #[error("cannot read certificate authorities from {path:?}")]
    CaFile { path: PathBuf, source: io::Error },
    #[error("cannot set up TLS")]
    Tls {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A layer's bytes did not become a file system.
#[derive(Debug, Error)]
pub enum LayerError {
    #[error("cannot {operation} {path:?}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot write the layer's blob")]
    Write { source: io::Error },
    #[error("cannot read the layer's stream")]
    Stream { source: io::Error },
    #[error("tar entry {entry:?}: {reason}")]
    Entry { entry: String, reason: String },
    #[error("layer has more than {limit} {what}")]
    TooMuch { what: &'static str, limit: u64 },
    #[error("the download ended before the layer was complete")]
    Aborted,
    #[error("the unpacking thread failed")]
    Thread { source: tokio::task::JoinError },
}
