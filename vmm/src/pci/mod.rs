//! The Machine's PCI bus: one root bus, reached by configuration mechanism #1, all functions on bus 0.
//!
//! `config_space`, `msix` and `transport::registers` are pure; `bus` dispatches accesses; `transport` joins a virtio
//! device to the bus. No bridges, no I/O space, no INTx, no hot-plug controller: a function appears or disappears, and
//! the agent rescans the bus or removes the function in the guest.

pub(crate) mod bus;
pub(crate) mod config_space;
pub(crate) mod host_bridge;
pub(crate) mod interrupt;
pub(crate) mod msix;
pub(crate) mod transport;
