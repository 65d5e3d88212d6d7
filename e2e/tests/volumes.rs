//! Volumes of pods in real Machines: shared with the host, following it, in the guest's memory, of images, raw disks.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use e2e::{Node, PodSpec, on_a_node, wait};
use proto::cri::v1::{self as cri, MountPropagation};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_what_the_pod_asks_for() -> Result<()> {
    on_a_node(async || {
        let mut node = Node::start().await?;
        let before = node.traces();
        directories_are_shared_both_ways(&node)
            .await
            .context("shared directories")?;
        read_only_goes_as_deep_as_asked(&node)
            .await
            .context("read-only")?;
        mounts_of_the_host_propagate(&node).await.context("propagation")?;
        config_maps_follow(&mut node).await.context("configMap")?;
        memory_is_the_guests(&node).await.context("memory emptyDir")?;
        images_are_volumes(&node).await.context("image volume")?;
        disks_are_devices(&node).await.context("block device")?;
        node.is_as_before(&before)
    })
    .await
}

fn mount(container_path: &str, host_path: &Path) -> cri::Mount {
    cri::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.display().to_string(),
        ..Default::default()
    }
}

fn with(node: &Node, name: &str, mounts: Vec<cri::Mount>) -> cri::ContainerConfig {
    cri::ContainerConfig {
        mounts,
        ..PodSpec::shell(name, &node.image(), "sleep 1000")
    }
}

/// Creates and starts.
async fn run(node: &Node, sandbox: &str, pod: &PodSpec, config: cri::ContainerConfig) -> Result<String> {
    let id = node.cri().create(sandbox, pod, config).await?;
    node.cri().start(&id).await?;
    Ok(id)
}

/// What a shell in the container says; it must succeed.
async fn says(node: &Node, container: &str, script: &str) -> Result<String> {
    let (code, out, err) = node.cri().exec(container, script).await?;
    ensure!(code == 0, "{script:?} exited with {code}: {out}{err}");
    Ok(out)
}

fn directory(node: &Node, name: &str) -> Result<PathBuf> {
    let path = node.directory().join("volumes").join(name);
    fs_err::create_dir_all(&path)?;
    Ok(path)
}

fn tool(program: &str, words: &[&str], path: &Path) -> Result<String> {
    let output = Command::new(program).args(words).arg(path).output()?;
    ensure!(output.status.success(), "{program} {words:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn tmpfs(at: &Path, options: &str) -> Result<()> {
    fs_err::create_dir_all(at)?;
    tool("mount", &["-t", "tmpfs", "-o", options, "tmpfs"], at).map(drop)
}

async fn directories_are_shared_both_ways(node: &Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod("shared");
    let sandbox = cri.run_pod(&pod).await?;
    let data = directory(node, "shared")?;
    fs_err::write(data.join("from-host"), "host\n")?;
    fs_err::write(data.join("file"), "one\n")?;
    symlink(&data, node.directory().join("volumes/link"))?;
    let mounts = vec![
        mount("/data", &data),
        mount("/link", &node.directory().join("volumes/link")),
        mount("/file", &data.join("file")),
        mount("/made", &node.directory().join("volumes/made")),
    ];
    let one = run(node, &sandbox, &pod, with(node, "one", mounts.clone())).await?;
    let two = run(node, &sandbox, &pod, with(node, "two", mounts)).await?;
    let script = "cat /data/from-host /link/from-host /file; mkdir /data/sub && echo guest > /data/sub/x; \
        chown 1000:2000 /data/sub/x; chmod 640 /data/sub/x; ln -s x /data/sub/l; touch /made/it";
    let out = says(node, &one, script).await?;
    ensure!(out == "host\nhost\none\n", "{out:?}");
    ensure!(fs_err::read_to_string(data.join("sub/l"))? == "guest\n");
    let stat = tool("stat", &["-c", "%u:%g:%a"], &data.join("sub/x"))?;
    ensure!(stat == "1000:2000:640", "{stat}");
    ensure!(node.directory().join("volumes/made/it").exists());
    ensure!(says(node, &two, "cat /data/sub/x").await? == "guest\n");
    fs_err::write(data.join("sub/x"), "host again\n")?;
    wait::until(wait::CONTAINER, "the host's change to be seen", async || {
        (says(node, &two, "cat /data/sub/x").await.ok()? == "host again\n").then_some(())
    })
    .await?;
    let large = "dd if=/dev/urandom of=/data/large bs=1M count=16 2>/dev/null; md5sum < /data/large";
    let inside = says(node, &one, large).await?;
    let outside = tool("md5sum", &[], &data.join("large"))?;
    ensure!(inside.get(..32) == outside.get(..32), "{inside} {outside}");
    cri.remove_pod(&sandbox).await?;
    ensure!(
        data.join("from-host").exists(),
        "a removed pod takes nothing along"
    );
    Ok(())
}

async fn read_only_goes_as_deep_as_asked(node: &Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod("read-only");
    let sandbox = cri.run_pod(&pod).await?;
    let data = directory(node, "read-only")?;
    tmpfs(&data.join("sub"), "size=1m")?;
    let volume = |recursive_read_only| cri::Mount {
        readonly: true,
        recursive_read_only,
        ..mount("/data", &data)
    };
    let write =
        "(touch /data/x && echo top) 2>/dev/null; (touch /data/sub/x && echo below) 2>/dev/null; true";
    let plain = run(node, &sandbox, &pod, with(node, "plain", vec![volume(false)])).await?;
    let out = says(node, &plain, write).await?;
    ensure!(out == "below\n", "{out:?}");
    let recursive = run(node, &sandbox, &pod, with(node, "recursive", vec![volume(true)])).await?;
    let out = says(node, &recursive, write).await?;
    ensure!(out.is_empty(), "{out:?}");
    let mut noexec = mount("/data", &data);
    noexec.mount_options = vec!["noexec".to_owned()];
    let noexec = run(node, &sandbox, &pod, with(node, "noexec", vec![noexec])).await?;
    let script = "cp /bin/busybox /data/busybox; (/data/busybox true) 2>/dev/null || echo refused";
    let out = says(node, &noexec, script).await?;
    ensure!(out == "refused\n", "{out:?}");
    cri.remove_pod(&sandbox).await?;
    tool("umount", &[], &data.join("sub")).map(drop)
}

async fn mounts_of_the_host_propagate(node: &Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod("propagation");
    let sandbox = cri.run_pod(&pod).await?;
    let data = directory(node, "propagation")?;
    tmpfs(&data, "size=1m")?;
    tool("mount", &["--make-shared"], &data)?;
    let volume = |propagation: MountPropagation| {
        let mut volume = mount("/data", &data);
        volume.set_propagation(propagation);
        volume
    };
    let slave = volume(MountPropagation::PropagationHostToContainer);
    let slave = run(node, &sandbox, &pod, with(node, "slave", vec![slave])).await?;
    let private = volume(MountPropagation::PropagationPrivate);
    let private = run(node, &sandbox, &pod, with(node, "private", vec![private])).await?;
    let both = volume(MountPropagation::PropagationBidirectional);
    let refusal = cri.create(&sandbox, &pod, with(node, "both", vec![both])).await;
    let text = refusal.expect_err("Bidirectional").message().to_owned();
    ensure!(text.contains("[host_pods] privileged"), "{text}");
    tmpfs(&data.join("late"), "size=1m")?;
    fs_err::write(data.join("late/x"), "late\n")?;
    wait::until(wait::CONTAINER, "the host's mount to be seen", async || {
        (says(node, &slave, "cat /data/late/x").await.ok()? == "late\n").then_some(())
    })
    .await?;
    let out = says(node, &private, "ls /data/late").await?;
    ensure!(out.is_empty(), "{out:?}");
    cri.remove_pod(&sandbox).await?;
    tool("umount", &[], &data.join("late"))?;
    tool("umount", &[], &data).map(drop)
}

fn generation(volume: &Path, name: &str, value: &str) -> Result<()> {
    fs_err::create_dir_all(volume.join(name))?;
    fs_err::write(volume.join(name).join("key"), value)?;
    symlink(name, volume.join("..data_tmp"))?;
    Ok(fs_err::rename(volume.join("..data_tmp"), volume.join("..data"))?)
}

/// A directory with the node's perl and the libraries that it needs.
fn perl(node: &Node) -> Result<PathBuf> {
    let programs = directory(node, "programs")?;
    let needed = tool("ldd", &[], Path::new("/usr/bin/perl"))?;
    let libraries = needed.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/usr/bin/perl"]) {
        let name = Path::new(file).file_name().context("a library's name")?;
        fs_err::copy(file, programs.join(name))?;
    }
    Ok(programs)
}

async fn config_maps_follow(node: &mut Node) -> Result<()> {
    let pod = node.pod("config");
    let sandbox = node.cri().run_pod(&pod).await?;
    let volume = directory(node, "pods/u/volumes/kubernetes.io~configmap/config")?;
    generation(&volume, "..1", "one")?;
    let mut config = mount("/etc/config", &volume);
    config.readonly = true;
    let mounts = vec![config, mount("/programs", &perl(node)?)];
    let container = run(node, &sandbox, &pod, with(node, "main", mounts)).await?;
    let look = "cat /etc/config/key; readlink /etc/config/..data; readlink /etc/config/key";
    let out = says(node, &container, look).await?;
    ensure!(out == "one..1\n..data/key\n", "{out:?}");
    // What is moved into the directory is the new "..data": IN_MOVED_TO by inotify_init(2) and inotify_add_watch(2), called by
    // the node's own perl, since Debian's static busybox has no inotifyd.
    let watch = r#"/programs/ld-linux-x86-64.so.2 --library-path /programs /programs/perl -e '
            my ($fd, $path) = (syscall(253), "/etc/config"); syscall(254, $fd, $path, 0x80) > 0 or die "$!";
            open(my $events, "<&=", $fd) or die "$!"; sysread($events, my $event, 4096); print $event;
        ' > /tmp/events 2>&1 & sleep 2; cat /tmp/events"#;
    let out = says(node, &container, watch).await?;
    ensure!(out.is_empty(), "{out:?}");
    generation(&volume, "..2", "two")?;
    let shows = async |node: &Node, value: &str| {
        wait::until(wait::CONTAINER, "the next generation", async || {
            let out = says(node, &container, "cat /etc/config/key").await.ok()?;
            (out == value).then_some(())
        })
        .await
    };
    shows(node, "two").await?;
    let events = says(node, &container, "cat /tmp/events").await?;
    ensure!(events.contains("..data"), "{events:?}");
    node.kill_daemon().await?;
    generation(&volume, "..3", "three")?;
    node.start_daemon().await?;
    shows(node, "three").await?;
    Ok(node.cri().remove_pod(&sandbox).await?)
}

async fn memory_is_the_guests(node: &Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod("memory");
    let sandbox = cri.run_pod(&pod).await?;
    let cache = directory(node, "pods/u/volumes/kubernetes.io~empty-dir/cache")?;
    tmpfs(&cache, "size=2m,mode=0777")?;
    let volume = || vec![mount("/cache", &cache)];
    let first = run(node, &sandbox, &pod, with(node, "first", volume())).await?;
    let script = "echo kept > /cache/x; grep /cache /proc/mounts; \
        dd if=/dev/zero of=/cache/big bs=1M count=4 2>/dev/null || echo full; rm /cache/big";
    let out = says(node, &first, script).await?;
    ensure!(out.starts_with("tmpfs ") && out.ends_with("full\n"), "{out:?}");
    ensure!(
        fs_err::read_dir(&cache)?.next().is_none(),
        "nothing of it is on the host"
    );
    cri.stop(&first, 0).await?;
    let request = cri::RemoveContainerRequest { container_id: first };
    cri.runtime.clone().remove_container(request).await?;
    let second = run(node, &sandbox, &pod, with(node, "second", volume())).await?;
    ensure!(says(node, &second, "cat /cache/x").await? == "kept\n");
    cri.remove_pod(&sandbox).await?;
    tool("umount", &[], &cache).map(drop)
}

async fn images_are_volumes(node: &Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod("image");
    let sandbox = cri.run_pod(&pod).await?;
    let volume = |sub_path: &str| cri::Mount {
        container_path: "/image".to_owned(),
        readonly: true,
        image: Some(cri::ImageSpec {
            image: node.image(),
            ..Default::default()
        }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    };
    let container = run(node, &sandbox, &pod, with(node, "main", vec![volume("bin")])).await?;
    let script = "/image/busybox echo runs; (touch /image/x) 2>/dev/null || echo read-only";
    let out = says(node, &container, script).await?;
    ensure!(out == "runs\nread-only\n", "{out:?}");
    let mounts = cri.container(&container).await?.mounts;
    let image = mounts
        .first()
        .and_then(|mount| mount.image.clone())
        .unwrap_or_default();
    ensure!(image.image_ref.contains("sha256:"), "{image:?}");
    let refusal = cri
        .create(&sandbox, &pod, with(node, "missing", vec![volume("no/such")]))
        .await;
    let text = refusal.expect_err("no such sub path").message().to_owned();
    ensure!(text.contains("no/such"), "{text}");
    Ok(cri.remove_pod(&sandbox).await?)
}

async fn disks_are_devices(node: &Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod("disk");
    let sandbox = cri.run_pod(&pod).await?;
    let file = directory(node, "disk")?.join("image");
    fs_err::write(&file, vec![b'x'; 1 << 20])?;
    let device = tool("losetup", &["--find", "--show"], &file)?;
    let with_device = |name: &str, permissions: &str| {
        let mut config = with(node, name, Vec::new());
        config.devices = vec![cri::Device {
            container_path: "/dev/disk".to_owned(),
            host_path: device.clone(),
            permissions: permissions.to_owned(),
        }];
        config
    };
    let writer = run(node, &sandbox, &pod, with_device("writer", "rwm")).await?;
    let script = "head -c 4 /dev/disk; printf guest | dd of=/dev/disk conv=notrunc,fsync 2>/dev/null";
    let out = says(node, &writer, script).await?;
    ensure!(out == "xxxx", "{out:?}");
    let reader = run(node, &sandbox, &pod, with_device("reader", "r")).await?;
    let script =
        "head -c 5 /dev/disk; (printf no | dd of=/dev/disk conv=notrunc,fsync) 2>/dev/null || echo -n :ro";
    let out = says(node, &reader, script).await?;
    ensure!(out == "guest:ro", "{out:?}");
    cri.remove_pod(&sandbox).await?;
    tool("losetup", &["--detach"], Path::new(&device))?;
    ensure!(
        fs_err::read(&file)?.starts_with(b"guest"),
        "it did not reach the disk"
    );
    Ok(())
}
