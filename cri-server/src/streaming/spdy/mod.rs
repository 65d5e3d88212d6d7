//! The server's half of SPDY/3.1, as much of it as Kubernetes' streams need: streams that the client opens, with headers and
//! bytes both ways.
//!
//! `frame` and `headers` are the encoding, `state` what a connection knows, `session` its two tasks, `stream` what handlers
//! hold. What a client may send is bounded everywhere: sizes, streams, answers that it does not read. A stream whose handler
//! does not keep up stops the reading of the whole connection, because Kubernetes' clients know no windows.

mod dictionary;
mod error;
mod frame;
mod headers;
mod session;
mod state;
mod stream;
#[cfg(any(test, feature = "testing"))]
pub(super) mod testing;

pub(crate) use session::{NewStream, Session};
pub(crate) use stream::{Credit, SpdyOutgoing};
