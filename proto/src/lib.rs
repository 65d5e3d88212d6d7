//! Contracts between the processes.
