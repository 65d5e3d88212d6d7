//! What a pod with a user namespace is: its root is nobody outside, and owns what is the pod's.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use proto::agent::v1::mount::Source;
use proto::agent::v1::*;

use crate::client;
use crate::fixture::{Fixture, OUTSIDE, process};

/// With more capabilities than the default ones.
fn with(mut request: CreateContainerRequest, more: &[&str]) -> CreateContainerRequest {
    let sets = request.security.as_mut().unwrap().capabilities.as_mut().unwrap();
    for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
        set.extend(more.iter().map(|name| (*name).to_owned()));
    }
    request
}

fn mount(destination: &str, id_mapped: bool, source: Source) -> Mount {
    Mount {
        destination: destination.to_owned(),
        source: Some(source),
        id_mapped,
        ..Mount::default()
    }
}

fn map() -> String {
    format!("0 {OUTSIDE} 65536")
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(super) async fn root_is_somebody_else_outside(f: Fixture) {
    let command = "cat /proc/self/uid_map /proc/self/gid_map; id -u; \
        touch /new /dev/shm/new; mkdir -p /var/deep/er; echo changed >> /etc/passwd; \
        stat -c %u:%g / /bin/busybox /etc/passwd /new /dev /dev/null /dev/pts /dev/mqueue /dev/shm/new /etc/hosts; \
        stat -c %u /sys /proc/1";
    let mut request = f.shell("ids", command);
    request.mounts = vec![mount(
        "/etc/hosts",
        false,
        Source::Sandbox(SandboxSource {
            name: "hosts".to_owned(),
        }),
    )];
    f.create(request).await;
    f.start("ids").await;
    let output = client::output(&f.agent, "ids", "").await;
    assert_eq!(f.wait("ids", "").await.code, 0, "{output:?}");
    let owned = "0:0 ".repeat(10);
    assert_eq!(
        words(&output.stdout),
        format!("{} {} 0 {owned}65534 0", map(), map()),
        "{output:?}"
    );
    // On disk they are the outside's.
    for path in ["new", "var/deep/er", "etc/passwd"] {
        let made = fs::metadata(f.settings.run.join("scratch/ids/upper").join(path)).unwrap();
        assert_eq!((made.uid(), made.gid()), (OUTSIDE, OUTSIDE), "{path}");
    }
    f.remove("ids").await;
}

pub(super) async fn network_and_host_name_belong_to_it(f: Fixture) {
    let command = "hostname; ip addr add 10.99.0.1/32 dev lo && ip -o addr show dev lo | grep -c 10.99.0.1; \
        echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward; \
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced \
        /proc/sys/net/ipv4/ping_group_range; hostname changed; hostname";
    let request = with(f.shell("network", command), &["CAP_NET_ADMIN"]);
    let (_, output) = f.run(request).await;
    // CAP_SYS_ADMIN would have to be had for a new host name.
    assert_eq!(words(&output.stdout), "web-0 1 1 80 1 0 1000 web-0", "{output:?}");
    let denied = f.shell(
        "network",
        "ip addr add 10.99.0.2/32 dev lo; echo 0 > /proc/sys/kernel/panic",
    );
    let (exit, output) = f.run(denied).await;
    assert_ne!(exit.code, 0, "the kernel is not the pod's: {output:?}");
    assert_eq!(output.stderr.lines().count(), 2, "{output:?}");
    let request = with(
        f.shell("network", "hostname changed && hostname && hostname web-0"),
        &["CAP_SYS_ADMIN"],
    );
    assert_eq!(f.stdout(request).await, "changed\n");
}

pub(super) async fn execs_and_terminals_are_in_it(f: Fixture) {
    f.create(f.shell("target", "sleep 1000")).await;
    f.start("target").await;
    let (exit, output) = f
        .exec_output(
            "target",
            "e",
            &[
                "sh",
                "-c",
                "cat /proc/self/uid_map; id -u; touch /by-exec; stat -c %u /by-exec",
            ],
        )
        .await;
    assert_eq!(
        (exit.code, words(&output.stdout)),
        (0, format!("{} 0 0", map())),
        "{output:?}"
    );
    let mut wanted = process(&[
        "sh",
        "-c",
        "id -u; stat -c %u:%g $(tty); grep CapEff /proc/self/status",
    ]);
    wanted.terminal = true;
    wanted.user = Some(User {
        spec: "user".to_owned(),
        ..User::default()
    });
    f.exec("target", "t", wanted).await.expect("exec");
    let output = client::output(&f.agent, "target", "t").await;
    assert_eq!(
        words(&output.stdout),
        "1000 1000:5 CapEff: 0000000000000000",
        "{output:?}"
    );
    f.remove("target").await;
}

pub(super) async fn volumes_show_its_ids(f: Fixture) {
    let files = || {
        Source::Files(FilesSource {
            files: vec![File {
                path: "key".to_owned(),
                content: b"x".to_vec(),
                mode: 0o400,
                uid: 0,
                gid: 7,
            }],
            ..FilesSource::default()
        })
    };
    let tmpfs = |name: &str| {
        Source::Tmpfs(TmpfsSource {
            name: name.to_owned(),
            mode: 0o750,
            uid: 3,
            gid: 4,
            ..TmpfsSource::default()
        })
    };
    let image = || {
        Source::Image(ImageSource {
            layers: f.shell("x", "").layers,
            path: "usr".to_owned(),
        })
    };
    let mut request = f.shell(
        "volumes",
        "stat -c %u:%g /mapped/key /plain/key /shared /private /image/share /unmapped/share; \
            touch /shared/new /private/new; stat -c %u /shared/new /private/new; cat /mapped/key",
    );
    request.mounts = vec![
        mount("/mapped", true, files()),
        mount("/plain", false, files()),
        mount("/shared", true, tmpfs("memory")),
        mount("/private", true, tmpfs("")),
        mount("/image", true, image()),
        mount("/unmapped", false, image()),
    ];
    let (exit, output) = f.run(request).await;
    assert_eq!(
        (exit.code, words(&output.stdout).as_str()),
        (0, "0:7 65534:65534 3:4 3:4 0:0 65534:65534 0 0 x"),
        "{output:?}"
    );
}

pub(super) async fn what_was_mounted_stays(f: Fixture) {
    let command = "mount -t tmpfs none /tmp && echo mounted; umount /tmp && echo unmounted; \
        umount /usr/share/secret; cat /usr/share/secret; mount -o remount,rw /proc/sys && echo writable; \
        mount -t proc none /proc && echo remounted; ls /sys/fs/cgroup > /dev/null && echo cgroup";
    let mut request = with(f.shell("mounts", command), &["CAP_SYS_ADMIN"]);
    let security = request.security.as_mut().unwrap();
    security.masked_paths = vec!["/usr/share/secret".to_owned()];
    security.read_only_paths = vec!["/proc/sys".to_owned()];
    let (_, output) = f.run(request).await;
    assert_eq!(words(&output.stdout), "mounted unmounted cgroup", "{output:?}");
}

pub(super) async fn privileged_is_over_the_pod_alone(f: Fixture) {
    let command = "mkdir /sys/fs/cgroup/below && echo divided; ls /dev/kmsg /dev/mem; \
        mknod /tmp/null c 1 3; mount -t tmpfs none /tmp && echo mounted; echo 0 > /proc/sys/kernel/panic";
    let mut request = with(
        f.shell("privileged", command),
        &["CAP_SYS_ADMIN", "CAP_NET_ADMIN"],
    );
    request.security.as_mut().unwrap().privileged = true;
    let (_, output) = f.run(request).await;
    assert_eq!(words(&output.stdout), "divided mounted", "{output:?}");
}

pub(super) async fn users_that_are_not_mapped_are_refused(f: Fixture) {
    let mut request = f.shell("unmapped", "true");
    request.process.as_mut().unwrap().user = Some(User {
        spec: "65536".to_owned(),
        ..User::default()
    });
    let (code, _, message) = client::refused(f.client.clone().create_container(request).await);
    assert_eq!(code, ErrorCode::InvalidArgument);
    assert!(message.contains("user 65536 is not mapped"), "{message}");
}

pub(super) async fn nothing_is_left(f: Fixture) {
    let before = f.leftovers();
    let mut request = f.shell("gone", "true");
    request.mounts = vec![mount(
        "/image",
        true,
        Source::Image(ImageSource {
            layers: f.shell("x", "").layers,
            path: String::new(),
        }),
    )];
    f.stdout(request).await;
    assert_eq!(f.leftovers(), before);
}
