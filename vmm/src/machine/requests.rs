//! What each request of the daemon does.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use event_manager::SubscriberOps;
use proto::machine::{Description, Device, DevicePlace, MAX_PAGE_RUNS, Request, Response, Stats, Timeline};

use super::Machine;
use super::snapshot::Order;
use crate::config::{DeviceError, prepare_device};
use crate::control::{self, Received};
use crate::devices::table::{self, Adjustable};
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::mem::Mem;
use crate::exit::{self, Ending};
use crate::files::Descriptors;
use crate::memory;

impl Machine {
    pub(super) fn next_request(&mut self) -> Option<Received> {
        self.control()?.next_request()
    }

    /// Does what is asked and answers.
    pub(super) fn serve(&mut self, received: Received) {
        let Received {
            client,
            request,
            descriptors,
        } = received;
        let response = self.respond(request, descriptors);
        let Some(control) = self.control() else {
            return;
        };
        let changes = control.answer(client, &response);
        if let Ok(mut ops) = self.events.event_ops(self.control) {
            control::apply(changes, &mut ops);
        }
    }

    fn respond(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> Response {
        match request {
            Request::Describe {} => Response::Description(self.describe()),
            Request::AddDevice { device } => match self.add_device(&device, descriptors) {
                Ok(pci_address) => Response::Added { pci_address },
                Err(error) => refusal(error.as_ref()),
            },
            Request::RemoveDevice { id } => self.remove_device(&id),
            Request::ResizeMemory { plugged_mib } => self.resize_memory(plugged_mib),
            Request::ResizeBalloon { held_mib } => self.resize_balloon(held_mib),
            Request::Console {} => {
                let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
                Response::Console {
                    text: ring.text(),
                    dropped: ring.dropped(),
                }
            }
            Request::Stats {} => Response::Stats(self.stats()),
            Request::CopiedPages {} => match memory::copied(self.vm.memory(), MAX_PAGE_RUNS) {
                Ok(runs) => Response::CopiedPages { runs },
                Err(error) => refusal(&error),
            },
            Request::Pause {} => done(self.pause()),
            Request::Resume {} => done(self.resume()),
            Request::Snapshot {
                memory,
                state,
                origin,
            } => {
                let order = Order {
                    memory,
                    state,
                    origin,
                };
                done(self.take_snapshot(&order, descriptors))
            }
            Request::Stop {} => {
                self.end(Ending::stopped());
                Response::Done {}
            }
        }
    }

    fn describe(&self) -> Description {
        let named = self
            .devices
            .iter()
            .filter_map(|attached| Some((attached.id.clone()?, attached.slot)));
        Description {
            id: self.id.clone(),
            pid: std::process::id(),
            timeline: Timeline {
                process_started_ns: self.milestones.process_started,
                kernel_entered_ns: self.milestones.kernel_entered.get().copied(),
                first_vsock_ns: self.milestones.first_vsock.get().copied(),
            },
            devices: named
                .map(|(id, slot)| DevicePlace {
                    id,
                    pci_address: slot.to_string(),
                })
                .collect(),
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            exits: self.counters.read(),
            memory: self.memory_device().map(|memory| locked(memory).stats()),
            balloon: self.balloon().map(|balloon| locked(balloon).stats()),
        }
    }

    fn resize_memory(&self, plugged_mib: u64) -> Response {
        match self.memory_device() {
            Some(memory) => done(locked(memory).resize(plugged_mib)),
            None => refused("the Machine has no memory device"),
        }
    }

    fn resize_balloon(&self, held_mib: u64) -> Response {
        match self.balloon() {
            Some(balloon) => done(locked(balloon).hold(held_mib)),
            None => refused("the Machine has no balloon"),
        }
    }

    fn memory_device(&self) -> Option<&Mutex<Mem>> {
        self.adjustables().find_map(|adjustable| match adjustable {
            Adjustable::Memory(memory) => Some(memory.as_ref()),
            Adjustable::Balloon(_) => None,
        })
    }

    fn balloon(&self) -> Option<&Mutex<Balloon>> {
        self.adjustables().find_map(|adjustable| match adjustable {
            Adjustable::Balloon(balloon) => Some(balloon.as_ref()),
            Adjustable::Memory(_) => None,
        })
    }

    fn adjustables(&self) -> impl Iterator<Item = &Adjustable> {
        self.devices
            .iter()
            .filter_map(|attached| attached.adjustable.as_ref())
    }

    fn add_device(&mut self, device: &Device, descriptors: Vec<OwnedFd>) -> Result<String, Box<dyn Error>> {
        if self.position(device.id()).is_some() {
            return Err(DeviceError::Duplicate(device.id().to_owned()).into());
        }
        let second = match device {
            Device::Memory { .. } => self.memory_device().is_some(),
            Device::Balloon { .. } => self.balloon().is_some(),
            _ => false,
        };
        if second {
            return Err(DeviceError::Second(device.id().to_owned()).into());
        }
        let prepared = prepare_device(device, &mut Descriptors::sent(descriptors))?;
        let built = table::build(prepared, &self.vm)?;
        Ok(self.attach(built)?.to_string())
    }

    fn remove_device(&mut self, id: &str) -> Response {
        let Some(position) = self.position(id) else {
            return refused(&format!("no device has the id {id:?}"));
        };
        if let Some(Adjustable::Memory(memory)) = &self.devices[position].adjustable
            && locked(memory).stats().plugged_mib > 0
        {
            return refused(&format!("device {id}: the guest has memory of it plugged"));
        }
        let attached = self.devices.remove(position);
        self.detach(attached);
        Response::Done {}
    }

    fn position(&self, id: &str) -> Option<usize> {
        self.devices
            .iter()
            .position(|attached| attached.id.as_deref() == Some(id))
    }
}

fn done<E: Error>(result: Result<(), E>) -> Response {
    match result {
        Ok(()) => Response::Done {},
        Err(error) => refusal(&error),
    }
}

fn refusal(error: &dyn Error) -> Response {
    refused(&exit::one_line(error))
}

fn refused(message: &str) -> Response {
    Response::Error {
        message: message.to_owned(),
    }
}

/// A device is consistent after every call: a panic in one does not spoil it.
fn locked<D>(device: &Mutex<D>) -> MutexGuard<'_, D> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
