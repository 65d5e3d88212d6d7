//! The real daemon behind its real socket, driven over CRI as kubelet does; the host, the guests and the network are fakes,
//! images come through the real pull from a registry in the test. Needs neither root nor KVM.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

mod authority;
mod clock;
mod confinement;
mod events;
mod exec;
mod failure;
mod forks;
mod host_pod;
mod idempotence;
mod logs;
mod model;
mod pod_lifecycle;
mod queue;
mod recovery;
mod resize;
mod rollback;
mod stats;
mod streaming;
mod streaming_lists;
mod support;
mod templates;
mod volumes;
