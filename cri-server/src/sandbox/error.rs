//! Why a CRI request was not done, in the kinds by which `grpc/status.rs` chooses a code.
//!
//! Texts name the field, id or operation; causes are sources and are joined to one line only at the edge.

use std::{error::Error, sync::Arc};

use crate::{guest::GuestError, image::PullError};

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The request contradicts itself or CRI.
    #[error("{field}: {reason}")]
    Invalid { field: String, reason: String },
    /// The request is right, and this version cannot honour it.
    #[error("{field} is not supported: {reason}")]
    Unsupported { field: String, reason: String },
    #[error("{kind} {id:?} not found")]
    NotFound { kind: &'static str, id: String },
    #[error("the id {prefix:?} is short for more than one {kind}")]
    Ambiguous { kind: &'static str, prefix: String },
    #[error("{kind} {name} exists already with the id {holder}")]
    NameTaken {
        kind: &'static str,
        name: String,
        holder: String,
    },
    /// `operation` carries the ids.
    #[error("cannot {operation}: {reason}")]
    WrongState { operation: String, reason: String },
    #[error("{what} did not end within {seconds} s")]
    TimedOut { what: String, seconds: u64 },
    /// The client's own.
    #[error("{rpc} was not done within the client's {} s", deadline.as_secs_f32())]
    Deadline {
        rpc: &'static str,
        deadline: std::time::Duration,
    },
    /// A bound of ours is reached; it passes.
    #[error("{what}")]
    TooMany { what: String },
    /// The daemon recovers, or stops.
    #[error("the daemon is {doing}; try again")]
    Unavailable { doing: &'static str },
    /// The agent said no, or nothing.
    #[error("{operation}")]
    Guest {
        operation: String,
        #[source]
        source: GuestError,
    },
    /// The cause says which image and why; callers that waited for the same pull share it.
    #[error("pull the image")]
    Pull(#[source] Arc<PullError>),
    /// KVM gave up on a guest that was not ready yet: nothing of the pod has run.
    #[error("boot the machine of sandbox {id}: {reason}")]
    Unrunnable { id: String, reason: String },
    /// A guest did not go on from its template: nothing of the pod has run.
    #[error("go on from a template in the machine of sandbox {id}: {reason}")]
    NotForked { id: String, reason: String },
    /// Something of the host failed.
    #[error("{operation}")]
    Failed {
        operation: String,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl RequestError {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// For `map_err` of what the host does.
    pub(crate) fn failed<E: Into<Box<dyn Error + Send + Sync>>>(
        operation: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let operation = operation.into();
        move |source| Self::Failed {
            operation,
            source: source.into(),
        }
    }

    /// The guest said nothing, whatever it did.
    pub(crate) fn is_silence(&self) -> bool {
        let Self::Guest { source, .. } = self else {
            return false;
        };
        matches!(
            source,
            GuestError::Unreachable { .. } | GuestError::Timeout { .. }
        )
    }

    /// For `map_err` of what the guest does.
    pub(crate) fn guest(operation: impl Into<String>) -> impl FnOnce(GuestError) -> Self {
        let operation = operation.into();
        move |source| Self::Guest { operation, source }
    }
}

/// An error and its causes on one line, outermost first.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some foreign errors repeat their source in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_each_cause_once() {
        let inner = std::io::Error::other("disk on fire");
        let error = RequestError::failed("store the sandbox")(inner);
        assert_eq!(chain(&error), "store the sandbox: disk on fire");
    }
}
