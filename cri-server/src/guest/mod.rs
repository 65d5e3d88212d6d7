//! The daemon's side of what runs inside a Machine.

pub(crate) mod text;
