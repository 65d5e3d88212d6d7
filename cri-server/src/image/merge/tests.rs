//! Stacks of small layers, and what they must look like when overlaid.

use super::*;
use crate::image::{
    config::{ImageConfig, Limits},
    layer_tree::read_layer,
    store::ImageStore,
    tar::Archive,
    testing::{BlobReader, Found, FoundKind, TarBuilder},
};

struct Bench {
    _folder: tempfile::TempDir,
    store: ImageStore,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let config = ImageConfig {
            root: folder.path().into(),
            ..ImageConfig::default()
        };
        Self {
            _folder: folder,
            store: ImageStore::open(config).expect("store"),
        }
    }

    fn layer(&self, tar: TarBuilder) -> HeldLayer {
        let tar = tar.finish();
        make(&self.store.shelf, &Digest::of(&tar), |file, _| {
            let mut blob = Blob::new(file);
            let tree = read_layer(&mut Archive::new(&tar[..]), &mut blob, &Limits::default())?;
            Ok((blob, tree))
        })
        .expect("layer")
    }

    fn settle(&self, tars: Vec<TarBuilder>) -> Vec<BTreeMap<Vec<u8>, Found>> {
        let layers = tars.into_iter().map(|tar| self.layer(tar)).collect();
        let settled = settle(&self.store.shelf, layers).expect("settled");
        settled
            .iter()
            .map(|layer| BlobReader::open(&self.store.shelf.layer_path(&layer.id.to_string())).tree())
            .collect()
    }
}

fn paths(tree: &BTreeMap<Vec<u8>, Found>) -> Vec<String> {
    tree.keys()
        .map(|path| String::from_utf8(path.clone()).expect("ASCII"))
        .collect()
}

fn merged_usr() -> TarBuilder {
    TarBuilder::new()
        .dir("usr", 0o755)
        .dir("usr/lib", 0o750)
        .symlink("lib", "usr/lib")
        .symlink("abs", "/lib")
}

#[test]
fn layers_that_describe_their_directories_stay_as_they_are() {
    let bench = Bench::new();
    let settled = bench.settle(vec![
        TarBuilder::new().dir("a", 0o700).file("a/x", 0o644, ""),
        TarBuilder::new()
            .dir("a", 0o711)
            .file("a/y", 0o644, "")
            .file("new/z", 0o644, ""),
    ]);
    assert_eq!(settled.len(), 2);
}

#[test]
fn a_directory_passed_through_keeps_its_attributes() {
    let bench = Bench::new();
    let settled = bench.settle(vec![
        TarBuilder::new()
            .dir("a", 0o751)
            .dir("a/b", 0o1777)
            .dir("c", 0o700),
        TarBuilder::new().file("a/b/x", 0o644, ""),
        TarBuilder::new()
            .file("c/.wh..wh..opq", 0o644, "")
            .file("a/.wh.gone", 0o644, ""),
    ]);
    assert_eq!(settled.len(), 4);
    // `c` was made opaque without being described: nobody's attributes are left but the implied ones.
    assert_eq!(paths(&settled[3]), ["", "a", "a/b"]);
    assert_eq!(
        (settled[3][&b"a"[..]].mode, settled[3][&b"a/b"[..]].mode),
        (0o751, 0o1777)
    );
    assert!(settled[3].values().all(|found| found.xattrs.is_empty()));
}

#[test]
fn files_follow_the_symlinks_below_them() {
    let bench = Bench::new();
    let settled = bench.settle(vec![
        merged_usr(),
        TarBuilder::new()
            .file("lib/x86/a", 0o644, vec![7; 5000])
            .file("abs/b", 0o644, "b")
            .file("usr/lib/c", 0o644, "c")
            .file("lib/x86/.wh..wh..opq", 0o644, "")
            .hard_link("usr/lib/a", "lib/x86/a"),
    ]);
    assert_eq!(
        paths(&settled[1]),
        [
            "",
            "usr",
            "usr/lib",
            "usr/lib/a",
            "usr/lib/b",
            "usr/lib/c",
            "usr/lib/x86",
            "usr/lib/x86/a"
        ]
    );
    assert_eq!(
        settled[1][&b"usr/lib/x86/a"[..]].kind,
        FoundKind::File(vec![7; 5000])
    );
    assert_eq!(settled[1][&b"usr/lib/a"[..]].links, 2);
    assert_eq!(settled[1][&b"usr/lib/x86"[..]].xattrs[OPAQUE_XATTR], b"y");
    assert_eq!(
        settled[2][&b"usr/lib"[..]].mode,
        0o750,
        "and the directory they reach keeps its attributes"
    );
}

#[test]
fn a_described_directory_replaces_a_symlink_below_it() {
    let bench = Bench::new();
    let settled = bench.settle(vec![
        merged_usr(),
        TarBuilder::new().dir("lib", 0o755).file("lib/sub/a", 0o644, ""),
    ]);
    assert_eq!(paths(&settled[1]), ["", "lib", "lib/sub", "lib/sub/a"]);
}

#[test]
fn symlinks_in_a_circle_are_refused() {
    let bench = Bench::new();
    let layers = vec![
        bench.layer(TarBuilder::new().symlink("a", "b").symlink("b", "a")),
        bench.layer(TarBuilder::new().file("a/x", 0o644, "")),
    ];
    let error = settle(&bench.store.shelf, layers).expect_err("refused");
    assert!(
        matches!(&error, UnpackFault::Layer(LayerError::Entry { reason, .. }) if reason.contains("symlinks"))
    );
}

#[test]
fn symlinks_cannot_lead_out_of_the_image() {
    let bench = Bench::new();
    let settled = bench.settle(vec![
        TarBuilder::new().symlink("up", "../../../etc"),
        TarBuilder::new().file("up/passwd", 0o644, "mine"),
    ]);
    assert_eq!(paths(&settled[1]), ["", "etc", "etc/passwd"]);
}

#[test]
fn equal_work_is_done_once() {
    let bench = Bench::new();
    let layers = || {
        vec![
            bench.layer(merged_usr()),
            bench.layer(TarBuilder::new().file("lib/a", 0o644, "")),
        ]
    };
    let first = settle(&bench.store.shelf, layers()).expect("settled");
    let second = settle(&bench.store.shelf, layers()).expect("settled");
    let ids = |layers: &[HeldLayer]| layers.iter().map(|layer| layer.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&first), ids(&second));
    assert_eq!(
        fs_err::read_dir(bench.store.shelf.config.root.join("layers"))
            .expect("layers")
            .count(),
        4
    );
}
