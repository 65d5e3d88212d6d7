//! Wires the daemon from its configuration and runs it: which store, network, launcher and image store; then recover, serve,
//! drain. Nothing here decides about pods.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Config,
    directory_watch::DirectoryWatch,
    grpc::{
        self, Edge,
        socket::{self, DirectoryLock},
    },
    guest_clock,
    image::{ImageStore, OpenError},
    machine::{Launcher, ScratchError, ScratchTemplate, Shares, Virtiofsd, VmmLauncher},
    metrics::Metrics,
    network::{CniNetwork, Network},
    sandbox::{Events, Node, Registry, Turns, default_shape},
    stats::Samples,
    store::{Store, recovery},
    streaming::{self, Streaming},
    template::{self, Templates},
};

pub use crate::{grpc::socket::SocketError, store::StoreError};

/// What acts on the host; tests bring fakes.
#[derive(Debug)]
pub struct Drivers {
    /// Starts VMMs.
    pub launcher: Arc<dyn Launcher>,
    /// Attaches pods to the network.
    pub network: Arc<dyn Network>,
    /// Shares files of the host with guests.
    pub shares: Arc<dyn Shares>,
}

/// A daemon that is wired and does not run yet.
#[derive(Debug)]
pub struct App {
    node: Arc<Node>,
    _locks: [DirectoryLock; 2],
}

/// Why the daemon cannot be wired.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Its directories or its socket.
    #[error("take the daemon's directories")]
    Socket(#[from] SocketError),
    /// Its records.
    #[error("open the daemon's records")]
    Store(#[from] StoreError),
    /// Its images.
    #[error("open the image store")]
    Images(#[from] OpenError),
    /// Its scratch disks.
    #[error("prepare scratch disks")]
    Scratch(#[from] ScratchError),
    /// A directory cannot be made.
    #[error("make {}", path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

/// Why a daemon ended that was not told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The CRI socket.
    #[error("listen for CRI")]
    Socket(#[from] SocketError),
    /// The address of the streaming server.
    #[error("listen for exec, attach and port-forward on {address}")]
    Streaming {
        /// As it is configured.
        address: std::net::SocketAddr,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The records of the last daemon.
    #[error("recover the state of the last daemon")]
    Recovery(#[from] StoreError),
    /// gRPC.
    #[error("serve CRI")]
    Grpc(#[from] tonic::transport::Error),
}

impl Drivers {
    /// The real ones.
    #[must_use]
    pub fn real(config: &Config) -> Self {
        Self {
            launcher: Arc::new(
                VmmLauncher::new(config.machine.vmm.clone()).with_shim(config.host_pods.shim()),
            ),
            network: Arc::new(CniNetwork::new(config.network.clone())),
            shares: Arc::new(Virtiofsd::new(config.machine.virtiofsd.clone())),
        }
    }
}

impl App {
    /// Locks the daemon's directories and opens what is in them. Blocks on the disk.
    ///
    /// # Errors
    /// [`BuildError`]
    pub fn build(config: Config, drivers: Drivers) -> Result<Self, BuildError> {
        let locks = [
            DirectoryLock::take(&config.run)?,
            DirectoryLock::take(&config.state)?,
        ];
        for path in [config.machines(), config.scratch()] {
            fs_err::create_dir_all(&path).map_err(|source| BuildError::Directory { path, source })?;
        }
        let store = Store::open(&config.state.join("clearpod.redb"))?;
        let images = Arc::new(ImageStore::open(config.image.clone())?);
        let scratch_bytes = config.machine.scratch_mib.saturating_mul(1024 * 1024);
        let scratch = ScratchTemplate::new(config.state.join("scratch-template"), scratch_bytes)?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let node = Node {
            store,
            images,
            network: drivers.network,
            launcher: drivers.launcher,
            shares: drivers.shares,
            directories: Arc::new(DirectoryWatch::new(tasks.clone(), stop.clone())),
            scratch,
            templates: Templates::new(&config.machine.templates, default_shape(&config)),
            turns: Turns::new(&config),
            metrics: Metrics::default(),
            streaming: Streaming::new(&config.streaming),
            sandboxes: Registry::default(),
            events: Events::default(),
            samples: Samples::default(),
            pod_cidr: Mutex::default(),
            tasks,
            stop,
            config,
        };
        Ok(Self {
            node: Arc::new(node),
            _locks: locks,
        })
    }

    /// Serves CRI until `stop` ends: binds the socket, recovers behind it, drains. Machines run on.
    ///
    /// # Errors
    /// [`ServeError`]
    pub async fn serve(self, stop: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let path = self.node.config.socket();
        let listener = socket::bind(&path)?;
        let streaming = &self.node.config.streaming;
        let streams = streaming::bind(&self.node)
            .await
            .map_err(|source| ServeError::Streaming {
                address: (streaming.address, streaming.port).into(),
                source,
            })?;
        self.node
            .tasks
            .spawn(streaming::serve(Arc::clone(&self.node), streams));
        let (gate, recovered) = watch::channel(false);
        let edge = Edge::new(Arc::clone(&self.node), recovered);
        let draining = CancellationToken::new();
        let server = grpc::serve(edge, listener, draining.clone().cancelled_owned());
        tokio::pin!(server);
        let life = async {
            recovery::recover_all(&self.node).await?;
            gate.send_replace(true);
            tracing::info!(socket = %path.display(), "ready");
            self.prepare_scratch().await;
            self.node.tasks.spawn(template::keep(Arc::clone(&self.node)));
            self.node.tasks.spawn(guest_clock::keep(Arc::clone(&self.node)));
            stop.await;
            Ok::<(), ServeError>(())
        };
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            lived = life => lived?,
        }
        tracing::info!("stopping; machines run on");
        self.node.stop.cancel();
        draining.cancel();
        self.node.tasks.close();
        let drained = timeout(self.node.config.deadlines.stop(), async {
            let served = server.await;
            self.node.tasks.wait().await;
            served
        });
        match drained.await {
            Ok(served) => served?,
            Err(_) => tracing::warn!("not everything ended in time; the next start finishes it"),
        }
        // The next daemon replaces a socket that stays.
        drop(std::fs::remove_file(&path));
        Ok(())
    }

    /// The first pod is quicker when the template of its scratch disk is there.
    async fn prepare_scratch(&self) {
        if let Err(error) = self.node.scratch.prepare().await {
            tracing::warn!(
                error = crate::sandbox::chain(&error),
                "scratch disks cannot be made"
            );
        }
    }

    /// Removes Machines, networks and disks that carry our names and belong to no recorded sandbox. Not while a daemon
    /// serves these directories: it does so itself at its start.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn collect_garbage(&self) -> Result<(), StoreError> {
        let known = recovery::known_sandboxes(&self.node).await?;
        recovery::remove_orphans(&self.node, &known).await;
        Ok(())
    }
}
