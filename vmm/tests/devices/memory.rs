//! Memory that comes and goes: virtio-mem and the balloon.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use proto::machine::{Device, ExitReason, FileSource, Request, Response, Stats};
use tempfile::TempDir;

use super::MIB;
use crate::guest::{Guest, PATIENCE, on_kvm};

/// Until the host adds a disk, which tells the script to go on.
const UNTIL_TOLD: &str = "until [ -e /dev/vda ]; do echo 1 >/sys/bus/pci/rescan; sleep 0.2; done;";

fn tell(guest: &mut Guest, directory: &TempDir) {
    let path = directory.path().join("signal");
    File::create(&path).unwrap().set_len(MIB as u64).unwrap();
    let device = Device::Block {
        id: "signal".to_owned(),
        file: FileSource::Path(path),
        read_only: true,
    };
    let added = guest.ask(&Request::AddDevice { device });
    assert!(matches!(added, Response::Added { .. }), "{added:?}");
}

fn stats(guest: &mut Guest) -> Stats {
    match guest.ask(&Request::Stats {}) {
        Response::Stats(stats) => stats,
        other => panic!("{other:?}"),
    }
}

/// Asks until `done` says so.
fn wait_until(guest: &mut Guest, what: &str, mut done: impl FnMut(&mut Guest) -> bool) {
    let start = Instant::now();
    while !done(guest) {
        assert!(start.elapsed() < PATIENCE, "{what}: {:?}", stats(guest));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What the host has given to the VMM, MiB.
fn resident_mib(guest: &Guest) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", guest.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    kib / 1024
}

fn resize(guest: &mut Guest, plugged_mib: u64) {
    let answer = guest.ask(&Request::ResizeMemory { plugged_mib });
    assert_eq!(answer, Response::Done {});
}

fn plugged(guest: &mut Guest) -> u64 {
    stats(guest).memory.unwrap().plugged_mib
}

/// Grows, uses the new memory, shrinks; the host has it back.
#[test]
fn memory_grows_and_shrinks_with_the_hosts_wish() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let script = format!(
            "total() {{ awk '/MemTotal/ {{print $2}}' /proc/meminfo; }}; echo READY; \
         until [ $(total) -gt 300000 ]; do sleep 0.2; done; mount -t tmpfs -o size=300m none /mnt; \
         dd if=/dev/zero of=/mnt/f bs=1M count=160 2>/dev/null && echo FILLED; {UNTIL_TOLD} \
         umount /mnt; echo FREED; until [ $(total) -lt 200000 ]; do sleep 0.2; done; echo SHRUNK; \
         while true; do sleep 1000; done"
        );
        let mut guest = Guest::boot_with(artifacts, &script, |config| {
            config.memory_hotplug_mib = 512;
            config.devices.push(Device::Memory {
                id: "memory".to_owned(),
            });
        });
        guest.wait_for("READY");
        let before = resident_mib(&guest);
        resize(&mut guest, 256);
        wait_until(&mut guest, "256 MiB are plugged", |guest| plugged(guest) == 256);
        guest.wait_for("FILLED");
        let filled = resident_mib(&guest);
        assert!(
            filled >= before + 120,
            "{before} MiB, then {filled} with 160 in use"
        );
        let refused = guest.ask(&Request::RemoveDevice {
            id: "memory".to_owned(),
        });
        assert!(
            matches!(&refused, Response::Error { message } if message.contains("plugged")),
            "{refused:?}"
        );

        tell(&mut guest, &directory);
        guest.wait_for("FREED");
        resize(&mut guest, 0);
        wait_until(&mut guest, "nothing is plugged", |guest| plugged(guest) == 0);
        let after = resident_mib(&guest);
        assert!(
            after + 100 <= filled,
            "{filled} MiB, then {after} with nothing plugged"
        );
        guest.wait_for("SHRUNK");
        stop(guest);
    });
}

fn stop(mut guest: Guest) {
    assert_eq!(guest.ask(&Request::Stop {}), Response::Done {});
    let (reason, console, log) = guest.end();
    assert_eq!(reason, ExitReason::Ended, "{log}{console}");
    assert_eq!(log, "");
}

#[test]
fn freed_memory_is_reported_and_a_balloon_takes_some_by_wish() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let script = format!(
            "mount -t tmpfs -o size=200m none /mnt; dd if=/dev/zero of=/mnt/f bs=1M count=120 2>/dev/null && echo FILLED; \
         {UNTIL_TOLD} umount /mnt; echo FREED; while true; do sleep 1000; done"
        );
        let mut guest = Guest::boot_with(artifacts, &script, |config| {
            config.memory_mib = 256;
            config.devices.push(Device::Balloon {
                id: "balloon".to_owned(),
            });
        });
        guest.wait_for("FILLED");
        let filled = resident_mib(&guest);
        tell(&mut guest, &directory);
        guest.wait_for("FREED");
        wait_until(&mut guest, "freed memory went back", |guest| {
            resident_mib(guest) + 80 <= filled
        });
        assert!(stats(&mut guest).balloon.unwrap().reported_bytes >= 80 << 20);
        for wish in [64, 0] {
            let answer = guest.ask(&Request::ResizeBalloon { held_mib: wish });
            assert_eq!(answer, Response::Done {});
            wait_until(&mut guest, "the balloon has the size", |guest| {
                stats(guest).balloon.unwrap().held_mib == wish
            });
        }
        stop(guest);
    });
}

/// The guest's kernel takes back what the balloon has before it kills anybody for memory.
#[test]
fn a_balloon_gives_way_when_the_guest_is_at_its_limit() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let script = format!(
            "echo READY; {UNTIL_TOLD} dd if=/dev/zero of=/dev/null bs=120M count=1 2>/dev/null && echo HAD IT; \
         dmesg | grep -c 'Out of memory' || true; while true; do sleep 1000; done"
        );
        let mut guest = Guest::boot_with(artifacts, &script, |config| {
            config.memory_mib = 256;
            config.devices.push(Device::Balloon {
                id: "balloon".to_owned(),
            });
        });
        guest.wait_for("READY");
        let held_mib = 160;
        assert_eq!(guest.ask(&Request::ResizeBalloon { held_mib }), Response::Done {});
        wait_until(&mut guest, "the balloon has the size", |guest| {
            stats(guest).balloon.unwrap().held_mib == held_mib
        });
        tell(&mut guest, &directory);
        guest.wait_for("HAD IT\r\n0");
        let left = stats(&mut guest).balloon.unwrap().held_mib;
        assert!(
            left + 40 < held_mib,
            "{left} MiB are in the balloon, which gave none"
        );
        stop(guest);
    });
}
