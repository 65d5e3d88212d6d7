//! The tar reader against the formats that layers come in, and against damage.

use std::io::Read as _;

use super::*;
use crate::image::testing::{TarBuilder, TarEntry};

fn read(tar: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, LayerError> {
    let mut archive = Archive::new(tar);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut data = Vec::new();
        archive.data().read_to_end(&mut data).map_err(stream)?;
        entries.push((entry, data));
    }
    Ok(entries)
}

fn reason(tar: &[u8]) -> String {
    read(tar).expect_err("accepted").to_string()
}

#[test]
fn members_come_with_their_data_and_kind() {
    let tar = TarBuilder::new()
        .dir("d/", 0o1777)
        .file("d/f", 0o4755, b"hello")
        .symlink("s", "d/f")
        .hard_link("h", "d/f")
        .entry(TarEntry {
            device: (8, 300),
            ..TarEntry::new(b'4', "b")
        })
        .entry(TarEntry::new(b'6', "p"))
        .finish();
    let entries = read(&tar).expect("valid");
    let kinds: Vec<Kind> = entries.iter().map(|(entry, _)| entry.kind.clone()).collect();
    let expected = [
        Kind::Directory,
        Kind::File { size: 5 },
        Kind::Symlink(b"d/f".into()),
        Kind::HardLink(b"d/f".into()),
        Kind::Block(8, 300),
        Kind::Fifo,
    ];
    assert_eq!(kinds, expected);
    assert_eq!(entries[1].1, b"hello");
    assert_eq!((entries[0].0.mode, entries[1].0.mode), (0o1777, 0o4755));
}

#[test]
fn long_names_come_by_pax_by_gnu_and_by_prefix() {
    let long = "x".repeat(90) + "/" + &"y".repeat(90);
    for gnu_long_names in [false, true] {
        let entry = TarEntry {
            link: long.clone().into(),
            gnu_long_names,
            ..TarEntry::new(b'2', &long)
        };
        let entries = read(&TarBuilder::new().entry(entry).finish()).expect("valid");
        assert_eq!(entries[0].0.path, long.as_bytes());
        assert_eq!(entries[0].0.kind, Kind::Symlink(long.clone().into()));
    }
    let mut tar = TarBuilder::new().file("name", 0o644, b"").finish();
    tar[345..351].copy_from_slice(b"prefix");
    let sum: u32 = (0..512)
        .map(|at| {
            if (148..156).contains(&at) {
                32
            } else {
                u32::from(tar[at])
            }
        })
        .sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(read(&tar).expect("valid")[0].0.path, b"prefix/name");
}

#[test]
fn pax_overrides_what_a_header_cannot_hold() {
    let entry = TarEntry {
        uid: 3_000_000_000,
        gid: 2_200_000,
        pax: vec![
            ("mtime".into(), b"1700000000.123456789".to_vec()),
            ("comment".into(), b"x".to_vec()),
        ],
        ..TarEntry::new(b'0', b"caf\xe9")
    }
    .xattr("security.capability", b"\x01\0\0\n=\x02");
    let entries = read(&TarBuilder::new().entry(entry).file("next", 0o644, b"").finish()).expect("valid");
    let first = &entries[0].0;
    assert_eq!(
        (first.uid, first.gid, first.mtime),
        (3_000_000_000, 2_200_000, (1_700_000_000, 123_456_789))
    );
    assert_eq!(first.path, b"caf\xe9");
    assert_eq!(
        first.xattrs,
        [(b"security.capability".to_vec(), b"\x01\0\0\n=\x02".to_vec())]
    );
    assert!(entries[1].0.xattrs.is_empty(), "extensions are for one member");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    assert!(reason(&TarBuilder::new().entry(TarEntry::new(b'S', "s")).finish()).contains("sparse"));
    let pax = vec![("GNU.sparse.major".to_owned(), b"1".to_vec())];
    assert!(
        reason(
            &TarBuilder::new()
                .entry(TarEntry {
                    pax,
                    ..TarEntry::new(b'0', "s")
                })
                .finish()
        )
        .contains("sparse")
    );
    assert!(reason(&TarBuilder::new().entry(TarEntry::new(b'M', "m")).finish()).contains("multi-volume"));
    assert!(reason(&TarBuilder::new().entry(TarEntry::new(b'?', "q")).finish()).contains("'?'"));
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let tar = TarBuilder::new().file("f", 0o644, vec![7; 1000]).finish();
    assert!(read(&tar[..600]).is_err());
    let mut flipped = tar.clone();
    flipped[0] ^= 1;
    assert!(reason(&flipped).contains("checksum"));
    let huge = TarBuilder::new().entry(TarEntry {
        pax: vec![("size".into(), u64::MAX.to_string().into_bytes())],
        ..TarEntry::new(b'0', "huge")
    });
    let bytes = huge.finish();
    let mut archive = Archive::new(&bytes[..]);
    let entry = archive.next_entry().expect("header").expect("entry");
    assert_eq!(entry.kind, Kind::File { size: u64::MAX });
    assert!(archive.next_entry().is_err(), "the data is not there");
}

#[test]
fn extension_headers_are_bounded() {
    let entry = TarEntry {
        data: vec![b'a'; 2 << 20],
        ..TarEntry::new(b'L', "././@LongLink")
    };
    assert!(reason(&TarBuilder::new().entry(entry).finish()).contains("extension header of 2097152 bytes"));
}

#[test]
fn an_archive_without_trailer_ends_where_the_stream_ends() {
    let tar = TarBuilder::new().file("f", 0o644, b"x").finish();
    assert_eq!(read(&tar[..1024]).expect("no trailer").len(), 1);
    assert!(read(&[]).expect("empty").is_empty());
    assert!(read(&tar[..700]).is_err());
}
