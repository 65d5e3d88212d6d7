//! Guests that are written down and go on, once or several times. Needs what `boot.rs` needs, and root for a tap.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells how long things took"
)]

mod agent;
mod pages;
mod refusals;
mod rpc;
mod vsock;

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use proto::machine::{
    Device, ExitReason, FileSource, MachineConfig, Request, Response, Snapshot, Vcpus, Vsock,
};
use tempfile::TempDir;

use crate::devices::Network;
use crate::guest::{Artifacts, Guest, on_kvm};

const ORIGIN: &str = "the kernel and the script of this test";

/// Counts, tenth of a second by tenth, and tells; the others wait for it to be told to go on by a disk.
const COUNT: &str = "count() { i=0; while true; do i=$((i+1)); echo AT $i; sleep 0.1; done; };";
const UNTIL_TOLD: &str = "until [ -e /dev/vda ]; do echo 1 >/sys/bus/pci/rescan; sleep 0.1; done;";

fn files(directory: &TempDir) -> Snapshot {
    Snapshot {
        memory: FileSource::Path(directory.path().join("memory")),
        state: FileSource::Path(directory.path().join("state")),
        origin: ORIGIN.to_owned(),
        written_soon: Vec::new(),
    }
}

/// Halts the guest and writes it down.
fn take(guest: &mut Guest, directory: &TempDir) -> Snapshot {
    let snapshot = files(directory);
    assert_eq!(guest.ask(&Request::Pause {}), Response::Done {});
    let Snapshot {
        memory,
        state,
        origin,
        ..
    } = snapshot.clone();
    let start = Instant::now();
    let answer = guest.ask(&Request::Snapshot {
        memory,
        state,
        origin,
    });
    assert_eq!(answer, Response::Done {});
    println!("written in {:?}", start.elapsed());
    snapshot
}

fn stop(mut guest: Guest) -> String {
    assert_eq!(guest.ask(&Request::Stop {}), Response::Done {});
    let (reason, console, log) = guest.end();
    assert_eq!(reason, ExitReason::Ended, "{log}{console}");
    assert_eq!(log, "");
    console
}

/// Adds a disk that begins with `text`.
fn add_disk(guest: &mut Guest, directory: &Path, text: &str) {
    let path = directory.join(format!("disk-{text}"));
    fs::write(&path, format!("{text:<4096}")).unwrap();
    let device = Device::Block {
        id: "word".to_owned(),
        file: FileSource::Path(path),
        read_only: true,
    };
    let added = guest.ask(&Request::AddDevice { device });
    assert!(matches!(added, Response::Added { .. }), "{added:?}");
}

/// The numbers that the guest counted, of whichever Machine.
fn counted(console: &str) -> Vec<u32> {
    let numbers = console.lines().filter_map(|line| line.strip_prefix("AT "));
    numbers.filter_map(|number| number.trim().parse().ok()).collect()
}

/// Two processors and a third to come, memory that grows, a balloon, vsock: all that a snapshot can have.
fn full(config: &mut MachineConfig, directory: &TempDir) {
    config.vcpus = Vcpus { boot: 2, max: 3 };
    config.memory_hotplug_mib = 128;
    config.vsock = Some(Vsock {
        guest_cid: 3,
        socket: directory.path().join("v"),
    });
    config.devices.push(Device::Memory {
        id: "memory".to_owned(),
    });
    config.devices.push(Device::Balloon {
        id: "balloon".to_owned(),
    });
}

#[test]
fn a_guest_goes_on_twice_side_by_side_and_neither_sees_the_other() {
    on_kvm(go_on_twice);
}

fn go_on_twice(artifacts: &Artifacts) {
    let (Some(first_net), Some(second_net)) = (Network::new(2), Network::new(3)) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs none /mnt; echo template >/mnt/file; {COUNT} count & echo READY; {UNTIL_TOLD} \
         word=$(head -c 5 /dev/vda); echo WORD $word WAS $(cat /mnt/file); echo $word >/mnt/file; \
         until [ -e /sys/class/net/eth0 ]; do echo 1 >/sys/bus/pci/rescan; sleep 0.1; done; \
         number=$(cat /sys/class/net/eth0/address | tail -c 2); \
         ip addr add 10.199.$number.2/24 dev eth0; ip link set eth0 up; \
         ping -c 2 10.199.$number.1 | grep received; \
         echo 1 >/sys/devices/system/cpu/cpu2/online; echo ONLINE $(cat /sys/devices/system/cpu/online); \
         for cpu in 0 1 2; do taskset $((1 << cpu)) sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done' && echo CPU $cpu WORKS; done; \
         sleep 1; echo KEPT $(cat /mnt/file); while true; do sleep 1000; done"
    );
    let start = Instant::now();
    let mut template = Guest::boot_with(artifacts, &script, |config| full(config, &directory));
    template.wait_for("READY");
    println!("booted after {:?}", start.elapsed());
    template.wait_for("AT 10\r");
    let snapshot = take(&mut template, &directory);
    let last = *counted(&template.wait_for("AT 10\r")).last().unwrap();
    stop(template);

    let mut forks = Vec::new();
    for (word, network) in [("alpha", &first_net), ("beta.", &second_net)] {
        let start = Instant::now();
        let place = tempfile::tempdir().unwrap();
        let mut guest = Guest::restore(snapshot.clone(), |config| full(config, &place));
        guest.wait_for(&format!("AT {}\r", last + 1));
        println!("{word} goes on after {:?}", start.elapsed());
        forks.push((guest, word, network, place));
    }
    for (guest, word, network, place) in &mut forks {
        add_disk(guest, place.path(), word);
        let Device::Net { mac, .. } = network.card() else {
            panic!("no card");
        };
        let mac = format!("{}{}", &mac[..mac.len() - 1], network.host.as_bytes()[7] as char);
        let device = Device::Net {
            id: "eth0".to_owned(),
            tap: FileSource::Fd(0),
            mac,
        };
        let added = guest.ask_with(&Request::AddDevice { device }, &[network.tap.as_fd()]);
        assert!(matches!(added, Response::Added { .. }), "{added:?}");
    }
    for (mut guest, word, ..) in forks {
        guest.wait_for(&format!("KEPT {word}"));
        let console = stop(guest);
        assert!(
            console.contains(&format!("WORD {word} WAS template")),
            "{console}"
        );
        assert!(console.contains("2 packets received"), "{console}");
        assert!(console.contains("ONLINE 0-2"), "{console}");
        (0..3).for_each(|cpu| assert!(console.contains(&format!("CPU {cpu} WORKS")), "{console}"));
        let numbers = counted(&console);
        let from_one: Vec<u32> = (1..).take(numbers.len()).collect();
        assert_eq!(numbers, from_one, "{console}");
        assert!(numbers.len() > last as usize + 10, "{console}");
    }
}

#[test]
fn a_guest_that_is_paused_does_nothing_until_it_goes_on() {
    on_kvm(|artifacts| {
        let mut guest = Guest::boot_with(artifacts, &format!("{COUNT} count"), |config| {
            config.vcpus = Vcpus { boot: 2, max: 2 };
        });
        for number in [5, 10, 15] {
            guest.wait_for(&format!("AT {number}\r"));
            for _ in 0..2 {
                assert_eq!(guest.ask(&Request::Pause {}), Response::Done {});
            }
            let halted = counted(&guest.wait_for("AT "));
            std::thread::sleep(Duration::from_millis(500));
            assert_eq!(counted(&guest.wait_for("AT ")), halted);
            for _ in 0..2 {
                assert_eq!(guest.ask(&Request::Resume {}), Response::Done {});
            }
        }
        guest.wait_for("AT 20\r");
        assert_eq!(guest.ask(&Request::Pause {}), Response::Done {});
        stop(guest);
    });
}

#[test]
fn a_guest_goes_on_after_it_was_written_and_what_goes_on_can_be_written_again() {
    on_kvm(write_what_goes_on);
}

fn write_what_goes_on(artifacts: &Artifacts) {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let script = format!("{COUNT} count");
    let mut guest = Guest::boot(artifacts, &script);
    guest.wait_for("AT 5\r");
    let snapshot = take(&mut guest, &directories[0]);
    assert_eq!(guest.ask(&Request::Resume {}), Response::Done {});
    guest.wait_for("AT 15\r");
    stop(guest);

    let mut second = Guest::restore(snapshot, |_| {});
    second.wait_for("AT 10\r");
    let snapshot = take(&mut second, &directories[1]);
    stop(second);
    let mut third = Guest::restore(snapshot, |config| config.console.ring_bytes = 4096);
    third.wait_for("AT 20\r");
    let console = stop(third);
    let numbers = counted(&console);
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{console}");
}

#[test]
fn memory_that_is_zero_takes_no_room_and_memory_that_is_given_back_goes() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let mut guest = Guest::boot_with(artifacts, &format!("echo READY; {COUNT} count"), |config| {
            config.memory_mib = 512;
        });
        guest.wait_for("READY");
        take(&mut guest, &directory);
        stop(guest);
        use std::os::unix::fs::MetadataExt;
        let memory = fs::metadata(directory.path().join("memory")).unwrap();
        assert_eq!(memory.len(), (512 << 20) + 4096);
        let held = memory.blocks() * 512;
        println!(
            "{} KiB of memory, {} KiB of state",
            held >> 10,
            fs::metadata(directory.path().join("state")).unwrap().len() >> 10
        );
        assert!(held < 256 << 20, "{held} bytes for a guest that has just booted");
    });
}
