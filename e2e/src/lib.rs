//! The harness of the node tests: one clearpod with a registry and a pod network of its own, driven by real clients.
//!
//! `node` starts and ends them, `cri` speaks to the daemon as kubelet does, `traces` lists what pods leave on a node,
//! `process` tells what a process takes, `churn` makes and removes many pods, `critest` judges a run of that suite, `wait`
//! has every time-out by its name, `figures` and `conditions` are for the benches. Tests run where Machines run, one after the
//! other, as root; `require` says so when they cannot. What they need lies in the bundle that `deploy/lib/bundle` makes (`CLEARPOD_BUNDLE`).

mod churn;
pub mod conditions;
mod cri;
mod crictl;
pub mod critest;
mod figures;
mod node;
pub mod process;
mod require;
mod traces;
pub mod wait;

pub use churn::{Churn, churn};
pub use cri::{Cri, PodSpec};
pub use figures::Figures;
pub use node::{Node, PLUGIN_SECONDS};
pub use require::{is_emulated, on_a_node};
