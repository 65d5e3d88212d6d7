//! Pods that go on from one template share its pages and nothing that tells them apart. `CLEARPOD_FORKS` says how many are made.

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use e2e::{Node, PodSpec, on_a_node, wait};
use proto::cri::v1 as cri;
use serde_json::Value;

/// In a run of all tests.
const FORKS: usize = 8;
/// The guest's clock against the host's, with the time that a container takes to say so.
const CLOCK_SECONDS: u64 = 30;

/// What no two guests may have in common, a line each: `NAME VALUE`. Few processes: each takes tens of milliseconds in the emulated node.
///
/// There is no machine id in it: an image has its own /etc/machine-id or none, as under other runtimes, and the guest's (the
/// sandbox's id, which is random) is in no container's view.
const TELL: &str = "cd /proc/sys/kernel; read x <random/boot_id; echo boot_id $x; read x <random/uuid; echo uuid $x; \
    read x <hostname; echo name $x; read x </sys/class/net/eth0/address; echo mac $x; \
    echo stack $(md5sum </proc/self/auxv); echo random $(head -c 32 /dev/random | md5sum); \
    echo urandom $(head -c 32 /dev/urandom | md5sum); \
    /usr/bin/openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout /dev/null -config /dev/null \
    -subj /CN=pod -pubkey -noout | { read x; read x; read y; echo tls_key $x$y; }; echo time $(date +%s)";
/// How many of them there are, without the time.
const TOLD: usize = 8;
/// So many pods, and how far it is is told: a thousand take half an hour.
const TOLD_AFTER: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_have_nothing_in_common_that_tells_them_apart() -> Result<()> {
    on_a_node(async || {
        let count = match std::env::var("CLEARPOD_FORKS") {
            Ok(count) => count.parse().context("CLEARPOD_FORKS")?,
            Err(_) => FORKS,
        };
        let node = Node::start().await?;
        node.set_plain_network()?;
        let image = node.pull_with_programs("e2e/openssl", "openssl").await?;
        let templates = node.templates().await?;
        ensure!(
            templates.iter().any(|template| template["state"] == "ready"),
            "{templates:?}"
        );
        let mut seen = Seen::default();
        let (began, mut boots) = (Instant::now(), 0);
        for number in 0..count {
            let pod = one(&node, &image, &format!("fork-{number}")).await;
            let (is_fork, told) = pod.with_context(|| format!("pod {number}:\n{}", node.daemon_log()))?;
            boots += usize::from(!is_fork);
            for (name, value) in told {
                if name == "time" {
                    clock_is_right(&value)?;
                } else {
                    seen.add(number, &name, &value);
                }
            }
            // What was found until then counts, should the node not live to see the last.
            ensure!(seen.twice.is_empty(), "{}", seen.twice.join("\n"));
            if (number + 1) % TOLD_AFTER == 0 {
                println!("{} pods, {boots} boots: {}", number + 1, seen.summary());
            }
        }
        println!(
            "{count} pods, {} of them forks and {boots} boots, {:.2} s each; different values: {}",
            count - boots,
            began.elapsed().as_secs_f64() / f64::from(u32::try_from(count.max(1))?),
            seen.summary()
        );
        let is_complete = |values: &BTreeMap<String, usize>| values.len() == count;
        ensure!(
            seen.values.len() == TOLD && seen.values.values().all(is_complete),
            "{count} pods should have told {TOLD} things each"
        );
        ensure!(
            boots == 0,
            "{boots} of {count} pods booted:\n{}",
            node.daemon_log()
        );
        Ok(())
    })
    .await
}

/// What all pods have told.
#[derive(Default)]
struct Seen {
    /// By name: each value, and which pod told it first.
    values: BTreeMap<String, BTreeMap<String, usize>>,
    twice: Vec<String>,
}

impl Seen {
    fn add(&mut self, number: usize, name: &str, value: &str) {
        let values = self.values.entry(name.to_owned()).or_default();
        if let Some(other) = values.insert(value.to_owned(), number) {
            self.twice
                .push(format!("pods {other} and {number} both have {name} {value}"));
        }
    }

    fn summary(&self) -> String {
        let counts = self.values.iter();
        let counts = counts.map(|(name, values)| format!("{name} {}", values.len()));
        counts.collect::<Vec<_>>().join(", ")
    }
}

/// Runs a pod and removes it: whether it went on from the template, and what its container said.
async fn one(node: &Node, image: &str, name: &str) -> Result<(bool, Vec<(String, String)>)> {
    let cri = node.cri();
    let pod = node.pod(name);
    let sandbox = cri.run_pod(&pod).await?;
    let told = tell(node, image, &pod, &sandbox, name).await;
    cri.remove_pod(&sandbox).await?;
    told
}

async fn tell(
    node: &Node,
    image: &str,
    pod: &PodSpec,
    sandbox: &str,
    name: &str,
) -> Result<(bool, Vec<(String, String)>)> {
    let is_fork = node.start_of(sandbox).await? == "fork";
    node.cri().run_shell(sandbox, pod, "main", image, TELL).await?;
    let lines = wait::until(wait::CONTAINER, "all that it tells", async || {
        let lines = node.log(name, "main");
        (lines.len() > TOLD).then_some(lines)
    });
    let told = lines.await?.into_iter().filter_map(|(_, line)| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.to_owned()))
    });
    Ok((is_fork, told.collect()))
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
    on_a_node(async || {
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
    })
    .await
}
