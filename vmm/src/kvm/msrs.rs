//! Model-specific registers of a processor, as far as it has them.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::KvmError;

/// KVM takes 256 at once.
const BATCH: usize = 128;
const TSC_DEADLINE: u32 = 0x6E0;
/// Those that a guest can set and that KVM's list has not on every kernel: page attributes; ranges of memory types, fixed and
/// variable; the default type.
const UNLISTED: [std::ops::RangeInclusive<u32>; 6] = [
    0x277..=0x277,
    0x200..=0x20F,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26F,
    0x2FF..=0x2FF,
];

/// Numbers of the registers that a processor of this host may have.
pub(crate) fn known(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(KvmError::refused("list the model-specific registers"))?;
    let mut known = list.as_slice().to_vec();
    known.extend(UNLISTED.into_iter().flatten());
    known.sort_unstable();
    known.dedup();
    // It counts from the time stamp counter, and in a mode of the local APIC: both are there before it.
    known.sort_by_key(|index| *index == TSC_DEADLINE);
    Ok(known)
}

/// Reads those of `known` that the processor has.
pub(super) fn read(vcpu: &VcpuFd, known: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let (mut found, mut rest) = (Vec::new(), known);
    while !rest.is_empty() {
        let wanted = rest.iter().take(BATCH).map(|index| kvm_msr_entry {
            index: *index,
            ..Default::default()
        });
        let mut list = list(&wanted.collect::<Vec<_>>())?;
        let asked = list.as_slice().len();
        let read = vcpu
            .get_msrs(&mut list)
            .map_err(KvmError::refused("tell the model-specific registers"))?;
        found.extend(list.as_slice().iter().take(read));
        // KVM stops at the first that the processor has not.
        rest = rest.get(asked.min(read + 1)..).unwrap_or_default();
    }
    Ok(found)
}

/// Loads them, in their order. One that cannot be loaded has to have the value anyway: some are the host's to decide.
pub(super) fn write(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
    let mut rest = entries;
    while !rest.is_empty() {
        let batch = rest.get(..BATCH.min(rest.len())).unwrap_or_default();
        let written = vcpu
            .set_msrs(&list(batch)?)
            .map_err(KvmError::refused("load the model-specific registers"))?;
        if let Some(refused) = batch.get(written) {
            let here = read(vcpu, &[refused.index])?;
            if here.first().map(|entry| entry.data) != Some(refused.data) {
                return Err(KvmError::ModelSpecific {
                    index: refused.index,
                    value: refused.data,
                });
            }
        }
        rest = rest.get(batch.len().min(written + 1)..).unwrap_or_default();
    }
    Ok(())
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    // A batch is below the list's limit.
    Msrs::from_entries(entries).map_err(|_| KvmError::SavedState("model-specific registers"))
}
