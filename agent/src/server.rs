//! Serves connections, wherever they come from: gRPC over HTTP/2 on the agent port, byte streams on the stdio port, forwarded
//! connections on theirs.
//!
//! hyper directly, without tonic's transport: one service, no TLS, no routing, and less than half the code.

use std::future::Future;
use std::io;
use std::sync::Arc;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use proto::agent::v1::agent_server::{Agent, AgentServer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::TaskTracker;

use crate::error::Failure;
use crate::pod::{Pod, Settings};
use crate::port_forward;
use crate::service::Service;
use crate::shutdown::{self, Shutdown};
use crate::stdio::connection;

/// Files of volumes travel in requests.
const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// The agent of one pod. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AgentHandle {
    pod: Arc<Pod>,
    service: AgentServer<Service>,
    shutdown: Shutdown,
}

/// Spawns into the agent's own set of tasks.
#[derive(Debug, Clone)]
struct Tasks(TaskTracker);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

impl AgentHandle {
    /// Makes the agent's directories and cgroup. Needs a tokio runtime.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn new(settings: Settings) -> Result<Self, Failure> {
        let pod = Arc::new(Pod::new(settings)?);
        let shutdown = Shutdown::default();
        let service = service(Service::new(pod.clone(), shutdown.clone()));
        Ok(Self {
            pod,
            service,
            shutdown,
        })
    }

    /// Waits for children, for as long as the process lives.
    ///
    /// # Errors
    /// When SIGCHLD cannot be listened to.
    pub async fn reap(&self) -> io::Result<()> {
        self.pod.reaper.run().await
    }

    /// Serves one gRPC connection. No pings: a daemon that ends resets its connections, and an idle guest stays idle.
    pub fn serve_rpc(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        serve_rpc(&self.pod.tasks, self.service.clone(), stream);
    }

    /// Serves one stdio connection.
    pub fn serve_stdio(&self, stream: impl AsyncRead + AsyncWrite + Send + 'static) {
        let pod = self.pod.clone();
        self.pod.tasks.spawn(async move {
            if let Err(error) = connection::serve(stream, &pod.containers).await {
                tracing::debug!(%error, "stdio connection ended");
            }
        });
    }

    /// Serves one connection that is forwarded to a TCP port of the pod.
    pub fn serve_port_forward(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        self.pod.tasks.spawn(async move {
            if let Err(error) = port_forward::serve(stream).await {
                tracing::debug!(%error, "forwarded connection ended");
            }
        });
    }

    /// Resolves when the Shutdown call came.
    pub async fn shutdown_requested(&self) {
        self.shutdown.requested().await;
    }

    /// Ends all containers and then the Machine.
    pub async fn power_off(&self) {
        shutdown::power_off(&self.pod).await;
    }

    /// Spawns a task that lives as long as the agent.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.pod.tasks.spawn(task);
    }
}

/// The protocol over an implementation of it.
pub(crate) fn service<A: Agent>(agent: A) -> AgentServer<A> {
    AgentServer::new(agent).max_decoding_message_size(MAX_REQUEST)
}

/// Serves one gRPC connection in `tasks`.
pub(crate) fn serve_rpc<A: Agent>(
    tasks: &TaskTracker,
    service: AgentServer<A>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let connection = http2::Builder::new(Tasks(tasks.clone()))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tasks.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "rpc connection ended");
        }
    });
}
