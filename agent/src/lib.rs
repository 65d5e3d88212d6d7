//! clearpod's agent: PID 1 of a Machine's guest, which runs the pod's containers as the daemon tells it over vsock.
//!
//! Two processes come of the agent's binary. The *agent* ([`boot::run`]) boots the guest and serves `agent.v1.Agent` on a
//! single-threaded runtime. The *stage* ([`stage_main`]) is the agent started again for each process of a container: it
//! sets up what has to be set up inside the container's namespaces and becomes the user's program.
//!
//! | module | what |
//! |---|---|
//! | `boot` | from the kernel's hand-over to "ready", in order |
//! | `server`, `service` | connections, and the protocol's edge |
//! | `pod` | the state that calls share |
//! | `sandbox`, `network` | what all containers share |
//! | `container`, `init` | one container: the agent's part, and the stage's |
//! | `host` | the second program: the same protocol for a pod on the host, over an OCI runtime |
//! | `cgroup`, `disk`, `seccomp`, `stdio`, `port_forward`, `reaper` | one mechanism each |
//! | `sys` | all unsafe code |
//!
//! Invariants: the agent never trusts a container (paths, sizes, files are checked); the agent never ends while the guest
//! runs; an error that the daemon must tell apart has a code of its own.

mod apparmor;
pub mod boot;
mod cgroup;
mod clock;
mod container;
mod disk;
mod error;
mod events;
pub mod host;
mod init;
mod lock;
mod network;
mod pod;
mod port_forward;
mod reaper;
mod sandbox;
mod seccomp;
mod server;
mod service;
mod shutdown;
mod stats;
mod stdio;
mod sys;
mod user_namespace;

pub use error::Failure;
pub use init::{STAGE_ARGUMENT, stage_main};
pub use pod::Settings;
pub use server::AgentHandle;
