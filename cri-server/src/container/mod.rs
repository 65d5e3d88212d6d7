//! CRI containers: their states, and the translation of their configuration for the agent.
//!
//! A container lives in its sandbox's owner task (`sandbox::driver`), which carries its requests out in
//! `sandbox::containers`. `exec` runs beside it: an exec changes no state that anyone keeps.

mod capabilities;
pub(crate) mod exec;
mod files;
pub(crate) mod host_spec;
pub(crate) mod limits;
mod seccomp;
pub(crate) mod signal;
pub(crate) mod spec;
pub(crate) mod state;
