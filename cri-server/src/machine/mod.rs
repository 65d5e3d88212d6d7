//! The host's side of one Machine: its directory, its VMM process, its control socket, its cgroup, its scratch disk, and what
//! it shares with the host.
//!
//! Effects only: when a Machine is started, kept or ended is decided in `sandbox`. A Machine outlives the daemon, so
//! everything here can be found again from the Machine's directory ([`Layout`]): [`Launcher::adopt`] takes over the process,
//! [`ControlClient`] and `guest` connect anew.

pub(crate) mod capacity;
mod cgroup;
mod control;
mod launcher;
mod layout;
mod monitor;
pub(crate) mod mountinfo;
mod process;
mod scratch;
pub mod shares;

pub use cgroup::{CgroupError, CgroupLimits, MachineCgroup};
pub use control::{ControlClient, ControlError};
pub use launcher::{AdoptError, LaunchError, LaunchSpec, Launcher, ShimSpec, VmmLauncher};
pub use layout::{Layout, LayoutError};
pub use process::{MachineExit, Process, ProcessControl};
pub use scratch::{ScratchError, ScratchTemplate};
pub use shares::{Propagation, ShareError, Shares, View, Virtiofsd};
