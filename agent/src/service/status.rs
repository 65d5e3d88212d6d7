//! From the agent's error to a gRPC status: the one place. The typed error travels in the details.
//!
//! | agent code | gRPC code | what the daemon does |
//! |---|---|---|
//! | INVALID_ARGUMENT, EXEC, USER_NOT_FOUND | INVALID_ARGUMENT | reports the container's configuration |
//! | NOT_FOUND | NOT_FOUND | treats the object as gone |
//! | ALREADY_EXISTS | ALREADY_EXISTS | looks at what is there |
//! | WRONG_STATE | FAILED_PRECONDITION | looks at the state again |
//! | UNSUPPORTED | UNIMPLEMENTED | reports the field |
//! | MOUNT, CGROUP, NETWORK, DEVICE_MISSING, SYSTEM | INTERNAL | reports, cleans up |

use std::error::Error as _;

use prost::Message as _;
use proto::agent::v1::{AgentError, ErrorCode};
use tonic::{Code, Status};

use crate::error::Failure;

/// As the protocol says.
const MAX_MESSAGE: usize = 1024;

/// `container_id` is empty for calls about the sandbox.
pub(crate) fn from_failure(failure: &Failure, container_id: &str) -> Status {
    let mut message = failure.to_string();
    if let Some(cause) = failure.source() {
        message.push_str(": ");
        message.push_str(&cause.to_string());
    }
    let message = one_line(&message);
    let error = AgentError {
        code: failure.code().into(),
        message: message.clone(),
        container_id: container_id.to_owned(),
        errno: failure.errno(),
    };
    Status::with_details(code(failure.code()), message, error.encode_to_vec().into())
}

fn code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidArgument | ErrorCode::Exec | ErrorCode::UserNotFound => Code::InvalidArgument,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::AlreadyExists => Code::AlreadyExists,
        ErrorCode::WrongState => Code::FailedPrecondition,
        ErrorCode::Unsupported => Code::Unimplemented,
        ErrorCode::Mount
        | ErrorCode::Cgroup
        | ErrorCode::Network
        | ErrorCode::DeviceMissing
        | ErrorCode::System
        | ErrorCode::Unspecified => Code::Internal,
    }
}

fn one_line(message: &str) -> String {
    let mut line: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let end = (0..=MAX_MESSAGE.min(line.len()))
        .rev()
        .find(|end| line.is_char_boundary(*end));
    line.truncate(end.unwrap_or(0));
    line
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::error::Context as _;

    #[test]
    fn the_details_hold_the_typed_error() {
        let failed: Result<(), io::Error> = Err(io::Error::from_raw_os_error(libc::ENOENT));
        let failure = failed
            .context(ErrorCode::Exec, || "execute /nope".to_owned())
            .unwrap_err();
        let status = from_failure(&failure, "c1");
        let error = AgentError::decode(status.details()).unwrap();
        assert_eq!(
            (error.code(), error.errno, error.container_id.as_str()),
            (ErrorCode::Exec, libc::ENOENT, "c1")
        );
        assert!(
            error.message.starts_with("execute /nope: No such file"),
            "{}",
            error.message
        );
    }

    #[test]
    fn messages_are_one_line_and_not_too_long() {
        let status = from_failure(&Failure::invalid(format!("a\nb{}", "é".repeat(2000))), "");
        assert!(status.message().len() <= MAX_MESSAGE && status.message().starts_with("a bé"));
    }
}
