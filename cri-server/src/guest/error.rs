//! Why a call to the agent failed, typed so that nobody reads its text to decide.

use std::time::Duration;

use prost::Message as _;
use proto::agent::v1::{AgentError, ErrorCode};
use tonic::{Code, Status};

use super::text;

/// Longest message of an agent that is passed on, bytes.
const MAX_MESSAGE: usize = 1024;
/// Largest errno of Linux.
const MAX_ERRNO: i32 = 4095;

/// Why a call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The agent said no.
    #[error("{operation}: {message}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Its reason, to decide by.
        code: ErrorCode,
        /// Its reason, for people: one line without control characters.
        message: String,
        /// errno of the system call that failed in the guest.
        errno: Option<i32>,
    },
    /// There is no connection, or it broke; what was asked may have been done.
    #[error("{operation}: the guest cannot be reached")]
    Unreachable {
        /// What was asked.
        operation: &'static str,
        /// What the transport says.
        source: Box<Status>,
    },
    /// No answer in time; what was asked may have been done.
    #[error("{operation}: the guest did not answer within {} s", after.as_secs_f32())]
    Timeout {
        /// What was asked.
        operation: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The answer is none that an agent of ours gives.
    #[error("{operation}: the guest's answer is not valid: {what}")]
    Invalid {
        /// What was asked.
        operation: &'static str,
        /// What is wrong.
        what: String,
    },
}

impl GuestError {
    /// The agent's reason, when it gave one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Invalid { .. } => None,
        }
    }

    /// Whether the agent says that there is no such container or process.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(ErrorCode::NotFound)
    }

    /// The exit code that a shell gives to a command which could not be executed: 127 when there is none, else 126. `None`:
    /// execution is not what failed.
    #[must_use]
    pub fn exec_exit_code(&self) -> Option<i32> {
        match self {
            Self::Refused {
                code: ErrorCode::Exec,
                errno,
                ..
            } => Some(if *errno == Some(libc::ENOENT) { 127 } else { 126 }),
            _ => None,
        }
    }

    pub(super) fn invalid(operation: &'static str, what: impl Into<String>) -> Self {
        Self::Invalid {
            operation,
            what: what.into(),
        }
    }

    /// What a gRPC status means. Details are the agent's own word; a status without them was made by the transport.
    pub(super) fn from_status(operation: &'static str, status: Status, deadline: Duration) -> Self {
        if !status.details().is_empty() {
            return match AgentError::decode(status.details()) {
                Ok(error) => Self::refused(operation, &error),
                Err(_) => Self::invalid(operation, "error details that are no AgentError"),
            };
        }
        match status.code() {
            Code::DeadlineExceeded => Self::Timeout {
                operation,
                after: deadline,
            },
            Code::Unimplemented => Self::Refused {
                operation,
                code: ErrorCode::Unsupported,
                message: "the guest's agent does not know this call".to_owned(),
                errno: None,
            },
            Code::ResourceExhausted | Code::OutOfRange | Code::Internal | Code::DataLoss => {
                Self::invalid(operation, text::one_line(status.message(), MAX_MESSAGE))
            }
            _ => Self::Unreachable {
                operation,
                source: Box::new(status),
            },
        }
    }

    fn refused(operation: &'static str, error: &AgentError) -> Self {
        let errno = (1..=MAX_ERRNO).contains(&error.errno).then_some(error.errno);
        let mut message = text::one_line(&error.message, MAX_MESSAGE);
        // The agent sends the cause as a number only.
        if let Some(errno) = errno {
            message = format!("{message}: {}", std::io::Error::from_raw_os_error(errno));
        }
        Self::Refused {
            operation,
            code: error.code(),
            message,
            errno,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: i32, errno: i32) -> GuestError {
        let error = AgentError {
            code,
            message: "no\x1b[2J\nluck".to_owned(),
            container_id: "c".to_owned(),
            errno,
        };
        let status = Status::with_details(Code::Internal, "x", error.encode_to_vec().into());
        GuestError::from_status("start container", status, Duration::ZERO)
    }

    #[test]
    fn an_agents_reason_is_typed_and_its_text_harmless() {
        let error = refusal(ErrorCode::Exec.into(), libc::ENOENT);
        assert_eq!(
            error.to_string(),
            "start container: no [2J luck: No such file or directory (os error 2)"
        );
        assert_eq!(
            (error.code(), error.exec_exit_code()),
            (Some(ErrorCode::Exec), Some(127))
        );
        assert_eq!(
            refusal(ErrorCode::Exec.into(), libc::EACCES).exec_exit_code(),
            Some(126)
        );
        assert_eq!(
            refusal(ErrorCode::Mount.into(), libc::ENOENT).exec_exit_code(),
            None
        );
    }

    #[test]
    fn numbers_that_mean_nothing_are_not_passed_on() {
        assert!(matches!(
            refusal(4711, -5),
            GuestError::Refused {
                code: ErrorCode::Unspecified,
                errno: None,
                ..
            }
        ));
    }

    #[test]
    fn a_status_without_details_is_the_transports() {
        let of = |status| GuestError::from_status("op", status, Duration::from_secs(3));
        assert!(matches!(
            of(Status::unavailable("gone")),
            GuestError::Unreachable { .. }
        ));
        assert!(matches!(
            of(Status::internal("bad frame")),
            GuestError::Invalid { .. }
        ));
        assert_eq!(
            of(Status::deadline_exceeded("")).to_string(),
            "op: the guest did not answer within 3 s"
        );
        let broken = Status::with_details(Code::Internal, "", vec![0xff].into());
        assert!(matches!(of(broken), GuestError::Invalid { .. }));
    }
}
