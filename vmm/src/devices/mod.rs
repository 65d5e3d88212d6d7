//! The device table: what a Machine can have, and why.

pub(crate) mod virtio;
