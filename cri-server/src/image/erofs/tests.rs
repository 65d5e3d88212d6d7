//! Layers through tar, tree and writer, looked at with a reader that shares no code with them, and with `fsck.erofs`.

use std::{collections::BTreeMap, path::Path, process::Command};

use super::*;
use crate::image::{
    config::Limits,
    error::LayerError,
    layer_tree::{append_failed, read_layer},
    tar::Archive,
    testing::{BlobReader, Found, FoundKind, TarBuilder, TarEntry},
};

mod property;

fn write(tar: &[u8], path: &Path) -> Result<(), LayerError> {
    write_with(tar, path, &Limits::default())
}

fn write_with(tar: &[u8], path: &Path, limits: &Limits) -> Result<(), LayerError> {
    let mut blob = Blob::new(fs_err::File::create(path).expect("file"));
    let tree = read_layer(&mut Archive::new(tar), &mut blob, limits)?;
    let size = finish(blob, &tree, [7; 16]).map_err(append_failed)?;
    assert_eq!(size, fs_err::metadata(path).expect("blob").len());
    Ok(())
}

fn fsck(path: &Path) {
    match Command::new("fsck.erofs").arg(path).output() {
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => eprintln!("SKIPPED: fsck.erofs cannot be run ({error}); only our own reader looked"),
    }
}

fn tree(tar: &[u8]) -> BTreeMap<Vec<u8>, Found> {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("blob");
    write(tar, &path).expect("valid layer");
    fsck(&path);
    BlobReader::open(&path).tree()
}

fn refused(tar: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("folder");
    write(tar, &folder.path().join("blob"))
        .expect_err("accepted")
        .to_string()
}

fn whiteout() -> FoundKind {
    FoundKind::Character(0, 0)
}

fn is_opaque(found: &Found) -> bool {
    found
        .xattrs
        .get(&b"trusted.overlay.opaque"[..])
        .is_some_and(|value| value == b"y")
}

#[test]
fn every_kind_of_file_arrives_with_its_attributes() {
    let tar = TarBuilder::new()
        .dir("./", 0o711)
        .dir("tmp", 0o1777)
        .file("bin/su", 0o4755, vec![1; 10_000])
        .file("empty", 0o600, b"")
        .symlink("link", "bin/su")
        .entry(TarEntry {
            device: (1, 3),
            mode: 0o666,
            ..TarEntry::new(b'3', "null")
        })
        .entry(TarEntry {
            device: (259, 70_000),
            mode: 0o660,
            ..TarEntry::new(b'4', "disk")
        })
        .entry(TarEntry {
            mode: 0o620,
            ..TarEntry::new(b'6', "pipe")
        })
        .entry(TarEntry {
            uid: 3_000_000_000,
            gid: 70_000,
            ..TarEntry::new(b'0', "owned")
        })
        .entry(TarEntry {
            pax: vec![("mtime".into(), b"-1.5".to_vec())],
            ..TarEntry::new(b'0', "old")
        })
        .entry(
            TarEntry::new(b'0', "x")
                .xattr("security.capability", b"\0\n\x01")
                .xattr("user.a", "")
                .xattr("system.posix_acl_access", b"\x02\0\0\0")
                .xattr("com.apple.provenance", b"dropped")
                .xattr("trusted.overlay.redirect", b"dropped"),
        )
        .finish();
    let tree = tree(&tar);
    let at = |path: &str| &tree[path.as_bytes()];
    assert_eq!((at("").mode, at("").links), (0o711, 4));
    assert_eq!(at("tmp").mode, 0o1777);
    assert_eq!((at("bin").mode, at("bin").uid), (0o755, 0));
    assert_eq!(at("bin/su").mode, 0o4755);
    assert_eq!(at("bin/su").kind, FoundKind::File(vec![1; 10_000]));
    assert_eq!(at("empty").kind, FoundKind::File(Vec::new()));
    assert_eq!(at("link").kind, FoundKind::Symlink(b"bin/su".into()));
    assert_eq!(at("null").kind, FoundKind::Character(1, 3));
    assert_eq!(at("disk").kind, FoundKind::Block(259, 70_000));
    assert_eq!(
        (at("pipe").kind.clone(), at("pipe").mode),
        (FoundKind::Fifo, 0o620)
    );
    assert_eq!((at("owned").uid, at("owned").gid), (3_000_000_000, 70_000));
    assert_eq!(at("old").mtime, (-2, 500_000_000));
    let xattrs: Vec<&[u8]> = at("x").xattrs.keys().map(Vec::as_slice).collect();
    assert_eq!(
        xattrs,
        [&b"security.capability"[..], b"system.posix_acl_access", b"user.a"]
    );
    assert_eq!(at("x").xattrs[&b"security.capability"[..]], b"\0\n\x01");
}

#[test]
fn hard_links_are_one_file() {
    let tar = TarBuilder::new()
        .file("bin/a", 0o755, b"first")
        .hard_link("bin/b", "/bin/a")
        .hard_link("c", "./bin/b")
        .hard_link("c", "bin/a")
        .file("bin/a", 0o644, b"second")
        .finish();
    let tree = tree(&tar);
    let (a, b, c) = (&tree[&b"bin/a"[..]], &tree[&b"bin/b"[..]], &tree[&b"c"[..]]);
    assert_eq!(a.kind, FoundKind::File(b"second".into()));
    assert_eq!(b.kind, FoundKind::File(b"first".into()));
    assert_eq!((b.inode, b.links, a.links), (c.inode, 2, 1));
}

#[test]
fn hard_links_to_what_is_not_there_are_refused() {
    assert!(refused(&TarBuilder::new().hard_link("a", "b").finish()).contains("not in this layer"));
    assert!(
        refused(&TarBuilder::new().dir("d", 0o755).hard_link("a", "d").finish()).contains("is a directory")
    );
    assert!(refused(&TarBuilder::new().hard_link("a", "../../etc/passwd").finish()).contains("`..`"));
}

#[test]
fn whiteouts_become_what_overlayfs_understands() {
    let tar = TarBuilder::new()
        .file("etc/.wh.gone", 0o644, b"")
        .file("opaque/.wh..wh..opq", 0o644, b"")
        .file("opaque/new", 0o644, b"n")
        .dir("opaque", 0o700)
        .file(".wh..wh.plnk", 0o644, b"")
        .file(".wh.file", 0o644, b"")
        .file("file", 0o644, b"new")
        .file(".wh.before", 0o644, b"")
        .dir("before", 0o755)
        .file("after/x", 0o644, b"")
        .file(".wh.after", 0o644, b"")
        .file(".wh.implied", 0o644, b"")
        .file("implied/x", 0o644, b"")
        .finish();
    let tree = tree(&tar);
    assert_eq!(tree[&b"etc/gone"[..]].kind, whiteout());
    assert!(
        is_opaque(&tree[&b"opaque"[..]]),
        "stays opaque when it is described later"
    );
    assert_eq!(tree[&b"opaque"[..]].mode, 0o700);
    assert_eq!(tree[&b"file"[..]].kind, FoundKind::File(b"new".into()));
    for replaced in [&b"before"[..], b"after", b"implied"] {
        assert_eq!(tree[replaced].kind, FoundKind::Directory);
        assert!(
            is_opaque(&tree[replaced]),
            "{replaced:?} must not merge with the lower one"
        );
    }
    assert!(
        tree.keys()
            .all(|path| !path.windows(4).any(|part| part == b".wh."))
    );
    assert!(refused(&TarBuilder::new().file("d/.wh.", 0o644, b"").finish()).contains("whiteout of no name"));
    assert!(
        refused(&TarBuilder::new().file("d/.wh...", 0o644, b"").finish()).contains("whiteout of no name")
    );
}

#[test]
fn later_entries_replace_earlier_ones() {
    let tar = TarBuilder::new()
        .file("a", 0o644, b"1")
        .dir("a", 0o700)
        .file("a/b/c", 0o644, b"")
        .dir("a", 0o711)
        .file("x/y/z", 0o644, b"")
        .symlink("x", "a")
        .finish();
    let tree = tree(&tar);
    assert_eq!(tree[&b"a"[..]].mode, 0o711);
    assert!(
        tree.contains_key(&b"a/b/c"[..]),
        "a directory over a directory keeps what is in it"
    );
    assert_eq!(tree[&b"x"[..]].kind, FoundKind::Symlink(b"a".into()));
    assert!(!tree.contains_key(&b"x/y"[..]));
}

#[test]
fn paths_stay_in_the_layer() {
    let tar = TarBuilder::new()
        .symlink("lib", "usr/lib")
        .file("lib/inside", 0o644, b"1")
        .symlink("up", "../../..")
        .file("up/top", 0o644, b"2")
        .symlink("abs", "/var/lib")
        .file("abs/./x//y", 0o644, b"3")
        .file("/leading", 0o644, b"4")
        .finish();
    let tree = tree(&tar);
    for path in [&b"usr/lib/inside"[..], b"top", b"var/lib/x/y", b"leading"] {
        assert!(tree.contains_key(path), "{}", String::from_utf8_lossy(path));
    }
    assert!(refused(&TarBuilder::new().file("a/../../etc/passwd", 0o644, b"").finish()).contains("`..`"));
    let cycle = TarBuilder::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", 0o644, b"")
        .finish();
    assert!(refused(&cycle).contains("too many symlinks"));
    let through_file = TarBuilder::new()
        .file("f", 0o644, b"")
        .file("f/x", 0o644, b"")
        .finish();
    assert!(refused(&through_file).contains("not a directory"));
    let long = "n".repeat(256);
    assert!(refused(&TarBuilder::new().file(&long, 0o644, b"").finish()).contains("255"));
}

#[test]
fn big_directories_are_sorted_over_many_blocks() {
    let mut tar = TarBuilder::new();
    for number in 0..10_000 {
        tar = tar.file(
            &format!("many/{:04}-{}", number * 7919 % 10_000, "n".repeat(number % 90)),
            0o644,
            b"",
        );
    }
    for name in ["!", "-dash", "..x", "\u{fc}ml", "."] {
        tar = tar.file(&format!("few/{name}/f"), 0o644, b"");
    }
    let tree = tree(&tar.finish());
    assert_eq!(
        tree.keys().filter(|path| path.starts_with(b"many/")).count(),
        10_000
    );
    assert!(tree.contains_key(&b"few/-dash/f"[..]) && tree.contains_key(&b"few/f"[..]));
}

#[test]
fn directories_of_every_size_near_a_block_are_read_back() {
    for names in (300..345).step_by(3) {
        let mut tar = TarBuilder::new();
        for number in 0..names {
            tar = tar.file(&format!("d/{number}"), 0o644, b"");
        }
        assert_eq!(tree(&tar.finish()).len(), names + 2);
    }
}

#[test]
fn attributes_larger_than_a_block_are_read_back() {
    let value = vec![b'v'; 20_000];
    let entry = TarEntry {
        link: "t".repeat(3000).into(),
        ..TarEntry::new(b'2', "big")
    };
    let tar = TarBuilder::new()
        .entry(
            TarEntry {
                data: b"data".to_vec(),
                ..TarEntry::new(b'0', "f")
            }
            .xattr("user.big", &value),
        )
        .entry(entry.xattr("user.most", vec![b'm'; 2000]))
        .entry(TarEntry::new(b'5', "d").xattr("user.most", vec![b'm'; 4000]))
        .file("d/x", 0o644, b"")
        .finish();
    let tree = tree(&tar);
    assert_eq!(tree[&b"f"[..]].xattrs[&b"user.big"[..]], value);
    assert_eq!(tree[&b"big"[..]].kind, FoundKind::Symlink(vec![b't'; 3000]));
    let huge = TarEntry::new(b'0', "f").xattr("user.huge", vec![0; 70_000]);
    assert!(refused(&TarBuilder::new().entry(huge).finish()).contains("too large"));
}

#[test]
fn equal_layers_are_equal_blobs() {
    let folder = tempfile::tempdir().expect("folder");
    let tar = TarBuilder::new()
        .file("b/x", 0o644, vec![3; 5000])
        .file("a", 0o644, b"a")
        .finish();
    let blobs = ["one", "two"].map(|name| {
        let path = folder.path().join(name);
        write(&tar, &path).expect("valid");
        fs_err::read(path).expect("blob")
    });
    assert!(blobs[0] == blobs[1]);
}

#[test]
fn zeros_take_no_space_and_read_as_zeros() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("blob");
    let mut data = vec![0; 4 << 20];
    data[2_000_000] = 1;
    write(&TarBuilder::new().file("zeros", 0o644, &data).finish(), &path).expect("valid");
    assert_eq!(
        BlobReader::open(&path).tree()[&b"zeros"[..]].kind,
        FoundKind::File(data)
    );
    let metadata = fs_err::metadata(&path).expect("blob");
    assert!(
        metadata.blocks() * 512 < 1 << 20,
        "{} of {} bytes",
        metadata.blocks() * 512,
        metadata.len()
    );
}

#[test]
fn limits_stop_a_layer() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("blob");
    let tar = TarBuilder::new()
        .file("a/b/c/d", 0o644, vec![1; 5000])
        .file("e", 0o644, b"")
        .finish();
    for (limits, what) in [
        (
            Limits {
                layer_bytes: 4999,
                ..Limits::default()
            },
            "bytes of file data",
        ),
        (
            Limits {
                layer_entries: 1,
                ..Limits::default()
            },
            "entries",
        ),
        (
            Limits {
                layer_entries: 3,
                ..Limits::default()
            },
            "files and directories",
        ),
        (
            Limits {
                layer_metadata_bytes: 5,
                ..Limits::default()
            },
            "bytes of names",
        ),
    ] {
        let error = write_with(&tar, &path, &limits).expect_err(what).to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn implied_directories_are_known() {
    let folder = tempfile::tempdir().expect("folder");
    let mut blob = Blob::new(fs_err::File::create(folder.path().join("blob")).expect("file"));
    let tar = TarBuilder::new()
        .dir("a", 0o700)
        .file("a/b/c/f", 0o644, b"")
        .file("x/f", 0o644, b"")
        .finish();
    let tree = read_layer(&mut Archive::new(&tar[..]), &mut blob, &Limits::default()).expect("valid");
    let implied: Vec<String> = tree
        .implied_directories()
        .into_iter()
        .map(|path| String::from_utf8(path).expect("ASCII"))
        .collect();
    assert_eq!(implied, ["", "a/b", "a/b/c", "x"]);
}

/// What `fsck.erofs` extracts is what went in.
#[test]
fn another_implementation_extracts_the_same_bytes() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("blob");
    let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut tar = TarBuilder::new()
        .file("deep/er/data", 0o644, &data)
        .file("small", 0o644, b"s");
    for number in 0..500 {
        tar = tar.file(&format!("dir/{number}"), 0o644, number.to_string());
    }
    write(
        &tar.symlink("link", "small").hard_link("hard", "small").finish(),
        &path,
    )
    .expect("valid");
    let out = folder.path().join("out");
    let run = Command::new("fsck.erofs")
        .arg(format!("--extract={}", out.display()))
        .arg(&path)
        .output();
    let output = match run {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: fsck.erofs cannot be run ({error})");
            return;
        }
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(fs_err::read(out.join("deep/er/data")).expect("data"), data);
    assert_eq!(fs_err::read(out.join("hard")).expect("hard"), b"s");
    assert_eq!(
        fs_err::read_link(out.join("link")).expect("link"),
        Path::new("small")
    );
    for number in 0..500 {
        assert_eq!(
            fs_err::read(out.join(format!("dir/{number}"))).expect("file"),
            number.to_string().as_bytes()
        );
    }
}
