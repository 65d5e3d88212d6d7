//! The clearpod daemon as a library: the CRI server, and what it drives.
//!
//! `grpc` is the edge and only converts; `sandbox` and `container` decide, `stats` says what is used; `machine`, `host`,
//! `guest`, `network`, `image`, `stdio` and `streaming` act; `store` remembers. The binary beside this library (`main.rs`)
//! is a thin command line.
//! Tests in `tests/` drive the whole of it over its real socket with the fakes of feature `testing`.

pub mod app;
pub mod cli;
pub mod config;
#[cfg(feature = "failpoints")]
pub mod failpoint;
#[cfg(feature = "testing")]
pub mod fuzzing;
pub mod guest;
pub mod host;
pub mod id_map;
pub mod image;
pub mod machine;
pub mod network;
pub mod stdio;
pub mod streaming;
pub mod template;

mod clock;
mod container;
mod directory_watch;
#[cfg(not(feature = "failpoints"))]
mod failpoint;
mod grpc;
mod guest_clock;
mod metrics;
mod sandbox;
mod stats;
mod store;
mod sys;
mod undo;
