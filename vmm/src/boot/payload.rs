//! Puts into guest memory what the kernel finds when it starts: itself, the initramfs, the command line, the PVH start
//! info with the memory map (Xen's `hvm_start_info`), the MP table.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{self, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

use crate::config::Payload;
use crate::devices::virtio::GuestMemory;
use crate::memory::PAGE;
use crate::memory::layout::{self, RamLayout};
use crate::x86_64::mptable;

/// `XEN_HVM_START_MAGIC_VALUE`, and the first version with a memory map.
const START_MAGIC: u32 = 0x336E_C578;
const START_VERSION: u32 = 1;

/// Why the guest cannot be given what it boots from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PayloadError {
    #[error("kernel: cannot load the ELF file")]
    Kernel(#[source] loader::Error),
    #[error("kernel: it has no PVH entry note (CONFIG_PVH)")]
    NoPvhEntry,
    #[error("initramfs: cannot read it")]
    Initramfs(#[source] io::Error),
    #[error(
        "initramfs: its {bytes} bytes do not fit beside the kernel, which ends at {kernel_end:#x}, below {ram_end:#x}"
    )]
    InitramfsTooLarge {
        bytes: u64,
        kernel_end: u64,
        ram_end: u64,
    },
    #[error("cannot write the {what} into guest memory")]
    Table {
        what: &'static str,
        #[source]
        source: GuestMemoryError,
    },
}

/// Loads everything; returns the kernel's entry.
pub(super) fn load(
    payload: &Payload,
    processors: u8,
    memory: &GuestMemory,
    layout: RamLayout,
) -> Result<u64, PayloadError> {
    let kernel = load_kernel(memory, &payload.kernel)?;
    let initramfs = load_initramfs(memory, &payload.initramfs, kernel.end, layout.low_end())?;
    write_command_line(memory, &payload.command_line)?;
    write_start_info(memory, initramfs, layout)?;
    let table = mptable::bytes(processors);
    memory
        .write_slice(&table, layout::MP_TABLE)
        .map_err(table_error("MP table"))?;
    Ok(kernel.entry)
}

struct Kernel {
    entry: u64,
    /// First free address behind it.
    end: u64,
}

fn load_kernel(memory: &GuestMemory, file: &File) -> Result<Kernel, PayloadError> {
    let mut file = file;
    let loaded =
        Elf::load(memory, None, &mut file, Some(layout::HIGH_MEMORY)).map_err(PayloadError::Kernel)?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(Kernel {
            entry: entry.raw_value(),
            end: loaded.kernel_end,
        }),
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
            Err(PayloadError::NoPvhEntry)
        }
    }
}

/// At the top of low RAM, where the kernel's own growth does not reach it.
fn load_initramfs(
    memory: &GuestMemory,
    file: &File,
    kernel_end: u64,
    ram_end: u64,
) -> Result<hvm_modlist_entry, PayloadError> {
    let mut file = file;
    let bytes = file.seek(SeekFrom::End(0)).map_err(PayloadError::Initramfs)?;
    file.rewind().map_err(PayloadError::Initramfs)?;
    let too_large = PayloadError::InitramfsTooLarge {
        bytes,
        kernel_end,
        ram_end,
    };
    let start = match ram_end.checked_sub(bytes).map(|start| start & !(PAGE - 1)) {
        Some(start) if start >= kernel_end => start,
        _ => return Err(too_large),
    };
    let read = memory.read_exact_volatile_from(GuestAddress(start), &mut file, bytes as usize);
    read.map_err(|error| PayloadError::Initramfs(io::Error::other(error)))?;
    Ok(hvm_modlist_entry {
        paddr: start,
        size: bytes,
        cmdline_paddr: 0,
        reserved: 0,
    })
}

fn write_command_line(memory: &GuestMemory, line: &str) -> Result<(), PayloadError> {
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, layout::COMMAND_LINE)
        .map_err(table_error("command line"))
}

fn write_start_info(
    memory: &GuestMemory,
    initramfs: hvm_modlist_entry,
    layout: RamLayout,
) -> Result<(), PayloadError> {
    let map = layout.memory_map();
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: START_VERSION,
        nr_modules: 1,
        modlist_paddr: layout::MODULE_LIST.0,
        cmdline_paddr: layout::COMMAND_LINE.0,
        memmap_paddr: layout::MEMORY_MAP.0,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory
        .write_slice(&start_info_bytes(info), layout::START_INFO)
        .map_err(table_error("start info"))?;
    memory
        .write_slice(&module_bytes(initramfs), layout::MODULE_LIST)
        .map_err(table_error("module list"))?;
    let map: Vec<u8> = map.into_iter().flat_map(map_entry_bytes).collect();
    memory
        .write_slice(&map, layout::MEMORY_MAP)
        .map_err(table_error("memory map"))
}

fn start_info_bytes(info: hvm_start_info) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(56);
    [info.magic, info.version, info.flags, info.nr_modules]
        .iter()
        .for_each(|word| bytes.extend(word.to_le_bytes()));
    let addresses = [
        info.modlist_paddr,
        info.cmdline_paddr,
        info.rsdp_paddr,
        info.memmap_paddr,
    ];
    addresses
        .iter()
        .for_each(|address| bytes.extend(address.to_le_bytes()));
    [info.memmap_entries, info.reserved]
        .iter()
        .for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes
}

fn module_bytes(module: hvm_modlist_entry) -> Vec<u8> {
    [module.paddr, module.size, module.cmdline_paddr, module.reserved]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

fn map_entry_bytes(entry: hvm_memmap_table_entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend(entry.addr.to_le_bytes());
    bytes.extend(entry.size.to_le_bytes());
    bytes.extend(entry.type_.to_le_bytes());
    bytes.extend(entry.reserved.to_le_bytes());
    bytes
}

fn table_error(what: &'static str) -> impl FnOnce(GuestMemoryError) -> PayloadError {
    move |source| PayloadError::Table { what, source }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn start_info_points_to_map_modules_and_command_line() {
        let memory = memory();
        let module = hvm_modlist_entry {
            paddr: 0x100_0000,
            size: 5,
            cmdline_paddr: 0,
            reserved: 0,
        };
        let layout = RamLayout::new(32 << 20, 0);
        write_start_info(&memory, module, layout).unwrap();
        write_command_line(&memory, "quiet").unwrap();
        let word = |at: u64| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        let long = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let start = layout::START_INFO.0;
        assert_eq!(
            (word(start), word(start + 4), word(start + 12)),
            (START_MAGIC, 1, 1)
        );
        assert_eq!(long(long(start + 16)), 0x100_0000);
        let mut text = [0; 6];
        memory
            .read_slice(&mut text, GuestAddress(long(start + 24)))
            .unwrap();
        assert_eq!(&text, b"quiet\0");
        assert_eq!(long(start + 32), 0, "no ACPI");
        let map = long(start + 40);
        assert_eq!((long(map), long(map + 8), word(map + 16)), (0, 0xA_0000, 1));
        assert_eq!(word(start + 48) as usize, layout.memory_map().len());
    }

    #[test]
    fn the_initramfs_lies_at_the_top_and_never_over_the_kernel() {
        let memory = memory();
        let module = load_initramfs(&memory, &file(b"070701"), 16 << 20, 32 << 20).unwrap();
        assert_eq!((module.paddr, module.size), ((32 << 20) - 4096, 6));
        let mut text = [0; 6];
        memory.read_slice(&mut text, GuestAddress(module.paddr)).unwrap();
        assert_eq!(&text, b"070701");
        let error = load_initramfs(&memory, &file(b"070701"), 32 << 20, 32 << 20).unwrap_err();
        assert!(matches!(error, PayloadError::InitramfsTooLarge { bytes: 6, .. }));
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        assert!(matches!(
            load_kernel(&memory(), &file(b"#!/bin/sh\n")),
            Err(PayloadError::Kernel(_))
        ));
    }
}
