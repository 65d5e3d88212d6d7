//! What the program headers of a kernel say of its parts. The kernel is the daemon's, not the guest's; what cannot be read is no error
//! here, since `payload` has loaded it by then. Format: the System V ABI's chapter "Object Files", elf(5).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// `Elf64_Ehdr`, and of its fields `e_phoff`, `e_phentsize`, `e_phnum`.
const HEADER: usize = 64;
const TABLE: usize = 32;
const ENTRY_SIZE: usize = 54;
const ENTRIES: usize = 56;
/// `Elf64_Phdr`, and of its fields `p_type`, `p_flags`, `p_paddr`, `p_memsz`.
const ENTRY: usize = 56;
const KIND: usize = 0;
const FLAGS: usize = 4;
const ADDRESS: usize = 24;
const SIZE: usize = 40;

const PT_LOAD: u32 = 1;
const PF_W: u32 = 2;

/// Guest-physical ranges of the kernel's segments that its own code does not write either: text and constants.
pub(super) fn read_only_segments(kernel: &File) -> io::Result<Vec<Range<u64>>> {
    let mut header = [0; HEADER];
    kernel.read_exact_at(&mut header, 0)?;
    if usize::from(u16::from_le_bytes(field(&header, ENTRY_SIZE))) != ENTRY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let table = u64::from_le_bytes(field(&header, TABLE));
    let mut segments = Vec::new();
    for number in 0..u16::from_le_bytes(field(&header, ENTRIES)) {
        let mut entry = [0; ENTRY];
        let offset = table.saturating_add(u64::from(number) * ENTRY as u64);
        kernel.read_exact_at(&mut entry, offset)?;
        let kind = u32::from_le_bytes(field(&entry, KIND));
        if kind == PT_LOAD && u32::from_le_bytes(field(&entry, FLAGS)) & PF_W == 0 {
            let start = u64::from_le_bytes(field(&entry, ADDRESS));
            let size = u64::from_le_bytes(field(&entry, SIZE));
            segments.push(start..start.saturating_add(size));
        }
    }
    Ok(segments)
}

/// `N` bytes of a header from `at` on; all of them lie in it.
fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn kernel(segments: &[(u32, u32, u64, u64)], entry_size: u16) -> File {
        let mut bytes = vec![0; HEADER];
        put(&mut bytes, TABLE, &(HEADER as u64).to_le_bytes());
        put(&mut bytes, ENTRY_SIZE, &entry_size.to_le_bytes());
        put(&mut bytes, ENTRIES, &(segments.len() as u16).to_le_bytes());
        for (kind, flags, address, size) in segments {
            let mut entry = [0; ENTRY];
            put(&mut entry, KIND, &kind.to_le_bytes());
            put(&mut entry, FLAGS, &flags.to_le_bytes());
            put(&mut entry, ADDRESS, &address.to_le_bytes());
            put(&mut entry, SIZE, &size.to_le_bytes());
            bytes.extend(entry);
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    #[test]
    fn segments_without_the_flag_for_writing_are_found() {
        let (load, note) = (PT_LOAD, 4);
        let kernel = kernel(
            &[
                (load, 5, 0x100_0000, 0x20_0000),
                (load, 6, 0x200_0000, 0x1000),
                (note, 4, 0x300_0000, 0x1000),
                (load, 4, u64::MAX, 2),
            ],
            ENTRY as u16,
        );
        let found = read_only_segments(&kernel).unwrap();
        assert_eq!(found, [0x100_0000..0x120_0000, u64::MAX..u64::MAX]);
    }

    #[test]
    fn a_file_that_is_none_or_is_cut_is_refused() {
        assert!(read_only_segments(&tempfile::tempfile().unwrap()).is_err());
        assert!(read_only_segments(&kernel(&[], 32)).is_err());
        let cut = kernel(&[(PT_LOAD, 5, 0, 1)], ENTRY as u16);
        cut.set_len(HEADER as u64 + 10).unwrap();
        assert!(read_only_segments(&cut).is_err());
    }
}
