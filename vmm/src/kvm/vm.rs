//! One virtual machine of KVM's: chips, memory slots, messages, doorbells.

#![expect(unsafe_code, reason = "memory slots tell KVM host addresses")]

use std::io;
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, kvm_enable_cap,
    kvm_msi, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{ChipState, CoalescedWrites, KvmError};
use crate::devices::virtio::GuestMemory;
use crate::memory::FileMapping;
use crate::memory::layout::{self, RamLayout};
use crate::memory::windows::AddressWindow;
use crate::pci::interrupt::MessageSink;
use crate::pci::msix::Message;
use crate::pci::transport::doorbells::DoorbellWiring;

/// A virtual machine with its chips and RAM. Shared by all threads; every call is one ioctl.
#[derive(Debug)]
pub(crate) struct Vm {
    fd: VmFd,
    files: Mutex<FileSlots>,
    /// Held so that the memory outlives the slots that KVM has over it.
    memory: GuestMemory,
    layout: RamLayout,
}

/// Where files may be mapped, and which slot numbers are free.
#[derive(Debug)]
struct FileSlots {
    window: AddressWindow,
    free: Vec<u32>,
    next: u32,
}

/// A file in the guest's memory.
#[derive(Debug)]
pub(crate) struct FileRegion {
    slot: u32,
    /// Guest-physical.
    pub(crate) address: u64,
    /// Bytes, a multiple of 2 MiB.
    pub(crate) size: u64,
    mapping: FileMapping,
}

impl Vm {
    /// Gives a machine chips, and `memory` as its RAM, laid out as `layout` says.
    pub(crate) fn new(
        kvm: &Kvm,
        fd: VmFd,
        memory: GuestMemory,
        layout: RamLayout,
        address_bits: u8,
    ) -> Result<Self, KvmError> {
        create_chips(&fd)?;
        disable_pmu(kvm, &fd);
        let mut next = 0;
        for region in memory.iter() {
            let slot = kvm_userspace_memory_region {
                slot: next,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr().expose_provenance() as u64,
            };
            // SAFETY: the region is mapped for as long as `memory` lives, which `Vm` holds beside the descriptor and
            // drops after it.
            unsafe { set_slot(&fd, slot) }?;
            next += 1;
        }
        let window = AddressWindow::new(layout.file_window(address_bits));
        let files = Mutex::new(FileSlots {
            window,
            free: Vec::new(),
            next,
        });
        Ok(Self {
            fd,
            files,
            memory,
            layout,
        })
    }

    pub(crate) fn layout(&self) -> RamLayout {
        self.layout
    }

    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What a snapshot keeps of the chips; no processor runs.
    pub(crate) fn save_chips(&self) -> Result<ChipState, KvmError> {
        ChipState::save(&self.fd)
    }

    /// See [`ChipState::load`].
    pub(crate) fn load_chips(&self, state: &ChipState) -> Result<(), KvmError> {
        state.load(&self.fd)
    }

    pub(crate) fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        self.fd
            .create_vcpu(u64::from(id))
            .map_err(KvmError::refused("create a virtual processor"))
    }

    /// Lets KVM collect writes to `ports` bytes from `port` on; the ring is read through `vcpu`'s page. `None` where
    /// KVM does not know how: then every write is an exit.
    pub(crate) fn coalesce_writes(&self, port: u16, ports: u32, vcpu: &VcpuFd) -> Option<CoalescedWrites> {
        if !self.fd.check_extension(Cap::CoalescedPio) {
            return None;
        }
        let mapped = CoalescedWrites::map(vcpu).map_err(|error| error.to_string());
        let registered = mapped.and_then(|ring| {
            let address = IoEventAddress::Pio(u64::from(port));
            let result = self.fd.register_coalesced_mmio(address, ports);
            result.map(|()| ring).map_err(|error| error.to_string())
        });
        registered
            .inspect_err(|error| tracing::warn!(error, "port writes are not collected"))
            .ok()
    }

    /// Lets `event` raise the interrupt of an ISA device.
    pub(crate) fn connect_interrupt(&self, event: &EventFd, irq: u32) -> Result<(), KvmError> {
        self.fd
            .register_irqfd(event, irq)
            .map_err(KvmError::refused("connect an interrupt"))
    }

    /// Shows a file to the guest, read-only: a guest's write leaves the guest as an access that nobody answers.
    pub(crate) fn map_file(&self, mapping: FileMapping) -> Result<FileRegion, KvmError> {
        let size = mapping.size() as u64;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let address = files
            .window
            .take(size, layout::FILE_ALIGN)
            .ok_or(KvmError::AddressSpace { size })?;
        let slot = files.take_slot();
        let region = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: address,
            memory_size: size,
            userspace_addr: mapping.host_address().expose_provenance() as u64,
        };
        // SAFETY: `mapping` is `size` bytes of mapped memory and moves into the region, which `unmap_file` takes apart
        // only after the slot is gone; otherwise it lives as long as the process.
        let result = unsafe { set_slot(&self.fd, region) };
        if let Err(error) = result {
            files.give_back(slot, address);
            return Err(error);
        }
        Ok(FileRegion {
            slot,
            address,
            size,
            mapping,
        })
    }

    /// Takes a file away from the guest. If KVM refuses, the mapping stays for good: never a slot over nothing.
    pub(crate) fn unmap_file(&self, region: FileRegion) -> Result<(), KvmError> {
        let empty = kvm_userspace_memory_region {
            slot: region.slot,
            guest_phys_addr: region.address,
            ..Default::default()
        };
        // SAFETY: a slot of size 0 is removed; no memory is named.
        let result = unsafe { set_slot(&self.fd, empty) };
        if let Err(error) = result {
            std::mem::forget(region.mapping);
            return Err(error);
        }
        self.files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .give_back(region.slot, region.address);
        Ok(())
    }
}

impl MessageSink for Vm {
    fn send(&self, message: Message) {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        // An address or destination that no local APIC has is the guest's mistake: real hardware drops the write too.
        if let Err(error) = self.fd.signal_msi(msi) {
            tracing::debug!(%error, "message {message:x?} was not delivered");
        }
    }
}

impl DoorbellWiring for Vm {
    fn connect(&self, event: &EventFd, port: u16) -> io::Result<()> {
        let address = IoEventAddress::Pio(port.into());
        self.fd
            .register_ioevent(event, &address, NoDatamatch)
            .map_err(io::Error::from)
    }

    fn disconnect(&self, event: &EventFd, port: u16) -> io::Result<()> {
        let address = IoEventAddress::Pio(port.into());
        self.fd
            .unregister_ioevent(event, &address, NoDatamatch)
            .map_err(io::Error::from)
    }
}

impl FileSlots {
    fn take_slot(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    fn give_back(&mut self, slot: u32, address: u64) {
        self.free.push(slot);
        self.window.give_back(address);
    }
}

fn create_chips(fd: &VmFd) -> Result<(), KvmError> {
    fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(KvmError::refused("place its identity map"))?;
    fd.set_tss_address(layout::KVM_TSS as usize)
        .map_err(KvmError::refused("place its task state"))?;
    fd.create_irq_chip()
        .map_err(KvmError::refused("create the interrupt controllers"))?;
    // The dummy speaker answers port 0x61 in the kernel, which Linux reads while it calibrates by the PIT.
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    fd.create_pit2(pit).map_err(KvmError::refused("create the timer"))
}

/// No performance counters in the guest: they are a way to watch neighbours, and save the kernel their set-up. Where
/// KVM cannot switch them off, CPUID does not show them anyway (`x86_64::cpuid`).
fn disable_pmu(kvm: &Kvm, fd: &VmFd) {
    if kvm.check_extension_raw(u64::from(KVM_CAP_PMU_CAPABILITY)) <= 0 {
        return;
    }
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        ..Default::default()
    };
    cap.args[0] = u64::from(KVM_PMU_CAP_DISABLE);
    if let Err(error) = fd.enable_cap(&cap) {
        tracing::debug!(%error, "KVM keeps the performance counters");
    }
}

/// # Safety
///
/// The host memory that `region` names must stay mapped until the slot is removed or the descriptor is closed.
unsafe fn set_slot(fd: &VmFd, region: kvm_userspace_memory_region) -> Result<(), KvmError> {
    let (address, size) = (region.guest_phys_addr, region.memory_size);
    // SAFETY: the caller upholds it (see above).
    unsafe { fd.set_user_memory_region(region) }.map_err(|source| KvmError::Memory {
        address,
        size,
        source,
    })
}
