//! The main job on a node: a pod in a microVM of its own from a pulled image, as crictl and kubelet see it, and back.

use anyhow::{Context, Result, ensure};
use e2e::{Node, PodSpec, on_a_node, wait};
use proto::cri::v1 as cri;
use serde_json::Value;

/// One node for all of these: they differ in pods, not in daemons.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_in_machines() -> Result<()> {
    on_a_node(async || {
        let node = Node::start().await?;
        let before = node.traces();
        crictl_runs_a_pod_and_nothing_is_left(&node)
            .await
            .context("crictl_runs_a_pod")?;
        containers_are_what_they_were_asked_to_be(&node)
            .await
            .context("containers")?;
        pods_reach_each_other_and_the_host(&node)
            .await
            .context("network")?;
        processes_end_as_they_are_told(&node).await.context("processes")?;
        what_cannot_run_is_told(&node)
            .await
            .context("missing programs, memory")?;
        what_does_not_exist_is_said_so(&node).await.context("errors")?;
        node.is_as_before(&before)
    })
    .await
}

async fn crictl_runs_a_pod_and_nothing_is_left(node: &Node) -> Result<()> {
    let version = node.crictl(&["version"]).await?;
    ensure!(version.contains("RuntimeName:  clearpod"), "{version}");
    let info: Value = serde_json::from_str(&node.crictl(&["info"]).await?)?;
    let conditions = info["status"]["conditions"].as_array().context("conditions")?;
    ensure!(
        conditions.iter().all(|condition| condition["status"] == true),
        "{conditions:?}"
    );

    let files = node.directory();
    let pod = serde_json::json!({"metadata": {"name": "hello", "namespace": "default", "uid": "u1", "attempt": 1},
        "hostname": "hello-host", "log_directory": files.join("logs/hello"), "linux": {}});
    fs_err::write(files.join("pod.json"), pod.to_string())?;
    let script = "echo out of $(hostname); echo err >&2; sleep 1000";
    let container = serde_json::json!({"metadata": {"name": "main"}, "image": {"image": node.image()},
        "command": ["sh", "-c", script], "log_path": "main.log", "linux": {}});
    fs_err::write(files.join("container.json"), container.to_string())?;
    let (pod, container) = (files.join("pod.json"), files.join("container.json"));
    let (pod, container) = (pod.to_str().context("path")?, container.to_str().context("path")?);

    let sandbox = node.crictl(&["runp", pod]).await?;
    let pods = node.crictl(&["pods"]).await?;
    ensure!(pods.contains("Ready") && pods.contains("hello"), "{pods}");
    let id = node.crictl(&["create", &sandbox, container, pod]).await?;
    node.crictl(&["start", &id]).await?;
    let lines = wait::until(wait::CONTAINER, "two lines of log", async || {
        let lines = node.log("hello", "main");
        (lines.len() == 2).then_some(lines)
    })
    .await?;
    ensure!(
        lines.contains(&("stdout".into(), "out of hello-host".into())),
        "{lines:?}"
    );
    ensure!(lines.contains(&("stderr".into(), "err".into())), "{lines:?}");
    let log = node.crictl(&["logs", &id]).await?;
    ensure!(log.contains("out of hello-host"), "{log}");
    let told = node.crictl(&["exec", "--sync", &id, "ps"]).await?;
    ensure!(told.contains("sleep 1000"), "{told}");
    let list = node.crictl(&["ps"]).await?;
    ensure!(list.contains("Running") && list.contains("main"), "{list}");
    node.crictl(&["inspect", &id]).await?;
    let inspected: Value = serde_json::from_str(&node.crictl(&["inspectp", &sandbox]).await?)?;
    ensure!(inspected["status"]["state"] == "SANDBOX_READY", "{inspected}");
    node.crictl(&["stop", "--timeout", "1", &id]).await?;
    node.crictl(&["rm", &id]).await?;
    node.crictl(&["stopp", &sandbox]).await?;
    node.crictl(&["rmp", &sandbox]).await?;
    ensure!(!node.crictl(&["pods"]).await?.contains("hello"));
    Ok(())
}

async fn containers_are_what_they_were_asked_to_be(node: &Node) -> Result<()> {
    let cri = node.cri();
    let mut pod = node.pod("settings");
    let dns = cri::DnsConfig {
        servers: vec!["10.1.2.3".into()],
        searches: vec!["svc.example".into()],
        options: vec!["ndots:5".into()],
    };
    pod.config.dns_config = Some(dns);
    let sandbox = cri.run_pod(&pod).await?;
    let mut config = PodSpec::shell("main", &node.image(), "sleep 1000");
    config.envs = vec![cri::KeyValue {
        key: "COLOUR".into(),
        value: b"blue".to_vec(),
    }];
    config.working_dir = "/tmp".into();
    let context = cri::LinuxContainerSecurityContext {
        run_as_user: Some(cri::Int64Value { value: 1000 }),
        run_as_group: Some(cri::Int64Value { value: 2000 }),
        supplemental_groups: vec![3000],
        no_new_privs: true,
        // As kubelet asks for, of every container that is not privileged.
        masked_paths: vec!["/proc/interrupts".into()],
        readonly_paths: vec!["/proc/sys".into()],
        ..Default::default()
    };
    let resources = cri::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    };
    config.linux = Some(cri::LinuxContainerConfig {
        security_context: Some(context),
        resources: Some(resources),
    });
    let id = cri.create(&sandbox, &pod, config).await?;
    cri.start(&id).await?;
    for (script, wanted) in [
        (
            "echo $COLOUR; pwd; id -u; id -g; id -G",
            "blue\n/tmp\n1000\n2000\n2000 3000\n",
        ),
        (
            "grep -E 'NoNewPrivs|CapEff' /proc/self/status | tr -d '\\t'",
            "CapEff:0000000000000000\nNoNewPrivs:1\n",
        ),
        (
            "cat /etc/resolv.conf",
            "search svc.example\nnameserver 10.1.2.3\noptions ndots:5\n",
        ),
        ("cat /sys/fs/cgroup/memory.max", "67108864\n"),
        ("hostname; cat /etc/hostname", "settings\nsettings\n"),
        ("grep -c '^proc /proc/sys proc ro,' /proc/mounts", "1\n"),
        ("wc -c </proc/interrupts", "0\n"),
    ] {
        let (code, out, err) = cri.exec(&id, script).await?;
        ensure!(
            out == wanted || format!("{out}{err}") == wanted,
            "{script}: {code} {out:?} {err:?}"
        );
    }
    let status = cri.container(&id).await?;
    ensure!(
        status.state() == cri::ContainerState::ContainerRunning && !status.image_ref.is_empty(),
        "{status:?}"
    );
    cri.remove_pod(&sandbox).await?;
    Ok(())
}

async fn pods_reach_each_other_and_the_host(node: &Node) -> Result<()> {
    let cri = node.cri();
    let (one, two) = (node.pod("net-one"), node.pod("net-two"));
    let (first, second) = tokio::join!(cri.run_pod(&one), cri.run_pod(&two));
    let (first, second) = (first?, second?);
    let serve =
        "mkdir -p /tmp/www; echo from $(hostname) >/tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www";
    cri.run_shell(&first, &one, "web", &node.image(), serve).await?;
    let client = cri
        .run_shell(&second, &two, "client", &node.image(), "sleep 1000")
        .await?;
    let ip = cri
        .pod(&first)
        .await?
        .status
        .and_then(|status| status.network)
        .context("network")?
        .ip;
    // Not wget: Debian's static busybox, whose C library wants to load others to resolve names, crashes in it.
    let fetch = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {ip} 8080");
    let answer = wait::until(wait::CONTAINER, "the other pod's page", async || {
        let (code, out, _) = cri.exec(&client, &fetch).await.ok()?;
        (code == 0 && !out.is_empty()).then_some(out)
    })
    .await?;
    ensure!(answer.ends_with("\r\n\r\nfrom net-one\n"), "{answer}");
    let mut stream = tokio::net::TcpStream::connect((ip.as_str(), 8080))
        .await
        .context("host to pod")?;
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut page = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut page).await?;
    ensure!(page.ends_with("from net-one\n"), "{page}");
    let (code, out, err) = cri
        .exec(
            &client,
            "ip route | grep default; ip -6 addr show eth0 | grep -c fd00",
        )
        .await?;
    ensure!(
        code == 0 && out.starts_with("default via 10.214.0.1") && out.ends_with("1\n"),
        "{code} {out} {err}"
    );
    for sandbox in [first, second] {
        cri.remove_pod(&sandbox).await?;
    }
    Ok(())
}

async fn processes_end_as_they_are_told(node: &Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod("ends");
    let sandbox = cri.run_pod(&pod).await?;
    let failed = cri
        .run_shell(&sandbox, &pod, "fails", &node.image(), "exit 7")
        .await?;
    let status = cri.ended(&failed).await?;
    ensure!(
        (status.exit_code, status.reason.as_str()) == (7, "Error"),
        "{status:?}"
    );
    let done = cri
        .run_shell(&sandbox, &pod, "works", &node.image(), "true")
        .await?;
    let status = cri.ended(&done).await?;
    ensure!(
        (status.exit_code, status.reason.as_str()) == (0, "Completed"),
        "{status:?}"
    );

    let polite = "trap 'exit 3' TERM; while :; do sleep 0.1; done";
    let polite = cri
        .run_shell(&sandbox, &pod, "polite", &node.image(), polite)
        .await?;
    cri.exec(&polite, "true").await?;
    cri.stop(&polite, 30).await?;
    ensure!(cri.container(&polite).await?.exit_code == 3);
    let stubborn = cri
        .run_shell(
            &sandbox,
            &pod,
            "stubborn",
            &node.image(),
            "trap '' TERM; while :; do sleep 1; done",
        )
        .await?;
    cri.exec(&stubborn, "true").await?;
    cri.stop(&stubborn, 1).await?;
    let status = cri.container(&stubborn).await?;
    ensure!(status.exit_code == 137, "{status:?}");

    cri.remove_pod(&sandbox).await?;
    Ok(())
}

async fn what_cannot_run_is_told(node: &Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod("cannot");
    let sandbox = cri.run_pod(&pod).await?;
    let missing = cri.create(&sandbox, &pod, {
        let mut config = PodSpec::shell("missing", &node.image(), "");
        config.command = vec!["/no/such/program".into()];
        config
    });
    let missing = missing.await?;
    let error = cri
        .start(&missing)
        .await
        .err()
        .context("a missing program must not start")?;
    ensure!(error.message().contains("/no/such/program"), "{error}");
    let eater = PodSpec::shell("eater", &node.image(), "dd if=/dev/zero of=/dev/null bs=200M");
    let mut eater = eater;
    let resources = cri::LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        ..Default::default()
    };
    eater.linux = Some(cri::LinuxContainerConfig {
        resources: Some(resources),
        ..Default::default()
    });
    let eater = cri.create(&sandbox, &pod, eater).await?;
    cri.start(&eater).await?;
    let status = cri.ended(&eater).await?;
    ensure!(
        (status.exit_code, status.reason.as_str()) == (137, "OOMKilled"),
        "{status:?}"
    );
    cri.remove_pod(&sandbox).await?;
    Ok(())
}

async fn what_does_not_exist_is_said_so(node: &Node) -> Result<()> {
    let cri = node.cri();
    let error = cri
        .pull(&node.image().replace("busybox", "nothing"))
        .await
        .err()
        .context("pull")?;
    ensure!(error.code() == tonic::Code::NotFound, "{error}");
    let error = cri.container("0123456789abcdef").await.err().context("status")?;
    ensure!(error.code() == tonic::Code::NotFound, "{error}");
    cri.remove_pod("0123456789abcdef").await?;
    let pod = node.pod("twice");
    let sandbox = cri.run_pod(&pod).await?;
    ensure!(
        cri.run_pod(&pod).await.is_err(),
        "the same name and attempt a second time"
    );
    cri.remove_pod(&sandbox).await?;
    let mut host = node.pod("host");
    let options = cri::NamespaceOption {
        network: cri::NamespaceMode::Node.into(),
        ..Default::default()
    };
    let context = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        ..Default::default()
    };
    host.config.linux = Some(cri::LinuxPodSandboxConfig {
        security_context: Some(context),
        ..Default::default()
    });
    let error = cri.run_pod(&host).await.err().context("host network")?;
    ensure!(error.message().contains("network"), "{error}");
    Ok(())
}
