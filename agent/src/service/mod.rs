//! The protocol's edge: one method per RPC that finds what the call is about and hands it on. Nothing is decided here.

pub(crate) mod info;
pub(crate) mod status;

use std::future::Future;
use std::sync::Arc;

use proto::agent::v1 as wire;
use proto::agent::v1::ErrorCode;
use proto::agent::v1::agent_server::Agent;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::container::registry::Member as _;
use crate::container::{create, remove};
use crate::error::{Context as _, Failure};
use crate::pod::Pod;
use crate::shutdown::Shutdown;
use crate::{clock, sandbox, stats};

/// Implements `agent.v1.Agent`.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pod: Arc<Pod>,
    shutdown: Shutdown,
}

impl Service {
    pub(crate) fn new(pod: Arc<Pod>, shutdown: Shutdown) -> Self {
        Self { pod, shutdown }
    }

    /// Runs a call to its end even if the daemon goes away in the middle: half a container is nobody's.
    async fn whole<T, F>(&self, call: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let done = self.pod.tasks.spawn(call).await;
        done.unwrap_or_else(|error| {
            Err(Failure::new(
                ErrorCode::System,
                format!("the call did not finish: {error}"),
            ))
        })
    }

    async fn answer<T>(
        &self,
        container_id: &str,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Response<T>, Status> {
        call.await
            .map(Response::new)
            .map_err(|failure| status::from_failure(&failure, container_id))
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Agent for Service {
    async fn info(&self, _: Request<wire::InfoRequest>) -> Answer<wire::InfoResponse> {
        let settings = &self.pod.settings;
        let mut info = info::info(&settings.proc, &settings.sysfs);
        if self.pod.sandbox.lock().await.is_configured() {
            info.boot_id = info::boot_id(&settings.proc);
        }
        Ok(Response::new(info))
    }

    async fn go_on(&self, request: Request<wire::GoOnRequest>) -> Answer<wire::GoOnResponse> {
        let pod = self.pod.clone();
        let request = request.into_inner();
        let call = self.whole(async move {
            sandbox::go_on::go_on(&pod, &request).await?;
            Ok(wire::GoOnResponse {})
        });
        self.answer("", call).await
    }

    async fn move_clock(&self, request: Request<wire::MoveClockRequest>) -> Answer<wire::MoveClockResponse> {
        let by_ns = request.into_inner().by_ns;
        let moved = clock::move_realtime(by_ns)
            .context(ErrorCode::System, || format!("move the clock by {by_ns} ns"))
            .map(|realtime_ns| wire::MoveClockResponse { realtime_ns });
        self.answer("", async { moved }).await
    }

    async fn configure_sandbox(
        &self,
        request: Request<wire::ConfigureSandboxRequest>,
    ) -> Answer<wire::ConfigureSandboxResponse> {
        let pod = self.pod.clone();
        let request = request.into_inner();
        let call = self.whole(async move {
            sandbox::configure(&pod, request).await?;
            Ok(wire::ConfigureSandboxResponse {})
        });
        self.answer("", call).await
    }

    async fn create_container(
        &self,
        request: Request<wire::CreateContainerRequest>,
    ) -> Answer<wire::CreateContainerResponse> {
        let pod = self.pod.clone();
        let request = request.into_inner();
        let id = request.container_id.clone();
        self.answer(
            &id,
            self.whole(async move { create::create(&pod, request).await }),
        )
        .await
    }

    async fn start_container(
        &self,
        request: Request<wire::StartContainerRequest>,
    ) -> Answer<wire::StartContainerResponse> {
        let pod = self.pod.clone();
        let id = request.into_inner().container_id;
        let container_id = id.clone();
        let call = self.whole(async move {
            let started_at_ns = pod.containers.get(&id)?.start().await?;
            Ok(wire::StartContainerResponse { started_at_ns })
        });
        self.answer(&container_id, call).await
    }

    async fn remove_container(
        &self,
        request: Request<wire::RemoveContainerRequest>,
    ) -> Answer<wire::RemoveContainerResponse> {
        let pod = self.pod.clone();
        let id = request.into_inner().container_id;
        let container_id = id.clone();
        let call = self.whole(async move {
            remove::remove(&pod, &id).await?;
            Ok(wire::RemoveContainerResponse {})
        });
        self.answer(&container_id, call).await
    }

    async fn exec(&self, request: Request<wire::ExecRequest>) -> Answer<wire::ExecResponse> {
        let pod = self.pod.clone();
        let request = request.into_inner();
        let id = request.container_id.clone();
        let call = self.whole(async move {
            let pid = pod
                .containers
                .get(&request.container_id)?
                .exec(&pod, &request)
                .await?;
            Ok(wire::ExecResponse { pid })
        });
        self.answer(&id, call).await
    }

    async fn remove_exec(
        &self,
        request: Request<wire::RemoveExecRequest>,
    ) -> Answer<wire::RemoveExecResponse> {
        let pod = self.pod.clone();
        let request = request.into_inner();
        let id = request.container_id.clone();
        let call = self.whole(async move {
            pod.containers
                .get(&request.container_id)?
                .remove_exec(&request.exec_id)
                .await?;
            Ok(wire::RemoveExecResponse {})
        });
        self.answer(&id, call).await
    }

    async fn signal(&self, request: Request<wire::SignalRequest>) -> Answer<wire::SignalResponse> {
        let request = request.into_inner();
        let call = async {
            self.pod.containers.get(&request.container_id)?.signal(&request)?;
            Ok(wire::SignalResponse {})
        };
        self.answer(&request.container_id, call).await
    }

    async fn wait(&self, request: Request<wire::WaitRequest>) -> Answer<wire::WaitResponse> {
        let request = request.into_inner();
        let call = async {
            let process = self
                .pod
                .containers
                .get(&request.container_id)?
                .process(&request.exec_id)?;
            let exit = Some(process.wait().await?);
            Ok(wire::WaitResponse { exit })
        };
        self.answer(&request.container_id, call).await
    }

    async fn resize_terminal(
        &self,
        request: Request<wire::ResizeTerminalRequest>,
    ) -> Answer<wire::ResizeTerminalResponse> {
        let request = request.into_inner();
        let call = async {
            let process = self
                .pod
                .containers
                .get(&request.container_id)?
                .process(&request.exec_id)?;
            process.resize(request.size.unwrap_or_default())?;
            Ok(wire::ResizeTerminalResponse {})
        };
        self.answer(&request.container_id, call).await
    }

    type WatchStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::WatchEvent, Status>> + Send>>;

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Answer<Self::WatchStream> {
        let events = self.pod.events.watch(|| wire::Snapshot {
            containers: self
                .pod
                .containers
                .all()
                .iter()
                .map(|container| container.snapshot())
                .collect(),
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(events).map(Ok))))
    }

    async fn update_container(
        &self,
        request: Request<wire::UpdateContainerRequest>,
    ) -> Answer<wire::UpdateContainerResponse> {
        let request = request.into_inner();
        let call = async {
            let container = self.pod.containers.get(&request.container_id)?;
            let actual = Some(container.update(&request, &self.pod.settings.proc)?);
            Ok(wire::UpdateContainerResponse { actual })
        };
        self.answer(&request.container_id, call).await
    }

    async fn update_files(
        &self,
        request: Request<wire::UpdateFilesRequest>,
    ) -> Answer<wire::UpdateFilesResponse> {
        let pod = self.pod.clone();
        let source = request.into_inner().source.unwrap_or_default();
        let call = self.whole(async move {
            pod.volumes.update_files(&source).await?;
            Ok(wire::UpdateFilesResponse {})
        });
        self.answer("", call).await
    }

    async fn resize(&self, request: Request<wire::ResizeRequest>) -> Answer<wire::ResizeResponse> {
        let pod = self.pod.clone();
        let request = request.into_inner();
        let call = self.whole(async move { sandbox::resize::resize(&pod, &request).await });
        self.answer("", call).await
    }

    async fn stats(&self, request: Request<wire::StatsRequest>) -> Answer<wire::StatsResponse> {
        let request = request.into_inner();
        self.answer(&request.container_id, stats::stats(&self.pod, &request))
            .await
    }

    async fn shutdown(&self, _: Request<wire::ShutdownRequest>) -> Answer<wire::ShutdownResponse> {
        self.shutdown.request();
        Ok(Response::new(wire::ShutdownResponse {}))
    }
}
