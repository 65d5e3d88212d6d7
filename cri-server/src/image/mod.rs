//! Images: from a reference in a registry to EROFS layers that a Machine maps.
//!
//! `reference` names an image, `registry` talks to the servers, `pull` tells the story of one pull, `layer` streams one
//! layer through `tar` into `erofs`, `catalog` remembers what is complete, and [`ImageStore`] is the only door for the
//! rest of the daemon. Nothing here knows CRI messages or mounts anything: types are plain and the core converts them.

mod catalog;
mod config;
pub(crate) mod digest;
mod erofs;
mod error;
mod layer;
mod layer_tree;
mod manifest;
mod merge;
mod pull;
mod record;
mod reference;
mod registry;
mod shelf;
mod store;
mod tar;

/// Images, registries and blob readers for tests, also of other crates.
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use config::{EndpointConfig, ImageConfig, Limits, RegistryConfig};
pub use error::{LayerError, OpenError, PullError, ReferenceError, RegistryFault, RemoveError};
pub use record::{FsUsage, Image, ImageId, ImageUser, Layer, RegistryAuth, RunConfig};
pub use store::{ImageLease, ImageStore};
