//! A node for tests: a daemon that can be stopped, killed and started again while its fake host lives on.

use std::{collections::HashMap, io, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use cri_server::{
    app::{App, Drivers},
    config::Config,
    guest::fake::{FakeHost, FakeLauncher},
    image::testing::{TarBuilder, TestImage, TestRegistry},
    machine::{
        AdoptError, LaunchError, LaunchSpec, Launcher, Layout, Process, ShimSpec, VmmLauncher,
        shares::fake::FakeShares,
    },
    network::fake::FakeNetwork,
};
use hyper_util::rt::TokioIo;
use proto::cri::v1::{
    self as cri, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tempfile::TempDir;
use tokio::{
    net::UnixStream,
    runtime::{Handle, Runtime},
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};

/// For whatever is on its way to arrive, on a machine under heavy load.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const GLANCE: Duration = Duration::from_millis(10);

/// A node.
pub(crate) struct TestNode {
    pub(crate) directory: TempDir,
    pub(crate) host: FakeHost,
    pub(crate) network: Arc<FakeNetwork>,
    pub(crate) shares: FakeShares,
    pub(crate) registry: TestRegistry,
    pub(crate) image: String,
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
    daemon: Option<Daemon>,
    pub(crate) config: Config,
}

/// One life of the daemon, in a runtime of its own so that it can be killed with all its tasks.
struct Daemon {
    runtime: Option<Runtime>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

/// A daemon that was not stopped is killed: every task is dropped where it is.
impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Fake Machines run in the test's runtime: they outlive the daemon, as real ones do. Host pods are real where the test named a
/// shim.
#[derive(Debug)]
struct OutlivingLauncher {
    fake: FakeLauncher,
    runtime: Handle,
    real: Option<VmmLauncher>,
}

#[async_trait]
impl Launcher for OutlivingLauncher {
    async fn launch(&self, spec: LaunchSpec) -> Result<Process, LaunchError> {
        let fake = self.fake.clone();
        let launched = self.runtime.spawn(async move { fake.launch(spec).await });
        launched.await.expect("the fake launcher panicked")
    }

    async fn launch_shim(&self, spec: ShimSpec) -> Result<Process, LaunchError> {
        if let Some(real) = &self.real {
            return real.launch_shim(spec).await;
        }
        let fake = self.fake.clone();
        let launched = self.runtime.spawn(async move { fake.launch_shim(spec).await });
        launched.await.expect("the fake launcher panicked")
    }

    async fn adopt(&self, layout: &Layout) -> Result<Process, AdoptError> {
        match (self.fake.adopt(layout).await, &self.real) {
            (Err(AdoptError::NeverStarted { .. }), Some(real)) => real.adopt(layout).await,
            (adopted, _) => adopted,
        }
    }
}

impl TestNode {
    /// A node with a daemon that serves, and an image that is pulled.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same with another configuration.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::Builder::new().prefix("cp").tempdir_in("/tmp").unwrap();
        let host = FakeHost::new();
        let network = Arc::new(FakeNetwork::new());
        let shares = FakeShares::default();
        let registry = TestRegistry::start().await;
        let tar = TarBuilder::new()
            .dir("bin", 0o755)
            .file("bin/sh", 0o755, "fake")
            .finish();
        registry.push("test/shell", "1", &TestImage::of_layer(&tar));
        let image = format!("{}/test/shell:1", registry.host());
        let mut config = config(&directory);
        change(&mut config);
        let config = config.validated().unwrap();
        let daemon = Daemon::start(&config, &host, &network, &shares).await;
        let channel = connect(&socket(&directory)).await;
        let mut node = Self {
            directory,
            host,
            network,
            shares,
            registry,
            image,
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20),
            images: ImageServiceClient::new(channel),
            daemon: Some(daemon),
            config,
        };
        node.recovered().await;
        let image = node.image.clone();
        node.pull(&image).await.unwrap();
        node
    }

    /// Ends the daemon as `kill -9` does, and starts the next one.
    pub(crate) async fn kill_daemon(&mut self) {
        drop(self.daemon.take());
        self.start_daemon().await;
    }

    /// Ends the daemon politely, and starts the next one.
    pub(crate) async fn restart_daemon(&mut self) {
        self.stop_daemon().await;
        self.start_daemon().await;
    }

    pub(crate) async fn stop_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(PATIENCE, &mut daemon.served)
            .await
            .unwrap()
            .unwrap();
    }

    pub(crate) async fn start_daemon(&mut self) {
        self.daemon = Some(Daemon::start(&self.config, &self.host, &self.network, &self.shares).await);
        let channel = connect(&socket(&self.directory)).await;
        self.runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20);
        self.images = ImageServiceClient::new(channel);
        self.recovered().await;
    }

    /// Everything but Version and Status is refused until recovery is done.
    async fn recovered(&self) {
        let mut runtime = self.runtime.clone();
        eventually("the daemon recovers", async || {
            runtime
                .list_pod_sandbox(cri::ListPodSandboxRequest::default())
                .await
                .is_ok()
        })
        .await;
    }

    pub(crate) async fn pull(&mut self, image: &str) -> Result<String, Status> {
        let request = cri::PullImageRequest {
            image: Some(image_spec(image)),
            ..cri::PullImageRequest::default()
        };
        Ok(self.images.pull_image(request).await?.into_inner().image_ref)
    }

    /// A pod with logs below the node's directory.
    pub(crate) fn pod_config(&self, name: &str) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.path(&format!("logs/{name}")).display().to_string(),
            labels: HashMap::from([("app".to_owned(), name.to_owned())]),
            annotations: HashMap::from([("note".to_owned(), "kept".to_owned())]),
            ..cri::PodSandboxConfig::default()
        }
    }

    pub(crate) fn container_config(&self, name: &str, command: &[&str]) -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(image_spec(&self.image)),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: format!("{name}.log"),
            labels: HashMap::from([("role".to_owned(), name.to_owned())]),
            ..cri::ContainerConfig::default()
        }
    }

    pub(crate) async fn run_pod(&self, name: &str) -> Result<String, Status> {
        self.run_pod_with(self.pod_config(name)).await
    }

    pub(crate) async fn run_pod_with(&self, config: cri::PodSandboxConfig) -> Result<String, Status> {
        let request = cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        let answer = self.runtime.clone().run_pod_sandbox(request).await?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let pod_sandbox_id = id.to_owned();
        let request = cri::StopPodSandboxRequest { pod_sandbox_id };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    pub(crate) async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let pod_sandbox_id = id.to_owned();
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    pub(crate) async fn pod_status(&self, id: &str) -> Result<cri::PodSandboxStatusResponse, Status> {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?;
        Ok(answer.into_inner())
    }

    pub(crate) async fn pod_state(&self, id: &str) -> cri::PodSandboxState {
        self.pod_status(id).await.unwrap().status.unwrap().state()
    }

    pub(crate) async fn pods(&self) -> Vec<cri::PodSandbox> {
        let request = cri::ListPodSandboxRequest::default();
        let answer = self.runtime.clone().list_pod_sandbox(request).await.unwrap();
        answer.into_inner().items
    }

    pub(crate) async fn containers(&self) -> Vec<cri::Container> {
        let request = cri::ListContainersRequest::default();
        let answer = self.runtime.clone().list_containers(request).await.unwrap();
        answer.into_inner().containers
    }

    pub(crate) async fn create(&self, pod: &str, config: cri::ContainerConfig) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        let answer = self.runtime.clone().create_container(request).await?;
        Ok(answer.into_inner().container_id)
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<(), Status> {
        let container_id = id.to_owned();
        let request = cri::StartContainerRequest { container_id };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    /// Creates and starts.
    pub(crate) async fn run_container(&self, pod: &str, name: &str, command: &[&str]) -> String {
        let id = self
            .create(pod, self.container_config(name, command))
            .await
            .unwrap();
        self.start_container(&id).await.unwrap();
        id
    }

    pub(crate) async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let container_id = id.to_owned();
        let request = cri::RemoveContainerRequest { container_id };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    pub(crate) async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.runtime.clone().container_status(request).await?;
        Ok(answer.into_inner().status.unwrap())
    }

    /// The status of a container that has ended.
    pub(crate) async fn ended(&self, id: &str) -> cri::ContainerStatus {
        eventually("the container ends", async || {
            self.container_status(id).await.unwrap().state() == cri::ContainerState::ContainerExited
        })
        .await;
        self.container_status(id).await.unwrap()
    }

    pub(crate) async fn exec(
        &self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<cri::ExecSyncResponse, Status> {
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout,
        };
        let answer = self.runtime.clone().exec_sync(request).await?;
        Ok(answer.into_inner())
    }

    /// The log's lines without their times, once there are `count`.
    pub(crate) async fn log(&self, pod: &str, container: &str, count: usize) -> Vec<String> {
        let path = self.path(&format!("logs/{pod}/{container}.log"));
        let read = || -> Vec<String> {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.map(|(_, rest)| rest.to_owned()).collect()
        };
        eventually("the log is written", async || read().len() >= count).await;
        read()
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    /// Nothing of any pod is left on the host.
    pub(crate) fn assert_nothing_is_left(&self) {
        assert_eq!(self.host.running(), Vec::<String>::new(), "VMMs run");
        assert_eq!(self.network.pods(), Vec::<String>::new(), "networks are left");
        assert_eq!(self.shares.machines(), Vec::<String>::new(), "shares are left");
        assert_eq!(
            self.names_in("run/machines"),
            Vec::<String>::new(),
            "directories are left"
        );
        assert_eq!(
            self.names_in("state/scratch"),
            Vec::<String>::new(),
            "disks are left"
        );
    }

    fn names_in(&self, below: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(below)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Daemon {
    async fn start(
        config: &Config,
        host: &FakeHost,
        network: &Arc<FakeNetwork>,
        shares: &FakeShares,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let config = config.clone();
        let (host, network, shares) = (host.clone(), Arc::clone(network), shares.clone());
        let outside = Handle::current();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = runtime.spawn(async move {
            let shim = config.host_pods.shim.as_ref();
            let drivers = || Drivers {
                launcher: Arc::new(OutlivingLauncher {
                    fake: host.launcher(),
                    runtime: outside.clone(),
                    real: shim.map(|shim| VmmLauncher::new(PathBuf::new()).with_shim(shim.clone())),
                }),
                network: Arc::clone(&network) as _,
                shares: Arc::new(shares.clone()),
            };
            let app = build(&config, drivers).await;
            let stop = async move {
                // A daemon that nobody stops is killed.
                if stopped.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            app.serve(stop).await.unwrap();
        });
        Self {
            runtime: Some(runtime),
            stop: Some(stop),
            served,
        }
    }
}

/// The killed daemon's last blocking call may hold its files for a moment, as a process in the kernel does.
async fn build(config: &Config, drivers: impl Fn() -> Drivers) -> App {
    let began = Instant::now();
    loop {
        let (config, drivers) = (config.clone(), drivers());
        match tokio::task::spawn_blocking(move || App::build(config, drivers))
            .await
            .unwrap()
        {
            Ok(app) => return app,
            Err(error) if began.elapsed() > PATIENCE => {
                panic!("{error}: {:?}", std::error::Error::source(&error))
            }
            Err(_) => sleep(GLANCE).await,
        }
    }
}

fn config(directory: &TempDir) -> Config {
    let mut config = Config {
        state: directory.path().join("state"),
        run: directory.path().join("run"),
        ..Config::default()
    };
    // The fake VMM opens neither.
    config.machine.kernel = "/dev/null".into();
    config.machine.initramfs = "/dev/null".into();
    config.machine.cgroup_root = None;
    config.machine.scratch_mib = 16;
    // Who counts Machines does not want one that is nobody's.
    config.machine.templates.enabled = false;
    config.deadlines.boot_s = 5;
    config.deadlines.shutdown_s = 1;
    config.deadlines.drain_s = 5;
    config.deadlines.stop_s = 5;
    config.deadlines.stats_s = 1;
    config.streaming.creation_s = 5;
    config
}

fn socket(directory: &TempDir) -> PathBuf {
    directory.path().join("run/clearpod.sock")
}

async fn connect(socket: &std::path::Path) -> Channel {
    let began = Instant::now();
    loop {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        match Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
        {
            Ok(channel) => return channel,
            Err(error) if began.elapsed() > PATIENCE => panic!("{error:?}"),
            Err(_) => sleep(GLANCE).await,
        }
    }
}

pub(crate) fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: image.to_owned(),
        ..cri::ImageSpec::default()
    }
}

/// Waits until it is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        sleep(GLANCE).await;
    }
}

/// The code and text of a refusal.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(text), "{status:?}");
}
