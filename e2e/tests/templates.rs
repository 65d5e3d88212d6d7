//! Pods that go on from one template share its pages and nothing that tells them apart. `CLEARPOD_FORKS` says how many are made.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use e2e::{Node, PodSpec, skip, wait};
use proto::cri::v1 as cri;
use serde_json::Value;

/// In a run of all tests.
const FORKS: usize = 8;
/// The emulated processor loses a guest now and then, whose pod then boots in the same call.
const BOOTS_OF_100: usize = 10;
/// The guest's clock against the host's, with the time that a container takes to say so.
const CLOCK_SECONDS: u64 = 30;

/// What no two guests may have in common, a line each: `NAME VALUE`.
const TELL: &str = "cd /proc/sys/kernel/random; echo boot_id $(cat boot_id); echo uuid $(cat uuid); \
    echo urandom $(head -c 32 /dev/urandom | md5sum); echo random $(head -c 32 /dev/random | md5sum); \
    echo stack $(md5sum </proc/self/auxv); echo name $(hostname); \
    echo mac $(cat /sys/class/net/eth0/address); echo time $(date +%s)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_have_nothing_in_common_that_tells_them_apart() -> Result<()> {
    if skip("forks_have_nothing_in_common_that_tells_them_apart") {
        return Ok(());
    }
    let count = match std::env::var("CLEARPOD_FORKS") {
        Ok(count) => count.parse().context("CLEARPOD_FORKS")?,
        Err(_) => FORKS,
    };
    let node = Node::start().await?;
    let templates = node.templates().await?;
    ensure!(
        templates.iter().any(|template| template["state"] == "ready"),
        "{templates:?}"
    );
    let mut seen: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut boots = 0;
    for number in 0..count {
        let (is_fork, told) = one(&node, number)
            .await
            .with_context(|| format!("pod {number}:\n{}", node.daemon_log()))?;
        boots += usize::from(!is_fork);
        for (name, value) in told {
            if name == "time" {
                clock_is_right(&value)?;
            } else if let Some(other) = seen.insert((name.clone(), value.clone()), number) {
                anyhow::bail!("pods {other} and {number} both have {name} {value}");
            }
        }
    }
    ensure!(
        seen.len() == 7 * count,
        "{} of 7 things of {count} pods",
        seen.len()
    );
    ensure!(
        boots * 100 <= count.max(10) * BOOTS_OF_100,
        "{boots} of {count} pods booted:\n{}",
        node.daemon_log()
    );
    Ok(())
}

/// Runs a pod and removes it: whether it went on from the template, and what its container said.
async fn one(node: &Node, number: usize) -> Result<(bool, Vec<(String, String)>)> {
    let cri = node.cri();
    let name = format!("fork-{number}");
    let pod = node.pod(&name);
    let sandbox = cri.run_pod(&pod).await?;
    let is_fork = node.start_of(&sandbox).await? == "fork";
    let id = cri.run_shell(&sandbox, &pod, "main", &node.image(), TELL).await?;
    let status = cri.ended(&id).await?;
    ensure!(status.exit_code == 0, "{status:?}");
    let lines = wait::until(wait::CONTAINER, "all that it tells", async || {
        let lines = node.log(&name, "main");
        (lines.len() == 8).then_some(lines)
    });
    let told = lines.await?.into_iter().filter_map(|(_, line)| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let told = told.collect();
    cri.remove_pod(&sandbox).await?;
    Ok((is_fork, told))
}

fn clock_is_right(guest: &str) -> Result<()> {
    let guest: u64 = guest.parse().context("the guest's time")?;
    let host = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    ensure!(
        host.abs_diff(guest) <= CLOCK_SECONDS,
        "the guest's clock says {guest}, the host's {host}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_can_ask_for_a_boot_and_a_fork_can_be_all_that_a_pod_is() -> Result<()> {
    if skip("a_pod_can_ask_for_a_boot_and_a_fork_can_be_all_that_a_pod_is") {
        return Ok(());
    }
    let node = Node::start().await?;
    let cri = node.cri();
    let mut cold = node.pod("cold");
    cold.config
        .annotations
        .insert("clearpod.dev/boot".to_owned(), "cold".to_owned());
    let sandbox = cri.run_pod(&cold).await?;
    ensure!(node.start_of(&sandbox).await? == "boot");
    cri.remove_pod(&sandbox).await?;

    let pod = node.pod("fork");
    let sandbox = cri.run_pod(&pod).await?;
    let mut config = PodSpec::shell("main", &node.image(), "sleep 1000");
    let resources = cri::LinuxContainerResources {
        memory_limit_in_bytes: 900 << 20,
        ..Default::default()
    };
    config.linux = Some(cri::LinuxContainerConfig {
        resources: Some(resources),
        ..Default::default()
    });
    let directory = node.directory().join("shared");
    fs_err::create_dir_all(&directory)?;
    fs_err::write(directory.join("word"), "of the host\n")?;
    config.mounts = vec![cri::Mount {
        host_path: directory.display().to_string(),
        container_path: "/shared".to_owned(),
        ..Default::default()
    }];
    let id = cri.create(&sandbox, &pod, config).await?;
    cri.start(&id).await?;
    let (code, out, err) = cri
        .exec(
            &id,
            "cat /shared/word && grep MemTotal /proc/meminfo && dd if=/dev/zero of=/big bs=1M count=64",
        )
        .await?;
    ensure!(code == 0 && out.starts_with("of the host"), "{code} {out} {err}");
    let memory = out
        .split_whitespace()
        .nth(4)
        .and_then(|kib| kib.parse::<u64>().ok());
    ensure!(
        memory.is_some_and(|kib| kib > 800 << 10),
        "the Machine has not grown: {out}"
    );
    let program = node.bundle().join("bin/clearpod");
    let listed = tokio::process::Command::new(program)
        .arg("--config")
        .arg(node.directory().join("config.toml"))
        .args(["templates", "--json"])
        .output()
        .await?;
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    ensure!(listed[0]["state"] == "ready", "{listed}");
    println!("{}\n{:#}", listed[0], cri.pod(&sandbox).await?.info["info"]);
    cri.remove_pod(&sandbox).await?;
    Ok(())
}
