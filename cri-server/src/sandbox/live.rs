//! A Machine that runs, with the connections to it and the image layers that are on its bus.
//!
//! A layer is added once per Machine, whichever containers use it, and stays until the Machine ends: the guest keeps it
//! mounted for the next container of the same image. Which layers are there is read back from the VMM after a restart of the
//! daemon, so nothing of it is stored.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd},
};

use proto::{
    agent::v1 as agent,
    machine::{Device, FileSource},
};

use super::{
    awake::ended_first, error::RequestError, plan::SandboxPlan, room::Size, view::MachineView,
    volumes::Shared,
};
use crate::{
    config::{LayerTransport, MachineDefaults},
    guest::{Dialer, GuestClient, GuestError},
    host::Kind,
    image::{Image, ImageLease, Layer},
    machine::{ControlClient, Process},
};

/// Names of devices that every Machine has.
pub(super) const NET: &str = "net0";
pub(super) const SCRATCH: &str = "scratch";
pub(super) const BALLOON: &str = "balloon";
/// A Machine that has grown has it.
pub(super) const MEMORY: &str = "memory";
/// A layer's device is named by its transport and the first [`DIGITS`] hexadecimal digits of its digest.
const PMEM: &str = "pmem-";
const BLOCK: &str = "blk-";
/// The VMM takes names of up to 64 bytes; 160 bits of a digest are as good as all of it.
const DIGITS: usize = 40;

const MIB: u64 = 1024 * 1024;

/// A running Machine.
#[derive(Debug)]
pub(crate) struct Live {
    pub(super) process: Process,
    /// A host pod has none.
    pub(super) control: Option<ControlClient>,
    pub(super) guest: GuestClient,
    pub(super) dialer: Dialer,
    /// PCI address by device name.
    devices: BTreeMap<String, String>,
    pub(super) size: Size,
    /// What UpdatePodSandboxResources granted, 0 before.
    pub(super) pod_size: Size,
    /// Images whose layers are on the bus, by id.
    leases: BTreeMap<String, ImageLease>,
    pub(super) shared: Shared,
}

impl Live {
    /// The connections to a Machine whose VMM runs, or to a host pod whose shim does. Nothing is opened yet.
    pub(super) fn new(plan: &SandboxPlan, process: Process) -> Self {
        let layout = &plan.layout;
        let (control, dialer) = match plan.kind {
            Kind::Machine => (Some(ControlClient::new(layout)), Dialer::new(layout)),
            Kind::Host(_) => (None, Dialer::of_shim(layout)),
        };
        Self {
            process,
            control,
            guest: GuestClient::over(dialer.clone()),
            dialer,
            devices: BTreeMap::new(),
            size: Size::planned(plan),
            pod_size: Size {
                memory_mib: 0,
                vcpus: 0,
            },
            leases: BTreeMap::new(),
            shared: Shared::default(),
        }
    }

    pub(super) fn view(&self, plan: &SandboxPlan) -> MachineView {
        MachineView {
            kind: plan.kind.clone(),
            pid: self.process.pid(),
            memory_mib: self.size.memory_mib,
            vcpus: self.size.vcpus,
            control: self.control.clone(),
            guest: self.guest.clone(),
            dialer: self.dialer.clone(),
        }
    }

    /// What went wrong, in the words that say most: that its VMM has ended, if it has.
    pub(super) async fn cause(&self, plan: &SandboxPlan, error: RequestError) -> RequestError {
        let may_follow = matches!(
            &error,
            RequestError::Failed { .. }
                | RequestError::Guest {
                    source: GuestError::Unreachable { .. },
                    ..
                }
        );
        if !may_follow {
            return error;
        }
        match ended_first(plan, &self.process, &error).await {
            Some((_, reason)) => RequestError::failed("use the machine")(reason),
            None => error,
        }
    }

    /// Remembers where devices are, as the VMM tells.
    pub(super) fn place(&mut self, places: Vec<proto::machine::DevicePlace>) {
        self.devices = places
            .into_iter()
            .map(|place| (place.id, place.pci_address))
            .collect();
    }

    /// PCI address of a device.
    pub(super) fn device(&self, id: &str) -> Result<&str, RequestError> {
        self.devices.get(id).map(String::as_str).ok_or_else(|| {
            let source = format!("it has {:?}", self.devices.keys().collect::<Vec<_>>());
            RequestError::failed(format!("find the device {id} of the machine"))(source)
        })
    }

    /// Keeps an image's layers on the host's disk as long as this Machine runs.
    pub(super) fn hold(&mut self, image_id: &str, lease: impl FnOnce() -> Option<ImageLease>) {
        if !self.leases.contains_key(image_id)
            && let Some(lease) = lease()
        {
            self.leases.insert(image_id.to_owned(), lease);
        }
    }

    /// Puts the layers of `image` that are not there yet on the bus; returns all of them for the agent, lowest first. A host pod's
    /// shim mounts the files themselves.
    pub(super) async fn add_layers(
        &mut self,
        image: &Image,
        defaults: &MachineDefaults,
    ) -> Result<Vec<agent::Disk>, RequestError> {
        let mut disks = Vec::with_capacity(image.layers.len());
        let has_a_bus = self.control.is_some();
        for layer in &image.layers {
            disks.push(match has_a_bus {
                true => self.add_layer(layer, defaults).await?,
                false => host_file(layer)?,
            });
        }
        Ok(disks)
    }

    async fn add_layer(
        &mut self,
        layer: &Layer,
        defaults: &MachineDefaults,
    ) -> Result<agent::Disk, RequestError> {
        let digest = layer.diff_id.strip_prefix("sha256:").unwrap_or(&layer.diff_id);
        let digest = digest.get(..DIGITS).unwrap_or(digest);
        for (prefix, dax) in [(PMEM, true), (BLOCK, false)] {
            if let Some(pci_address) = self.devices.get(&format!("{prefix}{digest}")) {
                return Ok(disk(pci_address, dax));
            }
        }
        let dax = match defaults.layer_transport {
            LayerTransport::Pmem => true,
            LayerTransport::Block => false,
            LayerTransport::Auto => layer.size <= defaults.pmem_max_mib * MIB,
        };
        let id = format!("{}{digest}", if dax { PMEM } else { BLOCK });
        let file = FileSource::Fd(0);
        let device = if dax {
            Device::Pmem { id: id.clone(), file }
        } else {
            Device::Block {
                id: id.clone(),
                file,
                read_only: true,
            }
        };
        let path = layer.path.clone();
        let blob = tokio::task::spawn_blocking(move || fs_err::File::open(path))
            .await
            .map_err(RequestError::failed("open an image layer"))?
            .map_err(RequestError::failed("open an image layer"))?;
        self.add_device(&id, device, Some(blob.as_fd())).await?;
        Ok(disk(self.device(&id)?, dax))
    }

    /// Puts a device made of `file` on the bus.
    pub(super) async fn add_device(
        &mut self,
        id: &str,
        device: Device,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(), RequestError> {
        let control = self.control.as_ref().ok_or_else(|| {
            RequestError::failed(format!("add {id} to the machine"))(
                "a pod on the host has no devices of its own",
            )
        })?;
        let added = control.add_device(device, file.as_slice()).await;
        let pci_address = added.map_err(RequestError::failed(format!("add {id} to the machine")))?;
        self.devices.insert(id.to_owned(), pci_address);
        Ok(())
    }
}

fn disk(pci_address: &str, dax: bool) -> agent::Disk {
    agent::Disk {
        pci_address: pci_address.to_owned(),
        filesystem: "erofs".to_owned(),
        dax,
        read_only: true,
        host_path: String::new(),
    }
}

fn host_file(layer: &Layer) -> Result<agent::Disk, RequestError> {
    let path = layer.path.to_str().ok_or_else(|| {
        RequestError::failed("mount an image layer")(format!("{} is not UTF-8", layer.path.display()))
    })?;
    Ok(agent::Disk {
        filesystem: "erofs".to_owned(),
        read_only: true,
        host_path: path.to_owned(),
        ..agent::Disk::default()
    })
}
