//! What the containers of a sandbox mount, carried out: names in the shared directory, the process that serves it, image
//! layers and disks on the Machine's bus, volumes that are followed. What each mount becomes was decided in
//! `container::mounts`.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use proto::{
    agent::v1::{self as agent, mount::Source},
    machine::{Device, FileSource},
};
use serde::{Deserialize, Serialize};

use super::{
    awake::{own_end, told},
    driver::Driver,
    error::{RequestError, chain},
    follow::Follower,
    live::Live,
};
use crate::{
    container::{
        devices::PlannedDevice,
        files::Budget,
        mounts::{MemoryHome, MemoryHomes, PlannedMount, SharedVolume, Volume},
    },
    machine::{MachineExit, Process, Propagation, ShareError, View},
};

/// Name of the virtio-fs device, and the tag that the guest mounts by.
const SHARES: &str = "shares";
/// As virtiofsd is tried with.
const QUEUES: u16 = 1;
const QUEUE_SIZE: u16 = 128;

/// What a container holds of the pod's volumes, recorded before anything is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VolumeUse {
    Shared {
        /// In the shared directory.
        name: String,
        of: ShareKey,
        /// The memory emptyDir that it is a part of.
        memory: Option<PathBuf>,
    },
    Memory {
        base: PathBuf,
    },
    Followed {
        path: PathBuf,
    },
    Image {
        container_path: String,
        image_id: String,
    },
}

/// What makes two shared volumes the same: then they have one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShareKey {
    path: PathBuf,
    device: u64,
    inode: u64,
    propagation: Propagation,
    submounts: Vec<String>,
    /// With the ids of the pod's user namespace.
    #[serde(default)]
    id_mapped: bool,
}

/// What of the volumes a running Machine has.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Serves the shared directory.
    server: Option<Process>,
    /// Names that are bound.
    bound: BTreeSet<String>,
    /// The next name: none comes twice, so that the guest takes none for another.
    next: u64,
    pub(super) memory_homes: MemoryHomes,
    pub(super) followers: super::follow::Followers,
}

impl Driver {
    /// What a container will hold, with a name for each shared volume; decided before it is recorded.
    pub(super) fn assign_volumes(&mut self, mounts: &[PlannedMount]) -> Result<Vec<VolumeUse>, RequestError> {
        let mut uses = Vec::new();
        for planned in mounts {
            let used = match &planned.volume {
                Volume::Sent(_) => continue,
                Volume::Followed { path, .. } => VolumeUse::Followed { path: path.clone() },
                Volume::Memory { base, .. } => {
                    self.settle(base, MemoryHome::Guest);
                    VolumeUse::Memory { base: base.clone() }
                }
                Volume::Image { image, .. } => {
                    let found = self.node.images.resolve(image).ok_or(RequestError::NotFound {
                        kind: "image",
                        id: image.clone(),
                    })?;
                    VolumeUse::Image {
                        container_path: planned.mount.destination.clone(),
                        image_id: found.id.clone(),
                    }
                }
                Volume::Shared(shared) => self.assign_share(shared, &uses),
            };
            uses.push(used);
        }
        Ok(uses)
    }

    fn assign_share(&mut self, shared: &SharedVolume, mine: &[VolumeUse]) -> VolumeUse {
        if let Some(base) = &shared.memory {
            self.settle(base, MemoryHome::Host);
        }
        let key = ShareKey {
            path: shared.path.clone(),
            device: shared.source.device,
            inode: shared.source.inode,
            propagation: shared.propagation,
            submounts: shared.submounts.clone(),
            id_mapped: shared.id_map.is_some(),
        };
        let known = self.volume_uses().chain(mine).find_map(|used| match used {
            VolumeUse::Shared { name, of, .. } if *of == key => Some(name.clone()),
            _ => None,
        });
        let name = known.unwrap_or_else(|| {
            let next = self.live.as_mut().map_or(0, |live| {
                live.shared.next += 1;
                live.shared.next - 1
            });
            next.to_string()
        });
        VolumeUse::Shared {
            name,
            of: key,
            memory: shared.memory.clone(),
        }
    }

    fn settle(&mut self, base: &std::path::Path, home: MemoryHome) {
        if let Some(live) = &mut self.live {
            live.shared.memory_homes.entry(base.to_owned()).or_insert(home);
        }
    }

    fn volume_uses(&self) -> impl Iterator<Item = &VolumeUse> {
        self.containers
            .values()
            .flat_map(|container| &container.record.volumes)
    }

    fn shared_names(&self) -> impl Iterator<Item = String> {
        self.volume_uses().filter_map(|used| match used {
            VolumeUse::Shared { name, .. } => Some(name.clone()),
            VolumeUse::Memory { .. } | VolumeUse::Followed { .. } | VolumeUse::Image { .. } => None,
        })
    }

    fn followed_paths(&self) -> impl Iterator<Item = PathBuf> {
        self.volume_uses().filter_map(|used| match used {
            VolumeUse::Followed { path } => Some(path.clone()),
            VolumeUse::Memory { .. } | VolumeUse::Shared { .. } | VolumeUse::Image { .. } => None,
        })
    }

    /// Makes every mount's source; `uses` is what [`Self::assign_volumes`] said for them.
    pub(super) async fn attach_volumes(
        &mut self,
        mounts: Vec<PlannedMount>,
        uses: &[VolumeUse],
    ) -> Result<Vec<agent::Mount>, RequestError> {
        let mut uses = uses.iter();
        let mut attached = Vec::with_capacity(mounts.len());
        for planned in mounts {
            let PlannedMount {
                field,
                mut mount,
                volume,
            } = planned;
            let source = match volume {
                Volume::Sent(source) => source,
                other => {
                    let used = uses
                        .next()
                        .ok_or_else(|| RequestError::invalid(&field, "no volume"))?;
                    self.attach_volume(&field, other, used).await?
                }
            };
            mount.source = Some(source);
            attached.push(mount);
        }
        Ok(attached)
    }

    async fn attach_volume(
        &mut self,
        field: &str,
        volume: Volume,
        used: &VolumeUse,
    ) -> Result<Source, RequestError> {
        Ok(match (volume, used) {
            (Volume::Followed { source, .. }, _) => Source::Files(source),
            (Volume::Memory { source, .. }, _) => Source::Tmpfs(source),
            (Volume::Image { path, .. }, VolumeUse::Image { image_id, .. }) => {
                Source::Image(self.attach_image(image_id, path).await?)
            }
            (Volume::Shared(shared), VolumeUse::Shared { name, .. }) => {
                Source::Shared(self.attach_share(field, shared, name).await?)
            }
            (volume, used) => {
                let reason = format!("{volume:?} is not {used:?}");
                return Err(RequestError::failed("attach a volume")(reason));
            }
        })
    }

    async fn attach_image(&mut self, id: &str, path: String) -> Result<agent::ImageSource, RequestError> {
        let images = Arc::clone(&self.node.images);
        let image = images.resolve(id).ok_or_else(|| RequestError::NotFound {
            kind: "image",
            id: id.to_owned(),
        })?;
        let defaults = &self.node.config.machine;
        let live = self
            .live
            .as_mut()
            .ok_or_else(|| super::containers::not_ready(&self.record.id))?;
        live.hold(&image.id, || Some(images.lease(&image)));
        let layers = live.add_layers(&image, defaults).await?;
        Ok(agent::ImageSource { layers, path })
    }

    async fn attach_share(
        &mut self,
        field: &str,
        shared: SharedVolume,
        name: &str,
    ) -> Result<agent::SharedSource, RequestError> {
        let shares = Arc::clone(&self.node.shares);
        let cgroup = self
            .plan
            .cgroup
            .as_ref()
            .map(|plan| plan.cgroup.directory().to_owned());
        let live = self
            .live
            .as_mut()
            .ok_or_else(|| super::containers::not_ready(&self.record.id))?;
        if live.shared.server.is_none() {
            let served = shares.serve(&self.plan.layout, cgroup.as_deref()).await;
            let (server, socket) = served.map_err(|error| not_served(field, &shared.path, error))?;
            live.add_shares(server, socket).await?;
        }
        if !live.shared.bound.contains(name) {
            let view = View {
                propagation: shared.propagation,
                id_map: shared.id_map,
            };
            let bound = shares.bind(&self.plan.layout, name, shared.source.file, view);
            bound
                .await
                .map_err(|error| not_bound(field, &shared.path, error))?;
            live.shared.bound.insert(name.to_owned());
        }
        Ok(agent::SharedSource {
            tag: SHARES.to_owned(),
            path: name.to_owned(),
            pci_address: live.device(SHARES)?.to_owned(),
            submounts: shared.submounts,
        })
    }

    /// Puts disks of the host on the Machine's bus, unless they are there; they stay until it ends.
    pub(super) async fn attach_devices(
        &mut self,
        devices: Vec<PlannedDevice>,
    ) -> Result<Vec<agent::Device>, RequestError> {
        let live = self
            .live
            .as_mut()
            .ok_or_else(|| super::containers::not_ready(&self.record.id))?;
        let mut attached = Vec::with_capacity(devices.len());
        for planned in devices {
            attached.push(live.add_disk(planned).await?);
        }
        Ok(attached)
    }

    /// Follows what containers have that is to be followed. `generations` is what the guest was given just now.
    pub(super) fn follow_volumes(&mut self, generations: &BTreeMap<PathBuf, String>) {
        let paths: Vec<PathBuf> = self.followed_paths().collect();
        let Some(live) = &mut self.live else {
            return;
        };
        let follower = Follower {
            directories: Arc::clone(&self.node.directories),
            guest: live.guest.clone(),
            budget: Budget::new(&self.node.config.container),
        };
        for path in paths {
            let generation = generations.get(&path).cloned();
            live.shared.followers.follow(&path, generation, follower.clone());
        }
    }

    /// Gives back what no container holds any more; what cannot be given back goes with the Machine.
    pub(super) async fn release_volumes(&mut self) {
        let names: BTreeSet<String> = self.shared_names().collect();
        let followed: BTreeSet<PathBuf> = self.followed_paths().collect();
        let Some(live) = &mut self.live else {
            return;
        };
        live.shared.followers.keep(|path| followed.contains(path));
        let unused: Vec<String> = live.shared.bound.difference(&names).cloned().collect();
        for name in unused {
            match self.node.shares.unbind(&self.plan.layout, &name).await {
                Ok(()) => {
                    live.shared.bound.remove(&name);
                }
                Err(error) => tracing::warn!(
                    sandbox = self.record.id,
                    error = chain(&error),
                    "a volume stays shared"
                ),
            }
        }
    }

    /// After a restart: takes over who serves the volumes, forgets what no container holds, follows again. `Err` says why
    /// the Machine is of no use any more.
    pub(super) async fn recover_volumes(&mut self) -> Result<(), String> {
        let bound = self.node.shares.names(&self.plan.layout).await;
        let server = self.node.shares.adopt(&self.plan.layout).await;
        let homes: Vec<(PathBuf, MemoryHome)> = self
            .volume_uses()
            .filter_map(|used| match used {
                VolumeUse::Memory { base } => Some((base.clone(), MemoryHome::Guest)),
                VolumeUse::Shared { memory, .. } => memory.clone().map(|base| (base, MemoryHome::Host)),
                VolumeUse::Followed { .. } | VolumeUse::Image { .. } => None,
            })
            .collect();
        let names: Vec<String> = self.shared_names().collect();
        let Some(live) = &mut self.live else {
            return Ok(());
        };
        let bound = bound.map_err(|error| chain(&error))?;
        let server = server.map_err(|error| chain(&error))?;
        if live.device(SHARES).is_ok() {
            live.shared.server = Some(server.ok_or("virtiofsd ended while the daemon was not running")?);
        }
        let numbers = bound.iter().chain(&names).filter_map(|name| name.parse().ok());
        live.shared.next = numbers.max().map_or(0, |last: u64| last.saturating_add(1));
        live.shared.bound = bound.into_iter().collect();
        live.shared.memory_homes.extend(homes);
        self.release_volumes().await;
        self.follow_volumes(&BTreeMap::new());
        Ok(())
    }

    /// The process that serves the volumes has ended: every access to them fails from now on, so the Machine ends too.
    pub(super) async fn server_ended(&mut self, exit: MachineExit) {
        // It also ends with its connection, which a VMM that ends lets go of before it is gone.
        if let Some(live) = &self.live
            && let Some(exit) = own_end(&live.process).await
        {
            self.machine_ended(&told(&self.plan, exit)).await;
            return;
        }
        let how = match exit {
            MachineExit::Exited(reason) => format!("with code {}", reason.code()),
            MachineExit::Signalled(signal) => format!("by signal {signal}"),
            MachineExit::Unobserved => "for a reason that is not known".to_owned(),
        };
        let why = format!("virtiofsd, which served its volumes, ended {how}");
        self.end_useless_machine(&why).await;
    }
}

impl Live {
    /// Connects the VMM with the process that serves the shared directory.
    async fn add_shares(&mut self, server: Process, socket: OwnedFd) -> Result<(), RequestError> {
        let device = Device::Fs {
            id: SHARES.to_owned(),
            socket: FileSource::Fd(0),
            tag: SHARES.to_owned(),
            queues: QUEUES,
            queue_size: QUEUE_SIZE,
        };
        let added = self.add_device(SHARES, device, Some(socket.as_fd())).await;
        if let Err(error) = added {
            // Without a VMM it would end by itself; this is sooner.
            if let Err(error) = server.kill() {
                tracing::warn!(%error, "virtiofsd could not be killed");
            }
            return Err(error);
        }
        self.shared.server = Some(server);
        Ok(())
    }

    async fn add_disk(&mut self, planned: PlannedDevice) -> Result<agent::Device, RequestError> {
        let device = Device::Block {
            id: planned.id.clone(),
            file: FileSource::Fd(0),
            read_only: planned.read_only,
        };
        if self.device(&planned.id).is_err() {
            self.add_device(&planned.id, device, Some(planned.file.as_fd()))
                .await?;
        }
        let disk = agent::Disk {
            pci_address: self.device(&planned.id)?.to_owned(),
            read_only: planned.read_only,
            ..agent::Disk::default()
        };
        Ok(agent::Device {
            disk: Some(disk),
            ..planned.device
        })
    }

    /// Returns when the process that serves the volumes has ended; never when there is none.
    pub(super) async fn server_exit(&self) -> MachineExit {
        match &self.shared.server {
            Some(server) => server.exited().await,
            None => std::future::pending().await,
        }
    }
}

fn not_bound(field: &str, path: &std::path::Path, error: ShareError) -> RequestError {
    match error {
        ShareError::IdMap { .. } => {
            let reason = format!("{}: {}", path.display(), chain(&error));
            RequestError::unsupported(format!("{field}.uidMappings"), reason)
        }
        ShareError::Program { .. } | ShareError::Step { .. } => {
            RequestError::failed(format!("share {} with the guest", path.display()))(error)
        }
    }
}

fn not_served(field: &str, path: &std::path::Path, error: ShareError) -> RequestError {
    match error {
        ShareError::Program { .. } => {
            let reason = format!("{} has to be shared with the guest, and {error}", path.display());
            RequestError::unsupported(format!("{field}.host_path"), reason)
        }
        ShareError::Step { .. } | ShareError::IdMap { .. } => {
            RequestError::failed("share the pod's volumes")(error)
        }
    }
}
