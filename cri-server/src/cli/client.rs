//! A CRI client of the running daemon, as kubelet and crictl are.

use std::path::PathBuf;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use proto::cri::v1::{self as cri, runtime_service_client::RuntimeServiceClient};
use serde::Deserialize;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{config::Config, grpc::MAX_MESSAGE, sandbox::Phase};

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

/// What verbose status tells of a sandbox beside CRI's own fields (`grpc/sandbox_status.rs`).
#[derive(Debug, Default, Deserialize)]
pub(super) struct Info {
    pub(super) vmm_pid: Option<u32>,
    pub(super) memory_mib: Option<u64>,
    pub(super) vcpus: Option<u8>,
    pub(super) start: Option<String>,
    pub(super) phases: Vec<Phase>,
    pub(super) console: String,
}

/// Verbose status of one sandbox.
pub(super) async fn status(
    client: &mut Client,
    sandbox: &str,
) -> Result<(cri::PodSandboxStatusResponse, Info), tonic::Status> {
    let request = cri::PodSandboxStatusRequest {
        pod_sandbox_id: sandbox.to_owned(),
        verbose: true,
    };
    let answer = client.pod_sandbox_status(request).await?.into_inner();
    let info = answer.info.get("info").map_or("", String::as_str);
    let info = serde_json::from_str(info)
        .map_err(|error| tonic::Status::internal(format!("the daemon's info of {sandbox}: {error}")))?;
    Ok((answer, info))
}

/// A status as people read it: its text alone.
pub(super) fn told(status: tonic::Status) -> anyhow::Error {
    let text = status.message().to_owned();
    anyhow::Error::new(status).context(text)
}
