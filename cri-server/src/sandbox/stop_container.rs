//! StopContainer: a signal, a grace, a kill, and what there is to do when not even that helps.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    driver::Driver,
    error::{RequestError, chain},
    handle::Reply,
};
use crate::{
    container::{
        signal,
        state::{Answer, Ask},
    },
    guest::GuestError,
};

/// For a container to end after SIGKILL.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A container that was told to stop.
#[derive(Debug)]
pub(crate) struct Stopping {
    /// When its grace is over, or, after the kill, the patience with it.
    deadline: Instant,
    killed: bool,
    pub(super) replies: Vec<Reply<()>>,
}

impl Stopping {
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// Nobody said no: nobody said anything.
fn is_silence(error: &RequestError) -> bool {
    matches!(
        error,
        RequestError::Guest {
            source: GuestError::Timeout { .. },
            ..
        }
    )
}

impl Driver {
    /// StopContainer: the answer comes when the container has ended, which this does not wait for.
    pub(super) async fn stop_container(&mut self, id: &str, grace: Duration, reply: Reply<()>) {
        match self.begin_stop(id, grace).await {
            Ok(true) => {}
            Ok(false) => {
                drop(reply.send(Ok(())));
                return;
            }
            Err(error) => {
                drop(reply.send(Err(error)));
                return;
            }
        }
        if let Some(stopping) = self.stopping.get_mut(id) {
            stopping.replies.push(reply);
        }
    }

    /// Whether there is an end to wait for.
    async fn begin_stop(&mut self, id: &str, grace: Duration) -> Result<bool, RequestError> {
        if !self.containers.contains_key(id) {
            return Ok(false);
        }
        if self.check(id, Ask::Stop, "stop")? == Answer::Nothing || self.live.is_none() {
            return Ok(false);
        }
        let now = Instant::now();
        // A grace that is too long to add is none that ends.
        let deadline = now
            .checked_add(grace)
            .unwrap_or_else(|| now + Duration::from_secs(u64::from(u32::MAX)));
        if let Some(stopping) = self.stopping.get_mut(id) {
            // It was told already; a second request may be in more of a hurry.
            if !stopping.killed {
                stopping.deadline = stopping.deadline.min(deadline);
            }
            return Ok(true);
        }
        if !grace.is_zero() {
            let signal = self.container(id)?.record.stop_signal;
            match self.signal(id, signal, false).await {
                // The kill will show whether there is anybody.
                Err(error) if is_silence(&error) => {
                    tracing::warn!(container = id, error = chain(&error), "its guest is silent");
                }
                told => told?,
            }
        }
        let stopping = Stopping {
            deadline,
            killed: false,
            replies: Vec::new(),
        };
        self.stopping.insert(id.to_owned(), stopping);
        Ok(true)
    }

    /// A process that has ended meanwhile is as good as signalled: its end is on the way.
    pub(super) async fn signal(&self, id: &str, signal: u32, all: bool) -> Result<(), RequestError> {
        use proto::agent::v1::ErrorCode;
        let process = self.container(id)?.process();
        match self.live()?.guest.signal(&process, signal, all).await {
            Err(error) if error.code() == Some(ErrorCode::WrongState) => Ok(()),
            result => result.map_err(RequestError::guest(format!(
                "send signal {signal} to container {id}"
            ))),
        }
    }

    /// Kills what had its grace, gives up on what survives SIGKILL.
    pub(super) async fn deadlines_passed(&mut self) {
        let now = Instant::now();
        let due: Vec<String> = self
            .stopping
            .iter()
            .filter(|(_, stopping)| stopping.deadline <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let Some(mut stopping) = self.stopping.remove(&id) else {
                continue;
            };
            if stopping.killed {
                self.survived_kill(&id, stopping).await;
                continue;
            }
            if let Err(error) = self.signal(&id, signal::KILL, true).await {
                tracing::warn!(container = id, error = chain(&error), "could not be killed");
            }
            stopping.killed = true;
            stopping.deadline = Instant::now() + KILL_PATIENCE;
            self.stopping.insert(id, stopping);
        }
    }

    /// A process that its guest's kernel does not let go has to be waited for. A guest that does not answer at all is of no use to
    /// anybody, and keeps its container from ever ending: its Machine ends, as a node would be fenced.
    async fn survived_kill(&mut self, id: &str, stopping: Stopping) {
        if let Some(live) = &self.live
            && let Err(GuestError::Timeout { .. } | GuestError::Unreachable { .. }) = live.guest.info().await
        {
            // Whoever waits hears that the container has ended with its Machine.
            self.stopping.insert(id.to_owned(), stopping);
            self.end_useless_machine("its guest does not answer").await;
            return;
        }
        for reply in stopping.replies {
            drop(reply.send(Err(RequestError::TimedOut {
                what: format!("container {id}, killed,"),
                seconds: KILL_PATIENCE.as_secs(),
            })));
        }
    }
}
