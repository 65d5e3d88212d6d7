//! A CRI client of the running daemon, as kubelet and crictl are.

use std::path::PathBuf;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use proto::cri::v1::{self as cri, PodSandboxStatusResponse, runtime_service_client::RuntimeServiceClient};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{config::Config, grpc::MAX_MESSAGE};

pub(super) type Client = RuntimeServiceClient<Channel>;

/// Connects to the daemon's socket.
pub(super) async fn connect(config: &Config) -> anyhow::Result<Client> {
    let socket: PathBuf = config.socket();
    let path = socket.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("connect to {}; does `clearpod serve` run?", socket.display()))?;
    Ok(RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
}

/// Verbose status of one sandbox.
pub(super) async fn status(client: &mut Client, sandbox: &str) -> anyhow::Result<PodSandboxStatusResponse> {
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: sandbox.to_owned(),
        verbose: true,
    };
    let answer = client.pod_sandbox_status(request).await;
    Ok(answer.map_err(told)?.into_inner())
}

/// A status as people read it: its text alone.
pub(super) fn told(status: tonic::Status) -> anyhow::Error {
    let text = status.message().to_owned();
    anyhow::Error::new(status).context(text)
}
