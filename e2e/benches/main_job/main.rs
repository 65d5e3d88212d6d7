//! The figures of the main job: pods through the daemon, and between them the same guest alone under our VMM and under
//! QEMU's microvm machine; memory; many pods one after another. One JSON object on standard output, a table on standard
//! error. `e2e/bench` builds it and runs it where Machines run.
//!
//! On an emulated node times are no times of hardware: what counts there are ratios and counts.

mod agent;
#[path = "../alone/mod.rs"]
mod alone;
mod pods;
#[path = "../alone/probe.rs"]
mod probe;

use std::{
    collections::BTreeMap,
    io::{Write, stderr, stdout},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    Churn, Figures, Node, churn,
    conditions::{self, count, say},
    process::status_kib,
};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use self::{
    alone::{Payload, Qemu},
    pods::Pods,
};

/// The daemon is looked at when it has had nothing to do for so long.
const IDLE: Duration = Duration::from_secs(2);
/// Looks at the daemon's memory while pods come and go.
const CHURN_STEP: usize = 20;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let load = conditions::load()?;
    let node = Node::start_as_shipped().await?;
    let result = measure(&node, &load).await;
    result.with_context(|| node.daemon_log())
}

async fn measure(node: &Node, load: &str) -> Result<()> {
    let rounds = count("CLEARPOD_BENCH_PODS", 20)?;
    let churned = count("CLEARPOD_BENCH_CHURN", 200)?;
    tokio::time::sleep(IDLE).await;
    let idle_kib = daemon_rss(node)?;
    let (words, guest_kernel, memory_mib) = pods::guest_of_a_pod(node).await?;
    let conditions = conditions::describe(node, load, &guest_kernel).await?;
    say(&format!("conditions: {conditions}"))?;
    let share = node.bundle().join("share");
    let payload = Payload {
        kernel: share.join("vmlinux"),
        initramfs: share.join("initramfs.cpio"),
        memory_mib,
    };
    let qemu = Qemu::prepare(&payload)?;
    let rivals = rounds_of_boots_and_pods(node, rounds, &payload, &qemu).await?;
    tokio::time::sleep(IDLE).await;
    let after_kib = daemon_rss(node)?;
    say("the agent's memory")?;
    let agent = block_in_place(|| agent::measure(node.bundle(), &payload))?;
    say(&format!("{churned} pods one after another"))?;
    let churned = churn(node, churned, CHURN_STEP).await?;

    let ratio = rivals
        .ours
        .median(alone::TOTAL)
        .zip(rivals.qemu.median(alone::TOTAL))
        .map(|(ours, qemu)| ours / qemu)
        .context("no boots")?;
    let overhead_mib = rivals.pods.memory.median(pods::OVERHEAD).context("no pods")? / 1024.0;
    let daemon_mib = idle_kib.max(after_kib) as f64 / 1024.0;
    let targets = json!([
        target("vmm_boot_vs_qemu_microvm", ratio, 0.7),
        target("vmm_overhead_pss_mib", overhead_mib, 5.0),
        target("daemon_rss_mib", daemon_mib, 30.0),
        target("left_behind", churned.left_behind.len() as f64, 0.0),
    ]);
    rivals.write(&targets, &agent, &churned)?;
    let report = json!({
        "conditions": conditions,
        "targets": targets,
        "pods": {"count": rounds, "unit": "ms", "calls": rivals.pods.calls.json(), "phases": rivals.pods.phases.json()},
        "boot": {
            "yardstick": "from just before the VMM's process is started to the agent's Ready on vsock port 1025",
            "count": rounds, "unit": "ms", "memory_mib": memory_mib, "vcpus": 1,
            "vmm_boot_vs_qemu_microvm": ratio,
            "clearpod_vmm": {"command_line": words, "times": rivals.ours.json(), "exits": rivals.exits},
            "qemu_microvm": {"command": qemu.command(), "times": rivals.qemu.json()},
        },
        "memory": {
            "unit": "KiB", "vmm_pss": rivals.pods.memory.json(), "agent": agent,
            "vmm_pss_how": "Pss of /proc/PID/smaps; guest memory: anonymous mappings of at least its size; \
                image layers: files of the image store, which the guest sees as persistent memory",
            "daemon_rss": {"idle": idle_kib, "after_the_pods": after_kib},
        },
        "churn": churn_json(&churned),
    });
    writeln!(stdout(), "{report:#}")?;
    ensure!(
        churned.left_behind.is_empty(),
        "left behind: {:#?}",
        churned.left_behind
    );
    Ok(())
}

/// What was measured side by side.
struct Rivals {
    pods: Pods,
    ours: Figures,
    qemu: Figures,
    exits: Value,
}

/// One round more than counted: the first fills the page cache with what all of them read.
async fn rounds_of_boots_and_pods(
    node: &Node,
    rounds: usize,
    payload: &Payload,
    qemu: &Qemu,
) -> Result<Rivals> {
    let vmm = node.bundle().join("bin/clearpod-vmm");
    let mut pods = Pods::default();
    let mut ours = Figures::default();
    let mut theirs = Figures::default();
    let mut exits = BTreeMap::new();
    for round in 0..=rounds {
        if round == 1 {
            (pods, ours, theirs) = Default::default();
        }
        pods::one(node, round, &mut pods)
            .await
            .with_context(|| format!("pod {round}"))?;
        let boots = |ours: &mut Figures, theirs: &mut Figures| -> Result<BTreeMap<String, u64>> {
            // Who comes first alternates, so that neither always finds the other's traces in the caches.
            if round % 2 == 0 {
                qemu.boot(theirs)?;
            }
            let exits = alone::clearpod_vmm(&vmm, payload, alone::COMMAND_LINE, ours)?;
            if round % 2 == 1 {
                qemu.boot(theirs)?;
            }
            Ok(exits)
        };
        exits = block_in_place(|| boots(&mut ours, &mut theirs))?;
        say(&format!("round {round} of {rounds}"))?;
    }
    Ok(Rivals {
        pods,
        ours,
        qemu: theirs,
        exits: json!(exits),
    })
}

impl Rivals {
    fn write(&self, targets: &Value, agent: &Value, churned: &Churn) -> Result<()> {
        let mut out = stderr().lock();
        self.pods.calls.write("calls, ms", &mut out)?;
        self.pods.phases.write("phases of RunPodSandbox, ms", &mut out)?;
        self.ours.write("clearpod-vmm alone, ms", &mut out)?;
        self.qemu.write("QEMU microvm, ms", &mut out)?;
        self.pods
            .memory
            .write("PSS of a pod's clearpod-vmm, KiB", &mut out)?;
        writeln!(out, "exits of a boot: {}\nagent: {agent}", self.exits)?;
        writeln!(out, "{} pods: {}", churned.pods, churn_json(churned))?;
        for target in targets.as_array().into_iter().flatten() {
            writeln!(out, "{target}")?;
        }
        Ok(())
    }
}

fn target(name: &str, value: f64, at_most: f64) -> Value {
    json!({"name": name, "value": (value * 1000.0).round() / 1000.0, "at_most": at_most, "met": value <= at_most})
}

fn churn_json(churned: &Churn) -> Value {
    json!({
        "pods": churned.pods,
        "left_behind": churned.left_behind,
        "daemon_descriptors": {"before": churned.descriptors_before, "after": churned.descriptors_after},
        "daemon_rss_kib_after_pods": churned.daemon_rss_kib,
    })
}

fn daemon_rss(node: &Node) -> Result<u64> {
    status_kib(node.daemon_pid().context("the daemon's pid")?, "VmRSS")
}
