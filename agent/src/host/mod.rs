//! The shim of a host pod: what the agent is to a Machine, on the host itself. It serves the same protocol over unix sockets in
//! the pod's directory, and an OCI runtime (crun, runc) makes the containers.
//!
//! ```text
//! daemon ──port-1024.sock (rpc), port-1026.sock (stdio)──► shim ──► crun create, start, exec, delete
//!                                                           │  └──► EROFS layers and overlays below the pod's directory
//!                                                           └─ is the subreaper that containers end under
//! ```
//!
//! The namespaces that the pod has for itself are the shim's own: it enters or leaves them before anything else, and what it
//! starts is born into them. So nothing holds them but the shim, and the runtime is told of mount, PID and cgroup namespaces only.
//! Mounts are made in the host's mount namespace (propagation to the host must work) below the pod's directory and nowhere
//! else; the daemon takes down what a killed shim left.
//!
//! `bundle` and `mounts` turn a request into the runtime's configuration (pure), `rootfs` mounts, `runtime` starts the runtime,
//! `container` and `exec` tell the stories, `service` is the protocol's edge, `boot` the way from start to "ready".

mod boot;
mod bundle;
mod container;
mod exec;
mod mounts;
mod pod;
mod rootfs;
mod runtime;
mod service;
mod stats;

pub use boot::run;
