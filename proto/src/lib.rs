//! The contracts between clearpod's processes: what kubelet says to the daemon, the daemon to the VMM and to the agent.
//!
//! Data and encoding only, no I/O. `cri` and `agent` are generated from the `.proto` files by `../build.rs` and are
//! features, so that the VMM links none of gRPC.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "cri")]
pub mod cri;
pub mod host;
pub mod machine;
pub mod port_forward;
pub mod stdio;
