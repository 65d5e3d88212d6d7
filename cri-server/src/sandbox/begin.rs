//! The beginning of a sandbox's task: it waits for its turn, is started from a template or by a boot, and gives everything back when
//! that does not succeed.

use proto::cri::v1 as cri;

use super::{
    driver::{Driver, Flow},
    error::{RequestError, chain},
    handle::Reply,
    ledger::Ledger,
    start::{Started, start},
    state::{Acquired, Cause, Input, SandboxState},
    timings::Stopwatch,
    turns::Turn,
};
use crate::{clock::monotonic_ns, failpoint, host::Kind, template::Fork};

impl Driver {
    /// RunPodSandbox.
    pub(super) async fn start(&mut self, mut reply: Reply<String>) -> Flow {
        let mut watch = Stopwatch::start();
        let pod = self.request.config.clone().unwrap_or_default();
        let mut reached = Vec::new();
        let result = async {
            self.node
                .store
                .add_sandbox(&self.record, &self.request)
                .await
                .map_err(RequestError::failed("reserve the sandbox"))?;
            failpoint::reached("start.reserved").await;
            let _turn = self.turn(&mut reply, &mut watch).await?;
            let started = self.start_in_two_tries(&pod, &watch, &mut reached).await?;
            self.record.attachment = started.attachment;
            self.record.timings = started.timings;
            self.live = Some(started.live);
            self.transition(Input::Started).await?;
            Ok(())
        }
        .await;
        match result {
            Ok(()) if !reply.is_closed() => {
                self.follow_guest();
                let id = self.record.id.clone();
                tracing::info!(sandbox = id, name = %self.plan.network.name, "sandbox is ready");
                self.answer(reply, Ok(id));
                Flow::Continue
            }
            Ok(()) => {
                tracing::warn!(
                    sandbox = self.record.id,
                    "whoever asked for the sandbox has gone: removing it"
                );
                match self.remove().await {
                    Ok(()) => Flow::Forgotten,
                    Err(_) => Flow::Continue,
                }
            }
            Err(error) => {
                let flow = self.start_failed(&error, &reached).await;
                self.answer(reply, Err(error));
                flow
            }
        }
    }

    /// Waits until the Machine may start. Whoever does not wait any more has no pod started.
    async fn turn(
        &self,
        reply: &mut Reply<String>,
        watch: &mut Stopwatch,
    ) -> Result<Option<Turn>, RequestError> {
        if self.plan.kind != Kind::Machine {
            return Ok(None);
        }
        let began = monotonic_ns();
        let turn = tokio::select! {
            turn = self.node.turns.take() => turn?,
            () = reply.closed() => return Err(RequestError::Unavailable { doing: "busy with other pods" }),
        };
        watch.phase_since("queue", began);
        Ok(Some(turn))
    }

    /// From a template when there is one that fits. Once more from the beginning, and with a boot, when the guest did not go on
    /// or KVM gave up on it: what an emulated processor gets wrong now and then is right the next time, and a host that cannot
    /// run guests says so in the second try.
    async fn start_in_two_tries(
        &self,
        pod: &cri::PodSandboxConfig,
        watch: &Stopwatch,
        reached: &mut Vec<Acquired>,
    ) -> Result<Started, RequestError> {
        let fork = self.template();
        match start(&self.node, &self.plan, pod, fork.as_ref(), watch.clone(), reached).await {
            Err(error @ (RequestError::Unrunnable { .. } | RequestError::NotForked { .. })) => {
                tracing::warn!(
                    sandbox = self.record.id,
                    error = chain(&error),
                    "it is started once more, by a boot"
                );
                drop(fork);
                if !Ledger::new(&self.node, &self.plan)
                    .give_back(reached)
                    .await
                    .is_empty()
                {
                    return Err(error);
                }
                reached.clear();
                start(&self.node, &self.plan, pod, None, watch.clone(), reached).await
            }
            first => first,
        }
    }

    fn template(&self) -> Option<Fork> {
        let node = &self.node;
        let may_fork = self.plan.kind == Kind::Machine && !self.plan.cold;
        may_fork
            .then(|| node.templates.fork(self.plan.shape(), &node.config.machine))
            .flatten()
    }

    /// Gives back what was reached. When all of it could be, the sandbox has never been.
    async fn start_failed(&mut self, error: &RequestError, reached: &[Acquired]) -> Flow {
        tracing::warn!(
            sandbox = self.record.id,
            error = chain(error),
            "sandbox did not start"
        );
        self.live = None;
        let left = Ledger::new(&self.node, &self.plan).give_back(reached).await;
        for left in &left {
            tracing::error!(sandbox = self.record.id, what = %left.step, error = %left.error, "could not be given back");
        }
        let message = chain(error);
        self.record.state = SandboxState::NotReady {
            cause: Cause::StartFailed { message },
            held: left.iter().map(|left| left.step).collect(),
        };
        if left.is_empty() {
            match self.node.store.forget_sandbox(&self.record.id, Vec::new()).await {
                Ok(()) => {
                    self.node.sandboxes.remove(&self.record.id);
                    return Flow::Forgotten;
                }
                Err(error) => tracing::error!(sandbox = self.record.id, %error, "could not be forgotten"),
            }
        } else if let Err(error) = self.node.store.put_sandbox(&self.record).await {
            tracing::error!(sandbox = self.record.id, %error, "could not be recorded");
        }
        Flow::Continue
    }
}
