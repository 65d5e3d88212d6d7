//! KVM: the machine that the kernel runs for us, and what it must be able to do.

mod chips;
mod coalesced;
pub(crate) mod internal_error;
pub(crate) mod msrs;
mod processor;
mod vm;

use kvm_ioctls::{Cap, Kvm, VmFd};

pub(crate) use self::chips::ChipState;
pub(crate) use self::coalesced::CoalescedWrites;
pub(crate) use self::processor::ProcessorState;
pub(crate) use self::vm::{FileRegion, Vm};

/// What we need from KVM, by name, with its reason.
const NEEDED: [(Cap, &str, &str); 8] = [
    (
        Cap::Irqchip,
        "KVM_CAP_IRQCHIP",
        "interrupt controllers in the kernel",
    ),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest memory"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "real mode on Intel"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "the guest's CPUID"),
    (Cap::Pit2, "KVM_CAP_PIT2", "the guest's timer"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "doorbells"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI", "interrupts of devices"),
    (
        Cap::ReadonlyMem,
        "KVM_CAP_READONLY_MEM",
        "image layers in guest memory",
    ),
];

/// Linux's KVM_API_VERSION has been this for as long as it is stable.
const API_VERSION: i32 = 12;

/// Why KVM cannot be used or refused something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KvmError {
    #[error("cannot open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    #[error("/dev/kvm has API version {0}, not 12")]
    ApiVersion(i32),
    #[error("KVM lacks {name}, needed for {purpose}")]
    Capability {
        name: &'static str,
        purpose: &'static str,
    },
    #[error("KVM refuses to {operation}")]
    Refused {
        /// Verb and object: "create the interrupt controllers".
        operation: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("KVM refuses {size} bytes of guest memory at {address:#x}")]
    Memory {
        address: u64,
        size: u64,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("no room for {size} bytes among the guest's addresses")]
    AddressSpace { size: u64 },
    #[error("KVM refuses the value {value:#x} of the model-specific register {index:#x}")]
    ModelSpecific { index: u32, value: u64 },
    #[error("the time stamp counter ran at {saved} kHz, here it runs at {here}, and KVM cannot scale it")]
    TscFrequency {
        saved: u32,
        here: u32,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("the saved {0} cannot be loaded")]
    SavedState(&'static str),
    #[error("the Machine has {asked} processors, KVM offers {offered} here")]
    Processors { asked: u8, offered: usize },
}

impl KvmError {
    /// For `map_err`: what was being done.
    pub(crate) fn refused(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Refused { operation, source }
    }
}

/// Opens /dev/kvm and makes sure that it can do what a Machine needs.
pub(crate) fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(KvmError::Open)?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::ApiVersion(version));
    }
    match NEEDED.iter().find(|(cap, ..)| !kvm.check_extension(*cap)) {
        Some((_, name, purpose)) => Err(KvmError::Capability { name, purpose }),
        None => Ok(kvm),
    }
}

/// A new virtual machine that has nothing yet.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    kvm.create_vm()
        .map_err(KvmError::refused("create a virtual machine"))
}
