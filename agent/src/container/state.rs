//! Where a container is in its life, and what that allows. Pure.

use proto::agent::v1::{ContainerPhase, ContainerState, ErrorCode, Exit};

use crate::error::Failure;

/// The state carries what only exists in it; `G` is what the init process waits behind.
#[derive(Debug)]
pub(crate) enum State<G> {
    /// The init process waits behind the gate.
    Created(G),
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

impl<G> State<G> {
    /// Created to Starting; the gate is the caller's.
    ///
    /// # Errors
    /// `WrongState` in any other state.
    pub(crate) fn start(&mut self, id: &str) -> Result<G, Failure> {
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
    pub(crate) fn started(&mut self, at_ns: u64) {
        match self {
            Self::Exited { started_at_ns, .. } => *started_at_ns = at_ns,
            Self::Created(_) | Self::Starting | Self::Running { .. } => {
                *self = Self::Running { started_at_ns: at_ns };
            }
        }
    }

    /// To Exited, from anywhere.
    pub(crate) fn end(&mut self, exit: Exit) {
        let started_at_ns = self.started_at_ns();
        *self = Self::Exited { started_at_ns, exit };
    }

    /// # Errors
    /// `WrongState` unless it runs.
    pub(crate) fn check_running(&self, id: &str) -> Result<(), Failure> {
        if self.is_running() {
            return Ok(());
        }
        let text = format!("container {id} does not run: it is {}", self.name());
        Err(Failure::new(ErrorCode::WrongState, text))
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    pub(crate) fn phase(&self) -> ContainerPhase {
        match self {
            Self::Created(_) | Self::Starting => ContainerPhase::Created,
            Self::Running { .. } => ContainerPhase::Running,
            Self::Exited { .. } => ContainerPhase::Exited,
        }
    }

    pub(crate) fn started_at_ns(&self) -> u64 {
        match self {
            Self::Created(_) | Self::Starting => 0,
            Self::Running { started_at_ns } | Self::Exited { started_at_ns, .. } => *started_at_ns,
        }
    }

    pub(crate) fn exit(&self) -> Option<&Exit> {
        match self {
            Self::Exited { exit, .. } => Some(exit),
            Self::Created(_) | Self::Starting | Self::Running { .. } => None,
        }
    }

    /// For a watcher's snapshot.
    pub(crate) fn report(&self, container_id: &str, pid: u32) -> ContainerState {
        ContainerState {
            container_id: container_id.to_owned(),
            phase: self.phase().into(),
            pid,
            started_at_ns: self.started_at_ns(),
            exit: self.exit().cloned(),
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

    #[test]
    fn a_container_starts_once() {
        let mut state = State::Created("gate");
        assert_eq!(state.phase(), ContainerPhase::Created);
        state.start("c").unwrap();
        assert_eq!(state.start("c").unwrap_err().code(), ErrorCode::WrongState);
        state.started(7);
        assert!(state.is_running());
        assert_eq!(state.start("c").unwrap_err().code(), ErrorCode::WrongState);
        state.check_running("c").unwrap();
    }

    #[test]
    fn an_end_that_comes_before_the_start_was_noted_wins() {
        let mut state = State::<()>::Starting;
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
