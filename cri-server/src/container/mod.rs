//! CRI containers: their states, and the translation of their configuration for the agent.
//!
//! A container lives in its sandbox's owner task (`sandbox::driver`), which carries its requests out in
//! `sandbox::containers`. `exec` runs beside it: an exec changes no state that anyone keeps.

mod apparmor;
mod capabilities;
pub(crate) mod devices;
pub(crate) mod exec;
pub(crate) mod files;
#[cfg(feature = "testing")]
pub(crate) mod fuzz;
pub(crate) mod host_path;
pub(crate) mod host_spec;
mod kubelet_path;
pub(crate) mod limits;
pub(crate) mod mounts;
mod seccomp;
pub(crate) mod signal;
pub(crate) mod spec;
pub(crate) mod state;
