//! What cannot be written down, and what cannot be gone on from: each with its reason.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use proto::machine::{Device, ExitReason, FileSource, MachineConfig, Request, Response, Snapshot};

use super::{COUNT, files, stop, take};
use crate::guest::{Artifacts, Guest, on_kvm};

fn refused(guest: &mut Guest, snapshot: &Snapshot) -> String {
    let Snapshot {
        memory,
        state,
        origin,
        ..
    } = snapshot.clone();
    let answer = guest.ask(&Request::Snapshot {
        memory,
        state,
        origin,
    });
    let Response::Error { message } = answer else {
        panic!("{answer:?}");
    };
    message
}

#[test]
fn a_machine_that_runs_or_holds_the_hosts_things_is_not_written_down() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let place = tempfile::tempdir().unwrap();
        let disk = place.path().join("disk");
        fs::write(&disk, [0; 4096]).unwrap();
        let mut guest = Guest::boot_with(
            artifacts,
            "echo READY; while true; do sleep 1000; done",
            |config| {
                config.devices.push(Device::Block {
                    id: "scratch".to_owned(),
                    file: FileSource::Path(disk),
                    read_only: true,
                });
            },
        );
        guest.wait_for("READY");
        let snapshot = files(&directory);
        assert!(refused(&mut guest, &snapshot).contains("pause it first"));
        assert_eq!(guest.ask(&Request::Pause {}), Response::Done {});
        assert!(refused(&mut guest, &snapshot).contains("device scratch"));
        let unnamed = Snapshot {
            origin: String::new(),
            ..snapshot.clone()
        };
        assert!(refused(&mut guest, &unnamed).starts_with("origin: "));
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            0,
            "nothing is left"
        );
        assert_eq!(guest.ask(&Request::Resume {}), Response::Done {});
        stop(guest);
    });
}

#[test]
fn nothing_is_overwritten() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let mut guest = Guest::boot(artifacts, "echo READY; while true; do sleep 1000; done");
        guest.wait_for("READY");
        assert_eq!(guest.ask(&Request::Pause {}), Response::Done {});
        let snapshot = files(&directory);
        fs::write(directory.path().join("state"), "precious").unwrap();
        assert!(refused(&mut guest, &snapshot).starts_with("state: cannot make"));
        assert!(!directory.path().join("memory").exists());
        let full = fs::File::open(directory.path().join("state")).unwrap();
        let answer = guest.ask_with(
            &Request::Snapshot {
                memory: FileSource::Fd(0),
                state: FileSource::Fd(1),
                origin: "o".to_owned(),
            },
            &[full.as_fd()],
        );
        assert!(
            matches!(&answer, Response::Error { message } if message.contains("empty file")),
            "{answer:?}"
        );
        assert_eq!(fs::read(directory.path().join("state")).unwrap(), b"precious");
        stop(guest);
    });
}

/// The snapshot in `directory` with one of its files damaged or exchanged, and a word of the reason for its refusal.
fn damaged(directory: &Path, snapshot: &Snapshot) -> Vec<(&'static str, Snapshot)> {
    let state = fs::read(directory.join("state")).unwrap();
    let with_state = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        fs::write(&path, bytes).unwrap();
        Snapshot {
            state: FileSource::Path(path),
            ..snapshot.clone()
        }
    };
    let with_memory = |name: &str, lengths: &[u64]| {
        let path = directory.join(name);
        fs::copy(directory.join("memory"), &path).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        lengths.iter().for_each(|length| file.set_len(*length).unwrap());
        Snapshot {
            memory: FileSource::Path(path),
            ..snapshot.clone()
        }
    };
    let mut flipped = state.clone();
    flipped[state.len() / 2] ^= 1;
    let another = Snapshot {
        origin: "another kernel".to_owned(),
        ..snapshot.clone()
    };
    vec![
        ("origin", another),
        ("checksum", with_state("flipped", &flipped)),
        ("bytes instead of", with_state("short", &state[..state.len() - 1])),
        ("no snapshot", with_state("foreign", b"#!/bin/sh")),
        ("bytes instead of", with_memory("cut", &[64 << 20])),
        (
            "no guest memory",
            with_memory("other", &[128 << 20, (128 << 20) + 4096]),
        ),
    ]
}

#[test]
fn a_snapshot_of_something_else_is_refused_with_the_reason() {
    on_kvm(go_on_from_something_else);
}

fn go_on_from_something_else(artifacts: &Artifacts) {
    let directory = tempfile::tempdir().unwrap();
    let mut guest = Guest::boot(artifacts, &format!("{COUNT} count"));
    guest.wait_for("AT 3\r");
    let snapshot = take(&mut guest, &directory);
    stop(guest);
    type Change = fn(&mut MachineConfig);
    let machines: [(&str, Change); 3] = [
        ("memory_mib: 256 was 128", |config| config.memory_mib = 256),
        ("vcpus.max: 2 was 1", |config| config.vcpus.max = 2),
        ("memory_hotplug_mib: 128 was 0", |config| {
            config.memory_hotplug_mib = 128;
        }),
    ];
    let machines = machines.map(|(reason, change)| (reason, snapshot.clone(), change));
    let unchanged: Change = |_| {};
    let files = damaged(directory.path(), &snapshot).into_iter();
    let files = files.map(|(reason, damaged)| (reason, damaged, unchanged));
    for (reason, snapshot, change) in files.chain(machines) {
        let (ended, _, log) = Guest::restore(snapshot, change).end();
        assert_eq!(ended, ExitReason::SnapshotRefused, "{reason}: {log}");
        assert!(log.contains(reason), "{reason:?}: {log}");
    }
    let mut last = Guest::restore(snapshot, |_| {});
    last.wait_for("AT 6\r");
    stop(last);
}
