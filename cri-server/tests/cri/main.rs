//! The real daemon behind its real socket, driven over CRI as kubelet does; the host, the guests and the network are fakes,
//! images come through the real pull from a registry in the test. Needs neither root nor KVM.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod exec;
mod failure;
mod idempotence;
mod pod_lifecycle;
mod recovery;
mod rollback;
mod support;
mod volumes;
