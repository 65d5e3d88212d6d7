//! A guest at the PCI ports and BARs of the VMM's own devices.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::fuzzing::pci_accesses(input));
