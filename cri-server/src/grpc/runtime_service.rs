//! RuntimeService: one line per RPC. Those that this version does not have answer UNIMPLEMENTED with their name.

use proto::cri::v1::{self as cri, runtime_service_server::RuntimeService};
use tonic::{Request, Response, Status};

use super::{
    container_create, container_events, container_exec_sync, container_list, container_remove,
    container_reopen_log, container_start, container_stats, container_stats_list, container_status,
    container_stop, container_update, edge::Edge, metric_descriptors, pages::Pages, runtime_config,
    runtime_config_update, runtime_status, runtime_version, sandbox_list, sandbox_metrics, sandbox_remove,
    sandbox_run, sandbox_stats, sandbox_stats_list, sandbox_status, sandbox_stop, sandbox_update,
};

#[tonic::async_trait]
impl RuntimeService for Edge {
    type StreamPodSandboxesStream = Pages<cri::StreamPodSandboxesResponse>;

    type StreamContainersStream = Pages<cri::StreamContainersResponse>;

    type StreamContainerStatsStream = Pages<cri::StreamContainerStatsResponse>;

    type StreamPodSandboxStatsStream = Pages<cri::StreamPodSandboxStatsResponse>;

    type StreamPodSandboxMetricsStream = Pages<cri::StreamPodSandboxMetricsResponse>;

    type GetContainerEventsStream = Pages<cri::ContainerEventResponse>;

    async fn version(
        &self,
        request: Request<cri::VersionRequest>,
    ) -> Result<Response<cri::VersionResponse>, Status> {
        self.call("Version", request, runtime_version::handle).await
    }

    async fn status(
        &self,
        request: Request<cri::StatusRequest>,
    ) -> Result<Response<cri::StatusResponse>, Status> {
        let recovered = self.is_recovered();
        self.call("Status", request, |node, request| {
            runtime_status::handle(node, request, recovered)
        })
        .await
    }

    async fn runtime_config(
        &self,
        request: Request<cri::RuntimeConfigRequest>,
    ) -> Result<Response<cri::RuntimeConfigResponse>, Status> {
        self.call("RuntimeConfig", request, runtime_config::handle).await
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<cri::UpdateRuntimeConfigResponse>, Status> {
        self.call("UpdateRuntimeConfig", request, runtime_config_update::handle)
            .await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Result<Response<cri::RunPodSandboxResponse>, Status> {
        self.call("RunPodSandbox", request, sandbox_run::handle).await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Result<Response<cri::StopPodSandboxResponse>, Status> {
        self.call("StopPodSandbox", request, sandbox_stop::handle).await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Result<Response<cri::RemovePodSandboxResponse>, Status> {
        self.call("RemovePodSandbox", request, sandbox_remove::handle)
            .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Result<Response<cri::PodSandboxStatusResponse>, Status> {
        self.call("PodSandboxStatus", request, sandbox_status::handle)
            .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Result<Response<cri::ListPodSandboxResponse>, Status> {
        self.call("ListPodSandbox", request, sandbox_list::handle).await
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        self.call("StreamPodSandboxes", request, sandbox_list::stream)
            .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<cri::UpdatePodSandboxResourcesResponse>, Status> {
        self.call("UpdatePodSandboxResources", request, sandbox_update::handle)
            .await
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Result<Response<cri::CreateContainerResponse>, Status> {
        self.call("CreateContainer", request, container_create::handle)
            .await
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Result<Response<cri::StartContainerResponse>, Status> {
        self.call("StartContainer", request, container_start::handle)
            .await
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Result<Response<cri::StopContainerResponse>, Status> {
        self.call("StopContainer", request, container_stop::handle).await
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Result<Response<cri::RemoveContainerResponse>, Status> {
        self.call("RemoveContainer", request, container_remove::handle)
            .await
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Result<Response<cri::ContainerStatusResponse>, Status> {
        self.call("ContainerStatus", request, container_status::handle)
            .await
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Result<Response<cri::ListContainersResponse>, Status> {
        self.call("ListContainers", request, container_list::handle).await
    }

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        self.call("StreamContainers", request, container_list::stream)
            .await
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Result<Response<cri::UpdateContainerResourcesResponse>, Status> {
        self.call("UpdateContainerResources", request, container_update::handle)
            .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Result<Response<cri::ReopenContainerLogResponse>, Status> {
        self.call("ReopenContainerLog", request, container_reopen_log::handle)
            .await
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Result<Response<cri::ExecSyncResponse>, Status> {
        self.call("ExecSync", request, container_exec_sync::handle).await
    }

    async fn exec(&self, _: Request<cri::ExecRequest>) -> Result<Response<cri::ExecResponse>, Status> {
        self.missing("Exec")
    }

    async fn attach(&self, _: Request<cri::AttachRequest>) -> Result<Response<cri::AttachResponse>, Status> {
        self.missing("Attach")
    }

    async fn port_forward(
        &self,
        _: Request<cri::PortForwardRequest>,
    ) -> Result<Response<cri::PortForwardResponse>, Status> {
        self.missing("PortForward")
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Result<Response<cri::ContainerStatsResponse>, Status> {
        self.call("ContainerStats", request, container_stats::handle)
            .await
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Result<Response<cri::ListContainerStatsResponse>, Status> {
        self.call("ListContainerStats", request, container_stats_list::handle)
            .await
    }

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        self.call("StreamContainerStats", request, container_stats_list::stream)
            .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Result<Response<cri::PodSandboxStatsResponse>, Status> {
        self.call("PodSandboxStats", request, sandbox_stats::handle).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Result<Response<cri::ListPodSandboxStatsResponse>, Status> {
        self.call("ListPodSandboxStats", request, sandbox_stats_list::handle)
            .await
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        self.call("StreamPodSandboxStats", request, sandbox_stats_list::stream)
            .await
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Result<Response<cri::ListMetricDescriptorsResponse>, Status> {
        self.call("ListMetricDescriptors", request, metric_descriptors::handle)
            .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<cri::ListPodSandboxMetricsResponse>, Status> {
        self.call("ListPodSandboxMetrics", request, sandbox_metrics::handle)
            .await
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        self.call("StreamPodSandboxMetrics", request, sandbox_metrics::stream)
            .await
    }

    async fn get_container_events(
        &self,
        request: Request<cri::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        self.call("GetContainerEvents", request, container_events::handle)
            .await
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Result<Response<cri::CheckpointContainerResponse>, Status> {
        self.missing("CheckpointContainer")
    }

    async fn checkpoint_pod(
        &self,
        _: Request<cri::CheckpointPodRequest>,
    ) -> Result<Response<cri::CheckpointPodResponse>, Status> {
        self.missing("CheckpointPod")
    }

    async fn restore_pod(
        &self,
        _: Request<cri::RestorePodRequest>,
    ) -> Result<Response<cri::RestorePodResponse>, Status> {
        self.missing("RestorePod")
    }
}
