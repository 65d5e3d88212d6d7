//! A sandbox as the rest of the daemon holds it: a mailbox to its owner task and the view that the task publishes.

use std::{fmt, sync::Arc, time::Duration};

use proto::cri::v1 as cri;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{error::RequestError, view::SandboxView};

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, RequestError>>;

/// What identifies a sandbox for kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxName {
    name: String,
    namespace: String,
    uid: String,
    attempt: u32,
}

/// What clients ask of an owner task.
#[derive(Debug)]
pub(crate) enum Request {
    Stop(Reply<()>),
    Remove(Reply<()>),
    CreateContainer(Box<cri::CreateContainerRequest>, Reply<String>),
    StartContainer(String, Reply<()>),
    StopContainer(String, Duration, Reply<()>),
    RemoveContainer(String, Reply<()>),
    ReopenLog(String, Reply<()>),
    UpdateContainer(String, Box<cri::LinuxContainerResources>, Reply<()>),
    UpdateSandbox(Box<cri::UpdatePodSandboxResourcesRequest>, Reply<()>),
}

/// One sandbox.
#[derive(Debug)]
pub(crate) struct SandboxHandle {
    pub(crate) id: String,
    pub(crate) name: SandboxName,
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<Arc<SandboxView>>,
    /// The daemon's: tells an owner task that stopped from one whose sandbox was removed.
    stop: CancellationToken,
}

impl From<&cri::PodSandboxConfig> for SandboxName {
    fn from(config: &cri::PodSandboxConfig) -> Self {
        let metadata = config.metadata.clone().unwrap_or_default();
        Self {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            attempt: metadata.attempt,
        }
    }
}

impl fmt::Display for SandboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            namespace,
            uid,
            attempt,
        } = self;
        write!(f, "{namespace}/{name} (uid {uid:?}, attempt {attempt})")
    }
}

impl SandboxHandle {
    pub(super) fn new(
        id: &str,
        name: SandboxName,
        requests: mpsc::Sender<Request>,
        view: watch::Receiver<Arc<SandboxView>>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            id: id.to_owned(),
            name,
            requests,
            view,
            stop,
        }
    }

    /// What the sandbox shows now.
    pub(crate) fn view(&self) -> Arc<SandboxView> {
        Arc::clone(&self.view.borrow())
    }

    /// Returns when the sandbox has no Machine any more.
    pub(crate) fn machine_gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut view = self.view.clone();
        async move {
            // An owner task that has ended publishes nothing more: either the sandbox was removed or the daemon stops.
            drop(view.wait_for(|view| view.machine.is_none()).await);
        }
    }

    /// Asks the owner task and waits for its answer. What was asked is done even if the caller stops waiting.
    pub(crate) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, RequestError> {
        let (reply, answer) = oneshot::channel();
        let gone = || {
            if self.stop.is_cancelled() {
                return RequestError::Unavailable { doing: "stopping" };
            }
            RequestError::NotFound {
                kind: "sandbox",
                id: self.id.clone(),
            }
        };
        self.requests.send(request(reply)).await.map_err(|_| gone())?;
        // The task ends without an answer when the sandbox was removed, or when the daemon stops.
        answer.await.map_err(|_| gone())?
    }
}
