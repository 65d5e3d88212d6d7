//! The protocol's edge of a host pod: one method per RPC that finds what the call is about and hands it on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use proto::agent::v1 as wire;
use proto::agent::v1::ErrorCode;
use proto::agent::v1::agent_server::Agent;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::container::registry::Member as _;
use crate::error::Failure;
use crate::host::pod::HostPod;
use crate::host::{container, stats};
use crate::service::{info, status};
use crate::shutdown::Shutdown;

/// Implements `agent.v1.Agent`.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pod: Arc<HostPod>,
    shutdown: Shutdown,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    pub(super) fn new(pod: Arc<HostPod>, shutdown: Shutdown) -> Self {
        Self { pod, shutdown }
    }

    /// Runs a call to its end even if the daemon goes away in the middle: half a container is nobody's.
    async fn whole<T, F>(&self, container_id: &str, call: F) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let done = self.pod.tasks.spawn(call).await.unwrap_or_else(|error| {
            let text = format!("the call did not finish: {error}");
            Err(Failure::new(ErrorCode::System, text))
        });
        answer(container_id, done)
    }
}

fn answer<T>(container_id: &str, done: Result<T, Failure>) -> Answer<T> {
    done.map(Response::new)
        .map_err(|failure| status::from_failure(&failure, container_id))
}

#[tonic::async_trait]
impl Agent for Service {
    async fn info(&self, _: Request<wire::InfoRequest>) -> Answer<wire::InfoResponse> {
        let mut info = info::info("/proc".as_ref(), "/sys".as_ref());
        info.boot_id = info::boot_id("/proc".as_ref());
        Ok(Response::new(info))
    }

    async fn configure_sandbox(
        &self,
        request: Request<wire::ConfigureSandboxRequest>,
    ) -> Answer<wire::ConfigureSandboxResponse> {
        let pod = self.pod.clone();
        let request = request.into_inner();
        let call = async move {
            pod.configure(request).await?;
            Ok(wire::ConfigureSandboxResponse {})
        };
        self.whole("", call).await
    }

    async fn create_container(
        &self,
        request: Request<wire::CreateContainerRequest>,
    ) -> Answer<wire::CreateContainerResponse> {
        let pod = self.pod.clone();
        let request = request.into_inner();
        let id = request.container_id.clone();
        self.whole(&id, async move { container::create(&pod, request).await })
            .await
    }

    async fn start_container(
        &self,
        request: Request<wire::StartContainerRequest>,
    ) -> Answer<wire::StartContainerResponse> {
        let pod = self.pod.clone();
        let id = request.into_inner().container_id;
        let started = id.clone();
        let call = async move {
            let started_at_ns = pod.containers.get(&started)?.start(&pod).await?;
            Ok(wire::StartContainerResponse { started_at_ns })
        };
        self.whole(&id, call).await
    }

    async fn remove_container(
        &self,
        request: Request<wire::RemoveContainerRequest>,
    ) -> Answer<wire::RemoveContainerResponse> {
        let pod = self.pod.clone();
        let id = request.into_inner().container_id;
        let removed = id.clone();
        let call = async move {
            container::remove(&pod, &removed).await?;
            Ok(wire::RemoveContainerResponse {})
        };
        self.whole(&id, call).await
    }

    async fn exec(&self, request: Request<wire::ExecRequest>) -> Answer<wire::ExecResponse> {
        let pod = self.pod.clone();
        let request = request.into_inner();
        let id = request.container_id.clone();
        let call = async move {
            let container = pod.containers.get(&request.container_id)?;
            let pid = container.exec(&pod, &request).await?;
            Ok(wire::ExecResponse { pid })
        };
        self.whole(&id, call).await
    }

    async fn remove_exec(
        &self,
        request: Request<wire::RemoveExecRequest>,
    ) -> Answer<wire::RemoveExecResponse> {
        let pod = self.pod.clone();
        let request = request.into_inner();
        let id = request.container_id.clone();
        let call = async move {
            let container = pod.containers.get(&request.container_id)?;
            container
                .execs
                .remove(&request.container_id, &request.exec_id)
                .await?;
            Ok(wire::RemoveExecResponse {})
        };
        self.whole(&id, call).await
    }

    async fn signal(&self, request: Request<wire::SignalRequest>) -> Answer<wire::SignalResponse> {
        let request = request.into_inner();
        let container = self.pod.containers.get(&request.container_id);
        let done = container.and_then(|container| container.signal(&request));
        answer(&request.container_id, done.map(|()| wire::SignalResponse {}))
    }

    async fn wait(&self, request: Request<wire::WaitRequest>) -> Answer<wire::WaitResponse> {
        let request = request.into_inner();
        let done = async {
            let container = self.pod.containers.get(&request.container_id)?;
            let exit = Some(container.process(&request.exec_id)?.wait().await?);
            Ok(wire::WaitResponse { exit })
        };
        answer(&request.container_id, done.await)
    }

    async fn resize_terminal(
        &self,
        request: Request<wire::ResizeTerminalRequest>,
    ) -> Answer<wire::ResizeTerminalResponse> {
        let request = request.into_inner();
        let container = self.pod.containers.get(&request.container_id);
        let process = container.and_then(|container| container.process(&request.exec_id));
        let done = process.and_then(|process| process.resize(request.size.unwrap_or_default()));
        answer(
            &request.container_id,
            done.map(|()| wire::ResizeTerminalResponse {}),
        )
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::WatchEvent, Status>> + Send>>;

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Answer<Self::WatchStream> {
        let all = || self.pod.containers.all();
        let events = self.pod.events.watch(|| wire::Snapshot {
            containers: all().iter().map(|container| container.snapshot()).collect(),
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(events).map(Ok))))
    }

    async fn update_container(
        &self,
        request: Request<wire::UpdateContainerRequest>,
    ) -> Answer<wire::UpdateContainerResponse> {
        let request = request.into_inner();
        let container = self.pod.containers.get(&request.container_id);
        let actual = container.and_then(|container| container.update(&request));
        let done = actual.map(|actual| wire::UpdateContainerResponse { actual: Some(actual) });
        answer(&request.container_id, done)
    }

    async fn update_files(&self, _: Request<wire::UpdateFilesRequest>) -> Answer<wire::UpdateFilesResponse> {
        let text = "a host pod mounts paths of the host, and has no volumes of files";
        answer("", Err(Failure::new(ErrorCode::NotFound, text)))
    }

    async fn go_on(&self, _: Request<wire::GoOnRequest>) -> Answer<wire::GoOnResponse> {
        let text = "a host pod has no guest that could go on";
        answer("", Err(Failure::new(ErrorCode::Unsupported, text)))
    }

    async fn move_clock(&self, _: Request<wire::MoveClockRequest>) -> Answer<wire::MoveClockResponse> {
        let text = "a host pod has the host's clock";
        answer("", Err(Failure::new(ErrorCode::Unsupported, text)))
    }

    async fn resize(&self, _: Request<wire::ResizeRequest>) -> Answer<wire::ResizeResponse> {
        let text = "a host pod is as large as the host";
        answer("", Err(Failure::new(ErrorCode::Unsupported, text)))
    }

    async fn stats(&self, request: Request<wire::StatsRequest>) -> Answer<wire::StatsResponse> {
        let request = request.into_inner();
        answer(&request.container_id, stats::stats(&self.pod, &request).await)
    }

    async fn shutdown(&self, _: Request<wire::ShutdownRequest>) -> Answer<wire::ShutdownResponse> {
        self.shutdown.request();
        Ok(Response::new(wire::ShutdownResponse {}))
    }
}
