//! The Machine: owns everything of a running guest, on the event loop's thread.
//!
//! ```text
//! Running ──guest reset, failed, Stop, SIGTERM──▶ Ended(why) ──▶ teardown
//!    └──pvpanic──▶ Panicked(since) ──reset, or the grace is over──▶ Ended
//! ```
//!
//! `lifecycle` starts, resets and removes devices; `requests` answers the control socket; `snapshot` halts the guest and
//! writes it down.

mod lifecycle;
mod requests;
mod snapshot;

pub(crate) use self::lifecycle::{AttachError, attach, attach_at};

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberId, SubscriberOps};

use crate::bus::Bus;
use crate::control::ControlServer;
use crate::devices::ring::ConsoleRing;
use crate::devices::table::{Adjustable, BuiltDevice};
use crate::event_loop::{Message, Subscriber};
use crate::exit::{Ending, GuestEnd};
use crate::kvm::{FileRegion, Vm};
use crate::pci::bus::Slot;
use crate::pci::transport::{Services, SharedDevice};
use crate::snapshot::state::Shape;
use crate::vcpu::{ExitCounters, VcpuThreads};

/// How long a kernel that has panicked may write to its console before the Machine ends anyway.
const PANIC_GRACE: Duration = Duration::from_secs(2);

/// Everything of a running guest.
pub(crate) struct Machine {
    pub(crate) id: String,
    pub(crate) shape: Shape,
    /// Guest-physical ranges that the guest does not write, as far as is known: its kernel's text.
    pub(crate) read_only: Vec<Range<u64>>,
    pub(crate) vm: Arc<Vm>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) services: Services,
    pub(crate) devices: Vec<AttachedDevice>,
    pub(crate) ring: Arc<Mutex<ConsoleRing>>,
    pub(crate) console_dump: Option<PathBuf>,
    pub(crate) milestones: Milestones,
    pub(crate) counters: Arc<ExitCounters>,
    pub(crate) vcpus: VcpuThreads,
    pub(crate) events: EventManager<Subscriber>,
    pub(crate) mail: Receiver<Message>,
    pub(crate) control: SubscriberId,
    pub(crate) signals: SubscriberId,
    pub(crate) life: Life,
}

/// When things happened, `CLOCK_MONOTONIC` nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Milestones {
    pub(crate) process_started: u64,
    pub(crate) kernel_entered: Arc<OnceLock<u64>>,
    pub(crate) first_vsock: Arc<OnceLock<u64>>,
}

/// A virtio device on the bus.
pub(crate) struct AttachedDevice {
    /// `None`: the VMM's own, which cannot be removed.
    pub(crate) id: Option<String>,
    pub(crate) slot: Slot,
    pub(crate) device: SharedDevice,
    /// While it is active.
    pub(crate) subscription: Option<SubscriberId>,
    pub(crate) region: Option<FileRegion>,
    pub(crate) adjustable: Option<Adjustable>,
}

impl AttachedDevice {
    /// One of the VMM's own.
    pub(crate) fn own(device: SharedDevice, slot: Slot) -> Self {
        Self {
            id: None,
            slot,
            device,
            subscription: None,
            region: None,
            adjustable: None,
        }
    }

    /// One of the configuration or of a request.
    pub(crate) fn named(built: BuiltDevice, slot: Slot) -> Self {
        let BuiltDevice {
            id,
            device,
            region,
            adjustable,
        } = built;
        Self {
            id: Some(id),
            slot,
            device,
            subscription: None,
            region,
            adjustable,
        }
    }
}

/// Where a Machine is in its life.
#[derive(Debug)]
pub(crate) enum Life {
    Running,
    Panicked { since: Instant },
    Ended(Ending),
}

impl Machine {
    /// Runs until the guest ends or the daemon ends it; then takes everything down.
    pub(crate) fn run(mut self) -> Ending {
        let ending = loop {
            match self.turn() {
                Life::Ended(ending) => break ending,
                life => self.life = life,
            }
        };
        self.take_down();
        ending
    }

    /// Waits for something and does it.
    fn turn(&mut self) -> Life {
        let patience = match &self.life {
            Life::Running | Life::Ended(_) => -1,
            Life::Panicked { since } => {
                let left = PANIC_GRACE.saturating_sub(since.elapsed());
                // Rounded up, so that the grace is over after the wait.
                i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
            }
        };
        if let Err(error) = self.events.run_with_timeout(patience) {
            let detail = format!("the event loop failed: {error}");
            return Life::Ended(Ending::of_guest(GuestEnd::Failed(detail), false));
        }
        self.read_mail();
        while let Some(request) = self.next_request() {
            self.serve(request);
        }
        self.next_life()
    }

    fn read_mail(&mut self) {
        while let Ok(message) = self.mail.try_recv() {
            self.receive(message);
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::ActivateDevice(slot) => self.activate_device(slot),
            Message::ResetDevice(slot) => self.reset_device(slot),
            Message::GuestPanicked => {
                if matches!(self.life, Life::Running) {
                    self.life = Life::Panicked {
                        since: Instant::now(),
                    };
                }
            }
            Message::GuestEnded(end) => {
                let panicked = matches!(self.life, Life::Panicked { .. });
                self.end(Ending::of_guest(end, panicked));
            }
        }
    }

    /// The first reason counts.
    fn end(&mut self, ending: Ending) {
        if !matches!(self.life, Life::Ended(_)) {
            self.life = Life::Ended(ending);
        }
    }

    fn next_life(&mut self) -> Life {
        if self.signalled() {
            self.end(Ending::stopped());
        }
        match std::mem::replace(&mut self.life, Life::Running) {
            Life::Panicked { since } if since.elapsed() >= PANIC_GRACE => Life::Ended(Ending::panicked()),
            life => life,
        }
    }

    fn signalled(&mut self) -> bool {
        matches!(
            self.events.subscriber_mut(self.signals),
            Ok(Subscriber::Signals { received: true, .. })
        )
    }

    fn control(&mut self) -> Option<&mut ControlServer> {
        match self.events.subscriber_mut(self.control) {
            Ok(Subscriber::Control(control)) => Some(control),
            _ => None,
        }
    }

    /// In the order that leaves nobody with something that is gone: processors, devices, last answers, console.
    fn take_down(mut self) {
        self.vcpus.stop();
        while let Some(attached) = self.devices.pop() {
            self.detach(attached);
        }
        if let Some(control) = self.control() {
            control.finish();
        }
        if let Some(path) = &self.console_dump {
            dump(&self.ring, path);
        }
    }
}

/// Writes the console where the configuration says; the ring is lost with the process.
fn dump(ring: &Mutex<ConsoleRing>, path: &Path) {
    let bytes = ring.lock().unwrap_or_else(PoisonError::into_inner).bytes();
    if let Err(error) = std::fs::write(path, bytes) {
        tracing::warn!(%error, "cannot write the console to {}", path.display());
    }
}
