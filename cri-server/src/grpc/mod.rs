//! The CRI edge: one file per RPC, which converts and passes on. No decisions here.
//!
//! `edge` is what every call goes through, `status` the only mapping of errors, `convert` the views as CRI messages, `pages`
//! lists as streams, `socket` the unix socket that kubelet and crictl connect to, `authority` makes clients work that h2 would
//! refuse for the `:authority` that they send on a unix socket.

mod authority;
mod container_attach;
mod container_create;
mod container_events;
mod container_exec;
mod container_exec_sync;
mod container_list;
mod container_remove;
mod container_reopen_log;
mod container_start;
mod container_stats;
mod container_stats_list;
mod container_status;
mod container_stop;
mod container_update;
mod convert;
mod deadline;
mod edge;
#[cfg(feature = "testing")]
pub(crate) mod fuzz;
mod image_fs_info;
mod image_list;
mod image_pull;
mod image_remove;
mod image_service;
mod image_status;
mod metric_descriptors;
mod pages;
mod runtime_config;
mod runtime_config_update;
mod runtime_service;
mod runtime_status;
mod runtime_version;
mod sandbox_list;
mod sandbox_metrics;
mod sandbox_port_forward;
mod sandbox_remove;
mod sandbox_run;
mod sandbox_stats;
mod sandbox_stats_list;
mod sandbox_status;
mod sandbox_stop;
mod sandbox_update;
pub(crate) mod socket;
mod status;

use proto::cri::v1::{
    image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer,
};
use tokio::net::UnixListener;
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tonic::transport::Server;

pub(crate) use edge::Edge;

/// Largest message in either direction: what kubelet and crictl accept.
pub(crate) const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Serves both services until `stop` ends, then lets the calls under way end.
pub(crate) async fn serve(
    edge: Edge,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let runtime = RuntimeServiceServer::new(edge.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let image = ImageServiceServer::new(edge)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let clients = UnixListenerStream::new(listener).map(|client| client.map(authority::Socket::new));
    Server::builder()
        .layer(tower::layer::layer_fn(deadline::Kept))
        .add_service(runtime)
        .add_service(image)
        .serve_with_incoming_shutdown(clients, stop)
        .await
}
