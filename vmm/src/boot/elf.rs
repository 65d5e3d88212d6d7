//! What the program headers of a kernel say of its parts. The kernel is the daemon's, not the guest's; what cannot be read is no error
//! here, since `payload` has loaded it by then. Format: the System V ABI's chapter "Object Files", elf(5).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PF_W, PT_LOAD};
use vm_memory::ByteValued;

/// Guest-physical ranges of the kernel's segments that its own code does not write either: text and constants.
pub(super) fn read_only_segments(kernel: &File) -> io::Result<Vec<Range<u64>>> {
    let mut header = Elf64_Ehdr::default();
    kernel.read_exact_at(header.as_mut_slice(), 0)?;
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut segments = Vec::new();
    for number in 0..header.e_phnum {
        let mut segment = Elf64_Phdr::default();
        let offset = u64::from(number) * u64::from(header.e_phentsize);
        kernel.read_exact_at(segment.as_mut_slice(), header.e_phoff.saturating_add(offset))?;
        if segment.p_type == PT_LOAD && segment.p_flags & PF_W == 0 {
            segments.push(segment.p_paddr..segment.p_paddr.saturating_add(segment.p_memsz));
        }
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(segments: &[(u32, u32, u64, u64)], entry_size: u16) -> File {
        let header = Elf64_Ehdr {
            e_phoff: size_of::<Elf64_Ehdr>() as u64,
            e_phentsize: entry_size,
            e_phnum: segments.len() as u16,
            ..Default::default()
        };
        let mut bytes = header.as_slice().to_vec();
        for (p_type, p_flags, p_paddr, p_memsz) in segments.iter().copied() {
            let segment = Elf64_Phdr {
                p_type,
                p_flags,
                p_paddr,
                p_memsz,
                ..Default::default()
            };
            bytes.extend(segment.as_slice());
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    const ENTRY: u16 = size_of::<Elf64_Phdr>() as u16;

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
            ENTRY,
        );
        let found = read_only_segments(&kernel).unwrap();
        assert_eq!(found, [0x100_0000..0x120_0000, u64::MAX..u64::MAX]);
    }

    #[test]
    fn a_file_that_is_none_or_is_cut_is_refused() {
        assert!(read_only_segments(&tempfile::tempfile().unwrap()).is_err());
        assert!(read_only_segments(&kernel(&[], 32)).is_err());
        let cut = kernel(&[(PT_LOAD, 5, 0, 1)], ENTRY);
        cut.set_len(size_of::<Elf64_Ehdr>() as u64 + 10).unwrap();
        assert!(read_only_segments(&cut).is_err());
    }
}
