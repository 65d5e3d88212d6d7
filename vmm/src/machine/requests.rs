//! What each request of the daemon does.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;

use event_manager::SubscriberOps;
use proto::machine::{Description, Device, DevicePlace, Request, Response, Stats, Timeline};

use super::Machine;
use crate::config::{DeviceError, prepare_device};
use crate::control::{self, Received};
use crate::devices::table;
use crate::exit::{self, Ending};
use crate::files::Descriptors;

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
            Request::Console {} => {
                let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
                Response::Console {
                    text: ring.text(),
                    dropped: ring.dropped(),
                }
            }
            Request::Stats {} => Response::Stats(Stats {
                exits: self.counters.read(),
            }),
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

    fn add_device(&mut self, device: &Device, descriptors: Vec<OwnedFd>) -> Result<String, Box<dyn Error>> {
        if self.position(device.id()).is_some() {
            return Err(DeviceError::Duplicate(device.id().to_owned()).into());
        }
        let prepared = prepare_device(device, &mut Descriptors::sent(descriptors))?;
        let built = table::build(prepared, &self.vm)?;
        Ok(self.attach(built)?.to_string())
    }

    fn remove_device(&mut self, id: &str) -> Response {
        let Some(position) = self.position(id) else {
            return Response::Error {
                message: format!("no device has the id {id:?}"),
            };
        };
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

fn refusal(error: &dyn Error) -> Response {
    Response::Error {
        message: exit::one_line(error),
    }
}
