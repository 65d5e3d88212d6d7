//! What is told of it all: ratios, tables, one JSON object, pictures.

use std::{
    env,
    io::{Write, stderr, stdout},
    path::Path,
};

use anyhow::{Context, Result};
use e2e::{Figures, Node};
use serde_json::{Map, Value, json};

use crate::{
    AT_ONCE, BOOT_MEMORY_MIB, Boots, Entry, Measured, OURS, alone, image, network, picture,
    pod::{EXEC, FIRST_LINE, MEMORY, MEMORY_OF_MANY, REMOVE, SANDBOX, median, ratio},
};

const QEMU: &str = "qemu_microvm";
/// Reads of an image are compared with those of a plain file.
const HOST: &str = "host";
/// The phase from the start of the VMM's process to the agent's first answer.
const MACHINE: &str = "machine";

/// A figure of a runtime: its name in ratios and pictures, its series, the unit, and where an entry has it.
type Figure = (&'static str, &'static str, &'static str, fn(&Entry) -> &Figures);

const FIGURES: [Figure; 14] = [
    ("sandbox", SANDBOX, "ms", |entry| &entry.times),
    ("first_line", FIRST_LINE, "ms", |entry| &entry.times),
    ("exec", EXEC, "ms", |entry| &entry.times),
    ("remove", REMOVE, "ms", |entry| &entry.times),
    ("memory", MEMORY, "KiB", |entry| &entry.memory),
    ("memory_of_many", MEMORY_OF_MANY, "KiB", |entry| &entry.memory),
    ("tcp_flow", network::FLOW, "MiB/s", |entry| &entry.network),
    ("round_trip", network::ROUND_TRIP, "ms", |entry| &entry.network),
    ("pods_per_second", AT_ONCE, "1/s", |entry| &entry.rates),
    ("image_first_read", image::FIRST, "MiB/s", |entry| &entry.image),
    ("image_read", image::AGAIN, "MiB/s", |entry| &entry.image),
    ("image_random_read", image::RANDOM, "MiB/s", |entry| &entry.image),
    ("own_read", image::OWN, "MiB/s", |entry| &entry.image),
    ("own_random_read", image::OWN_RANDOM, "MiB/s", |entry| {
        &entry.image
    }),
];

pub(crate) fn write(node: &Node, conditions: &Value, measured: &Measured) -> Result<()> {
    let Measured {
        containerd,
        gaps,
        entries,
        reads,
        boots,
    } = measured;
    let ratios = ratios(measured);
    let mut out = stderr().lock();
    let mut peers = Map::new();
    for entry in entries {
        peers.insert(entry.peer.name.to_owned(), peer(entry, &mut out)?);
    }
    reads.on_host.write("a plain file of the host, MiB/s", &mut out)?;
    boots.ours.write("boot, clearpod-vmm, ms", &mut out)?;
    boots.qemu.write("boot, QEMU microvm, ms", &mut out)?;
    writeln!(out, "{:#}", Value::Object(ratios.clone()))?;
    if let Some(directory) = env::var_os("CLEARPOD_BENCH_PICTURES") {
        pictures(Path::new(&directory), entries, boots)?;
    }
    let first = entries.first().filter(|entry| entry.peer.name == OURS);
    let ours = &first.context("clearpod comes first")?.memory;
    let report = json!({
        "conditions": conditions,
        "containerd": containerd,
        "bundle": node.bundle(),
        "ratios": ratios,
        "left_out": gaps.left_out,
        "idle_pod_pss_mib": median(ours, MEMORY)? / 1024.0,
        "idle_pod_of_many_pss_mib": ours.median(MEMORY_OF_MANY).map(|kib| kib / 1024.0),
        "peers": peers,
        "plain_file_mib_per_second": reads.on_host.json(),
        "image_sharing": reads.sharing,
        "boot": {"yardstick": "from just before the VMM's process is started to the agent's Ready on vsock port 1025",
            "memory_mib": BOOT_MEMORY_MIB, "clearpod_vmm": boots.ours.json(), "qemu_microvm": boots.qemu.json(),
            "qemu_command": boots.qemu_command},
    });
    writeln!(stdout(), "{report:#}")?;
    Ok(())
}

/// Its tables go to `out`.
fn peer(entry: &Entry, out: &mut dyn Write) -> Result<Value> {
    let name = entry.peer.name;
    entry.times.write(&format!("{name}, ms"), out)?;
    entry
        .phases
        .write(&format!("{name}, by its own account, ms"), out)?;
    entry.memory.write(&format!("{name}, KiB"), out)?;
    entry.network.write(&format!("{name}, MiB/s and ms"), out)?;
    entry.image.write(&format!("{name}, MiB/s"), out)?;
    Ok(json!({
        "ms": entry.times.json(),
        "phases_ms": entry.phases.json(),
        "kib": entry.memory.json(),
        "pods_per_second": entry.rates.json(),
        "network": entry.network.json(),
        "image_mib_per_second": entry.image.json(),
    }))
}

/// `<figure>_vs_<peer>`: our median by the peer's.
fn ratios(measured: &Measured) -> Map<String, Value> {
    let Measured {
        entries,
        reads,
        boots,
        ..
    } = measured;
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
            let started = ratio(&first.phases, &entry.phases, MACHINE);
            insert("guest_answers", entry.peer.name, started);
        }
        for (figure, series, _, _) in FIGURES {
            insert(figure, HOST, ratio(&first.image, &reads.on_host, series));
        }
    }
    insert("boot", QEMU, ratio(&boots.ours, &boots.qemu, alone::TOTAL));
    ratios
}

fn pictures(directory: &Path, entries: &[Entry], boots: &Boots) -> Result<()> {
    fs_err::create_dir_all(directory)?;
    for (figure, series, unit, of) in FIGURES {
        let peers: Vec<_> = entries.iter().map(|entry| (entry.peer.name, of(entry))).collect();
        picture::draw(&directory.join(format!("{figure}.svg")), series, unit, &peers)?;
    }
    let boots = [(OURS, &boots.ours), (QEMU, &boots.qemu)];
    picture::draw(&directory.join("boot.svg"), alone::TOTAL, "ms", &boots)
}
