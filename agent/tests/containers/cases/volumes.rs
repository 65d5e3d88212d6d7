//! Volumes that live longer than one container, change under it, or have mounts in them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use proto::agent::v1::mount::Source;
use proto::agent::v1::*;

use crate::client::refused;
use crate::fixture::Fixture;

fn mount(destination: &str, source: Source) -> Mount {
    Mount {
        destination: destination.to_owned(),
        source: Some(source),
        ..Mount::default()
    }
}

fn config(generation: &str, files: &[(&str, &str)]) -> FilesSource {
    let file = |(path, content): &(&str, &str)| File {
        path: (*path).to_owned(),
        content: content.as_bytes().to_vec(),
        ..File::default()
    };
    FilesSource {
        name: "followed".to_owned(),
        files: files.iter().map(file).collect(),
        generation: generation.to_owned(),
        ..FilesSource::default()
    }
}

fn tmpfs(name: &str, path: &str) -> TmpfsSource {
    TmpfsSource {
        name: name.to_owned(),
        size_bytes: 1 << 20,
        path: path.to_owned(),
        gid: 2000,
        mode: 0o2775,
        ..TmpfsSource::default()
    }
}

pub(super) async fn updated_files_take_the_place_of_the_old_ones(f: Fixture) {
    let mut request = f.shell("config", "exec 3</etc/config/key; sleep 1000");
    let mut volume = mount(
        "/etc/config",
        Source::Files(config("..1", &[("key", "one"), ("old", "")])),
    );
    volume.read_only = true;
    request.mounts = vec![volume];
    f.create(request).await;
    f.start("config").await;
    let look = [
        "sh",
        "-c",
        "cat /etc/config/key; readlink /etc/config/..data; ls /etc/config",
    ];
    let (_, seen) = f.exec_output("config", "before", &look).await;
    assert_eq!(seen.stdout, "one..1\nkey\nold\n");
    let update = |source| {
        let mut client = f.client.clone();
        async move {
            let source = Some(source);
            client.update_files(UpdateFilesRequest { source }).await
        }
    };
    update(config("..2", &[("key", "two"), ("new", "")]))
        .await
        .unwrap();
    let (_, seen) = f.exec_output("config", "after", &look).await;
    assert_eq!(seen.stdout, "two..2\nkey\nnew\n");
    let wrong = update(config("../../up", &[("key", "")])).await;
    assert_eq!(refused(wrong).0, ErrorCode::InvalidArgument);
    f.remove("config").await;
    let gone = update(config("..3", &[("key", "")])).await;
    assert_eq!(refused(gone).0, ErrorCode::NotFound);
}

/// Where the agent has mounted the volume that has this file.
fn directory_with(f: &Fixture, marker: &str) -> PathBuf {
    let volumes = fs::read_dir(f.settings.run.join("volumes")).unwrap();
    let found = volumes
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join(marker).exists());
    found.expect("the volume")
}

pub(super) async fn read_only_means_submounts_only_when_asked(f: Fixture) {
    let with = |id: &str, command: &str| {
        let mut request = f.shell(id, command);
        request.mounts = vec![mount("/data", Source::Tmpfs(tmpfs("nested", "")))];
        request
    };
    f.create(with("holder", "touch /data/marker; mkdir /data/sub; sleep 1000"))
        .await;
    f.start("holder").await;
    let (_, ready) = f
        .exec_output(
            "holder",
            "wait",
            &["sh", "-c", "while ! test -d /data/sub; do sleep 0.05; done"],
        )
        .await;
    assert_eq!(ready.stderr, "");
    let sub = directory_with(&f, "marker").join("sub");
    let run = |program: &str, words: &[&str]| {
        let status = Command::new(program).args(words).arg(&sub).status();
        assert!(status.unwrap().success(), "{program} {words:?}");
    };
    run("mount", &["-t", "tmpfs", "tmpfs"]);
    let write =
        "(touch /data/x && echo top) 2>/dev/null; (touch /data/sub/x && echo below) 2>/dev/null; true";
    let mut plain = with("plain", write);
    plain.mounts[0].read_only = true;
    assert_eq!(f.stdout(plain).await, "below\n");
    let mut recursive = with("recursive", write);
    recursive.mounts[0].read_only = true;
    recursive.mounts[0].recursive_read_only = true;
    assert_eq!(f.stdout(recursive).await, "");
    run("umount", &[]);
    f.remove("holder").await;
}

pub(super) async fn a_lasting_volume_survives_its_containers(f: Fixture) {
    let with = |path: &str, command: &str| {
        let mut request = f.shell("lasting", command);
        let source = TmpfsSource {
            lasting: true,
            ..tmpfs("lasting", path)
        };
        request.mounts = vec![mount("/data", Source::Tmpfs(source))];
        request
    };
    let written = f
        .stdout(with("", "echo kept > /data/file; stat -c %a:%g /data"))
        .await;
    assert_eq!(written, "2775:2000\n");
    assert_eq!(f.stdout(with("", "cat /data/file")).await, "kept\n");
    assert_eq!(
        f.stdout(with("a/b", "ls /data; stat -c %a:%g /data; touch /data/below"))
            .await,
        "2775:2000\n"
    );
    assert_eq!(
        f.stdout(with("", "ls /data /data/a/b")).await,
        "/data:\na\nfile\n\n/data/a/b:\nbelow\n"
    );
}

pub(super) async fn an_image_is_a_read_only_volume(f: Fixture) {
    let before = f.leftovers();
    let with = |path: &str, command: &str| {
        let mut request = f.shell("image", command);
        let source = ImageSource {
            layers: request.layers.clone(),
            path: path.to_owned(),
        };
        let mut volume = mount("/image", Source::Image(source));
        volume.read_only = true;
        request.mounts = vec![volume];
        request
    };
    let read = "cat /image/secret; (touch /image/x) 2>/dev/null || echo ro";
    assert_eq!(f.stdout(with("usr/share", read)).await, "secretro\n");
    assert_eq!(f.stdout(with("", "/image/bin/busybox echo runs")).await, "runs\n");
    assert_eq!(f.stdout(with("usr/share/secret", "cat /image")).await, "secret");
    let missing = f.client.clone().create_container(with("no/such", "true")).await;
    let (code, _, message) = refused(missing);
    assert_eq!(code, ErrorCode::InvalidArgument);
    assert!(message.contains("no/such"), "{message}");
    assert_eq!(f.leftovers(), before);
}
