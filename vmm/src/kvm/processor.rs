//! A halted processor's state: all that KVM tells of it, and the order in which another one takes it over.

#![expect(
    unsafe_code,
    reason = "KVM_SET_XSAVE reads as much as the processor's features need"
)]

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::{KvmError, msrs};

/// Frequencies that differ by less are the same: Linux's own limit (`tsc_tolerance_ppm` of KVM).
const TSC_TOLERANCE_PPM: u64 = 250;

/// Everything that a processor is. x87 and SSE registers are part of the extended state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProcessorState {
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    activity: kvm_mp_state,
    general: kvm_regs,
    system: kvm_sregs,
    /// 4 KiB hold all features but AMX's tiles, and KVM offers those only to a process that has asked for them
    /// (ARCH_REQ_XCOMP_GUEST_PERM), which we do not.
    extended: kvm_xsave,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    local_apic: kvm_lapic_state,
    model_specific: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl ProcessorState {
    /// Reads it; `known` are the model-specific registers that may exist. The processor has completed its last access
    /// (`vcpu::VcpuThreads::pause`): half of one would be lost.
    pub(crate) fn save(vcpu: &VcpuFd, known: &[u32]) -> Result<Self, KvmError> {
        let cpuid = vcpu
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::refused("tell a processor's CPUID leaves"))?;
        let refused = |what| KvmError::refused(what);
        // First what KVM completes while it is read (api.rst, KVM_GET_MP_STATE), last what that may change.
        let activity = vcpu
            .get_mp_state()
            .map_err(refused("tell a processor's activity"))?;
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            activity,
            general: vcpu.get_regs().map_err(refused("tell the registers"))?,
            system: vcpu.get_sregs().map_err(refused("tell the system registers"))?,
            extended: vcpu.get_xsave().map_err(refused("tell the extended state"))?,
            extended_control: vcpu
                .get_xcrs()
                .map_err(refused("tell the extended control registers"))?,
            debug: vcpu
                .get_debug_regs()
                .map_err(refused("tell the debug registers"))?,
            local_apic: vcpu.get_lapic().map_err(refused("tell the local APIC"))?,
            model_specific: msrs::read(vcpu, known)?,
            events: vcpu
                .get_vcpu_events()
                .map_err(refused("tell the pending events"))?,
        })
    }

    /// Makes `vcpu`, which has never run, this processor.
    ///
    /// The order is KVM's: the system registers say where the local APIC is and in which mode; its timer's mode says whether
    /// a deadline can be set, which is a model-specific register; events come last, since loading registers clears some.
    pub(crate) fn load(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let refused = |what| KvmError::refused(what);
        // As many as KVM itself gave.
        let leaves = CpuId::from_entries(&self.cpuid).map_err(|_| KvmError::SavedState("CPUID leaves"))?;
        vcpu.set_cpuid2(&leaves)
            .map_err(refused("load the CPUID leaves"))?;
        self.load_tsc_frequency(vcpu)?;
        vcpu.set_mp_state(self.activity)
            .map_err(refused("load a processor's activity"))?;
        vcpu.set_sregs(&self.system)
            .map_err(refused("load the system registers"))?;
        vcpu.set_regs(&self.general)
            .map_err(refused("load the registers"))?;
        // SAFETY: KVM reads 4096 bytes, which the structure has, unless this process has been permitted to use AMX; nothing
        // in it asks for that (see `extended`).
        unsafe { vcpu.set_xsave(&self.extended) }.map_err(refused("load the extended state"))?;
        vcpu.set_xcrs(&self.extended_control)
            .map_err(refused("load the extended control registers"))?;
        vcpu.set_debug_regs(&self.debug)
            .map_err(refused("load the debug registers"))?;
        vcpu.set_lapic(&self.local_apic)
            .map_err(refused("load the local APIC"))?;
        msrs::write(vcpu, &self.model_specific)?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(refused("load the pending events"))
    }

    /// Of no processor in particular.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn sample() -> Self {
        let entry = |index| kvm_msr_entry {
            index,
            ..Default::default()
        };
        Self {
            cpuid: vec![kvm_cpuid_entry2::default(); 3],
            tsc_khz: 2_000_000,
            activity: kvm_mp_state::default(),
            general: kvm_regs::default(),
            system: kvm_sregs::default(),
            extended: kvm_xsave::default(),
            extended_control: kvm_xcrs::default(),
            debug: kvm_debugregs::default(),
            local_apic: kvm_lapic_state::default(),
            model_specific: vec![entry(0x10), entry(0x277)],
            events: kvm_vcpu_events::default(),
        }
    }

    /// A guest has measured its time stamp counter once and for all.
    fn load_tsc_frequency(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let (saved, here) = (self.tsc_khz, vcpu.get_tsc_khz().unwrap_or(0));
        if is_same_frequency(saved, here) {
            return Ok(());
        }
        vcpu.set_tsc_khz(saved)
            .map_err(|source| KvmError::TscFrequency { saved, here, source })
    }
}

/// 0 is a host that does not know: its guests have not measured it by that.
fn is_same_frequency(saved: u32, here: u32) -> bool {
    let difference = u64::from(saved.abs_diff(here));
    saved == 0 || difference * 1_000_000 <= u64::from(saved) * TSC_TOLERANCE_PPM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_of_one_model_are_the_same() {
        assert!(is_same_frequency(3_000_000, 3_000_000));
        assert!(is_same_frequency(3_000_000, 3_000_700));
        assert!(!is_same_frequency(3_000_000, 3_001_000));
        assert!(!is_same_frequency(3_000_000, 2_999_000));
        assert!(!is_same_frequency(3_000_000, 0));
        assert!(is_same_frequency(0, 3_000_000));
    }
}
