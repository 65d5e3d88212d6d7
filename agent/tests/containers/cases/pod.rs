//! What the containers of a pod share.

use std::time::Duration;

use proto::agent::v1::mount::Source;
use proto::agent::v1::*;

use crate::client::refused;
use crate::fixture::Fixture;

pub(super) async fn host_name_and_dns_files(f: Fixture) {
    let mut request = f.shell(
        "names",
        "hostname; cat /etc/hostname /etc/resolv.conf; grep web-0 /etc/hosts",
    );
    request.mounts = ["resolv.conf", "hosts", "hostname"]
        .map(|name| Mount {
            destination: format!("/etc/{name}"),
            source: Some(Source::Sandbox(SandboxSource {
                name: name.to_owned(),
            })),
            ..Mount::default()
        })
        .to_vec();
    let expected = "web-0\nweb-0\nnameserver 10.96.0.10\n10.88.0.5\tweb-0\nfd00::5\tweb-0\n";
    assert_eq!(f.stdout(request).await, expected);
}

pub(super) async fn addresses_are_set(f: Fixture) {
    let output = f
        .stdout(f.shell(
            "addresses",
            "ip address show lo; cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        ))
        .await;
    for part in ["10.88.0.5/16", "fd00::5/64", "127.0.0.1/8", "UP", "\n80\n"] {
        assert!(output.contains(part), "{part} in {output}");
    }
}

pub(super) async fn a_container_is_alone_in_its_pid_namespace(f: Fixture) {
    let output = f
        .stdout(f.shell("alone", "echo $$; set -- /proc/[0-9]*; echo $#"))
        .await;
    // The shell, which looks itself.
    assert_eq!(output, "1\n1\n");
}

fn sharing(f: &Fixture, id: &str, command: &str, pid: PidNamespace, target: &str) -> CreateContainerRequest {
    let mut request = f.shell(id, command);
    request.namespaces = Some(Namespaces {
        pid: pid.into(),
        pid_target: target.to_owned(),
    });
    request
}

pub(super) async fn the_pod_can_share_a_pid_namespace(f: Fixture) {
    f.create(sharing(&f, "one", "exec sleep 4711", PidNamespace::Pod, ""))
        .await;
    f.start("one").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let look = "ps | grep -v grep | grep -c 'sleep 4711'; for x in root cwd exe fd; do ls -L /proc/1/$x >/dev/null 2>&1 || echo denied; done | grep -c denied; test $$ != 1 && echo not-1";
    let (_, output) = f.run(sharing(&f, "two", look, PidNamespace::Pod, "")).await;
    assert_eq!(
        output.stdout, "1\n4\nnot-1\n",
        "the other container is seen, and nothing of PID 1: {output:?}"
    );
    let (_, output) = f
        .exec_output("one", "e", &["sh", "-c", "ps | grep -v grep | grep -c 4711"])
        .await;
    assert_eq!(output.stdout, "1\n");
    f.remove("one").await;
}

pub(super) async fn a_container_can_join_anothers_pid_namespace(f: Fixture) {
    f.create(f.shell("target", "exec sleep 4712")).await;
    f.start("target").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let look = "cat /proc/1/cmdline";
    let output = f
        .stdout(sharing(&f, "debug", look, PidNamespace::Target, "target"))
        .await;
    assert_eq!(output, "sleep\x004712\0");
    f.remove("target").await;
    let gone = sharing(&f, "debug", look, PidNamespace::Target, "target");
    assert_eq!(
        refused(f.client.clone().create_container(gone).await).0,
        ErrorCode::NotFound
    );
}

pub(super) async fn shared_memory_is_the_pods(f: Fixture) {
    f.run(f.shell("writer", "echo x > /dev/shm/segment")).await;
    assert_eq!(
        f.stdout(f.shell("reader", "ls /dev/shm; rm /dev/shm/segment"))
            .await,
        "segment\n"
    );
}

pub(super) async fn stats_have_numbers(f: Fixture) {
    f.create(f.shell(
        "stats",
        "dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; echo done; sleep 1000",
    ))
    .await;
    f.start("stats").await;
    let everything = StatsRequest {
        container_id: String::new(),
        with_files: true,
    };
    let mut writable = 0;
    // What was written is measured every few seconds.
    for _ in 0..600 {
        let stats = f
            .client
            .clone()
            .stats(everything.clone())
            .await
            .unwrap()
            .into_inner();
        writable = stats.containers[0].writable_bytes.unwrap_or(0);
        if writable >= 3 << 20 {
            let cgroup = stats.containers[0].cgroup.unwrap();
            assert!(cgroup.cpu_usage_ns > 0);
            let files = stats.containers[0].files.unwrap();
            assert!(
                files.descriptors >= 3 && files.open_files_soft_limit > 0,
                "{files:?}"
            );
            assert!(stats.scratch.unwrap().used_bytes >= 3 << 20);
            assert!(stats.sandbox.unwrap().memory_usage_bytes > 0);
            if f.in_guest {
                assert!(
                    cgroup.memory_usage_bytes > 0 && cgroup.pids >= 1 && cgroup.processes >= 1,
                    "{cgroup:?}"
                );
                assert!(stats.sandbox.unwrap().memory_working_set_bytes > 0);
            }
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(writable >= 3 << 20, "{writable}");
    f.remove("stats").await;
    let gone = StatsRequest {
        container_id: "stats".to_owned(),
        with_files: false,
    };
    assert_eq!(refused(f.client.clone().stats(gone).await).0, ErrorCode::NotFound);
}

pub(super) async fn another_configuration_is_refused(f: Fixture) {
    let other = ConfigureSandboxRequest {
        hostname: "other".to_owned(),
        ..ConfigureSandboxRequest::default()
    };
    assert_eq!(
        refused(f.client.clone().configure_sandbox(other).await).0,
        ErrorCode::AlreadyExists
    );
}

pub(super) async fn info_names_the_kernel(f: Fixture) {
    let info = f.client.clone().info(InfoRequest {}).await.unwrap().into_inner();
    assert!(
        info.kernel_release.contains('.') && info.memory_total_bytes > 0 && info.cpus_online > 0,
        "{info:?}"
    );
    // The fixture has configured the sandbox.
    assert_eq!(info.boot_id.len(), 36, "{info:?}");
}

pub(super) async fn the_clock_was_set(f: Fixture) {
    if !f.in_guest {
        println!("SKIPPED the_clock_was_set: this host's clock is not ours");
        return;
    }
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    let set = u128::from(crate::fixture::GUEST_CLOCK_NS);
    assert!((set..set + 3_600_000_000_000).contains(&since), "{since}");
}
