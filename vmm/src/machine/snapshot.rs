//! The guest stands still, is written down, goes on. What is written is collected here; see `crate::snapshot`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::PoisonError;

use proto::machine::FileSource;

use super::Machine;
use crate::config::origin_problem;
use crate::devices::function::MachineFunction;
use crate::exit::{Ending, GuestEnd};
use crate::files::{self, Descriptors, FileError};
use crate::kvm::{self, KvmError, ProcessorState};
use crate::memory::image::{self, SnapshotId};
use crate::pci::bus::Function;
use crate::snapshot::file;
use crate::snapshot::state::{MachineState, PlacedDevice, SavedBus};
use crate::vcpu::PauseError;

/// Why a Machine is not written down.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeError {
    #[error("the Machine runs: pause it first")]
    Running,
    #[error("origin: {0}")]
    Origin(String),
    #[error("device {0} cannot be in a snapshot: it holds something of the host, or its driver broke it")]
    Device(String),
    #[error("device {0} is being started or reset: let the Machine go on and try again")]
    Unsettled(String),
    #[error("{field}")]
    File {
        field: &'static str,
        #[source]
        source: FileError,
    },
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("no random bytes for the snapshot's id")]
    Id(#[source] getrandom::Error),
    #[error("memory: cannot write it")]
    Memory(#[source] io::Error),
    #[error("state: cannot encode it")]
    Encode(#[source] postcard::Error),
    #[error("state: cannot write it")]
    State(#[source] io::Error),
}

/// Where a snapshot goes, and what it is called.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) memory: FileSource,
    pub(super) state: FileSource,
    pub(super) origin: String,
}

impl Machine {
    /// Halts all processors.
    pub(super) fn pause(&mut self) -> Result<(), PauseError> {
        let paused = self.vcpus.pause();
        if let Err(error @ (PauseError::Lost | PauseError::Restart(_))) = &paused {
            self.end(Ending::of_guest(GuestEnd::Failed(error.to_string()), false));
        }
        // What they asked for before they halted.
        self.read_mail();
        paused
    }

    /// Lets them go on.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        if self.vcpus.halted().is_none() {
            return Ok(());
        }
        let resumed = self.vcpus.resume();
        if let Err(error) = &resumed {
            let detail = format!("cannot start the processors: {error}");
            self.end(Ending::of_guest(GuestEnd::Failed(detail), false));
        }
        resumed
    }

    /// Writes the Machine down. The event loop does nothing else meanwhile, so nothing changes.
    pub(super) fn take_snapshot(
        &mut self,
        order: &Order,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), TakeError> {
        if let Some(problem) = origin_problem(&order.origin) {
            return Err(TakeError::Origin(problem));
        }
        let mut id = SnapshotId::default();
        getrandom::fill(&mut id).map_err(TakeError::Id)?;
        let state = self.state(id, &order.origin)?;
        let mut descriptors = Descriptors::sent(descriptors);
        let mut create = |field, source| {
            let created = files::create(source, &mut descriptors);
            created.map_err(|source| TakeError::File { field, source })
        };
        let memory = create("memory", &order.memory)?;
        let written = create("state", &order.state).and_then(|file| {
            let written = self.write(&state, &memory, &file);
            written.inspect_err(|_| forget(&order.state))
        });
        written.inspect_err(|_| forget(&order.memory))
    }

    /// Memory first: without a state it is nothing.
    fn write(&self, state: &MachineState, memory: &File, mut file: &File) -> Result<(), TakeError> {
        image::write(self.vm.memory(), state.id, memory).map_err(TakeError::Memory)?;
        image::gather(memory, &self.read_only);
        let bytes = file::encode(state).map_err(TakeError::Encode)?;
        file.write_all(&bytes).map_err(TakeError::State)
    }

    fn state(&self, id: SnapshotId, origin: &str) -> Result<MachineState, TakeError> {
        let vcpus = self.vcpus.halted().ok_or(TakeError::Running)?;
        self.bus.catch_up();
        let devices = self.save_devices()?;
        let known = kvm::msrs::known(&kvm::open()?)?;
        let processors = vcpus.iter().map(|vcpu| ProcessorState::save(vcpu, &known));
        let processors = processors.collect::<Result<_, _>>()?;
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(MachineState {
            id,
            origin: origin.to_owned(),
            shape: self.shape,
            chips: self.vm.save_chips()?,
            processors,
            bus: self.save_bus(),
            devices,
            serial: self.bus.save_serial(),
            console: ring.bytes(),
            console_dropped: ring.dropped(),
        })
    }

    fn save_devices(&self) -> Result<Vec<PlacedDevice>, TakeError> {
        let mut saved = Vec::new();
        for attached in &self.devices {
            let name = || {
                let id = attached.id.clone();
                id.unwrap_or_else(|| format!("at {}", attached.slot))
            };
            let device = attached
                .device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .save();
            let device = device.ok_or_else(|| TakeError::Device(name()))?;
            let mut pci = self.bus.pci();
            let function = pci
                .get_mut(attached.slot)
                .and_then(MachineFunction::virtio)
                .and_then(|function| function.save(&device.progress));
            saved.push(PlacedDevice {
                id: attached.id.clone(),
                slot: attached.slot,
                function: function.ok_or_else(|| TakeError::Unsettled(name()))?,
                device,
            });
        }
        Ok(saved)
    }

    fn save_bus(&self) -> SavedBus {
        let pci = self.bus.pci();
        let fixed = pci
            .functions()
            .filter(|(_, function)| !matches!(function, MachineFunction::Virtio(_)));
        SavedBus {
            address: pci.address(),
            fixed: fixed
                .map(|(slot, function)| (slot, function.config().bytes().to_vec()))
                .collect(),
        }
    }
}

/// What was made for a snapshot that came to nothing. A descriptor is its owner's.
fn forget(source: &FileSource) {
    if let FileSource::Path(path) = source
        && let Err(error) = std::fs::remove_file(path)
    {
        tracing::warn!(%error, "what there is of a snapshot stays at {}", path.display());
    }
}
