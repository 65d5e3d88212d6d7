//! Pods in the host's namespaces: when a sandbox is one, and what is left of one whose shim is gone.
//!
//! Such a pod has no Machine; its shim (`clearpod-shim`, in the crate `agent`) speaks the agent's protocol, so that everything
//! above `guest` is the same for both kinds. Which kind a sandbox is of is decided once, by `plan`, from what its own options
//! ask for. How it is started is in `sandbox::start_host`, what its containers get in `container::host_spec`.

mod config;
mod leftovers;
mod plan;

pub use config::HostPodsConfig;
pub(crate) use leftovers::end_leftovers;
pub(crate) use plan::{HostPlan, Kind, choose, evidence, refuse_user_namespace, sysctls};
