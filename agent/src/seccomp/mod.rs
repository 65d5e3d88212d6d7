//! A container's system call filter: JSON of the OCI runtime specification in, a classic BPF program out.
//!
//! Compiled by the agent, installed by the stage. Not libseccomp (C, and larger than all of this) and not seccompiler,
//! whose model has one action per filter where an OCI profile has one per rule. Only x86-64 is compiled: the guest's
//! kernel runs no 32-bit programs, so that a call of another architecture cannot come from a well-meaning one.

mod compile;
mod profile;
mod syscalls;

use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::sys::seccomp::Instruction;

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filter {
    pub(crate) program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub(crate) flags: u32,
}

/// Longest profile in bytes; Docker's default is 12 KiB.
const MAX_PROFILE: usize = 1024 * 1024;

/// Compiles a profile; empty JSON means unconfined.
///
/// # Errors
/// `InvalidArgument` or `Unsupported`, naming what in the profile cannot be honoured.
pub(crate) fn compile(json: &[u8]) -> Result<Option<Filter>, Failure> {
    if json.is_empty() {
        return Ok(None);
    }
    if json.len() > MAX_PROFILE {
        return Err(Failure::invalid(format!(
            "security.seccomp: {} bytes, more than {MAX_PROFILE}",
            json.len()
        )));
    }
    let profile: profile::Profile = serde_json::from_slice(json)
        .map_err(|error| Failure::invalid(format!("security.seccomp: {error}")))?;
    let (rules, flags) = profile.rules()?;
    Ok(Some(Filter {
        program: compile::program(&rules)?,
        flags,
    }))
}

#[cfg(test)]
mod tests;
