//! What a Machine's guest shares with the host: one directory, in which each volume is bound under a number, and one
//! process that serves it over virtio-fs.
//!
//! ```text
//!  volume of the host ──bind──▶ <machine>/shared/3 ──slave propagation──▶ virtiofsd's namespace ──▶ guest
//! ```
//!
//! [`Shares`] is the seam where tests put a fake; [`Virtiofsd`] is the real one. Which volume is shared under which name,
//! and for how long, is decided in `sandbox`.

mod binds;
mod virtiofsd;

#[cfg(test)]
pub(crate) mod testing;

/// Shares without mounts or processes, for in-process tests.
#[cfg(any(test, feature = "testing"))]
pub mod fake;

use std::{io, os::fd::OwnedFd, path::Path, path::PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{layout::Layout, process::Process};
use crate::id_map::IdMap;

pub use virtiofsd::Virtiofsd;

/// What happens below a volume when the host mounts something there afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// Nothing.
    Private,
    /// It appears in the guest.
    FromHost,
}

/// How a volume is seen in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Of what is mounted below it later.
    pub propagation: Propagation,
    /// With the ids of this user namespace, in which an owner 0 on disk is its root. The mapping is the host's and not the
    /// guest's, whose kernel cannot map what virtio-fs shows as a file system of its own, as every volume is.
    pub id_map: Option<IdMap>,
}

/// Why something is not shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// There is no program to serve it.
    #[error(
        "machine.virtiofsd: {} cannot be executed; install virtiofsd (deploy/lib/virtiofsd builds it), or name it there",
        program.display()
    )]
    Program {
        /// As configured.
        program: PathBuf,
    },
    /// It cannot be shown with other ids.
    #[error("its file system, or one that is mounted below, cannot be id-mapped")]
    IdMap {
        /// The operating system's answer.
        source: io::Error,
    },
    /// A step failed.
    #[error("{step} of machine {id}")]
    Step {
        /// The Machine.
        id: String,
        /// What was done.
        step: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// Shares files of the host with Machines.
#[async_trait]
pub trait Shares: Send + Sync + std::fmt::Debug {
    /// Starts to serve a Machine's shared directory; returns the process, which survives the daemon, and the connection to it
    /// for the VMM. It ends when that connection does.
    ///
    /// # Errors
    /// [`ShareError`]; nothing runs then.
    async fn serve(&self, layout: &Layout, cgroup: Option<&Path>) -> Result<(Process, OwnedFd), ShareError>;

    /// The process that serves a Machine already, if it runs.
    ///
    /// # Errors
    /// [`ShareError`] when that cannot be told.
    async fn adopt(&self, layout: &Layout) -> Result<Option<Process>, ShareError>;

    /// Makes what `source` refers to visible as `name` in the shared directory, with all that is mounted below it. Again
    /// with the same name is fine.
    ///
    /// # Errors
    /// [`ShareError`]; the name may be half made then, which [`Self::unbind`] undoes.
    async fn bind(&self, layout: &Layout, name: &str, source: OwnedFd, view: View) -> Result<(), ShareError>;

    /// Takes a name out of the shared directory. One that is not there is fine.
    ///
    /// # Errors
    /// [`ShareError`]
    async fn unbind(&self, layout: &Layout, name: &str) -> Result<(), ShareError>;

    /// What is in the shared directory.
    ///
    /// # Errors
    /// [`ShareError`]
    async fn names(&self, layout: &Layout) -> Result<Vec<String>, ShareError>;

    /// Ends the process and takes everything out; afterwards nothing is mounted in the Machine's directory. Again, or for a
    /// Machine that never shared anything, is fine.
    ///
    /// # Errors
    /// [`ShareError`]; the Machine's directory must stay then.
    async fn end(&self, layout: &Layout) -> Result<(), ShareError>;
}
