//! The Intel MultiProcessor table (specification 1.4, chapter 4): how a kernel without ACPI finds processors, the
//! IOAPIC and the routing of the sixteen ISA interrupts. Pure: bytes for one address.
//!
//! Every processor that the Machine may ever have is listed as enabled; `maxcpus=` on the command line says how many
//! are started at boot, the agent brings the others online.

use crate::memory::layout;

const BUS_ISA: u8 = 0;
const APIC_VERSION: u8 = 0x14;
const ISA_INTERRUPTS: u8 = 16;
const ALL_APICS: u8 = 0xFF;

/// Entry types (4.3) and interrupt types (table 4-11).
const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTERNAL: u8 = 3;

const FLOATING_POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;

/// The floating pointer and, behind it, the table for `processors` (at most 254) processors with APIC ids from 0.
/// To be written at `layout::MP_TABLE`.
pub(crate) fn bytes(processors: u8) -> Vec<u8> {
    let entries = entries(processors);
    let count = u16::from(processors) + 1 + 1 + u16::from(ISA_INTERRUPTS) + 2;
    let table = finish_table(&entries, count);
    let mut all = floating_pointer();
    all.extend(table);
    all
}

/// 4.1: where the table is.
fn floating_pointer() -> Vec<u8> {
    let table_address = layout::MP_TABLE.0 as u32 + FLOATING_POINTER_SIZE as u32;
    let mut bytes = Vec::with_capacity(FLOATING_POINTER_SIZE);
    bytes.extend(b"_MP_");
    bytes.extend(table_address.to_le_bytes());
    // Length in paragraphs, revision 1.4, checksum, five feature bytes (0: a table is present, virtual wire mode).
    bytes.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

/// 4.2: the header, with checksum, before the entries.
fn finish_table(entries: &[u8], count: u16) -> Vec<u8> {
    let length = (HEADER_SIZE + entries.len()) as u16;
    let mut table = Vec::with_capacity(usize::from(length));
    table.extend(b"PCMP");
    table.extend(length.to_le_bytes());
    // Revision 1.4, checksum (filled in below).
    table.extend([4, 0]);
    table.extend(b"CLEARPODMICROVM     ");
    // No OEM table.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    // No extended table.
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

fn entries(processors: u8) -> Vec<u8> {
    // The IOAPIC's id must differ from every local APIC's.
    let ioapic = processors;
    let mut entries = Vec::new();
    for id in 0..processors {
        let enabled = 1;
        let bootstrap = u8::from(id == 0) << 1;
        entries.extend([ENTRY_PROCESSOR, id, APIC_VERSION, enabled | bootstrap]);
        // Signature (family 6), feature flags FPU and APIC: Linux reads CPUID instead. Reserved.
        entries.extend(0x600_u32.to_le_bytes());
        entries.extend(0x201_u32.to_le_bytes());
        entries.extend([0; 8]);
    }
    entries.extend([ENTRY_BUS, BUS_ISA]);
    entries.extend(b"ISA   ");
    entries.extend([ENTRY_IOAPIC, ioapic, APIC_VERSION, 1]);
    entries.extend(layout::IOAPIC.to_le_bytes());
    for irq in 0..ISA_INTERRUPTS {
        // KVM's routing as it is created: GSI n is pin n (no override of the timer's interrupt as on PCs).
        entries.extend([
            ENTRY_IO_INTERRUPT,
            INTERRUPT_VECTORED,
            0,
            0,
            BUS_ISA,
            irq,
            ioapic,
            irq,
        ]);
    }
    entries.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTERNAL, 0, 0, BUS_ISA, 0, 0, 0]);
    entries.extend([
        ENTRY_LOCAL_INTERRUPT,
        INTERRUPT_NMI,
        0,
        0,
        BUS_ISA,
        0,
        ALL_APICS,
        1,
    ]);
    entries
}

/// The byte that makes the sum zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn pointer_and_table_are_where_a_kernel_looks_and_sum_to_zero() {
        for processors in [1, 2, 64, 254] {
            let bytes = bytes(processors);
            assert_eq!(&bytes[..4], b"_MP_");
            assert_eq!(sum(&bytes[..16]), 0);
            let address = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
            assert_eq!(u64::from(address), layout::MP_TABLE.0 + 16);
            let table = &bytes[16..];
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert_eq!(sum(table), 0);
            assert!(layout::MP_TABLE.0 + (bytes.len() as u64) < layout::HIGH_MEMORY.0);
        }
    }

    #[test]
    fn the_entries_are_as_many_as_the_header_says() {
        let bytes = bytes(3);
        let table = &bytes[16..];
        let told = u16::from_le_bytes([table[34], table[35]]);
        let (mut offset, mut seen, mut processors) = (HEADER_SIZE, 0, Vec::new());
        while offset < table.len() {
            let size = if table[offset] == ENTRY_PROCESSOR { 20 } else { 8 };
            if table[offset] == ENTRY_PROCESSOR {
                processors.push((table[offset + 1], table[offset + 3]));
            }
            offset += size;
            seen += 1;
        }
        assert_eq!((offset, seen), (table.len(), told));
        assert_eq!(processors, [(0, 3), (1, 1), (2, 1)]);
    }

    #[test]
    fn no_two_isa_interrupts_share_a_pin() {
        let bytes = bytes(1);
        let table = &bytes[16 + HEADER_SIZE + 20 + 8 + 8..];
        let mut pins: Vec<u8> = table
            .chunks(8)
            .filter(|entry| entry[0] == ENTRY_IO_INTERRUPT)
            .map(|entry| entry[7])
            .collect();
        assert_eq!(pins.len(), 16);
        pins.sort_unstable();
        pins.dedup();
        assert_eq!(pins.len(), 16);
    }
}
