//! What a container may do.

use proto::agent::v1::watch_event::Event;
use proto::agent::v1::*;

use crate::fixture::{Fixture, default_capabilities, process};

fn status_field<'a>(status: &'a str, field: &str) -> &'a str {
    status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap_or_else(|| panic!("{field}: {status}"))
        .trim()
}

pub(super) async fn users_are_resolved_in_the_container(f: Fixture) {
    let mut request = f.shell("user", "id -u; id -g; id -G; echo $HOME; pwd");
    let wanted = request.process.as_mut().unwrap();
    wanted.user = Some(User {
        spec: "user".to_owned(),
        supplemental_gids: vec![3000],
        ..User::default()
    });
    wanted.cwd = "/home/user".to_owned();
    let created = f.create(request).await;
    let user = created.user.unwrap();
    assert_eq!(
        (user.uid, user.gid, user.supplemental_gids),
        (1000, 1000, vec![1000, 2000, 3000])
    );
    f.start("user").await;
    let output = crate::client::output(&f.agent, "user", "").await;
    assert_eq!(
        output.stdout, "1000\n1000\n1000 2000 3000\n/home/user\n/home/user\n",
        "{output:?}"
    );
    f.remove("user").await;
    let mut request = f.shell("number", "id -u; id -g; echo $HOME");
    request.process.as_mut().unwrap().user = Some(User {
        spec: "4711:4712".to_owned(),
        ..User::default()
    });
    assert_eq!(f.stdout(request).await, "4711\n4712\n/\n");
}

pub(super) async fn capabilities_are_what_was_asked(f: Fixture) {
    let status = f.stdout(f.shell("caps", "cat /proc/self/status")).await;
    // The fourteen of the default set.
    for field in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(status_field(&status, field), "00000000a80425fb", "{field}");
    }
    assert_eq!(status_field(&status, "CapAmb:"), "0000000000000000");
    assert_eq!(status_field(&status, "NoNewPrivs:"), "0");
    let mut request = f.shell("none", "cat /proc/self/status");
    request.security = None;
    let status = f.stdout(request).await;
    assert_eq!(status_field(&status, "CapBnd:"), "0000000000000000");
    let mut request = f.shell("ambient", "cat /proc/self/status");
    request.process.as_mut().unwrap().user = Some(User {
        spec: "user".to_owned(),
        ..User::default()
    });
    let bind = vec!["CAP_NET_BIND_SERVICE".to_owned()];
    request.security.as_mut().unwrap().capabilities = Some(Capabilities {
        inheritable: bind.clone(),
        ambient: bind,
        ..default_capabilities()
    });
    let status = f.stdout(request).await;
    assert_eq!(status_field(&status, "CapEff:"), "0000000000000400");
}

pub(super) async fn privileges_cannot_be_regained(f: Fixture) {
    let mut request = f.shell("nnp", "sleep 1000");
    request.security.as_mut().unwrap().no_new_privileges = true;
    f.create(request).await;
    f.start("nnp").await;
    let (_, output) = f
        .exec_output(
            "nnp",
            "e",
            &["grep", "-E", "NoNewPrivs|CapBnd", "/proc/self/status"],
        )
        .await;
    assert_eq!(
        status_field(&output.stdout, "NoNewPrivs:"),
        "1",
        "exec is confined like the container"
    );
    assert_eq!(status_field(&output.stdout, "CapBnd:"), "00000000a80425fb");
    f.remove("nnp").await;
}

pub(super) async fn seccomp_filters_calls(f: Fixture) {
    for no_new_privileges in [false, true] {
        let mut request = f.shell(
            "seccomp",
            "grep Seccomp: /proc/self/status; mkdir /tmp/x; ls /tmp",
        );
        let security = request.security.as_mut().unwrap();
        security.no_new_privileges = no_new_privileges;
        security.seccomp = br#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}"#
            .to_vec();
        let (_, output) = f.run(request).await;
        assert_eq!(output.stdout, "Seccomp:\t2\n");
        assert!(output.stderr.contains("not supported"), "{output:?}");
    }
}

pub(super) async fn limits_are_set(f: Fixture) {
    let mut request = f.shell(
        "limits",
        "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; umask",
    );
    let wanted = request.process.as_mut().unwrap();
    wanted.rlimits = vec![Rlimit {
        kind: "RLIMIT_NOFILE".to_owned(),
        soft: 100,
        hard: 200,
    }];
    wanted.oom_score_adj = 321;
    assert_eq!(f.stdout(request).await, "100\n200\n321\n0022\n");
}

pub(super) async fn the_stage_cannot_be_looked_into(f: Fixture) {
    // No descriptor but stdio and the one that ls has open; no signal ignored that a program does not expect.
    let mut request = f.shell("fds", "");
    request.process = Some(process(&["ls", "/proc/self/fd"]));
    assert_eq!(f.stdout(request).await, "0\n1\n2\n3\n");
    let mut request = f.shell("signals", "");
    request.process = Some(process(&["cat", "/proc/self/status"]));
    let output = f.stdout(request).await;
    assert_eq!(status_field(&output, "SigIgn:"), "0000000000000000");
    assert_eq!(status_field(&output, "SigBlk:"), "0000000000000000");
}

pub(super) async fn devices_are_filtered(f: Fixture) {
    let commands = "mknod /tmp/kmsg c 1 11 && echo made; cat /tmp/kmsg; mknod /tmp/null c 1 3 && echo x > /tmp/null && echo null";
    let (_, output) = f.run(f.shell("devices", commands)).await;
    assert_eq!(output.stdout, "made\nnull\n");
    assert!(output.stderr.contains("Operation not permitted"), "{output:?}");
    let mut request = f.shell(
        "devices",
        "ls -l /dev/my-full; head -c 1 /dev/my-zero | wc -c; head -c 0 /tmp/kmsg",
    );
    let device = |path: &str, minor| Device {
        path: path.to_owned(),
        kind: "c".to_owned(),
        major: 1,
        minor,
        mode: 0o640,
        uid: 1000,
        ..Device::default()
    };
    request.devices = vec![device("/dev/my-full", 7), device("/dev/my-zero", 5)];
    let (_, output) = f.run(request).await;
    assert!(output.stdout.starts_with("crw-r-----"), "{output:?}");
    assert!(
        output.stdout.contains(" user ") && output.stdout.ends_with("\n1\n"),
        "{output:?}"
    );
}

pub(super) async fn memory_limits_kill_and_say_so(f: Fixture) {
    if !f.in_guest {
        println!("SKIPPED memory_limits_kill_and_say_so: this host has no memory controller in cgroup v2");
        return;
    }
    let grow = "x=a; while :; do x=$x$x; done";
    let limited = |id: &str, command: &str| {
        let mut request = f.shell(id, command);
        request.resources = Some(Resources {
            memory_limit_bytes: 16 << 20,
            ..Resources::default()
        });
        request
    };
    let (exit, _) = f.run(limited("oom", grow)).await;
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    let mut events = f
        .client
        .clone()
        .watch(WatchRequest {})
        .await
        .unwrap()
        .into_inner();
    events.message().await.unwrap();
    f.create(limited("child", &format!("sh -c '{grow}'; sleep 1; exit 0")))
        .await;
    f.start("child").await;
    let Some(Event::Oom(oom)) = events.message().await.unwrap().unwrap().event else {
        panic!("no oom event")
    };
    assert_eq!(oom.container_id, "child");
    let exit = f.wait("child", "").await;
    assert_eq!(
        (exit.code, exit.oom_killed),
        (0, false),
        "the container went on and ended well"
    );
    f.remove("child").await;
}

pub(super) async fn cgroup_limits_are_written(f: Fixture) {
    if !f.in_guest {
        println!("SKIPPED cgroup_limits_are_written: this host has no controllers in cgroup v2");
        return;
    }
    let mut request = f.shell(
        "cgroup",
        "cd /sys/fs/cgroup; cat cpu.max cpu.weight memory.max memory.high pids.max cpuset.cpus; echo read; sleep 1000",
    );
    request.resources = Some(Resources {
        cpu_quota_us: 50_000,
        cpu_weight: 39,
        memory_limit_bytes: 64 << 20,
        pids_limit: 20,
        cpuset_cpus: "0".to_owned(),
        unified: [("memory.high".to_owned(), (32 << 20).to_string())].into(),
        ..Resources::default()
    });
    f.create(request).await;
    f.start("cgroup").await;
    let update = UpdateContainerRequest {
        container_id: "cgroup".to_owned(),
        resources: Some(Resources {
            pids_limit: -1,
            ..Resources::default()
        }),
        oom_score_adj: Some(500),
    };
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let updated = f.client.clone().update_container(update).await.expect("update");
    let actual = updated.into_inner().actual.expect("limits");
    assert_eq!(
        (actual.cpu_quota_us, actual.cpu_period_us, actual.cpu_weight),
        (50_000, 100_000, 39)
    );
    assert_eq!((actual.memory_limit_bytes, actual.pids_limit), (64 << 20, -1));
    assert_eq!(actual.cpuset_cpus, "0");
    let (_, output) = f
        .exec_output("cgroup", "o", &["cat", "/proc/1/oom_score_adj"])
        .await;
    assert_eq!(output.stdout, "500\n");
    let (_, output) = f
        .exec_output("cgroup", "e", &["cat", "/sys/fs/cgroup/pids.max"])
        .await;
    assert_eq!(output.stdout, "max\n");
    f.signal("cgroup", libc::SIGKILL, true).await;
    let output = crate::client::output(&f.agent, "cgroup", "").await;
    assert_eq!(
        output.stdout,
        "50000 100000\n39\n67108864\n33554432\n20\n0\nread\n"
    );
    f.remove("cgroup").await;
    let mut request = f.shell("cgroup", "true");
    request.process = Some(process(&["true"]));
    request.resources = Some(Resources {
        cpuset_cpus: "999".to_owned(),
        ..Resources::default()
    });
    let (code, _, message) = crate::client::refused(f.client.clone().create_container(request).await);
    assert_eq!(code, ErrorCode::Cgroup);
    assert!(message.contains("cpuset.cpus"), "{message}");
}

pub(super) async fn less_memory_than_is_used_is_refused(f: Fixture) {
    if !f.in_guest {
        println!("SKIPPED less_memory_than_is_used_is_refused: this host has no controllers in cgroup v2");
        return;
    }
    f.create(f.shell("cgroup", "sleep 1000")).await;
    f.start("cgroup").await;
    let too_little = UpdateContainerRequest {
        container_id: "cgroup".to_owned(),
        resources: Some(Resources {
            memory_limit_bytes: 4096,
            ..Resources::default()
        }),
        oom_score_adj: None,
    };
    let (code, _, message) = crate::client::refused(f.client.clone().update_container(too_little).await);
    assert_eq!(code, ErrorCode::InvalidArgument);
    assert!(message.contains("memory_limit_bytes"), "{message}");
    f.remove("cgroup").await;
}

pub(super) async fn a_divided_cgroup_takes_execs(f: Fixture) {
    if !f.in_guest {
        println!("SKIPPED a_divided_cgroup_takes_execs: this host has no controllers in cgroup v2");
        return;
    }
    let divide = "cd /sys/fs/cgroup && mkdir leaf && echo 1 > leaf/cgroup.procs && echo +pids > cgroup.subtree_control \
        && mkdir leaf/below; ls /dev/vda /dev/kmsg; sleep 1000";
    let mut request = f.shell("divided", divide);
    let security = request.security.as_mut().unwrap();
    security.privileged = true;
    let capabilities = security.capabilities.as_mut().unwrap();
    for set in [
        &mut capabilities.bounding,
        &mut capabilities.effective,
        &mut capabilities.permitted,
    ] {
        set.push("CAP_SYS_ADMIN".to_owned());
    }
    f.create(request).await;
    f.start("divided").await;
    // An exec before that would keep the cgroup from being divided.
    while !f.settings.cgroup_root.join("pod/divided/leaf/below").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (_, output) = f.exec_output("divided", "e", &["cat", "/proc/self/cgroup"]).await;
    assert_eq!(output.stdout.trim(), "0::/leaf");
    f.signal("divided", libc::SIGKILL, true).await;
    let output = crate::client::output(&f.agent, "divided", "").await;
    assert_eq!(output.stdout, "/dev/kmsg\n/dev/vda\n", "{output:?}");
    f.remove("divided").await;
}
