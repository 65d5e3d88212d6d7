//! Memory that is written, mapped again, and changed by one Machine without the others.

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use vm_memory::{Bytes, GuestAddress};

use super::super::{discard, map_ram};
use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const ID: SnapshotId = *b"0123456789abcdef";

/// Low and high memory, and some to plug.
fn layout() -> RamLayout {
    RamLayout::new(4 * GIB, 128 * MIB)
}

/// An address in each range, at its ends, and in the middle of nothing.
const PLACES: [u64; 6] = [
    0,
    3 * GIB - 8,
    4 * GIB,
    4 * GIB + 77 * 4096,
    6 * GIB,
    6 * GIB + 128 * MIB - 8,
];

fn written() -> File {
    let memory = map_ram(layout()).unwrap();
    for place in PLACES {
        memory.write_obj(place + 1, GuestAddress(place)).unwrap();
    }
    let file = tempfile::tempfile().unwrap();
    write(&memory, ID, &file).unwrap();
    file
}

fn words(memory: &GuestMemory) -> [u64; 6] {
    PLACES.map(|place| memory.read_obj(GuestAddress(place)).unwrap())
}

#[test]
fn memory_is_what_it_was_and_what_is_zero_takes_no_room() {
    let file = written();
    let found = file.metadata().unwrap();
    assert_eq!(found.len(), 4 * GIB + 128 * MIB + PAGE);
    assert!(found.blocks() * 512 < 64 * PAGE, "{} blocks", found.blocks());
    let memory = map(layout(), ID, &file).unwrap();
    assert_eq!(words(&memory), PLACES.map(|place| place + 1));
    assert_eq!(memory.read_obj::<u64>(GuestAddress(GIB)).unwrap(), 0);
    assert!(
        memory.iter().all(|region| region.file_offset().is_none()),
        "private"
    );
}

#[test]
fn what_one_machine_writes_no_other_sees() {
    let file = written();
    let (first, second) = (
        map(layout(), ID, &file).unwrap(),
        map(layout(), ID, &file).unwrap(),
    );
    first.write_obj(7_u64, GuestAddress(0)).unwrap();
    first.write_obj(8_u64, GuestAddress(GIB)).unwrap();
    let read = |memory: &GuestMemory, place| memory.read_obj::<u64>(GuestAddress(place)).unwrap();
    assert_eq!((read(&first, 0), read(&first, GIB)), (7, 8));
    assert_eq!((read(&second, 0), read(&second, GIB)), (1, 0));
    assert_eq!(read(&map(layout(), ID, &file).unwrap(), 0), 1);
    discard(&first, 0, PAGE).unwrap();
    discard(&first, GIB, PAGE).unwrap();
    assert_eq!((read(&first, 0), read(&first, GIB)), (1, 0), "as in the snapshot");
}

#[test]
fn a_file_that_is_not_this_memory_is_refused() {
    let reason = |file: &File| map(layout(), ID, file).unwrap_err();
    let file = written();
    assert!(matches!(
        map(layout(), *b"0123456789abcdeF", &file),
        Err(ImageError::OtherSnapshot)
    ));
    let smaller = RamLayout::new(4 * GIB, 0);
    assert!(matches!(map(smaller, ID, &file), Err(ImageError::Size { .. })));
    let whole = file.metadata().unwrap().len();
    for length in [0, 1, 4096, GIB, whole - PAGE, whole - 1, whole + 1] {
        file.set_len(length).unwrap();
        assert!(
            matches!(reason(&file), ImageError::Size { found, .. } if found == length),
            "{length}"
        );
    }
    file.set_len(whole - PAGE).unwrap();
    file.set_len(whole).unwrap();
    assert!(matches!(reason(&file), ImageError::Foreign));
    let mut empty = tempfile::tempfile().unwrap();
    empty.write_all(b"no memory").unwrap();
    assert!(matches!(reason(&empty), ImageError::Size { found: 9, .. }));
}

#[test]
fn pieces_are_what_holds_data_in_units_from_the_ranges_start() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 * MIB).unwrap();
    for at in [MIB, 9 * MIB, 33 * MIB + 4096] {
        file.write_all_at(&[1; 4096], at).unwrap();
    }
    let found = |range| pieces(&file, range, 2 * MIB).unwrap();
    assert_eq!(
        found(0..64 * MIB),
        [0..2 * MIB, 8 * MIB..10 * MIB, 32 * MIB..34 * MIB]
    );
    assert_eq!(found(MIB..10 * MIB), [MIB..3 * MIB, 9 * MIB..10 * MIB]);
    assert_eq!(found(34 * MIB..64 * MIB), []);
}

#[test]
fn runs_of_full_pages_leave_out_the_empty_ones() {
    let page = PAGE as usize;
    let mut bytes = vec![0; 6 * page + 10];
    assert_eq!(full_runs(&bytes), []);
    for at in [page, 3 * page - 1, 6 * page + 9] {
        bytes[at] = 1;
    }
    assert_eq!(full_runs(&bytes), [page..3 * page, 6 * page..6 * page + 10]);
}

#[test]
fn only_whole_huge_pages_are_gathered() {
    let starts = |range: Range<u64>| huge_pages(range).collect::<Vec<_>>();
    assert_eq!(starts(16 * MIB..22 * MIB), [16 * MIB, 18 * MIB, 20 * MIB]);
    assert_eq!(starts(16 * MIB + 1..22 * MIB - 1), [18 * MIB]);
    assert!(starts(MIB..3 * MIB).is_empty());
    assert!(starts(0..0).is_empty());
    assert!(starts(u64::MAX - MIB..u64::MAX).is_empty());
}

#[test]
fn what_is_gathered_has_the_same_content_wherever_it_lies() {
    let layout = RamLayout::new(64 * MIB, 0);
    let memory = map_ram(layout).unwrap();
    let text: Vec<u8> = (0..6 * MIB).map(|at| (at % 251) as u8).collect();
    memory.write_slice(&text, GuestAddress(16 * MIB)).unwrap();
    for directory in ["/dev/shm".into(), std::env::temp_dir()] {
        let file = tempfile::tempfile_in(directory).unwrap();
        write(&memory, ID, &file).unwrap();
        gather(&file, &[16 * MIB..22 * MIB, 62 * MIB..u64::MAX]);
        let mapped = map(layout, ID, &file).unwrap();
        let mut found = vec![0; text.len()];
        mapped.read_slice(&mut found, GuestAddress(16 * MIB)).unwrap();
        assert!(found == text);
    }
}
