//! The event loop's vocabulary: what can wake it (`Subscriber`) and what other threads ask of it (`Message`).
//!
//! The loop runs on the main thread and owns the Machine. A vCPU thread never waits for it: it posts a message and goes
//! on.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::signalfd::SignalFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::control::ControlServer;
use crate::exit::GuestEnd;
use crate::pci::bus::Slot;
use crate::pci::transport::SharedDevice;

/// What another thread asks of the event loop.
#[derive(Debug)]
pub(crate) enum Message {
    /// The driver has set the device up.
    ActivateDevice(Slot),
    /// The driver resets the device and waits.
    ResetDevice(Slot),
    /// The guest's kernel reports that it panicked; it may still write to its console.
    GuestPanicked,
    /// A vCPU will not run again.
    GuestEnded(GuestEnd),
}

/// The sending side; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    sender: Sender<Message>,
    bell: Arc<EventFd>,
}

impl Mailbox {
    /// The sending side, the receiving side, and what becomes readable when there is something to receive.
    pub(crate) fn new() -> io::Result<(Self, Receiver<Message>, Arc<EventFd>)> {
        let (sender, receiver) = channel();
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok((
            Self {
                sender,
                bell: Arc::clone(&bell),
            },
            receiver,
            bell,
        ))
    }

    /// Never blocks. A message to a loop that has ended is dropped: the Machine is gone.
    pub(crate) fn send(&self, message: Message) {
        if self.sender.send(message).is_ok() {
            // Fails only when the counter is full: then the loop is awake already.
            drop(self.bell.write(1));
        }
    }
}

/// Everything that can wake the event loop.
#[derive(Debug)]
pub(crate) enum Subscriber {
    Mail(Arc<EventFd>),
    /// SIGTERM and SIGINT.
    Signals {
        descriptor: SignalFd,
        received: bool,
    },
    Control(ControlServer),
    Device(DeviceSubscriber),
}

/// An active device.
pub(crate) struct DeviceSubscriber(pub(crate) SharedDevice);

impl std::fmt::Debug for DeviceSubscriber {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DeviceSubscriber")
    }
}

impl MutEventSubscriber for Subscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let added = match self {
            Self::Mail(bell) => ops.add(Events::new(bell.as_ref(), EventSet::IN)),
            Self::Signals { descriptor, .. } => ops.add(Events::new(descriptor, EventSet::IN)),
            Self::Control(control) => control.watch(ops),
            Self::Device(device) => {
                device.0.lock().unwrap_or_else(PoisonError::into_inner).init(ops);
                Ok(())
            }
        };
        if let Err(error) = added {
            tracing::error!(%error, "cannot watch {self:?}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self {
            // The loop looks into the mailbox after every wake-up.
            Self::Mail(bell) => drop(bell.read()),
            Self::Signals { descriptor, received } => {
                *received |= matches!(descriptor.read_signal(), Ok(Some(_)));
            }
            Self::Control(control) => control.process(events, ops),
            Self::Device(device) => {
                device
                    .0
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .process(events, ops);
            }
        }
    }
}
