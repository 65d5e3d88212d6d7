//! Whether a guest that has seen one processor can go on under another: what it may be using must be there. Pure.

use kvm_bindings::kvm_cpuid_entry2;

use super::cpuid;

/// Why it cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CpuMismatch {
    #[error("the processor is of another vendor")]
    Vendor,
    #[error("the processor has {here} address bits, and had {saved}")]
    AddressBits { saved: u8, here: u8 },
    #[error("the processor lacks {bits:#x} in {register} of CPUID leaf {function:#x}.{index}")]
    Features {
        function: u32,
        index: u32,
        register: Register,
        bits: u32,
    },
}

/// An output of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl std::fmt::Display for Register {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        })
    }
}

const VENDOR: u32 = 0;
/// Set by the guest's own system registers: OSXSAVE, and OSPKE.
const OWN_FEATURES: [(u32, Register, u32); 2] = [(1, Register::Ecx, 1 << 27), (7, Register::Ecx, 1 << 4)];

/// Registers whose bits are features: leaf, subleaf, which.
const FEATURES: [(u32, u32, Register); 19] = [
    (0x1, 0, Register::Ecx),
    (0x1, 0, Register::Edx),
    (0x7, 0, Register::Ebx),
    (0x7, 0, Register::Ecx),
    (0x7, 0, Register::Edx),
    (0x7, 1, Register::Eax),
    (0x7, 1, Register::Edx),
    (0x7, 2, Register::Edx),
    // The parts of the extended state.
    (0xD, 0, Register::Eax),
    (0xD, 0, Register::Edx),
    (0xD, 1, Register::Eax),
    (0xD, 1, Register::Ecx),
    // KVM's own: the clock and the like.
    (0x4000_0001, 0, Register::Eax),
    (0x8000_0001, 0, Register::Ecx),
    (0x8000_0001, 0, Register::Edx),
    (0x8000_0007, 0, Register::Edx),
    (0x8000_0008, 0, Register::Ebx),
    (0x8000_000A, 0, Register::Edx),
    (0x8000_0021, 0, Register::Eax),
];

/// Compares what the guest has seen (`saved`) with what it would be shown here.
pub(crate) fn check(saved: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Result<(), CpuMismatch> {
    let vendor = |entries| find(entries, VENDOR, 0).map(|entry| (entry.ebx, entry.ecx, entry.edx));
    if vendor(saved) != vendor(here) {
        return Err(CpuMismatch::Vendor);
    }
    let (saved_bits, bits) = (cpuid::address_bits(saved), cpuid::address_bits(here));
    if saved_bits > bits {
        return Err(CpuMismatch::AddressBits {
            saved: saved_bits,
            here: bits,
        });
    }
    for (function, index, register) in FEATURES {
        let value = |entries| find(entries, function, index).map_or(0, |entry| output(entry, register));
        let bits = value(saved) & !value(here) & !own(function, register);
        if bits != 0 {
            return Err(CpuMismatch::Features {
                function,
                index,
                register,
                bits,
            });
        }
    }
    Ok(())
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    let mut entries = entries.iter();
    entries.find(|entry| entry.function == function && entry.index == index)
}

fn output(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    }
}

fn own(function: u32, register: Register) -> u32 {
    let ours = OWN_FEATURES
        .iter()
        .filter(|(of, at, _)| (*of, *at) == (function, register));
    ours.map(|(.., bit)| bit).sum()
}

#[cfg(test)]
mod tests {
    use super::cpuid::leaf;
    use super::*;

    fn processor() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0, [0xD, 1, 2, 3]),
            leaf(1, 0, [0x663, 0, 0b0111, 0b1]),
            leaf(7, 0, [0, 0b11, 0, 0]),
            leaf(0x8000_0008, 0, [0x3028, 0, 0, 0]),
        ]
    }

    fn changed(change: impl FnOnce(&mut [kvm_cpuid_entry2])) -> Vec<kvm_cpuid_entry2> {
        let mut entries = processor();
        change(&mut entries);
        entries
    }

    #[test]
    fn the_same_or_a_better_processor_will_do() {
        assert_eq!(check(&processor(), &processor()), Ok(()));
        let better = changed(|entries| {
            entries[1].ecx |= 0b1000;
            entries[3].eax = 0x3030;
        });
        assert_eq!(check(&processor(), &better), Ok(()));
        let enabled = changed(|entries| entries[1].ecx |= 1 << 27);
        assert_eq!(check(&enabled, &processor()), Ok(()), "the guest's own doing");
    }

    #[test]
    fn what_is_missing_is_named() {
        let lesser = changed(|entries| entries[2].ebx = 0b01);
        let missing = check(&processor(), &lesser).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "the processor lacks 0x2 in ebx of CPUID leaf 0x7.0"
        );
        let bare = changed(|entries| entries[1].function = 0x99);
        assert!(matches!(
            check(&processor(), &bare),
            Err(CpuMismatch::Features { function: 1, .. })
        ));
        let other = changed(|entries| entries[0].ebx = 9);
        assert_eq!(check(&processor(), &other), Err(CpuMismatch::Vendor));
        let narrow = changed(|entries| entries[3].eax = 0x3024);
        assert_eq!(
            check(&processor(), &narrow),
            Err(CpuMismatch::AddressBits { saved: 40, here: 36 })
        );
    }
}
