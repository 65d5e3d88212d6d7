//! Why a Machine ends, and what its process tells the daemon by its exit code.

use std::error::Error;

use proto::machine::ExitReason;

/// A vCPU will not run again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GuestEnd {
    /// The guest reset or powered off its machine.
    Reset,
    /// KVM cannot run this guest here; the text is one line for the operator.
    Unrunnable(String),
    /// The VMM or KVM failed otherwise.
    Failed(String),
}

/// The end of a Machine: the reason and, unless the guest simply ended, one line about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// What the exit code says.
    pub reason: ExitReason,
    /// For the log; empty if there is nothing to tell.
    pub detail: String,
}

impl Ending {
    /// The daemon asked for it.
    pub(crate) fn stopped() -> Self {
        Self {
            reason: ExitReason::Ended,
            detail: String::new(),
        }
    }

    /// `panicked`: the guest's kernel had reported a panic before.
    pub(crate) fn of_guest(end: GuestEnd, panicked: bool) -> Self {
        match end {
            GuestEnd::Unrunnable(detail) => Self {
                reason: ExitReason::GuestUnrunnable,
                detail,
            },
            GuestEnd::Failed(detail) => Self {
                reason: ExitReason::Failed,
                detail,
            },
            GuestEnd::Reset if panicked => Self::panicked(),
            GuestEnd::Reset => Self {
                reason: ExitReason::Ended,
                detail: String::new(),
            },
        }
    }

    /// The guest's kernel panicked.
    pub(crate) fn panicked() -> Self {
        let detail = "the guest's kernel panicked: see the console".to_owned();
        Self {
            reason: ExitReason::GuestPanic,
            detail,
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn one_line(error: &dyn Error) -> String {
    let mut texts = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        texts.push(error.to_string());
        next = error.source();
    }
    // A transparent error says what its cause says.
    texts.dedup();
    texts.join(": ").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_after_a_panic_is_a_panic() {
        assert_eq!(
            Ending::of_guest(GuestEnd::Reset, true).reason,
            ExitReason::GuestPanic
        );
        assert_eq!(Ending::of_guest(GuestEnd::Reset, false).reason, ExitReason::Ended);
        let unrunnable = GuestEnd::Unrunnable("x".to_owned());
        assert_eq!(
            Ending::of_guest(unrunnable, true).reason,
            ExitReason::GuestUnrunnable
        );
    }
}
