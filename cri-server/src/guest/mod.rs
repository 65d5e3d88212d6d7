//! The daemon's side of what runs inside a Machine: dialling it, its ready signal, and the client of its agent.
//!
//! Everything that comes from here has crossed the boundary to a guest that may be hostile: it is checked for size, shape and
//! range before it leaves this module. Byte streams of processes are next door, in `stdio`. `fake` is a host full of guests
//! for tests, behind the same sockets.

mod answer;
mod client;
mod connect;
mod error;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
mod forward;
#[cfg(feature = "testing")]
pub(crate) mod fuzz;
mod ready;
pub(crate) mod text;

pub use answer::{ContainerReport, Created, Exit, GuestEvent, Phase};
pub use client::{GuestClient, GuestInfo, GuestWatch};
pub use connect::{DialError, Dialer};
pub use error::GuestError;
pub use forward::{ForwardError, forward};
pub use ready::{Ready, ReadyError, ReadyListener, goes_on};
