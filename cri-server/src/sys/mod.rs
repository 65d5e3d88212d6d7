//! System calls of the daemon that have no safe and complete wrapper elsewhere; the only place of this crate with
//! `unsafe`.
//!
//! `spawn` is what a child does between fork and exec; `readiness` waits for descriptors; `unix_socket` is sockets in directories with long names, and
//! descriptors over them; `mount` is the propagation of mounts, `user_namespace` their ids. Everything else of the crate uses the standard library and
//! rustix.

pub(crate) mod mount;
pub(crate) mod readiness;
pub(crate) mod spawn;
pub(crate) mod unix_socket;
pub(crate) mod user_namespace;
