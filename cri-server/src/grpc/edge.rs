//! What every call goes through: refused before recovery is done, logged, measured, its error made a status. Handlers do
//! none of it.

use std::{sync::Arc, time::Instant};

use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

use super::{deadline, status::status};
use crate::sandbox::{Node, RequestError, chain};

/// The CRI services over one node.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    pub(super) node: Arc<Node>,
    /// True once the state of the last daemon is recovered.
    recovered: watch::Receiver<bool>,
}

/// Answered before recovery is done: they say that it is not.
const ALWAYS: [&str; 2] = ["Version", "Status"];
/// Asked every few seconds by kubelet.
const CHATTY: [&str; 19] = [
    "Version",
    "Status",
    "ListPodSandbox",
    "ListContainers",
    "ListImages",
    "ImageStatus",
    "PodSandboxStatus",
    "ContainerStatus",
    "ContainerStats",
    "ListContainerStats",
    "ListPodSandboxMetrics",
    "ListPodSandboxStats",
    "PodSandboxStats",
    "StreamContainers",
    "StreamContainerStats",
    "StreamImages",
    "StreamPodSandboxes",
    "StreamPodSandboxMetrics",
    "StreamPodSandboxStats",
];

impl Edge {
    pub(crate) fn new(node: Arc<Node>, recovered: watch::Receiver<bool>) -> Self {
        Self { node, recovered }
    }

    /// Whether recovery is done.
    pub(super) fn is_recovered(&self) -> bool {
        *self.recovered.borrow()
    }

    /// One call.
    pub(super) async fn call<Q, A, F>(
        &self,
        rpc: &'static str,
        request: Request<Q>,
        handler: impl FnOnce(Arc<Node>, Q) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A, RequestError>>,
    {
        let began = Instant::now();
        let result = if self.is_recovered() || ALWAYS.contains(&rpc) {
            let deadline = deadline::of(request.metadata().as_ref());
            let call = handler(Arc::clone(&self.node), request.into_inner());
            Box::pin(deadline::keep(rpc, deadline, call)).await
        } else {
            Err(RequestError::Unavailable {
                doing: "recovering its state",
            })
        };
        let took = began.elapsed();
        self.node.metrics.call(rpc, took, result.is_err());
        let took_us = took.as_micros();
        match result {
            Ok(answer) => {
                if CHATTY.contains(&rpc) {
                    tracing::trace!(rpc, took_us, "done");
                } else {
                    tracing::info!(rpc, took_us, "done");
                }
                Ok(Response::new(answer))
            }
            Err(error) => {
                let status = status(&error);
                let error = chain(&error);
                if status.code() == Code::NotFound {
                    tracing::debug!(rpc, took_us, error, "not found");
                } else {
                    tracing::warn!(rpc, took_us, code = ?status.code(), error, "failed");
                }
                Err(status)
            }
        }
    }

    /// A call that this version does not have.
    pub(super) fn missing<A>(&self, rpc: &'static str) -> Result<Response<A>, Status> {
        self.node.metrics.call(rpc, std::time::Duration::ZERO, true);
        tracing::debug!(rpc, "not implemented");
        Err(Status::unimplemented(format!(
            "clearpod: {rpc} is not implemented"
        )))
    }
}
