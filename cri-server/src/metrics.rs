//! Counters of the daemon.
