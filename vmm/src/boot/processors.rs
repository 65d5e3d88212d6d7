//! Processors as they are before they run.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use proto::machine::Vcpus;

use crate::kvm::{KvmError, ProcessorState, Vm};
use crate::snapshot::SnapshotError;
use crate::x86_64::{compatible, cpuid, registers};

/// What this host's KVM offers for processors.
pub(super) struct Processors {
    supported: CpuId,
    tsc_deadline: bool,
    count: u8,
}

impl Processors {
    pub(super) fn ask(kvm: &Kvm, vcpus: Vcpus) -> Result<Self, KvmError> {
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

    pub(super) fn address_bits(&self) -> u8 {
        cpuid::address_bits(self.supported.as_slice())
    }

    /// All processors that the Machine may have: the first at the kernel's entry, the others waiting for the guest.
    pub(super) fn create(&self, vm: &Vm, entry: u64) -> Result<Vec<VcpuFd>, KvmError> {
        let vcpus: Vec<VcpuFd> = (0..self.count)
            .map(|id| self.create_one(vm, id))
            .collect::<Result<_, _>>()?;
        if let Some(first) = vcpus.first() {
            registers::enter_kernel(first, entry)?;
        }
        Ok(vcpus)
    }

    fn create_one(&self, vm: &Vm, id: u8) -> Result<VcpuFd, KvmError> {
        let entries = self.leaves(id);
        let vcpu = vm.create_vcpu(id)?;
        // The list is as long as KVM's own limit at most, so only KVM can refuse.
        if let Ok(leaves) = CpuId::from_entries(&entries) {
            vcpu.set_cpuid2(&leaves)
                .map_err(KvmError::refused("load the CPUID leaves"))?;
        }
        registers::load_msrs(&vcpu)?;
        Ok(vcpu)
    }

    /// Processors in the states that were saved, if this host's can be in them.
    pub(super) fn restore(&self, vm: &Vm, saved: &[ProcessorState]) -> Result<Vec<VcpuFd>, SnapshotError> {
        for (index, (state, id)) in saved.iter().zip(0..).enumerate() {
            compatible::check(&state.cpuid, &self.leaves(id))
                .map_err(|source| SnapshotError::Cpu { index, source })?;
        }
        let vcpus: Vec<VcpuFd> = (0..self.count)
            .map(|id| vm.create_vcpu(id))
            .collect::<Result<_, _>>()
            .map_err(SnapshotError::Kvm)?;
        for (vcpu, state) in vcpus.iter().zip(saved) {
            state.load(vcpu).map_err(SnapshotError::Kvm)?;
        }
        Ok(vcpus)
    }

    fn leaves(&self, id: u8) -> Vec<kvm_cpuid_entry2> {
        let processor = cpuid::Processor {
            id,
            count: self.count,
            tsc_deadline: self.tsc_deadline,
        };
        let mut entries = cpuid::entries(self.supported.as_slice(), processor);
        entries.truncate(KVM_MAX_CPUID_ENTRIES);
        entries
    }
}
