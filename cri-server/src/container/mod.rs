//! Containers: what CRI asks for (`spec`), and what they are at each moment.

pub(crate) mod spec;
