//! clearpod beside what else a node can run, in turn on the same network, registry and image: containerd with runc, containerd
//! with gVisor's runsc where it is installed, and QEMU's microvm machine for a guest's boot alone. One JSON object on
//! standard output, a table on standard error, a picture of each figure in `CLEARPOD_BENCH_PICTURES`. `e2e/bench` builds it
//! and runs it where Machines run.
//!
//! On an emulated node times are no times of hardware: what counts there are ratios.

#[path = "../main_job/boot.rs"]
mod boot;
mod containerd;
mod network;
mod picture;
mod pod;
#[path = "../main_job/ready.rs"]
mod ready;

use std::{
    env,
    io::{Write, stderr, stdout},
    path::Path,
};

use anyhow::{Context, Result};
use e2e::{
    Figures, Node,
    conditions::{self, count, say},
};
use serde_json::{Map, Value, json};
use tokio::task::block_in_place;

use self::{
    boot::{Payload, Qemu},
    containerd::Containerd,
    pod::{EXEC, FIRST_LINE, MEMORY, Peer, REMOVE, SANDBOX, median, ratio},
};

/// What the peers are called in the report's ratios.
const OURS: &str = "clearpod";
const RUNC: &str = "runc";
const RUNSC: &str = "runsc";
const QEMU: &str = "qemu_microvm";
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
}

/// A figure of a runtime: its name in ratios and pictures, its series, the unit, and where an entry has it.
type Figure = (&'static str, &'static str, &'static str, fn(&Entry) -> &Figures);

const FIGURES: [Figure; 8] = [
    ("sandbox", SANDBOX, "ms", |entry| &entry.times),
    ("first_line", FIRST_LINE, "ms", |entry| &entry.times),
    ("exec", EXEC, "ms", |entry| &entry.times),
    ("remove", REMOVE, "ms", |entry| &entry.times),
    ("memory", MEMORY, "KiB", |entry| &entry.memory),
    ("tcp_flow", network::FLOW, "MiB/s", |entry| &entry.network),
    ("round_trip", network::ROUND_TRIP, "ms", |entry| &entry.network),
    ("pods_per_second", AT_ONCE, "1/s", |entry| &entry.rates),
];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let load = conditions::load()?;
    let node = Node::start().await?;
    let result = measure(&node, &load).await;
    result.with_context(|| node.daemon_log())
}

async fn measure(node: &Node, load: &str) -> Result<()> {
    let rounds = count("CLEARPOD_BENCH_PODS", 10)?;
    let at_once = count("CLEARPOD_BENCH_AT_ONCE", 50)?;
    let containerd = Containerd::start(node).await?;
    let mut entries = entries(node, containerd.as_ref());
    say(&format!("peers: {}", names(&entries).join(", ")))?;
    let left_out = leave_out(&mut entries).await?;
    for round in 1..=rounds {
        one_round(&mut entries, round).await?;
        say(&format!("round {round} of {rounds}"))?;
    }
    for entry in &mut entries {
        let flows = network::measure(&entry.peer, rounds, &mut entry.network);
        flows.await.context(entry.peer.name)?;
        let rate = entry.peer.at_once(at_once).await.context(entry.peer.name)?;
        entry.rates.add(AT_ONCE, rate);
        say(&format!(
            "{}: {rate:.2} pods per second of {at_once} at once",
            entry.peer.name
        ))?;
    }
    let boots = block_in_place(|| boots(node, rounds))?;
    let conditions = conditions::describe(node, load, "").await?;
    let left_out = Value::Object(left_out);
    report(
        node,
        containerd.as_ref(),
        &conditions,
        &left_out,
        &entries,
        &boots,
    )
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
    };
    let mut entries = vec![peer(OURS, node.cri(), "")];
    if let Some(containerd) = containerd {
        entries.push(peer(RUNC, containerd.cri.clone(), "runc"));
        if containerd.has_runsc {
            entries.push(peer(RUNSC, containerd.cri.clone(), "runsc"));
        }
    }
    entries
}

impl Entry {
    fn forget(&mut self) {
        (self.times, self.memory, self.rates, self.network) = Default::default();
    }
}

/// A pod of each that is not counted: it fills the page cache with what all pods read. A peer that cannot run one is left out,
/// with what it said; that we can is what all this is about.
async fn leave_out(entries: &mut Vec<Entry>) -> Result<Map<String, Value>> {
    let mut left_out = Map::new();
    for mut entry in std::mem::take(entries) {
        let (peer, times, memory) = (&entry.peer, &mut entry.times, &mut entry.memory);
        match peer.measure("uncounted", times, memory).await {
            Err(error) if peer.name != OURS => {
                say(&format!("{} is left out: {error:#}", peer.name))?;
                left_out.insert(peer.name.to_owned(), json!(format!("{error:#}")));
            }
            Err(error) => return Err(error),
            Ok(()) => {
                entry.forget();
                entries.push(entry);
            }
        }
    }
    Ok(left_out)
}

/// One pod of each; who comes first changes.
async fn one_round(entries: &mut [Entry], round: usize) -> Result<()> {
    let count = entries.len();
    for turn in 0..count {
        if let Some(entry) = entries.get_mut((round + turn) % count) {
            let name = format!("round-{round}");
            let (peer, times, memory) = (&entry.peer, &mut entry.times, &mut entry.memory);
            peer.measure(&name, times, memory).await.context(peer.name)?;
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
    if containerd::found(boot::QEMU).is_none() {
        return Ok(Boots::default());
    }
    let qemu = Qemu::prepare(&payload, WORDS)?;
    let (mut ours, mut theirs) = (Figures::default(), Figures::default());
    for round in 0..=rounds {
        if round == 1 {
            (ours, theirs) = Default::default();
        }
        boot::clearpod_vmm(&vmm, &payload, &mut ours)?;
        qemu.boot(&mut theirs)?;
    }
    Ok(Boots {
        ours,
        qemu: theirs,
        qemu_command: qemu.command(),
    })
}

/// The command line of a guest with one processor under our VMM (`vmm/src/x86_64/command_line.rs`).
const WORDS: &str =
    "console=hvc0 pci=conf1,noearly noapic noreplace-smp reboot=k panic=-1 tsc=reliable quiet";

fn report(
    node: &Node,
    containerd: Option<&Containerd>,
    conditions: &Value,
    left_out: &Value,
    entries: &[Entry],
    boots: &Boots,
) -> Result<()> {
    let Boots {
        ours,
        qemu,
        qemu_command,
    } = boots;
    let ratios = ratios(entries, ours, qemu);
    let mut out = stderr().lock();
    let mut peers = Map::new();
    for Entry {
        peer,
        times,
        memory,
        rates,
        network,
    } in entries
    {
        times.write(&format!("{}, ms", peer.name), &mut out)?;
        memory.write(&format!("{}, KiB", peer.name), &mut out)?;
        network.write(&format!("{}, MiB/s and ms", peer.name), &mut out)?;
        peers.insert(
            peer.name.to_owned(),
            json!({"ms": times.json(), "kib": memory.json(), "pods_per_second": rates.json(), "network": network.json()}),
        );
    }
    ours.write("boot, clearpod-vmm, ms", &mut out)?;
    qemu.write("boot, QEMU microvm, ms", &mut out)?;
    writeln!(out, "{:#}", Value::Object(ratios.clone()))?;
    if let Some(directory) = env::var_os("CLEARPOD_BENCH_PICTURES") {
        pictures(Path::new(&directory), entries, ours, qemu)?;
    }
    let first = entries.first().filter(|entry| entry.peer.name == OURS);
    let ours_kib = median(&first.context("clearpod comes first")?.memory, MEMORY)?;
    let report = json!({
        "conditions": conditions,
        "containerd": containerd.map(|containerd| &containerd.version),
        "bundle": node.bundle(),
        "ratios": ratios,
        "left_out": left_out,
        "idle_pod_pss_mib": ours_kib / 1024.0,
        "peers": peers,
        "boot": {"yardstick": "from just before the VMM's process is started to the agent's Ready on vsock port 1025",
            "memory_mib": BOOT_MEMORY_MIB, "clearpod_vmm": ours.json(), "qemu_microvm": qemu.json(), "qemu_command": qemu_command},
    });
    writeln!(stdout(), "{report:#}")?;
    Ok(())
}

/// `<figure>_vs_<peer>`: our median by the peer's.
fn ratios(entries: &[Entry], ours: &Figures, qemu: &Figures) -> Map<String, Value> {
    let mut ratios = Map::new();
    let mut insert = |figure: &str, peer: &str, ratio: Option<f64>| {
        if let Some(ratio) = ratio {
            ratios.insert(
                format!("{figure}_vs_{peer}"),
                json!((ratio * 1000.0).round() / 1000.0),
            );
        }
    };
    if let Some((first, peers)) = entries.split_first() {
        for entry in peers {
            for (figure, series, _, of) in FIGURES {
                insert(figure, entry.peer.name, ratio(of(first), of(entry), series));
            }
        }
    }
    insert("boot", QEMU, ratio(ours, qemu, boot::TOTAL));
    ratios
}

fn pictures(directory: &Path, entries: &[Entry], ours: &Figures, qemu: &Figures) -> Result<()> {
    fs_err::create_dir_all(directory)?;
    for (figure, series, unit, of) in FIGURES {
        let peers: Vec<_> = entries.iter().map(|entry| (entry.peer.name, of(entry))).collect();
        picture::draw(&directory.join(format!("{figure}.svg")), series, unit, &peers)?;
    }
    let boots = [(OURS, ours), (QEMU, qemu)];
    picture::draw(&directory.join("boot.svg"), boot::TOTAL, "ms", &boots)
}

fn names(entries: &[Entry]) -> Vec<&'static str> {
    entries.iter().map(|entry| entry.peer.name).collect()
}
