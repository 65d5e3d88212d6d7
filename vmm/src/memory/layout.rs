//! The guest-physical address map: every fixed address of a Machine, and how RAM lies around the holes. Pure.
//!
//! ```text
//! 0                .. 640 KiB     RAM: start info, memory map, command line
//! 0xF_0000         .. 1 MiB       MP table (reserved for the guest)
//! 1 MiB            .. 3 GiB       RAM: kernel where it is linked, initramfs at the top
//! 0xC000_0000      .. +8 MiB      BARs as we preset them; the guest may move them within the hole
//! 0xFEC0_0000      .. 4 GiB       IOAPIC, local APICs, and the four pages that KVM itself needs
//! 4 GiB            ..             the rest of RAM
//! next 2 GiB mark  ..             what a memory device (virtio-mem) can plug
//! file window      ..             read-only files (virtio-pmem), each at a multiple of 2 MiB
//! ```

use std::ops::Range;

use linux_loader::loader::elf::start_info::hvm_memmap_table_entry;
use vm_memory::GuestAddress;

/// `hvm_start_info`, whose address the kernel gets in EBX.
pub(crate) const START_INFO: GuestAddress = GuestAddress(0x6000);
/// `hvm_modlist_entry` of the initramfs.
pub(crate) const MODULE_LIST: GuestAddress = GuestAddress(0x6100);
/// `hvm_memmap_table_entry` array.
pub(crate) const MEMORY_MAP: GuestAddress = GuestAddress(0x7000);
/// NUL-terminated.
pub(crate) const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Linux's COMMAND_LINE_SIZE on x86, with the NUL.
pub(crate) const COMMAND_LINE_SIZE: usize = 2048;
/// Where Linux looks for the MP floating pointer last (`mpparse_find_mptable`); room for 64 KiB.
pub(crate) const MP_TABLE: GuestAddress = GuestAddress(0xF_0000);
/// The kernel is not loaded below.
pub(crate) const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);
/// RAM ends here at the latest and continues at 4 GiB.
pub(crate) const PCI_HOLE: u64 = 0xC000_0000;
/// IOAPIC, as the in-kernel one has it.
pub(crate) const IOAPIC: u32 = 0xFEC0_0000;
/// Local APICs, as reset leaves them.
pub(crate) const LOCAL_APIC: u32 = 0xFEE0_0000;
/// One page for KVM's identity map (Intel without unrestricted guest), then three for its TSS.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// See [`KVM_IDENTITY_MAP`].
pub(crate) const KVM_TSS: u64 = 0xFFFB_D000;

const LOW_RAM_END: u64 = 0xA_0000;
const FOUR_GIB: u64 = 1 << 32;
const GIB: u64 = 1 << 30;
/// Files start here when the processor's addresses reach beyond.
const FILE_WINDOW: u64 = 64 * GIB;
/// x86 huge page; Linux maps and hot-plugs device memory in this unit (sub-section).
pub(crate) const FILE_ALIGN: u64 = 2 << 20;

/// Linux on x86-64 hot-plugs memory in blocks of 128 MiB to 2 GiB; a region that begins at a multiple of the largest is
/// usable from its first byte on.
const HOTPLUG_ALIGN: u64 = 2 * GIB;

/// CONFIG_PHYSICAL_START of the kernel that pods have.
const LINKED_AT: u64 = 16 << 20;
const FIRST_ALLOCATIONS: u64 = 6 << 20;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// How much RAM is below the hole, how much above 4 GiB, and how much can be plugged later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RamLayout {
    low: u64,
    high: u64,
    hotplug: u64,
}

impl RamLayout {
    /// `bytes` is a multiple of 1 MiB, at least 32 MiB; `hotplug` a multiple of 128 MiB (`config` checks that).
    pub(crate) fn new(bytes: u64, hotplug: u64) -> Self {
        let low = bytes.min(PCI_HOLE);
        Self {
            low,
            high: bytes - low,
            hotplug,
        }
    }

    /// The ranges that guest memory fills, lowest first: RAM, then what can be plugged.
    pub(crate) fn ranges(self) -> Vec<Range<u64>> {
        let high = FOUR_GIB..FOUR_GIB + self.high;
        [0..self.low, high, self.hotplug()]
            .into_iter()
            .filter(|range| !range.is_empty())
            .collect()
    }

    /// What a memory device can plug; empty if there is none. The guest's memory map does not tell of it: the device does.
    pub(crate) fn hotplug(self) -> Range<u64> {
        let start = self.end().max(FOUR_GIB).next_multiple_of(HOTPLUG_ALIGN);
        start..start + self.hotplug
    }

    /// What a kernel whose file has `kernel` bytes writes while it boots, whatever else it does: itself and what it sets up
    /// behind its image, and at the end of memory a description of each page (64 bytes) and its first allocations.
    pub(crate) fn touched_by_boot(self, kernel: u64) -> [Range<u64>; 2] {
        let image_end = LINKED_AT.saturating_add(kernel).min(self.low);
        let image = LINKED_AT.min(image_end)..image_end;
        let described = (self.low + self.high) / 64 + FIRST_ALLOCATIONS;
        let top = self.end() - described.min(self.low)..self.end();
        [image, top]
    }

    /// First address after the RAM below the hole.
    pub(crate) fn low_end(self) -> u64 {
        self.low
    }

    /// Whether a processor with this many address bits reaches all of it.
    pub(crate) fn fits(self, address_bits: u8) -> bool {
        self.hotplug == 0 || self.hotplug().end <= addressable(address_bits)
    }

    /// First address after the RAM that is there from the start.
    fn end(self) -> u64 {
        if self.high > 0 {
            FOUR_GIB + self.high
        } else {
            self.low
        }
    }

    /// What the kernel is told (PVH memory map, the numbers of E820).
    pub(crate) fn memory_map(self) -> Vec<hvm_memmap_table_entry> {
        let entry = |range: Range<u64>, type_| hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_,
            reserved: 0,
        };
        let mut map = vec![
            entry(0..LOW_RAM_END, E820_RAM),
            entry(MP_TABLE.0..HIGH_MEMORY.0, E820_RESERVED),
            entry(HIGH_MEMORY.0..self.low, E820_RAM),
            // Keeps Linux's search for a PCI window (e820__setup_pci_gap) away from the chips.
            entry(u64::from(IOAPIC)..FOUR_GIB, E820_RESERVED),
        ];
        if self.high > 0 {
            map.push(entry(FOUR_GIB..FOUR_GIB + self.high, E820_RAM));
        }
        map
    }

    /// Where read-only files are mapped: from 64 GiB, or right above RAM if that is higher or if the processor has
    /// fewer than 38 address bits, to the end of what it can address.
    pub(crate) fn file_window(self, address_bits: u8) -> Range<u64> {
        let end = addressable(address_bits);
        let memory_end = if self.hotplug > 0 {
            self.hotplug().end
        } else {
            self.end().max(FOUR_GIB)
        };
        let above_ram = memory_end.next_multiple_of(GIB);
        let start = if end > 2 * FILE_WINDOW {
            above_ram.max(FILE_WINDOW)
        } else {
            above_ram
        };
        start..end.max(start)
    }
}

fn addressable(address_bits: u8) -> u64 {
    1 << address_bits.clamp(32, 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_range() {
        let layout = RamLayout::new(128 << 20, 0);
        assert!(matches!(layout.ranges().as_slice(), [range] if *range == (0..128 << 20)));
        assert_eq!(layout.end(), 128 << 20);
    }

    #[test]
    fn what_a_boot_touches_is_ram() {
        let mib = |range: &Range<u64>| range.start >> 20..range.end >> 20;
        let [image, top] = RamLayout::new(512 << 20, 0).touched_by_boot(20 << 20);
        assert_eq!((mib(&image), mib(&top)), (16..36, 498..512));
        let [_, top] = RamLayout::new(8 * GIB, GIB).touched_by_boot(20 << 20);
        assert_eq!(mib(&top), (9 << 10) - 128 - 6..9 << 10);
        for kernel in [0, 20 << 20, u64::MAX] {
            let [image, top] = RamLayout::new(32 << 20, 0).touched_by_boot(kernel);
            assert!(image.start <= image.end && image.end <= 32 << 20, "{image:?}");
            assert!(top.start <= top.end && top.end == 32 << 20, "{top:?}");
        }
    }

    #[test]
    fn memory_beyond_three_gib_continues_at_four() {
        let layout = RamLayout::new(5 * GIB, 0);
        assert_eq!(layout.ranges(), [0..PCI_HOLE, FOUR_GIB..FOUR_GIB + 2 * GIB]);
        assert_eq!(layout.low_end(), PCI_HOLE);
        assert_eq!(layout.end(), 6 * GIB);
    }

    #[test]
    fn the_memory_map_never_overlaps_itself_and_tells_of_all_ram() {
        for mib in [32, 128, 3071, 3072, 3073, 9000] {
            let layout = RamLayout::new(mib << 20, 0);
            let mut map = layout.memory_map();
            map.sort_by_key(|entry| entry.addr);
            for pair in map.windows(2) {
                assert!(pair[0].addr + pair[0].size <= pair[1].addr, "{mib} MiB: {pair:?}");
            }
            let told: u64 = map
                .iter()
                .filter(|entry| entry.type_ == E820_RAM)
                .map(|entry| entry.size)
                .sum();
            assert_eq!(told, (mib << 20) - (HIGH_MEMORY.0 - LOW_RAM_END));
        }
    }

    #[test]
    fn what_can_be_plugged_lies_between_ram_and_the_files_and_is_not_told_of() {
        for (ram, start) in [(GIB, 4), (5 * GIB, 6), (6 * GIB, 8)] {
            let layout = RamLayout::new(ram, 3 * GIB);
            assert_eq!(layout.hotplug(), start * GIB..(start + 3) * GIB);
            assert_eq!(layout.ranges().last(), Some(&layout.hotplug()));
            assert_eq!(
                layout.memory_map().len(),
                RamLayout::new(ram, 0).memory_map().len()
            );
            assert_eq!(layout.file_window(36).start, (start + 3) * GIB);
        }
        assert!(RamLayout::new(GIB, 60 * GIB).fits(36));
        assert!(!RamLayout::new(GIB, 61 * GIB).fits(36));
        assert_eq!(RamLayout::new(GIB, 100 * GIB).file_window(46).start, 104 * GIB);
    }

    #[test]
    fn the_file_window_lies_above_ram_and_within_the_address_bits() {
        assert_eq!(RamLayout::new(GIB, 0).file_window(46), 64 * GIB..1 << 46);
        assert_eq!(RamLayout::new(100 * GIB, 0).file_window(46).start, 101 * GIB);
        assert_eq!(RamLayout::new(GIB, 0).file_window(36), 4 * GIB..64 * GIB);
        assert!(RamLayout::new(80 * GIB, 0).file_window(36).is_empty());
    }
}
