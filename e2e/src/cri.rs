//! A CRI client in few words: what kubelet would say, with what tests usually want as defaults.

use std::path::PathBuf;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use proto::cri::v1::{
    self as cri, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::wait;

/// The two services of one daemon.
#[derive(Debug, Clone)]
pub struct Cri {
    pub runtime: RuntimeServiceClient<Channel>,
    pub image: ImageServiceClient<Channel>,
}

/// A pod's configuration, and what of it tests change.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub config: cri::PodSandboxConfig,
}

impl PodSpec {
    /// A pod of that name whose containers log to `log_directory`.
    #[must_use]
    pub fn new(name: &str, log_directory: &std::path::Path) -> Self {
        let metadata = cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "e2e".to_owned(),
            attempt: 0,
        };
        let config = cri::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            log_directory: log_directory.join(name).display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig::default()),
            ..cri::PodSandboxConfig::default()
        };
        Self { config }
    }

    /// A container of it that runs `script` in a shell.
    #[must_use]
    pub fn shell(name: &str, image: &str, script: &str) -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: image.to_owned(),
                ..cri::ImageSpec::default()
            }),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            linux: Some(cri::LinuxContainerConfig::default()),
            ..cri::ContainerConfig::default()
        }
    }
}

impl Cri {
    /// Connects to the socket; fails when nobody listens.
    ///
    /// # Errors
    /// Of the connection.
    pub async fn connect(socket: PathBuf) -> Result<Self> {
        let endpoint = Endpoint::from_static("http://localhost").timeout(wait::CALL);
        let channel = endpoint
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await
            .context("connect to the daemon")?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()),
            image: ImageServiceClient::new(channel),
        })
    }

    /// RunPodSandbox; the id.
    ///
    /// # Errors
    /// Of the call.
    pub async fn run_pod(&self, pod: &PodSpec) -> Result<String, tonic::Status> {
        self.run_pod_with(pod, "").await
    }

    /// The same by a runtime handler; empty: the default.
    ///
    /// # Errors
    /// Of the call.
    pub async fn run_pod_with(&self, pod: &PodSpec, handler: &str) -> Result<String, tonic::Status> {
        let request = cri::RunPodSandboxRequest {
            config: Some(pod.config.clone()),
            runtime_handler: handler.to_owned(),
        };
        Ok(self
            .runtime
            .clone()
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    /// CreateContainer; the id.
    ///
    /// # Errors
    /// Of the call.
    pub async fn create(
        &self,
        sandbox: &str,
        pod: &PodSpec,
        config: cri::ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self
            .runtime
            .clone()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    /// StartContainer.
    ///
    /// # Errors
    /// Of the call.
    pub async fn start(&self, container: &str) -> Result<(), tonic::Status> {
        let request = cri::StartContainerRequest {
            container_id: container.to_owned(),
        };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    /// CreateContainer and StartContainer of a shell script; the id.
    ///
    /// # Errors
    /// Of the calls.
    pub async fn run_shell(
        &self,
        sandbox: &str,
        pod: &PodSpec,
        name: &str,
        image: &str,
        script: &str,
    ) -> Result<String, tonic::Status> {
        let id = self
            .create(sandbox, pod, PodSpec::shell(name, image, script))
            .await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// ContainerStatus.
    ///
    /// # Errors
    /// Of the call.
    pub async fn container(&self, id: &str) -> Result<cri::ContainerStatus, tonic::Status> {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        Ok(self
            .runtime
            .clone()
            .container_status(request)
            .await?
            .into_inner()
            .status
            .unwrap_or_default())
    }

    /// PodSandboxStatus, verbose.
    ///
    /// # Errors
    /// Of the call.
    pub async fn pod(&self, id: &str) -> Result<cri::PodSandboxStatusResponse, tonic::Status> {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        Ok(self
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner())
    }

    /// Waits until the container has ended; its status.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ended(&self, id: &str) -> Result<cri::ContainerStatus> {
        wait::until(wait::CONTAINER, "the container's end", async || {
            let status = self.container(id).await.ok()?;
            (status.state() == cri::ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// ExecSync of a shell script: exit code, standard output, standard error.
    ///
    /// # Errors
    /// Of the call.
    pub async fn exec(&self, container: &str, script: &str) -> Result<(i32, String, String), tonic::Status> {
        self.exec_program(container, &["sh", "-c", script]).await
    }

    /// ExecSync of a program.
    ///
    /// # Errors
    /// Of the call.
    pub async fn exec_program(
        &self,
        container: &str,
        words: &[&str],
    ) -> Result<(i32, String, String), tonic::Status> {
        let request = cri::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: words.iter().copied().map(str::to_owned).collect(),
            timeout: 60,
        };
        let answer = self.runtime.clone().exec_sync(request).await?.into_inner();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((answer.exit_code, text(answer.stdout), text(answer.stderr)))
    }

    /// StopContainer.
    ///
    /// # Errors
    /// Of the call.
    pub async fn stop(&self, container: &str, grace_seconds: i64) -> Result<(), tonic::Status> {
        let request = cri::StopContainerRequest {
            container_id: container.to_owned(),
            timeout: grace_seconds,
        };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// StopPodSandbox and RemovePodSandbox.
    ///
    /// # Errors
    /// Of the calls.
    pub async fn remove_pod(&self, sandbox: &str) -> Result<(), tonic::Status> {
        let pod_sandbox_id = sandbox.to_owned();
        let mut runtime = self.runtime.clone();
        runtime
            .stop_pod_sandbox(cri::StopPodSandboxRequest {
                pod_sandbox_id: pod_sandbox_id.clone(),
            })
            .await?;
        runtime
            .remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id })
            .await
            .map(drop)
    }

    /// PullImage; the image's reference.
    ///
    /// # Errors
    /// Of the call.
    pub async fn pull(&self, image: &str) -> Result<String, tonic::Status> {
        let spec = cri::ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        };
        let request = cri::PullImageRequest {
            image: Some(spec),
            ..Default::default()
        };
        Ok(self
            .image
            .clone()
            .pull_image(request)
            .await?
            .into_inner()
            .image_ref)
    }
}
