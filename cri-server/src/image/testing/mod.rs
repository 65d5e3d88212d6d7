//! What tests need to make images and to look into blobs: a tar builder, a registry with faults, a reader of EROFS.
//!
//! Independent of the code it tests: it shares no parser and no format constant with it. Panics where a test should
//! fail. Never part of the daemon.

mod blob_reader;
pub mod fuzz;
mod image;
mod registry;
mod tar_builder;

pub use blob_reader::{BlobReader, Found, FoundKind};
pub use image::{Compression, TestImage};
pub use registry::{Fault, Login, TestRegistry};
pub use tar_builder::{TarBuilder, TarEntry};
