//! What a container is, and which requests its state allows: pure.
//!
//! ```text
//!  Creating ──▶ Created ──Start──▶ Running ──the process ends, or its Machine──▶ Exited
//!                  │                                                              ▲
//!                  └──Start fails, or its Machine ends────────────────────────────┘
//! ```
//!
//! CRI has the same states but Creating, which nobody sees: a container's id is told when it is created.

use serde::{Deserialize, Serialize};

use crate::guest::Exit;

/// How far a container is. Times are nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ContainerState {
    /// Recorded, and perhaps made in the guest: after a restart of the daemon it is removed.
    Creating,
    Created,
    Running {
        started_at: i64,
    },
    Exited(Exited),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exited {
    /// 0: it never ran.
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
    pub(crate) exit_code: i32,
    /// One word, as kubelet shows it.
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// What a client can ask of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Start,
    Stop,
    Remove,
    Exec,
    ReopenLog,
    /// Other limits.
    Update,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is so already.
    Nothing,
    /// Do what was asked.
    Proceed,
    /// Kill the container, then do what was asked.
    KillFirst,
}

/// The container's state does not allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WrongState(pub(crate) &'static str);

/// Whether a request may be carried out.
pub(crate) fn decide(state: &ContainerState, ask: Ask) -> Result<Answer, WrongState> {
    use ContainerState::{Created, Creating, Exited, Running};
    match (ask, state) {
        (Ask::Start, Created) => Ok(Answer::Proceed),
        (Ask::Start, Creating) => Err(WrongState("it is being created")),
        (Ask::Start, Running { .. }) => Err(WrongState("it runs already")),
        (Ask::Start, Exited(_)) => Err(WrongState("it has ended, and a container runs once")),
        (Ask::Stop, Running { .. }) => Ok(Answer::Proceed),
        (Ask::Stop, Creating | Created | Exited(_)) => Ok(Answer::Nothing),
        (Ask::Remove, Running { .. }) => Ok(Answer::KillFirst),
        (Ask::Remove, Creating | Created | Exited(_)) => Ok(Answer::Proceed),
        (Ask::Exec | Ask::ReopenLog | Ask::Update, Running { .. }) | (Ask::Update, Created) => {
            Ok(Answer::Proceed)
        }
        (Ask::Update, Creating) => Err(WrongState("it is being created")),
        (Ask::Update, Exited(_)) => Err(WrongState("it has ended")),
        (Ask::Exec | Ask::ReopenLog, Creating | Created | Exited(_)) => Err(WrongState("it is not running")),
    }
}

impl ContainerState {
    pub(crate) fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    pub(crate) fn started_at(&self) -> i64 {
        match self {
            Self::Creating | Self::Created => 0,
            Self::Running { started_at } => *started_at,
            Self::Exited(exited) => exited.started_at,
        }
    }
}

impl Exited {
    /// As the guest tells it. Reasons are the words that kubelet and its users know.
    pub(crate) fn by_itself(started_at: i64, exit: &Exit) -> Self {
        let reason = match exit {
            Exit { oom_killed: true, .. } => "OOMKilled",
            Exit { code: 0, .. } => "Completed",
            _ => "Error",
        };
        Self {
            started_at,
            finished_at: exit.finished_at_ns,
            exit_code: exit.code,
            reason: reason.to_owned(),
            message: String::new(),
        }
    }

    /// Its Machine ended under it, or was ended: as if by SIGKILL.
    pub(crate) fn with_machine(started_at: i64, finished_at: i64, message: &str) -> Self {
        Self {
            started_at,
            finished_at,
            exit_code: 128 + libc::SIGKILL,
            reason: "Error".to_owned(),
            message: message.to_owned(),
        }
    }

    /// Its command could not be executed.
    pub(crate) fn never_started(finished_at: i64, exit_code: i32, message: String) -> Self {
        Self {
            started_at: 0,
            finished_at,
            exit_code,
            reason: "StartError".to_owned(),
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32, oom_killed: bool) -> Exit {
        Exit {
            code,
            signal: None,
            oom_killed,
            finished_at_ns: 7,
            termination_message: String::new(),
        }
    }

    fn states() -> [ContainerState; 4] {
        let exited = Exited::by_itself(1, &exit(0, false));
        [
            ContainerState::Creating,
            ContainerState::Created,
            ContainerState::Running { started_at: 1 },
            ContainerState::Exited(exited),
        ]
    }

    #[test]
    fn stop_and_remove_are_never_refused() {
        for state in states() {
            assert!(decide(&state, Ask::Stop).is_ok() && decide(&state, Ask::Remove).is_ok());
        }
    }

    #[test]
    fn a_container_is_started_once() {
        let allowed = states().map(|state| decide(&state, Ask::Start).is_ok());
        assert_eq!(allowed, [false, true, false, false]);
    }

    #[test]
    fn only_a_running_container_is_killed_executed_in_or_reopened() {
        for state in states() {
            let running = state.is_running();
            assert_eq!(decide(&state, Ask::Remove) == Ok(Answer::KillFirst), running);
            assert_eq!(decide(&state, Ask::Exec).is_ok(), running);
            assert_eq!(decide(&state, Ask::ReopenLog).is_ok(), running);
        }
    }

    #[test]
    fn limits_are_of_containers_that_have_not_ended() {
        let allowed = states().map(|state| decide(&state, Ask::Update).is_ok());
        assert_eq!(allowed, [false, true, true, false]);
    }

    #[test]
    fn reasons_are_kubelets_words() {
        for (code, oom, reason) in [
            (0, false, "Completed"),
            (3, false, "Error"),
            (137, true, "OOMKilled"),
        ] {
            assert_eq!(Exited::by_itself(1, &exit(code, oom)).reason, reason);
        }
    }
}
