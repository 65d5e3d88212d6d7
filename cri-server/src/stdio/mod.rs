//! The byte streams of container processes on the host: from the guest into logs, captures and clients, and back.
//!
//! `output` and `stdin` are the two kinds of connection (`proto::stdio`); `log` writes the log that kubelet reads and knows
//! how far it came; `capture` keeps a short process's output in memory. HTTP is in `streaming`.

mod capture;
#[cfg(feature = "testing")]
pub(crate) mod fuzz;
mod log;
mod output;
mod stdin;

pub use capture::{Capture, Captured, MAX_CAPTURE};
pub use log::{ContainerLog, LogEnd, LogError, LogSpec};
pub use output::{Output, OutputError, OutputEvent, ProcessId};
pub use stdin::{Stdin, StdinError};
