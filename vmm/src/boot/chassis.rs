//! What a Machine is beyond processors and virtio devices: bus, ports, event loop, and how they become one that runs.

use std::io;
use std::process;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, OnceLock};

use event_manager::{EventManager, SubscriberOps};
use kvm_ioctls::VcpuFd;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::eventfd::EventFd;

use super::BootError;
use crate::bus::Bus;
use crate::config::{Plan, PreparedDevice};
use crate::control::ControlServer;
use crate::devices::function::MachineFunction;
use crate::devices::pvpanic::PvPanic;
use crate::devices::ring::ConsoleRing;
use crate::devices::serial::{self, SavedSerial, SerialPort};
use crate::devices::table;
use crate::event_loop::{Mailbox, Message, Subscriber};
use crate::kvm::Vm;
use crate::machine::{AttachError, AttachedDevice, Life, Machine, Milestones, attach};
use crate::pci::bus::{ADDRESS_PORTS, FIRST_PORT as ADDRESS_PORT, PciBus};
use crate::pci::host_bridge::HostBridge;
use crate::pci::transport::{Services, SharedDevice};
use crate::vcpu::{ExitCounters, VcpuContext, VcpuThreads};

/// SIGTERM and SIGINT end the Machine as `Stop` does.
pub(super) fn watch_signals() -> Result<SignalFd, BootError> {
    let watch = || {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.thread_block()?;
        SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
    };
    watch()
        .map_err(io::Error::from)
        .map_err(BootError::host("watch signals"))
}

/// A Machine without devices of its configuration.
pub(super) struct Chassis {
    pub(super) vm: Arc<Vm>,
    pub(super) bus: Arc<Bus>,
    pub(super) services: Services,
    pub(super) ring: Arc<Mutex<ConsoleRing>>,
    pub(super) milestones: Milestones,
    mailbox: Mailbox,
    mail: Receiver<Message>,
    bell: Arc<EventFd>,
}

impl Chassis {
    /// The serial port is new, or goes on from `serial`.
    pub(super) fn new(
        vm: &Arc<Vm>,
        first: Option<&VcpuFd>,
        ring: ConsoleRing,
        serial: Option<&SavedSerial>,
        process_started: u64,
    ) -> Result<Self, BootError> {
        let (mailbox, mail, bell) = Mailbox::new().map_err(BootError::host("create the mailbox"))?;
        let ring = Arc::new(Mutex::new(ring));
        let port = match serial {
            Some(saved) => SerialPort::restored(Arc::clone(&ring), saved),
            None => SerialPort::new(Arc::clone(&ring)),
        };
        let port = port.map_err(BootError::host("create the serial port"))?;
        vm.connect_interrupt(port.interrupt(), serial::IRQ)?;
        let bus = Arc::new(Bus::new(fixed_functions(&mailbox)?, port, mailbox.clone()));
        if let Some(first) = first {
            bus.collect_address_writes(vm.coalesce_writes(ADDRESS_PORT, ADDRESS_PORTS, first));
        }
        Ok(Self {
            services: Services {
                memory: vm.memory().clone(),
                messages: Arc::<Vm>::clone(vm),
                wiring: Arc::<Vm>::clone(vm),
                mailbox: mailbox.clone(),
            },
            vm: Arc::clone(vm),
            bus,
            ring,
            milestones: Milestones {
                process_started,
                kernel_entered: Arc::new(OnceLock::new()),
                first_vsock: Arc::new(OnceLock::new()),
            },
            mailbox,
            mail,
            bell,
        })
    }

    /// Puts one of the VMM's own devices on the bus.
    pub(super) fn add_own(&self, device: SharedDevice) -> Result<AttachedDevice, AttachError> {
        let slot = attach(&self.bus, &self.services, &device)?;
        Ok(AttachedDevice::own(device, slot))
    }

    /// Likewise, a device of the configuration.
    pub(super) fn add(&self, prepared: PreparedDevice) -> Result<AttachedDevice, BootError> {
        let built = table::build(prepared, &self.vm)?;
        let slot = attach(&self.bus, &self.services, &built.device)?;
        Ok(AttachedDevice::named(built, slot))
    }

    /// Sets the event loop up and lets the processors run.
    pub(super) fn start(
        self,
        plan: Plan,
        signals: SignalFd,
        devices: Vec<AttachedDevice>,
        vcpus: Vec<VcpuFd>,
    ) -> Result<Machine, BootError> {
        let mut events = EventManager::new().map_err(BootError::EventLoop)?;
        events.add_subscriber(Subscriber::Mail(self.bell));
        let signals = events.add_subscriber(Subscriber::Signals {
            descriptor: signals,
            received: false,
        });
        let control = ControlServer::listen(&plan.control).map_err(|source| BootError::Control {
            path: plan.control.clone(),
            source,
        })?;
        let control = events.add_subscriber(Subscriber::Control(control));
        let counters = Arc::new(ExitCounters::default());
        let context = VcpuContext {
            bus: Arc::clone(&self.bus),
            counters: Arc::clone(&counters),
            mailbox: self.mailbox,
            kernel_entered: Arc::clone(&self.milestones.kernel_entered),
        };
        let shape = plan.shape();
        let vcpus = VcpuThreads::start(vcpus, context).map_err(BootError::host("start the processors"))?;
        tracing::debug!(pid = process::id(), "the guest runs");
        Ok(Machine {
            id: plan.id,
            shape,
            read_only: Vec::new(),
            vm: self.vm,
            bus: self.bus,
            services: self.services,
            devices,
            ring: self.ring,
            console_dump: plan.console_dump,
            milestones: self.milestones,
            counters,
            vcpus,
            events,
            mail: self.mail,
            control,
            signals,
            life: Life::Running,
        })
    }
}

/// The PCI bus with what every Machine has.
fn fixed_functions(mailbox: &Mailbox) -> Result<PciBus<MachineFunction>, BootError> {
    let mut pci = PciBus::new();
    let slot = pci.free_slot()?;
    pci.insert(slot, MachineFunction::HostBridge(HostBridge::new()));
    let slot = pci.free_slot()?;
    pci.insert(
        slot,
        MachineFunction::PvPanic(PvPanic::new(slot, mailbox.clone())),
    );
    Ok(pci)
}
