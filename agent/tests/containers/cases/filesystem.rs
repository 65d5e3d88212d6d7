//! What a container sees of files.

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

fn files(name: &str, files: &[(&str, &str)]) -> Source {
    let file = |(path, content): &(&str, &str)| File {
        path: (*path).to_owned(),
        content: content.as_bytes().to_vec(),
        ..File::default()
    };
    Source::Files(FilesSource {
        name: name.to_owned(),
        files: files.iter().map(file).collect(),
        ..FilesSource::default()
    })
}

fn tmpfs(name: &str) -> Source {
    Source::Tmpfs(TmpfsSource {
        name: name.to_owned(),
        size_bytes: 1 << 20,
        ..TmpfsSource::default()
    })
}

pub(super) async fn standard_mounts_are_there(f: Fixture) {
    let mounts = f.stdout(f.shell("mounts", "cat /proc/self/mounts")).await;
    let seen: Vec<(&str, &str, &str)> = mounts
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields[1], fields[2], fields[3])
        })
        .collect();
    for (target, filesystem, option) in [
        ("/", "overlay", "rw"),
        ("/proc", "proc", "nosuid"),
        ("/dev", "tmpfs", "nosuid"),
        ("/dev/pts", "devpts", "ptmxmode=666"),
        ("/dev/shm", "tmpfs", "noexec"),
        ("/dev/mqueue", "mqueue", "nodev"),
        ("/sys", "sysfs", "ro"),
        ("/sys/fs/cgroup", "cgroup2", "ro"),
    ] {
        let found = seen
            .iter()
            .find(|(at, ..)| *at == target)
            .unwrap_or_else(|| panic!("{target}: {mounts}"));
        assert_eq!(found.1, filesystem, "{target}");
        assert!(
            found.2.split(',').any(|has| has == option),
            "{target}: {}",
            found.2
        );
    }
    assert_eq!(seen.len(), 8, "and nothing of the agent's: {mounts}");
    let devices = f
        .stdout(f.shell(
            "dev",
            "ls /dev; echo x > /dev/null; head -c 4 /dev/zero | od -An -tx1",
        ))
        .await;
    let expected = "core\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n 00 00 00 00\n";
    assert_eq!(devices, expected);
    let cgroup = f
        .stdout(f.shell(
            "cgroup",
            "tail -n 1 /proc/self/cgroup; test -e /sys/fs/cgroup/cgroup.procs",
        ))
        .await;
    assert_eq!(
        cgroup, "0::/\n",
        "the container's cgroup is the root of what it sees"
    );
}

pub(super) async fn a_read_only_root_is_read_only(f: Fixture) {
    let mut request = f.shell(
        "ro",
        "touch /new; touch /data/new && echo data; echo x > /dev/null && echo null",
    );
    request.read_only_rootfs = true;
    request.mounts = vec![mount("/data", tmpfs(""))];
    let (_, output) = f.run(request).await;
    assert_eq!(output.stdout, "data\nnull\n");
    assert!(output.stderr.contains("Read-only file system"), "{output:?}");
}

pub(super) async fn masked_and_read_only_paths(f: Fixture) {
    let mut request = f.shell(
        "masked",
        "cat /usr/share/secret; ls -A /usr; ls -A /home; touch /tmp/x; echo 1 > /proc/sys/kernel/pid_max; touch /etc/ok && echo etc",
    );
    let security = request.security.as_mut().unwrap();
    security.masked_paths = ["/usr/share/secret", "/home", "/no/such/path", "/proc/kcore"]
        .map(str::to_owned)
        .to_vec();
    security.read_only_paths = ["/tmp", "/proc/sys", "/no/such/path"].map(str::to_owned).to_vec();
    let (_, output) = f.run(request).await;
    assert_eq!(output.stdout, "share\netc\n");
    assert_eq!(
        output.stderr.matches("Read-only file system").count(),
        2,
        "{}",
        output.stderr
    );
}

pub(super) async fn links_do_not_lead_out(f: Fixture) {
    let mut request = f.shell(
        "links",
        "cat /tmp/inside/key; cat /run/secrets/token; readlink /var/run",
    );
    request.mounts = vec![
        mount("/escape/inside", files("", &[("key", "k\n")])),
        mount("/var/run/secrets", files("", &[("token", "t\n")])),
    ];
    assert_eq!(f.stdout(request).await, "k\nt\n/run\n");
    assert!(
        !std::path::Path::new("/tmp/inside").exists(),
        "made in the container, not beside it"
    );
    let mut request = f.shell("links", "true");
    request.mounts = vec![mount(
        "/data",
        Source::Disk(DiskSource {
            disk: Some(request.layers[0].clone()),
            path: "/escape/../../../usr/share".to_owned(),
        }),
    )];
    request.process.as_mut().unwrap().args[2] = "cat /data/secret".to_owned();
    assert_eq!(f.stdout(request).await, "secret");
}

pub(super) async fn file_volumes_are_shared_and_read_only(f: Fixture) {
    let with = |id: &str, command: &str| {
        let mut request = f.shell(id, command);
        let mut config = mount("/etc/config", files("config", &[("dir/key", "value")]));
        config.read_only = true;
        let mut single = mount(
            "/etc/hosts",
            Source::Files(FilesSource {
                name: String::new(),
                files: vec![File {
                    path: "hosts".to_owned(),
                    content: b"h".to_vec(),
                    ..File::default()
                }],
                single_file: true,
                ..FilesSource::default()
            }),
        );
        single.recursive_read_only = true;
        request.mounts = vec![config, single];
        request
    };
    let read = "cat /etc/config/dir/key /etc/hosts; (echo x > /etc/config/dir/key) 2>/dev/null || echo ro; (echo x > /etc/hosts) 2>/dev/null || echo ro";
    f.create(with("first", read)).await;
    assert_eq!(f.stdout(with("second", read)).await, "valuehro\nro\n");
    f.remove("first").await;
}

pub(super) async fn tmpfs_volumes_are_shared(f: Fixture) {
    let with = |id: &str, command: &str, name: &str| {
        let mut request = f.shell(id, command);
        request.mounts = vec![mount("/data", tmpfs(name))];
        request
    };
    f.create(with("writer", "echo shared > /data/file; sleep 1000", "data"))
        .await;
    f.start("writer").await;
    let read = "while ! test -e /data/file; do sleep 0.05; done; cat /data/file; dd if=/dev/zero of=/data/big bs=1M count=2 2>/dev/null || echo full";
    assert_eq!(f.stdout(with("reader", read, "data")).await, "shared\nfull\n");
    assert_eq!(f.stdout(with("alone", "ls /data", "")).await, "");
    f.remove("writer").await;
}

pub(super) async fn writes_stay_in_the_container(f: Fixture) {
    f.run(f.shell("again", "rm /etc/group; echo x > /usr/share/secret; mkdir /new"))
        .await;
    assert_eq!(
        f.stdout(f.shell(
            "again",
            "cat /usr/share/secret; ls /etc; test -e /new || echo gone"
        ))
        .await
        .lines()
        .last(),
        Some("gone")
    );
}

pub(super) async fn the_working_directory_is_made(f: Fixture) {
    let mut request = f.shell("cwd", "pwd; echo $HOME");
    request.process.as_mut().unwrap().cwd = "/made/for/me".to_owned();
    assert_eq!(f.stdout(request).await, "/made/for/me\n/root\n");
    let mut request = f.shell("cwd", "pwd");
    request.process.as_mut().unwrap().cwd = "/proc/self/fd/3".to_owned();
    let created = f.client.clone().create_container(request).await;
    assert!(
        created.is_err(),
        "no descriptor of the agent's is a working directory"
    );
}

pub(super) async fn mounts_that_cannot_be_are_refused(f: Fixture) {
    let before = f.leftovers();
    let mut missing_disk = f.shell("refused", "true");
    missing_disk.layers[0].pci_address = "0000:00:1e.0".to_owned();
    assert_eq!(
        refused(f.client.clone().create_container(missing_disk).await).0,
        ErrorCode::DeviceMissing
    );
    let mut propagation = f.shell("refused", "true");
    propagation.mounts = vec![mount("/data", tmpfs(""))];
    propagation.mounts[0].options = vec!["rshared".to_owned()];
    assert_eq!(
        refused(f.client.clone().create_container(propagation).await).0,
        ErrorCode::Unsupported
    );
    let mut not_a_directory = f.shell("refused", "true");
    not_a_directory.mounts = vec![mount("/etc/passwd/below", tmpfs(""))];
    let (code, _, message) = refused(f.client.clone().create_container(not_a_directory).await);
    assert_eq!(code, ErrorCode::Mount);
    assert!(message.contains("/etc/passwd/below"), "{message}");
    let mut traversal = f.shell("refused", "true");
    traversal.mounts = vec![mount("/data", files("x", &[("../up", "")]))];
    assert_eq!(
        refused(f.client.clone().create_container(traversal).await).0,
        ErrorCode::InvalidArgument
    );
    assert_eq!(f.leftovers(), before);
}
