//! The daemon's side of what runs inside a Machine: dialling it, its ready signal, and the client of its agent.
//!
//! Everything that comes from here has crossed the boundary to a guest that may be hostile: it is checked for size, shape and
//! range before it leaves this module. Byte streams of processes are next door, in `stdio`.

mod connect;
pub(crate) mod text;

pub use connect::{DialError, Dialer};
