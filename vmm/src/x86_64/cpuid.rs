//! CPUID as the guest sees it: what KVM supports here, less what a pod has no use for, plus who and how many it is.
//! Pure: entries in, entries out.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Which of the Machine's processors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Processor {
    /// APIC id.
    pub(crate) id: u8,
    /// How many the Machine may have, at least 1.
    pub(crate) count: u8,
    /// KVM_CAP_TSC_DEADLINE_TIMER: the leaf does not come with KVM's list.
    pub(crate) tsc_deadline: bool,
}

const BASIC: u32 = 0x0;
const FEATURES: u32 = 0x1;
const CACHES: u32 = 0x4;
const PERFORMANCE: u32 = 0xA;
const TOPOLOGY: u32 = 0xB;
const TOPOLOGY_V2: u32 = 0x1F;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const ADDRESS_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001D;
const AMD_TOPOLOGY: u32 = 0x8000_001E;
const AMD_PERFORMANCE: u32 = 0x8000_0022;

const FEATURES_ECX_VMX: u32 = 1 << 5;
const FEATURES_ECX_PDCM: u32 = 1 << 15;
const FEATURES_ECX_TSC_DEADLINE: u32 = 1 << 24;
const FEATURES_ECX_HYPERVISOR: u32 = 1 << 31;
const FEATURES_EDX_HTT: u32 = 1 << 28;
const EXTENDED_ECX_SVM: u32 = 1 << 2;
/// Core, northbridge and last-level-cache counters.
const EXTENDED_ECX_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// KVM's own answer where the leaf is missing.
const DEFAULT_ADDRESS_BITS: u8 = 36;

/// How many bits a guest-physical address has.
pub(crate) fn address_bits(supported: &[kvm_cpuid_entry2]) -> u8 {
    let leaf = supported.iter().find(|entry| entry.function == ADDRESS_SIZES);
    leaf.map_or(DEFAULT_ADDRESS_BITS, |entry| entry.eax as u8)
}

/// The entries for one processor, from what `KVM_GET_SUPPORTED_CPUID` says.
pub(crate) fn entries(supported: &[kvm_cpuid_entry2], processor: Processor) -> Vec<kvm_cpuid_entry2> {
    let highest_basic = supported
        .iter()
        .find(|entry| entry.function == BASIC)
        .map_or(0, |entry| entry.eax);
    let kept = supported
        .iter()
        .filter(|entry| !matches!(entry.function, TOPOLOGY | TOPOLOGY_V2));
    let mut entries: Vec<_> = kept.copied().collect();
    for entry in &mut entries {
        adjust(entry, processor);
    }
    for function in [TOPOLOGY, TOPOLOGY_V2]
        .into_iter()
        .filter(|function| *function <= highest_basic)
    {
        entries.extend(topology(function, processor));
    }
    entries
}

fn adjust(entry: &mut kvm_cpuid_entry2, processor: Processor) {
    let Processor {
        id,
        count,
        tsc_deadline,
    } = processor;
    let others = u32::from(count) - 1;
    match entry.function {
        FEATURES => {
            entry.ebx = entry.ebx & 0x0000_FFFF | u32::from(count) << 16 | u32::from(id) << 24;
            entry.ecx = entry.ecx & !(FEATURES_ECX_VMX | FEATURES_ECX_PDCM) | FEATURES_ECX_HYPERVISOR;
            set(&mut entry.ecx, FEATURES_ECX_TSC_DEADLINE, tsc_deadline);
            set(&mut entry.edx, FEATURES_EDX_HTT, count > 1);
        }
        CACHES if entry.eax & 0x1F != 0 => {
            let sharing = cache_sharing(entry.eax, others);
            entry.eax = entry.eax & 0x3FFF | sharing << 14 | others.min(63) << 26;
        }
        AMD_CACHES if entry.eax & 0x1F != 0 => {
            entry.eax = entry.eax & 0x3FFF | cache_sharing(entry.eax, others) << 14;
        }
        PERFORMANCE | AMD_PERFORMANCE => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        // No virtualisation in the pod: its emulation is a large surface of the host's kernel.
        EXTENDED_FEATURES => entry.ecx &= !(EXTENDED_ECX_SVM | EXTENDED_ECX_COUNTERS),
        ADDRESS_SIZES => entry.ecx = others | id_bits(count) << 12,
        AMD_TOPOLOGY => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (u32::from(id), u32::from(id), 0, 0);
        }
        _ => {}
    }
}

/// Field "logical processors sharing this cache, less one": the third level is everybody's, the others one's own.
fn cache_sharing(eax: u32, others: u32) -> u32 {
    let level = eax >> 5 & 7;
    if level >= 3 { others } else { 0 }
}

/// Leaf 0xB and 0x1F: one thread per core, all cores in one package (Intel SDM 2A, CPUID).
fn topology(function: u32, processor: Processor) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        edx: u32::from(processor.id),
        ..Default::default()
    };
    let (thread, core, end) = (1, 2, 0);
    [
        level(0, thread, 0, 1),
        level(1, core, id_bits(processor.count), u32::from(processor.count)),
        level(2, end, 0, 0),
    ]
}

/// Bits that hold every APIC id.
fn id_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

/// An entry with these outputs: eax, ebx, ecx, edx.
#[cfg(test)]
pub(super) fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0, [0xD, 0, 0, 0]),
            leaf(1, 0, [0x663, 0xAABB_0800, FEATURES_ECX_VMX | 1, 0]),
            leaf(4, 0, [0x3FC0_C121, 0, 0, 0]),
            leaf(4, 3, [0x3FC0_C163, 0, 0, 0]),
            leaf(0xA, 0, [0x0730_0404, 0, 0, 0x603]),
            leaf(0xB, 0, [1, 2, 0x100, 7]),
            leaf(0x8000_0001, 0, [0, 0, EXTENDED_ECX_SVM | 1 | 1 << 23, 0]),
            leaf(0x8000_0008, 0, [0x3030, 0, 0x703F, 0]),
        ]
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    const THIRD_OF_SIX: Processor = Processor {
        id: 2,
        count: 6,
        tsc_deadline: true,
    };

    #[test]
    fn a_processor_knows_who_it_is() {
        let entries = entries(&supported(), THIRD_OF_SIX);
        let features = find(&entries, 1, 0);
        assert_eq!(features.ebx, 0x0206_0800);
        assert_eq!(features.edx, FEATURES_EDX_HTT);
        assert_eq!(
            features.ecx,
            1 | FEATURES_ECX_TSC_DEADLINE | FEATURES_ECX_HYPERVISOR
        );
        let core = find(&entries, 0xB, 1);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 6, 0x201, 2));
        assert_eq!(entries.iter().filter(|entry| entry.function == 0xB).count(), 3);
        assert!(
            !entries.iter().any(|entry| entry.function == 0x1F),
            "beyond the highest leaf"
        );
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0x3005);
    }

    #[test]
    fn virtualisation_and_counters_are_hidden() {
        let entries = entries(&supported(), THIRD_OF_SIX);
        assert_eq!(find(&entries, 1, 0).ecx & FEATURES_ECX_VMX, 0);
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx, 1);
        assert_eq!(find(&entries, 0xA, 0).eax, 0);
    }

    #[test]
    fn only_the_third_cache_level_is_shared() {
        let entries = entries(&supported(), THIRD_OF_SIX);
        assert_eq!(find(&entries, 4, 0).eax >> 14 & 0xFFF, 0);
        assert_eq!(find(&entries, 4, 3).eax >> 14 & 0xFFF, 5);
        assert_eq!(find(&entries, 4, 3).eax >> 26, 5);
    }

    #[test]
    fn address_bits_come_from_their_leaf() {
        assert_eq!(address_bits(&supported()), 48);
        assert_eq!(address_bits(&[]), DEFAULT_ADDRESS_BITS);
    }
}
