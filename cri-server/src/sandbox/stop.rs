//! The story of a stop, and of a removal: end the containers, let the Machine end by itself, give everything back. It
//! may be told again at any point and from any state, and it finishes what a failed start or an earlier stop left.

use std::time::Duration;

use futures_util::future::join_all;

use super::{
    awake::tail,
    driver::Driver,
    error::{RequestError, chain},
    ledger::Ledger,
    state::{Input, Step},
};
use crate::{
    clock::now_ns,
    container::{signal, state::Exited},
    failpoint,
    host::end_leftovers,
    stdio::ProcessId,
};

/// For a killed container to be reported.
const KILL_PATIENCE: Duration = Duration::from_secs(3);
/// For what has arrived from a guest that is gone to be written.
const LAST_LINES: Duration = Duration::from_millis(500);
/// Bytes of an ended Machine's console that are kept.
const CONSOLE_KEPT: usize = 16 * 1024;
/// Bytes of it that a container's message quotes.
const CONSOLE_QUOTED: usize = 1024;

impl Driver {
    /// StopPodSandbox.
    pub(super) async fn stop(&mut self) -> Result<(), RequestError> {
        match self.transition(Input::Stop).await? {
            Step::Release | Step::ReleaseThenForget => self.release().await,
            Step::Nothing | Step::EndContainers | Step::Forget => Ok(()),
        }
    }

    /// RemovePodSandbox, containers included; afterwards nothing knows the sandbox.
    pub(super) async fn remove(&mut self) -> Result<(), RequestError> {
        if self.transition(Input::Remove).await? == Step::ReleaseThenForget {
            self.release().await?;
        }
        failpoint::reached("remove.released").await;
        let containers = self.containers.keys().cloned().collect();
        self.node
            .store
            .forget_sandbox(&self.record.id, containers)
            .await
            .map_err(RequestError::failed("forget the sandbox"))?;
        self.containers.clear();
        self.node.sandboxes.remove(&self.record.id);
        self.publish_end();
        tracing::info!(sandbox = self.record.id, "sandbox removed");
        Ok(())
    }

    /// The VMM process ended by itself, by a fault, or by someone else's hand.
    pub(super) async fn machine_ended(&mut self, why: &str) {
        let layout = self.plan.layout.clone();
        let mut console = tail(layout.console_log(), CONSOLE_KEPT).await;
        if console.is_empty() {
            console = tail(layout.vmm_log(), CONSOLE_KEPT).await;
        }
        let start = console.len().saturating_sub(CONSOLE_QUOTED);
        let start = (start..=console.len())
            .find(|at| console.is_char_boundary(*at))
            .unwrap_or(0);
        let quoted = console.get(start..).unwrap_or_default();
        let message = if quoted.is_empty() {
            why.to_owned()
        } else {
            format!("{why}; console: {quoted}")
        };
        tracing::warn!(sandbox = self.record.id, message, "the machine has ended");
        self.record.console = console;
        self.forget_machine();
        if let Err(error) = end_leftovers(&layout, self.plan.cgroup.as_ref().map(|plan| &plan.cgroup)).await {
            tracing::error!(
                sandbox = self.record.id,
                error = chain(error.as_ref()),
                "containers may run without their shim until the pod is stopped"
            );
        }
        let input = Input::MachineEnded {
            message: message.clone(),
        };
        if let Err(error) = self.transition(input).await {
            tracing::error!(
                sandbox = self.record.id,
                error = chain(&error),
                "the machine's end is not recorded"
            );
        }
        self.end_containers(&message).await;
    }

    /// Kills a Machine that is of no use to its pod any more.
    pub(super) async fn end_useless_machine(&mut self, why: &str) {
        let Some(live) = &self.live else {
            return;
        };
        if let Err(error) = live.process.kill() {
            tracing::error!(sandbox = self.record.id, %error, "the VMM could not be killed");
        }
        self.machine_ended(why).await;
    }

    /// Marks every container that has not ended as killed with its Machine.
    async fn end_containers(&mut self, message: &str) {
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            let Some(container) = self.containers.get(&id) else {
                continue;
            };
            if container.is_unfinished() {
                let started_at = container.record.state.started_at();
                self.mark_exited(&id, Exited::with_machine(started_at, now_ns(), message))
                    .await;
            }
            let log = self
                .containers
                .get_mut(&id)
                .and_then(|container| container.log.take());
            if let Some(log) = log {
                // The guest that it came from is gone: what has arrived is written.
                let end = log.finish_without_guest(LAST_LINES).await;
                tracing::debug!(container = id, ?end, "log finished");
            }
        }
    }

    async fn release(&mut self) -> Result<(), RequestError> {
        self.kill_containers().await;
        self.finish_logs().await;
        self.end_machine().await;
        self.end_containers("the pod was stopped").await;
        failpoint::reached("stop.ended").await;
        let held = self.record.state.held().to_vec();
        let left = Ledger::new(&self.node, &self.plan).give_back(&held).await;
        let steps = left.iter().map(|left| left.step).collect();
        self.transition(Input::Released { left: steps }).await?;
        if left.is_empty() {
            return Ok(());
        }
        let text: Vec<String> = left
            .iter()
            .map(|left| format!("{}: {}", left.step, chain(left.error.as_ref())))
            .collect();
        Err(RequestError::failed(format!(
            "release sandbox {}",
            self.record.id
        ))(text.join("; ")))
    }

    /// kubelet has stopped the containers with their grace before; whatever runs still is killed.
    async fn kill_containers(&mut self) {
        let Some(live) = &self.live else {
            return;
        };
        let running = self
            .containers
            .values()
            .filter(|container| container.record.state.is_running())
            .map(|container| container.record.id.clone());
        let kills = running.map(|id| {
            let guest = live.guest.clone();
            let process = ProcessId {
                container_id: id.clone(),
                exec_id: None,
            };
            async move {
                let killed = async {
                    guest.signal(&process, signal::KILL, true).await?;
                    guest.wait(&process, KILL_PATIENCE).await
                };
                // A guest that does not answer ends with its Machine, and its containers with it.
                let exit = tokio::time::timeout(KILL_PATIENCE, killed).await;
                (id, exit)
            }
        });
        for (id, exit) in join_all(kills).await {
            match exit {
                Ok(Ok(exit)) => self.exited(&id, &exit).await,
                Ok(Err(error)) => tracing::debug!(container = id, error = chain(&error), "not killed"),
                Err(_) => tracing::debug!(container = id, "the guest does not answer"),
            }
        }
    }

    /// What ended containers wrote is brought into their logs before the guest that keeps it goes.
    async fn finish_logs(&mut self) {
        if self.live.is_none() {
            return;
        }
        let drain = self.node.config.deadlines.drain();
        let logs = self.containers.values_mut().filter_map(|container| {
            let id = container.record.id.clone();
            container.log.take().map(|log| (id, log))
        });
        let finishing = logs.map(|(id, log)| async move {
            let end = log.finish(drain).await;
            tracing::debug!(container = id, ?end, "log finished");
        });
        join_all(finishing).await;
    }

    /// Lets the guest sync and power off, then makes sure.
    async fn end_machine(&mut self) {
        let Some(live) = &self.live else {
            return;
        };
        if let Some(control) = &live.control
            && let Ok(console) = control.console(CONSOLE_KEPT).await
        {
            self.record.console = console;
        }
        let patience = self.node.config.deadlines.shutdown();
        let polite = async {
            match live.guest.shut_down().await {
                Ok(()) => {
                    live.process.exited().await;
                }
                Err(error) => tracing::debug!(error = chain(&error), "the guest does not shut down"),
            }
        };
        if tokio::time::timeout(patience, polite).await.is_err() {
            tracing::debug!(sandbox = self.record.id, "the guest takes too long to shut down");
        }
        self.forget_machine();
    }
}
