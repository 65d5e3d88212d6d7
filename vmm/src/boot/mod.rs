//! The boot of a Machine, in boot order. `boot` is the story; `payload` puts things into guest memory.

mod payload;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::{io, process};

use event_manager::{EventManager, SubscriberOps};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use proto::machine::Vcpus;

use crate::bus::Bus;
use crate::config::{Plan, PreparedDevice};
use crate::control::ControlServer;
use crate::devices::function::MachineFunction;
use crate::devices::pvpanic::PvPanic;
use crate::devices::ring::ConsoleRing;
use crate::devices::serial::{self, SerialPort};
use crate::devices::table::{self, BuildDeviceError, BuiltDevice};
use crate::devices::virtio::console::Console;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::{Vsock, VsockError};
use crate::event_loop::{Mailbox, Subscriber};
use crate::kvm::{self, KvmError, Vm};
use crate::machine::{AttachError, AttachedDevice, Life, Machine, Milestones, attach};
use crate::memory::layout::RamLayout;
use crate::memory::{self, MemoryError};
use crate::pci::bus::{ADDRESS_PORTS, BusFull, FIRST_PORT as ADDRESS_PORT, PciBus};
use crate::pci::host_bridge::HostBridge;
use crate::pci::transport::{Services, SharedDevice};
use crate::vcpu::{ExitCounters, VcpuContext, VcpuThreads};
use crate::x86_64::{cpuid, registers};

pub(crate) use self::payload::PayloadError;

/// Why a Machine cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error(transparent)]
    Bus(#[from] BusFull),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Device(#[from] BuildDeviceError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error("cannot listen on the control socket {path}")]
    Control {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {operation}")]
    Host {
        /// Verb and object.
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot set the event loop up")]
    EventLoop(#[source] event_manager::Error),
}

impl BootError {
    fn host(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { operation, source }
    }
}

/// Builds what `plan` says and lets the guest run.
pub(crate) fn boot(plan: Plan, process_started: u64) -> Result<Machine, BootError> {
    // Before any thread exists, so that every thread has the signals blocked and only the loop sees them.
    let signals = watch_signals().map_err(BootError::host("watch signals"))?;
    let kvm = kvm::open()?;
    let processors = Processors::ask(&kvm, plan.vcpus)?;

    let layout = RamLayout::new(plan.memory_bytes, plan.hotplug_bytes);
    if !layout.fits(processors.address_bits()) {
        let size = plan.hotplug_bytes;
        return Err(KvmError::AddressSpace { size }.into());
    }
    let ram = memory::map_ram(layout)?;
    let entry = payload::load(&plan, &ram, layout)?;
    let vm = Arc::new(Vm::new(&kvm, ram, layout, processors.address_bits())?);
    let vcpus = processors.create(&vm, entry)?;

    let (mailbox, mail, bell) = Mailbox::new().map_err(BootError::host("create the mailbox"))?;
    let ring = Arc::new(Mutex::new(ConsoleRing::new(plan.console_bytes)));
    let bus = build_bus(&vm, &ring, &mailbox)?;
    if let Some(first) = vcpus.first() {
        bus.collect_address_writes(vm.coalesce_writes(ADDRESS_PORT, ADDRESS_PORTS, first));
    }
    let services = services(&vm, &mailbox);
    let milestones = Milestones {
        process_started,
        kernel_entered: Arc::new(OnceLock::new()),
        first_vsock: Arc::new(OnceLock::new()),
    };
    let mut devices = own_devices(&bus, &services, &ring)?;
    if let Some(vsock) = &plan.vsock {
        let first = Arc::clone(&milestones.first_vsock);
        let device = Vsock::new(vsock.guest_cid, &vsock.socket, first)?;
        devices.push(own_device(&bus, &services, Arc::new(Mutex::new(device)))?);
    }
    for prepared in plan.devices {
        devices.push(configured_device(prepared, &vm, &bus, &services)?);
    }

    let mut events = EventManager::new().map_err(BootError::EventLoop)?;
    events.add_subscriber(Subscriber::Mail(bell));
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
        bus: Arc::clone(&bus),
        counters: Arc::clone(&counters),
        mailbox,
        kernel_entered: Arc::clone(&milestones.kernel_entered),
    };
    let vcpus = VcpuThreads::start(vcpus, &context).map_err(BootError::host("start the processors"))?;
    tracing::debug!(pid = process::id(), "the guest runs");
    Ok(Machine {
        id: plan.id,
        vm,
        bus,
        services,
        devices,
        ring,
        console_dump: plan.console_dump,
        milestones,
        counters,
        vcpus,
        events,
        mail,
        control,
        signals,
        life: Life::Running,
    })
}

/// SIGTERM and SIGINT end the Machine as `Stop` does.
fn watch_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block()?;
    Ok(SignalFd::with_flags(
        &set,
        SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
    )?)
}

/// What this host's KVM offers for processors.
struct Processors {
    supported: CpuId,
    tsc_deadline: bool,
    count: u8,
}

impl Processors {
    fn ask(kvm: &Kvm, vcpus: Vcpus) -> Result<Self, KvmError> {
        let offered = kvm.get_max_vcpus();
        if usize::from(vcpus.max) > offered {
            return Err(KvmError::Processors {
                asked: vcpus.max,
                offered,
            });
        }
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::refused("list the CPUID leaves it supports"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self {
            supported,
            tsc_deadline,
            count: vcpus.max,
        })
    }

    fn address_bits(&self) -> u8 {
        cpuid::address_bits(self.supported.as_slice())
    }

    /// All processors that the Machine may have: the first at the kernel's entry, the others waiting for the guest.
    fn create(&self, vm: &Vm, entry: u64) -> Result<Vec<VcpuFd>, KvmError> {
        let vcpus: Vec<VcpuFd> = (0..self.count)
            .map(|id| self.create_one(vm, id))
            .collect::<Result<_, _>>()?;
        if let Some(first) = vcpus.first() {
            registers::enter_kernel(first, entry)?;
        }
        Ok(vcpus)
    }

    fn create_one(&self, vm: &Vm, id: u8) -> Result<VcpuFd, KvmError> {
        let processor = cpuid::Processor {
            id,
            count: self.count,
            tsc_deadline: self.tsc_deadline,
        };
        let mut entries = cpuid::entries(self.supported.as_slice(), processor);
        entries.truncate(KVM_MAX_CPUID_ENTRIES);
        let vcpu = vm.create_vcpu(id)?;
        // The list is as long as KVM's own limit at most, so only KVM can refuse.
        if let Ok(leaves) = CpuId::from_entries(&entries) {
            vcpu.set_cpuid2(&leaves)
                .map_err(KvmError::refused("load the CPUID leaves"))?;
        }
        registers::load_msrs(&vcpu)?;
        Ok(vcpu)
    }
}

/// The PCI bus with what every Machine has, and the ports.
fn build_bus(vm: &Vm, ring: &Arc<Mutex<ConsoleRing>>, mailbox: &Mailbox) -> Result<Arc<Bus>, BootError> {
    let mut pci = PciBus::new();
    let slot = pci.free_slot()?;
    pci.insert(slot, MachineFunction::HostBridge(HostBridge::new()));
    let slot = pci.free_slot()?;
    pci.insert(
        slot,
        MachineFunction::PvPanic(PvPanic::new(slot, mailbox.clone())),
    );
    let port = SerialPort::new(Arc::clone(ring)).map_err(BootError::host("create the serial port"))?;
    vm.connect_interrupt(port.interrupt(), serial::IRQ)?;
    Ok(Arc::new(Bus::new(pci, port, mailbox.clone())))
}

fn services(vm: &Arc<Vm>, mailbox: &Mailbox) -> Services {
    Services {
        memory: vm.memory().clone(),
        messages: Arc::<Vm>::clone(vm),
        wiring: Arc::<Vm>::clone(vm),
        mailbox: mailbox.clone(),
    }
}

/// The VMM's own virtio devices.
fn own_devices(
    bus: &Bus,
    services: &Services,
    ring: &Arc<Mutex<ConsoleRing>>,
) -> Result<Vec<AttachedDevice>, AttachError> {
    let console: SharedDevice = Arc::new(Mutex::new(Console::new(Arc::clone(ring))));
    let rng: SharedDevice = Arc::new(Mutex::new(Rng::default()));
    [console, rng]
        .into_iter()
        .map(|device| own_device(bus, services, device))
        .collect()
}

fn own_device(bus: &Bus, services: &Services, device: SharedDevice) -> Result<AttachedDevice, AttachError> {
    let slot = attach(bus, services, &device)?;
    Ok(AttachedDevice {
        id: None,
        slot,
        device,
        subscription: None,
        region: None,
        adjustable: None,
    })
}

fn configured_device(
    prepared: PreparedDevice,
    vm: &Vm,
    bus: &Bus,
    services: &Services,
) -> Result<AttachedDevice, BootError> {
    let BuiltDevice {
        id,
        device,
        region,
        adjustable,
    } = table::build(prepared, vm)?;
    let slot = attach(bus, services, &device)?;
    Ok(AttachedDevice {
        id: Some(id),
        slot,
        device,
        subscription: None,
        region,
        adjustable,
    })
}
