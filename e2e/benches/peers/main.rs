//! clearpod beside what else a node can run, in turn on the same network, registry and image: containerd with runc, containerd
//! with gVisor's runsc where it is installed, and QEMU's microvm machine for a guest's boot alone. One JSON object on
//! standard output, a table on standard error, a picture of each figure in `CLEARPOD_BENCH_PICTURES`. `e2e/bench` builds it
//! and runs it where Machines run.
//!
//! On an emulated node times are no times of hardware: what counts there are ratios.

#[path = "../alone/mod.rs"]
mod alone;
mod containerd;
mod gaps;
mod image;
mod network;
mod picture;
mod pod;
mod report;

use anyhow::{Context, Result};
use e2e::{
    Figures, Node,
    conditions::{self, count, say},
};
use serde_json::Value;
use tokio::task::block_in_place;

use self::{
    alone::{Payload, Qemu},
    containerd::Containerd,
    gaps::Gaps,
    image::Image,
    pod::Peer,
};

/// What the peers are called in the report's ratios.
const OURS: &str = "clearpod";
/// Ours, whose guests boot: what a fork is worth.
const COLD: &str = "clearpod_cold";
const RUNC: &str = "runc";
const RUNSC: &str = "runsc";
const AT_ONCE: &str = "pods per second, all asked for at once";
/// Memory of the guest whose boot alone is compared.
const BOOT_MEMORY_MIB: u64 = 512;

/// A runtime and what was measured of it.
struct Entry {
    peer: Peer,
    times: Figures,
    memory: Figures,
    rates: Figures,
    network: Figures,
    image: Figures,
    /// What the runtime itself tells of the sandbox's start.
    phases: Figures,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let load = conditions::load()?;
    let node = Node::start_as_shipped().await?;
    let result = measure(&node, &load).await;
    result.with_context(|| node.daemon_log())
}

async fn measure(node: &Node, load: &str) -> Result<()> {
    let rounds = count("CLEARPOD_BENCH_PODS", 10)?;
    let at_once = count("CLEARPOD_BENCH_AT_ONCE", 50)?;
    let containerd = Containerd::start(node).await?;
    let mut entries = entries(node, containerd.as_ref());
    say(&format!("peers: {}", names(&entries).join(", ")))?;
    let mut gaps = Gaps::default();
    leave_out(&mut entries, &mut gaps).await?;
    for round in 1..=rounds {
        one_round(&mut entries, round, &mut gaps).await?;
        say(&format!("round {round} of {rounds}"))?;
    }
    for entry in entries.iter_mut().filter(|entry| entry.is_whole()) {
        beside_the_rounds(entry, rounds, at_once, &mut gaps).await?;
    }
    let reads = image_reads(node, &mut entries, rounds.min(IMAGE_ROUNDS), &mut gaps).await?;
    let boots = block_in_place(|| boots(node, rounds))?;
    let measured = Measured {
        containerd: containerd.map(|containerd| containerd.version),
        gaps,
        entries,
        reads,
        boots,
    };
    let conditions = conditions::describe(node, load, "").await?;
    report::write(node, &conditions, &measured)?;
    measured.gaps.none_of_ours()
}

/// TCP flows of each peer.
const FLOWS: usize = 4;
/// What goes through one pod's network, and many pods at once.
async fn beside_the_rounds(entry: &mut Entry, rounds: usize, at_once: usize, gaps: &mut Gaps) -> Result<()> {
    let (peer, figures) = (&entry.peer, &mut entry.network);
    let flows = network::measure(peer, rounds.min(FLOWS), figures).await;
    gaps.figure(peer, "network", flows).await?;
    let rate = peer.at_once(at_once, &mut entry.memory).await;
    if let Some(rate) = gaps.figure(peer, "pods_per_second", rate).await? {
        entry.rates.add(AT_ONCE, rate);
        let name = peer.name;
        say(&format!("{name}: {rate:.2} pods per second of {at_once} at once"))?;
    }
    Ok(())
}

/// All that was measured.
struct Measured {
    /// What containerd and runc call themselves.
    containerd: Option<String>,
    gaps: Gaps,
    entries: Vec<Entry>,
    reads: Reads,
    boots: Boots,
}

/// Pods of each peer that read an image.
const IMAGE_ROUNDS: usize = 5;

/// Reads of images that belong to no peer's series.
#[derive(Default)]
struct Reads {
    on_host: Figures,
    /// How many pods of ours share one image's pages, and in how many copies these are in memory.
    sharing: Value,
}

/// In turn on the host and in a pod of each peer; then many pods of ours.
async fn image_reads(node: &Node, entries: &mut [Entry], rounds: usize, gaps: &mut Gaps) -> Result<Reads> {
    let mut reads = Reads::default();
    let mebibytes = count("CLEARPOD_BENCH_IMAGE_MIB", 200)?;
    let Some(image) = Image::push(node, mebibytes).await? else {
        return Ok(reads);
    };
    for entry in entries.iter().filter(|entry| entry.is_whole()) {
        entry.peer.cri.pull(&image.name).await.context(entry.peer.name)?;
    }
    for round in 1..=rounds {
        image.read_on_host(&mut reads.on_host).await?;
        for entry in entries.iter_mut().filter(|entry| entry.is_whole()) {
            let (peer, figures) = (&entry.peer, &mut entry.image);
            let read = image.read_in_pod(peer, &format!("reads-{round}"), figures).await;
            gaps.figure(peer, "image", read).await?;
        }
        say(&format!("image reads: round {round} of {rounds}"))?;
    }
    let pods = count("CLEARPOD_BENCH_SHARING", 20)?;
    let ours = entries.first().context("clearpod comes first")?;
    let share = image.share(&ours.peer, pods, &node.images()).await;
    let share = gaps.figure(&ours.peer, "image_sharing", share).await?;
    reads.sharing = share.unwrap_or_default();
    say(&format!("image pages: {}", reads.sharing))?;
    Ok(reads)
}

fn entries(node: &Node, containerd: Option<&Containerd>) -> Vec<Entry> {
    let peer = |name, cri, handler| Entry {
        peer: Peer {
            name,
            cri,
            handler,
            image: node.image(),
            logs: node.directory().join("logs"),
        },
        times: Figures::default(),
        memory: Figures::default(),
        rates: Figures::default(),
        network: Figures::default(),
        image: Figures::default(),
        phases: Figures::default(),
    };
    let mut entries = vec![
        peer(OURS, node.cri(), ""),
        peer(COLD, node.cri(), "clearpod-cold"),
    ];
    if let Some(containerd) = containerd {
        entries.push(peer(RUNC, containerd.cri.clone(), "runc"));
        if containerd.has_runsc {
            entries.push(peer(RUNSC, containerd.cri.clone(), "runsc"));
        }
    }
    entries
}

impl Entry {
    /// Of pods that boot only the start is measured: nothing else is different.
    fn is_whole(&self) -> bool {
        self.peer.name != COLD
    }

    fn forget(&mut self) {
        (self.times, self.memory, self.phases) = Default::default();
    }

    async fn measure(&mut self, name: &str) -> Result<()> {
        let (peer, times, memory) = (&self.peer, &mut self.times, &mut self.memory);
        peer.measure(name, times, memory, &mut self.phases).await
    }
}

/// A pod of each that is not counted: it fills the page cache with what all pods read. A peer that cannot run one is left out,
/// with what it said; that we can is what all this is about.
async fn leave_out(entries: &mut Vec<Entry>, gaps: &mut Gaps) -> Result<()> {
    for mut entry in std::mem::take(entries) {
        let name = entry.peer.name;
        match entry.measure("uncounted").await {
            Err(error) if entry.is_whole() && name != OURS => gaps.leave_out(name, &error)?,
            Err(error) => return Err(error),
            Ok(()) => {
                entry.forget();
                entries.push(entry);
            }
        }
    }
    Ok(())
}

/// One pod of each; who comes first changes.
async fn one_round(entries: &mut [Entry], round: usize, gaps: &mut Gaps) -> Result<()> {
    let count = entries.len();
    for turn in 0..count {
        if let Some(entry) = entries.get_mut((round + turn) % count) {
            let measured = entry.measure(&format!("round-{round}")).await;
            let figure = format!("round {round}");
            gaps.figure(&entry.peer, &figure, measured).await?;
        }
    }
    Ok(())
}

/// Boots of the same guest alone.
#[derive(Default)]
struct Boots {
    ours: Figures,
    qemu: Figures,
    qemu_command: String,
}

/// Under our VMM and under QEMU's, in turn; nothing where there is no QEMU.
fn boots(node: &Node, rounds: usize) -> Result<Boots> {
    let share = node.bundle().join("share");
    let payload = Payload {
        kernel: share.join("vmlinux"),
        initramfs: share.join("initramfs.cpio"),
        memory_mib: BOOT_MEMORY_MIB,
    };
    let vmm = node.bundle().join("bin/clearpod-vmm");
    if containerd::found(alone::QEMU).is_none() {
        return Ok(Boots::default());
    }
    let qemu = Qemu::prepare(&payload)?;
    let (mut ours, mut theirs) = (Figures::default(), Figures::default());
    for round in 0..=rounds {
        if round == 1 {
            (ours, theirs) = Default::default();
        }
        alone::clearpod_vmm(&vmm, &payload, alone::COMMAND_LINE, &mut ours)?;
        qemu.boot(&mut theirs)?;
    }
    Ok(Boots {
        ours,
        qemu: theirs,
        qemu_command: qemu.command(),
    })
}

fn names(entries: &[Entry]) -> Vec<&'static str> {
    entries.iter().map(|entry| entry.peer.name).collect()
}
