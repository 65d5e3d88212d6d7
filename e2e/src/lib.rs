//! The harness of the node tests: one clearpod with a registry and a pod network of its own, driven by real clients.
//!
//! `node` starts and ends them, `cri` speaks to the daemon as kubelet does, `traces` lists what pods leave on a node,
//! `wait` has every time-out by its name, `critest` judges a run of that suite. Tests run where Machines run, one after the other, as root; [`require`] says so
//! when they cannot. What they need lies in the bundle that `deploy/lib/bundle` makes (`CLEARPOD_BUNDLE`).

mod cri;
mod crictl;
pub mod critest;
mod node;
mod require;
mod traces;
pub mod wait;

pub use cri::{Cri, PodSpec};
pub use node::{Node, PLUGIN_SECONDS};
pub use require::skip;
