//! Bytes of container processes: what they write is kept until the daemon has stored it, what it sends is written.
//!
//! ```text
//! process ──pipe/terminal──► pump ──► OutputLog (256 KiB) ──► connection (role output) ──► daemon
//!                                          ▲───────── acknowledged offset ◄──────────────────┘
//! process ◄─pipe/terminal── connection (role stdin) ◄── daemon
//! ```
//!
//! `proto::stdio` defines the protocol, `log` the bookkeeping (pure), `process` the process's side, `connection` the
//! daemon's side. A process whose output nobody takes stops when the log is full, as with any pipe.

pub(crate) mod connection;
mod log;
pub(crate) mod process;

#[cfg(test)]
mod tests;
