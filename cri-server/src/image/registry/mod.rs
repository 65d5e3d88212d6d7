//! A small client of the OCI distribution spec: manifests and blobs, from the servers that answer for a registry.
//!
//! Why our own: mirrors, resumed downloads and typed faults have to work together, per request. `endpoint` says which
//! servers there are, `auth` gets past a 401, `transfer` does one exchange, and [`Session`] is all of it for one pull.
//! Spec: github.com/opencontainers/distribution-spec, spec.md, "Pull".

mod auth;
mod endpoint;
mod session;
mod transfer;

pub(crate) use endpoint::Directory;
pub(crate) use session::{BlobSink, Document, Failure, Session, SessionError};
