//! Pods through the daemon, one at a time, and what their VMM takes beside the guest's memory.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Figures, Node, PodSpec, process};
use serde_json::Value;

/// What the pods told.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    /// Milliseconds as the client sees them.
    pub(crate) calls: Figures,
    /// Milliseconds as the daemon tells them; some phases run side by side.
    pub(crate) phases: Figures,
    /// KiB.
    pub(crate) memory: Figures,
}

/// One pod from RunPodSandbox to RemovePodSandbox.
pub(crate) async fn one(node: &Node, number: usize, pods: &mut Pods) -> Result<()> {
    let cri = node.cri();
    let pod = node.pod(&format!("bench-{number}"));
    let began = Instant::now();
    let sandbox = cri.run_pod(&pod).await?;
    since(&mut pods.calls, "RunPodSandbox", began);

    let began = Instant::now();
    let config = PodSpec::shell("main", &node.image(), "exec sleep 1000");
    let container = cri.create(&sandbox, &pod, config).await?;
    let created = Instant::now();
    cri.start(&container).await?;
    since(&mut pods.calls, "CreateContainer + StartContainer", began);
    since(&mut pods.calls, "  StartContainer alone", created);

    let began = Instant::now();
    let (code, _, said) = cri.exec(&container, "true").await?;
    since(&mut pods.calls, "ExecSync", began);
    ensure!(code == 0, "true ended with {code}: {said}");

    let info = node.info_of(&sandbox).await?;
    add_phases(&info, &mut pods.phases);
    add_memory(node, &info, &mut pods.memory)?;

    let began = Instant::now();
    cri.remove_pod(&sandbox).await?;
    since(&mut pods.calls, "StopPodSandbox + RemovePodSandbox", began);
    Ok(())
}

/// What a pod's guest has as its command line and kernel, and how much memory: the payload for the boots beside it.
pub(crate) async fn guest_of_a_pod(node: &Node) -> Result<(String, String, u64)> {
    let cri = node.cri();
    let pod = node.pod("bench-guest");
    let sandbox = cri.run_pod(&pod).await?;
    let container = cri
        .run_shell(&sandbox, &pod, "main", &node.image(), "exec sleep 1000")
        .await?;
    let (_, words, _) = cri.exec(&container, "cat /proc/cmdline").await?;
    let (_, release, _) = cri.exec(&container, "uname -rv").await?;
    let memory = node.info_of(&sandbox).await?["memory_mib"]
        .as_u64()
        .context("memory_mib")?;
    cri.remove_pod(&sandbox).await?;
    Ok((words.trim().to_owned(), release.trim().to_owned(), memory))
}

fn since(figures: &mut Figures, name: &str, began: Instant) {
    figures.add(name, began.elapsed().as_micros() as f64 / 1000.0);
}

fn add_phases(info: &Value, figures: &mut Figures) {
    for phase in info["phases"].as_array().into_iter().flatten() {
        if let (Some(name), Some(us)) = (phase["name"].as_str(), phase["duration_us"].as_f64()) {
            figures.add(name, us / 1000.0);
        }
    }
}

/// The VMM's memory in three parts. The guest's RAM are mappings one behind the other that together are at least as large as it:
/// one of anonymous memory, or of a fork those of its template's file and of the holes in this. What the guest sees as persistent
/// memory are mapped files of the image store. All else is what the VMM itself costs.
fn add_memory(node: &Node, info: &Value, figures: &mut Figures) -> Result<()> {
    let pid = u32::try_from(info["vmm_pid"].as_u64().context("vmm_pid")?)?;
    let ram_kib = info["memory_mib"].as_u64().context("memory_mib")? * 1024;
    let images = node.images();
    let (mut ram, mut own) = (0, 0);
    let (of_images, others): (Vec<_>, Vec<_>) = process::mappings(pid)?
        .into_iter()
        .partition(|mapping| Path::new(&mapping.name).starts_with(&images));
    let is_one_block = |one: &process::Mapping, next: &process::Mapping| {
        let may_be_ram =
            |mapping: &process::Mapping| mapping.name.is_empty() || mapping.name.contains("/templates/");
        may_be_ram(one) && may_be_ram(next) && one.address + one.size_kib * 1024 == next.address
    };
    for neighbours in others.chunk_by(is_one_block) {
        let size: u64 = neighbours.iter().map(|mapping| mapping.size_kib).sum();
        if size >= ram_kib {
            ram += pss(neighbours);
        } else {
            own += pss(neighbours);
        }
    }
    ensure!(
        ram > 0,
        "no mapping of process {pid} looks like {ram_kib} KiB of guest memory"
    );
    for (name, kib) in [
        (OVERHEAD, own),
        ("guest memory", ram),
        ("image layers", pss(&of_images)),
    ] {
        figures.add(name, kib as f64);
    }
    Ok(())
}

fn pss(mappings: &[process::Mapping]) -> u64 {
    mappings.iter().map(|mapping| mapping.pss_kib).sum()
}

/// The VMM's memory that is not the guest's.
pub(crate) const OVERHEAD: &str = "clearpod-vmm beyond the guest's memory";
