//! The only place where an error becomes a gRPC status.
//!
//! | code | means to kubelet and crictl |
//! |---|---|
//! | INVALID_ARGUMENT | the request is wrong; repeating it is of no use |
//! | UNIMPLEMENTED | the request is right, and this version cannot honour the named field or call |
//! | NOT_FOUND | no such sandbox, container or image: taken as gone |
//! | ALREADY_EXISTS | the name and attempt are taken; the text has the id |
//! | FAILED_PRECONDITION | not in this state: start after create, exec while it runs |
//! | DEADLINE_EXCEEDED | the time limit *of the request* is over: a probe failed |
//! | UNAVAILABLE | the daemon recovers or stops, or the guest does not answer: try again |
//! | PERMISSION_DENIED | the registry refuses the credentials |
//! | RESOURCE_EXHAUSTED | the disk is full, or there are too many of something: try again later |
//! | INTERNAL | something of the host failed; the text has the chain of causes |

use proto::agent::v1::ErrorCode;
use tonic::{Code, Status};

use crate::{
    guest::GuestError,
    image::PullError,
    sandbox::{RequestError, chain},
};

/// A status travels in a header; gRPC libraries refuse headers of more than 8 KiB, and escapes triple a byte.
const MAX_MESSAGE: usize = 2500;

/// The status of an error, with its causes in the text, since they do not travel otherwise.
pub(super) fn status(error: &RequestError) -> Status {
    let mut message = chain(error);
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE)
            .rev()
            .find(|at| message.is_char_boundary(*at))
            .unwrap_or(0);
        message.truncate(end);
        message.push_str("...");
    }
    Status::new(code(error), message)
}

fn code(error: &RequestError) -> Code {
    match error {
        RequestError::Invalid { .. } | RequestError::Ambiguous { .. } => Code::InvalidArgument,
        RequestError::Unsupported { .. } => Code::Unimplemented,
        RequestError::NotFound { .. } => Code::NotFound,
        RequestError::NameTaken { .. } => Code::AlreadyExists,
        RequestError::WrongState { .. } => Code::FailedPrecondition,
        RequestError::TimedOut { .. } | RequestError::Deadline { .. } => Code::DeadlineExceeded,
        RequestError::TooMany { .. } => Code::ResourceExhausted,
        RequestError::Unavailable { .. } => Code::Unavailable,
        RequestError::Guest { source, .. } => of_guest(source),
        RequestError::Pull(source) => of_pull(source),
        RequestError::Failed { .. } | RequestError::Unrunnable { .. } | RequestError::NotForked { .. } => {
            Code::Internal
        }
    }
}

fn of_guest(error: &GuestError) -> Code {
    match error {
        GuestError::Refused { code, .. } => match code {
            ErrorCode::InvalidArgument | ErrorCode::UserNotFound | ErrorCode::Exec => Code::InvalidArgument,
            ErrorCode::NotFound => Code::NotFound,
            ErrorCode::AlreadyExists => Code::AlreadyExists,
            ErrorCode::WrongState => Code::FailedPrecondition,
            ErrorCode::Unsupported => Code::Unimplemented,
            ErrorCode::Unspecified
            | ErrorCode::Mount
            | ErrorCode::Cgroup
            | ErrorCode::Network
            | ErrorCode::DeviceMissing
            | ErrorCode::System => Code::Internal,
        },
        GuestError::Unreachable { .. } | GuestError::Timeout { .. } => Code::Unavailable,
        GuestError::Invalid { .. } => Code::Internal,
    }
}

fn of_pull(error: &PullError) -> Code {
    match error {
        PullError::Reference(_)
        | PullError::ForeignCredentials { .. }
        | PullError::BadCredentials { .. }
        | PullError::TooLarge { .. } => Code::InvalidArgument,
        PullError::NotFound { .. } | PullError::NoPlatform { .. } => Code::NotFound,
        PullError::Unauthorized { .. } => Code::PermissionDenied,
        PullError::Registry { .. } => Code::Unavailable,
        PullError::UnsupportedMediaType { .. } => Code::Unimplemented,
        PullError::NoSpace { .. } => Code::ResourceExhausted,
        PullError::Malformed { .. }
        | PullError::DigestMismatch { .. }
        | PullError::Layer { .. }
        | PullError::Catalog { .. }
        | PullError::Record { .. } => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_causes_and_fits_into_a_header() {
        let cause = std::io::Error::other("ä".repeat(3000));
        let status = status(&RequestError::failed("store it")(cause));
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().starts_with("store it: ä") && status.message().len() <= MAX_MESSAGE + 3);
    }
}
