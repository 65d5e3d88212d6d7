//! What a kernel makes of our blobs, and of a file system that is full. Needs root.
//!
//! Without root each test says that it is skipped; with `CLEARPOD_REQUIRE=root` it fails instead.

use std::{
    io::Write as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use cri_server::image::{
    ImageConfig, ImageStore, PullError,
    testing::{Compression, TarBuilder, TarEntry, TestImage, TestRegistry},
};
use serde_json::json;

/// Whether the test can run; says loudly when not.
fn root(test: &str) -> bool {
    let id = Command::new("id").arg("-u").output().expect("id(1)").stdout;
    if id == b"0\n" {
        return true;
    }
    let required = std::env::var("CLEARPOD_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|need| need == "root"),
        "{test} needs root, and CLEARPOD_REQUIRE asks for it"
    );
    writeln!(
        std::io::stderr(),
        "SKIPPED {test}: it mounts file systems and needs root"
    )
    .expect("stderr");
    false
}

struct Mount {
    at: PathBuf,
}

impl Mount {
    fn new(arguments: &[&str], at: &Path) -> Self {
        fs_err::create_dir_all(at).expect("mount point");
        let output = Command::new("mount")
            .args(arguments)
            .arg(at)
            .output()
            .expect("mount(8)");
        assert!(
            output.status.success(),
            "mount {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self { at: at.to_owned() }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.at).status().expect("umount(8)");
        assert!(
            status.success() || std::thread::panicking(),
            "umount {:?}",
            self.at
        );
    }
}

fn base() -> Vec<u8> {
    let mut tar = TarBuilder::new()
        .dir("./", 0o755)
        .dir("tmp", 0o1777)
        .dir("srv/data", 0o750)
        .file("bin/su", 0o4755, vec![9; 12_345])
        .hard_link("bin/sudo", "bin/su")
        .symlink("link", "bin/su")
        .symlink("long", &"t".repeat(3000))
        .entry(TarEntry {
            device: (1, 3),
            mode: 0o666,
            ..TarEntry::new(b'3', "null")
        })
        .entry(TarEntry::new(b'6', "pipe"))
        .entry(TarEntry {
            uid: 3_000_000_000,
            gid: 70_000,
            ..TarEntry::new(b'0', "owned")
        })
        .entry(TarEntry {
            pax: vec![("mtime".into(), b"1.25".to_vec())],
            ..TarEntry::new(b'0', "old")
        })
        .file("gone", 0o644, "lower")
        .file("opaque/lower", 0o644, "lower")
        .file("merged/lower", 0o644, "lower");
    for number in 0..3000 {
        tar = tar.file(&format!("many/file-{number}"), 0o644, number.to_string());
    }
    tar.finish()
}

fn top() -> Vec<u8> {
    TarBuilder::new()
        .file(".wh.gone", 0o644, "")
        .file("opaque/.wh..wh..opq", 0o644, "")
        .file("opaque/upper", 0o644, "upper")
        .file("merged/upper", 0o644, "upper")
        .file("srv/data/x", 0o644, "x")
        .finish()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs_err::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_kernel_mounts_layers_and_overlays_them() {
    if !root("the_kernel_mounts_layers_and_overlays_them") {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let registry = TestRegistry::start().await;
    let layers = [(base(), Compression::Gzip), (top(), Compression::Zstd)];
    let layers: Vec<(&[u8], Compression)> = layers.iter().map(|(tar, how)| (&tar[..], *how)).collect();
    registry.push("a", "1", &TestImage::new(&layers, &json!({})));
    let store = ImageStore::open(ImageConfig {
        root: folder.path().join("images"),
        ..ImageConfig::default()
    })
    .expect("store");
    let id = store
        .pull(&format!("{}/a:1", registry.host()), None)
        .await
        .expect("pull");
    let image = store.resolve(&id).expect("image");

    let mounts: Vec<Mount> = image
        .layers
        .iter()
        .enumerate()
        .map(|(number, layer)| {
            let source = layer.path.to_str().expect("UTF-8");
            Mount::new(
                &["-t", "erofs", "-o", "loop,ro", source],
                &folder.path().join(number.to_string()),
            )
        })
        .collect();
    check_base(&mounts[0].at);

    let lower: Vec<String> = mounts
        .iter()
        .rev()
        .map(|mount| mount.at.display().to_string())
        .collect();
    let option = format!("lowerdir={}", lower.join(":"));
    let merged = Mount::new(
        &["-t", "overlay", "overlay", "-o", &option],
        &folder.path().join("merged"),
    );
    let at = |path: &str| merged.at.join(path);
    assert!(!at("gone").exists());
    assert_eq!(names(&at("opaque")), ["upper"]);
    assert_eq!(names(&at("merged")), ["lower", "upper"]);
    assert_eq!(fs_err::read(at("bin/sudo")).expect("file"), vec![9; 12_345]);
    let data = fs_err::metadata(at("srv/data")).expect("directory");
    assert_eq!(
        data.mode() & 0o7777,
        0o750,
        "a directory that the upper layer only passes through"
    );
    drop(merged);
    drop(mounts);
}

fn check_base(root: &Path) {
    let stat = |path: &str| fs_err::symlink_metadata(root.join(path)).expect(path);
    assert_eq!(stat("tmp").mode() & 0o7777, 0o1777);
    assert_eq!(
        (stat("bin/su").mode() & 0o7777, stat("bin/su").nlink()),
        (0o4755, 2)
    );
    assert_eq!(stat("bin/su").ino(), stat("bin/sudo").ino());
    assert_eq!(
        fs_err::read(root.join("bin/sudo")).expect("file"),
        vec![9; 12_345]
    );
    assert_eq!(
        fs_err::read_link(root.join("link")).expect("link"),
        Path::new("bin/su")
    );
    assert_eq!(
        fs_err::read_link(root.join("long")).expect("link"),
        Path::new(&"t".repeat(3000))
    );
    assert!(stat("null").file_type().is_char_device() && stat("null").rdev() == 0x103);
    assert!(stat("pipe").file_type().is_fifo());
    assert_eq!(
        (stat("owned").uid(), stat("owned").gid()),
        (3_000_000_000, 70_000)
    );
    assert_eq!((stat("old").mtime(), stat("old").mtime_nsec()), (1, 250_000_000));
    assert_eq!(names(&root.join("many")).len(), 3000);
    for number in 0..3000 {
        let path = root.join(format!("many/file-{number}"));
        assert_eq!(fs_err::read(path).expect("file"), number.to_string().as_bytes());
    }
}

#[tokio::test]
async fn a_full_file_system_is_named_and_left_clean() {
    if !root("a_full_file_system_is_named_and_left_clean") {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let disk = Mount::new(
        &["-t", "tmpfs", "-o", "size=6m", "tmpfs"],
        &folder.path().join("disk"),
    );
    let registry = TestRegistry::start().await;
    let large = TarBuilder::new().file("large", 0o644, vec![1; 16 << 20]).finish();
    registry.push("large", "1", &TestImage::of_layer(&large));
    registry.push("small", "1", &TestImage::of_layer(&top()));
    let store = ImageStore::open(ImageConfig {
        root: disk.at.clone(),
        ..ImageConfig::default()
    })
    .expect("store");

    let error = store
        .pull(&format!("{}/large:1", registry.host()), None)
        .await
        .expect_err("no space");
    assert!(matches!(&*error, PullError::NoSpace { .. }), "{error:?}");
    assert!(names(&disk.at.join("layers")).is_empty());
    store
        .pull(&format!("{}/small:1", registry.host()), None)
        .await
        .expect("room again");
    drop(store);
    drop(disk);
}
