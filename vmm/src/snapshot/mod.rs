//! A guest that stands still, on disk: the state of everything but its memory (`memory::image`).
//!
//! [`state`] is what is kept, [`file`] how it lies in a file and what is refused. Each part of the VMM saves and restores its
//! own share, beside the code whose state it is; `machine::snapshot` collects the shares, `boot::restore` hands them out.
//!
//! What is not kept: vsock connections (the guest is told that they are lost), counters, the host's side of anything. A guest
//! that goes on therefore has only devices without one: console, rng, vsock, balloon, memory device. All others are added to
//! it, before it runs or later.

pub(crate) mod checksum;
pub(crate) mod file;
pub(crate) mod state;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod testing;

use std::io;

use crate::kvm::KvmError;
use crate::memory::image::ImageError;
use crate::x86_64::compatible::CpuMismatch;

/// Why a guest cannot go on from a snapshot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("snapshot.state: cannot read it")]
    Read(#[source] io::Error),
    #[error("snapshot.state: it is longer than {0} bytes")]
    TooLarge(usize),
    #[error("snapshot.state: it is no snapshot")]
    Foreign,
    #[error("snapshot.state: it has format {found}, and this VMM reads format {known} only")]
    Format { found: u32, known: u32 },
    #[error("snapshot.state: it has {found} bytes instead of {wanted}")]
    Length { found: usize, wanted: usize },
    #[error("snapshot.state: its checksum is wrong")]
    Checksum,
    #[error("snapshot.state: it is not what a VMM writes")]
    Content(#[source] postcard::Error),
    #[error("snapshot.state: {0} bytes follow what a VMM writes")]
    Trailing(usize),
    #[error("snapshot.origin: the snapshot was made of {saved:?}, not of {wanted:?}")]
    Origin { saved: String, wanted: String },
    #[error("{field}: {wanted} was {saved} when the snapshot was made")]
    Shape {
        field: &'static str,
        saved: String,
        wanted: String,
    },
    #[error("vcpus: the state of processor {index}")]
    Cpu {
        index: usize,
        #[source]
        source: CpuMismatch,
    },
    #[error("snapshot.memory")]
    Memory(#[source] ImageError),
    #[error("snapshot.state: the state of {what}: {problem}")]
    Part { what: String, problem: &'static str },
    #[error("snapshot.state")]
    Kvm(#[source] KvmError),
}
