//! Where a container is in its life, and what that allows. Pure.

use proto::agent::v1::{ContainerPhase, ErrorCode, Exit};

use crate::container::stage::Gate;
use crate::error::Failure;

/// The state carries what only exists in it.
#[derive(Debug)]
pub(super) enum State {
    /// The init process waits behind the gate.
    Created(Gate),
    /// The gate was opened; execve has not answered yet.
    Starting,
    Running {
        started_at_ns: u64,
    },
    /// Never started: `started_at_ns` is 0.
    Exited {
        started_at_ns: u64,
        exit: Exit,
    },
}

impl State {
    /// Created to Starting; the gate is the caller's.
    ///
    /// # Errors
    /// `WrongState` in any other state.
    pub(super) fn start(&mut self, id: &str) -> Result<Gate, Failure> {
        match std::mem::replace(self, Self::Starting) {
            Self::Created(gate) => Ok(gate),
            other => {
                let text = format!("container {id} cannot start: it is {}", other.name());
                *self = other;
                Err(Failure::new(ErrorCode::WrongState, text))
            }
        }
    }

    /// Starting to Running. A process that has ended already stays ended, but was started.
    pub(super) fn started(&mut self, at_ns: u64) {
        match self {
            Self::Exited { started_at_ns, .. } => *started_at_ns = at_ns,
            Self::Created(_) | Self::Starting | Self::Running { .. } => {
                *self = Self::Running { started_at_ns: at_ns };
            }
        }
    }

    /// To Exited, from anywhere.
    pub(super) fn end(&mut self, exit: Exit) {
        let started_at_ns = self.started_at_ns();
        *self = Self::Exited { started_at_ns, exit };
    }

    /// # Errors
    /// `WrongState` unless it runs.
    pub(super) fn check_running(&self, id: &str) -> Result<(), Failure> {
        if self.is_running() {
            return Ok(());
        }
        let text = format!("container {id} does not run: it is {}", self.name());
        Err(Failure::new(ErrorCode::WrongState, text))
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    pub(super) fn phase(&self) -> ContainerPhase {
        match self {
            Self::Created(_) | Self::Starting => ContainerPhase::Created,
            Self::Running { .. } => ContainerPhase::Running,
            Self::Exited { .. } => ContainerPhase::Exited,
        }
    }

    pub(super) fn started_at_ns(&self) -> u64 {
        match self {
            Self::Created(_) | Self::Starting => 0,
            Self::Running { started_at_ns } | Self::Exited { started_at_ns, .. } => *started_at_ns,
        }
    }

    pub(super) fn exit(&self) -> Option<&Exit> {
        match self {
            Self::Exited { exit, .. } => Some(exit),
            Self::Created(_) | Self::Starting | Self::Running { .. } => None,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Created(_) => "created",
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> Exit {
        Exit {
            code,
            ..Exit::default()
        }
    }

    #[tokio::test]
    async fn a_container_starts_once() {
        let mut state = State::Created(Gate::for_tests());
        assert_eq!(state.phase(), ContainerPhase::Created);
        state.start("c").unwrap();
        assert_eq!(state.start("c").unwrap_err().code(), ErrorCode::WrongState);
        state.started(7);
        assert!(state.is_running());
        assert_eq!(state.start("c").unwrap_err().code(), ErrorCode::WrongState);
        state.check_running("c").unwrap();
    }

    #[tokio::test]
    async fn an_end_that_comes_before_the_start_was_noted_wins() {
        let mut state = State::Starting;
        state.end(exit(3));
        state.started(7);
        assert_eq!(
            (state.phase(), state.started_at_ns()),
            (ContainerPhase::Exited, 7)
        );
        assert_eq!(state.exit(), Some(&exit(3)));
        assert_eq!(
            state.check_running("c").unwrap_err().code(),
            ErrorCode::WrongState
        );
    }
}
