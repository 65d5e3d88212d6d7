//! The one error of the agent: what the daemon needs to decide, a sentence for people, and the system call's errno.
//!
//! A struct and not an enum per module, because its code *is* the typed part: it is what crosses the stage socket and
//! then vsock, and the daemon matches on it. `service/status.rs` makes the gRPC status of it, and nobody else does.

use std::io;

use proto::agent::v1::ErrorCode;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why something that was asked of the agent did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// `ErrorCode` as on the wire.
    code: i32,
    /// The operation and its values; the cause is in `source`.
    message: String,
    #[source]
    errno: Option<Errno>,
}

/// A system call's errno, as an error that can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{}", io::Error::from_raw_os_error(*.0))]
pub(crate) struct Errno(i32);

impl Failure {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            errno: None,
        }
    }

    /// A field of the request that cannot be what it is; `message` names the field.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    pub(crate) fn from_io(code: ErrorCode, message: impl Into<String>, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self {
                code: code.into(),
                message: message.into(),
                errno: Some(Errno(errno)),
            },
            None => Self::new(code, format!("{}: {error}", message.into())),
        }
    }

    pub(crate) fn code(&self) -> ErrorCode {
        ErrorCode::try_from(self.code).unwrap_or(ErrorCode::System)
    }

    /// 0 when no system call failed.
    pub(crate) fn errno(&self) -> i32 {
        self.errno.map_or(0, |errno| errno.0)
    }
}

/// Says of a failed system call what it was for.
pub(crate) trait Context<T> {
    /// `message` names the operation and its values.
    fn context(self, code: ErrorCode, message: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, code: ErrorCode, message: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::from_io(code, message(), &error.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn the_cause_is_the_source_and_not_in_the_text() {
        let failed: Result<(), io::Error> = Err(io::Error::from_raw_os_error(libc::ENOENT));
        let failure = failed
            .context(ErrorCode::Mount, || "mount proc".to_owned())
            .unwrap_err();
        assert_eq!(failure.to_string(), "mount proc");
        assert_eq!(failure.errno(), libc::ENOENT);
        assert!(failure.source().unwrap().to_string().contains("No such file"));
    }
}
