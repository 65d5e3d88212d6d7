//! Boots real guests. Needs /dev/kvm that runs a stock kernel and a kernel (`guest::Artifacts`); skips loudly otherwise.

mod devices;
mod guest;
mod snapshot;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::machine::{Device, ExitReason, FileSource, Request, Response, Vcpus};

use guest::{Guest, on_kvm};

const WAIT: &str = "echo READY; while true; do sleep 1000; done";

#[test]
fn a_guest_boots_and_its_reset_ends_the_machine() {
    on_kvm(|artifacts| {
        let guest = Guest::boot(artifacts, "echo HELLO FROM $(uname -r); reboot -f");
        let (reason, console, log) = guest.end();
        assert_eq!(reason, ExitReason::Ended, "{log}{console}");
        assert!(console.contains("HELLO FROM 6."), "{console}");
        assert_eq!(log, "");
    });
}

#[test]
fn a_panic_is_not_a_reset() {
    on_kvm(|artifacts| {
        let guest = Guest::boot(artifacts, "echo DYING; exit 1");
        let (reason, console, log) = guest.end();
        assert_eq!(reason, ExitReason::GuestPanic, "{log}{console}");
        assert!(
            console.contains("Kernel panic - not syncing: Attempted to kill init"),
            "{console}"
        );
    });
}

#[test]
fn stop_and_sigterm_end_the_machine_at_once() {
    on_kvm(|artifacts| {
        let mut guest = Guest::boot(artifacts, WAIT);
        guest.wait_for("READY");
        assert_eq!(guest.ask(&Request::Stop {}), Response::Done {});
        assert_eq!(guest.end().0, ExitReason::Ended);

        let mut guest = Guest::boot(artifacts, WAIT);
        guest.wait_for("READY");
        kill(Pid::from_raw(guest.pid() as i32), Signal::SIGTERM).unwrap();
        let (reason, console, _) = guest.end();
        assert_eq!(reason, ExitReason::Ended);
        assert!(console.contains("READY"), "the console is kept: {console}");
    });
}

#[test]
fn the_other_processors_come_online_later() {
    on_kvm(|artifacts| {
        let script = "nproc; echo 1 > /sys/devices/system/cpu/cpu2/online; \
                  echo ONLINE $(cat /sys/devices/system/cpu/online) PRESENT $(cat /sys/devices/system/cpu/present); reboot -f";
        let guest = Guest::boot_with(artifacts, script, |config| {
            config.vcpus = Vcpus { boot: 2, max: 4 }
        });
        let (reason, console, log) = guest.end();
        assert_eq!(reason, ExitReason::Ended, "{log}");
        assert!(console.contains("ONLINE 0-2 PRESENT 0-3"), "{console}");
    });
}

#[test]
fn memory_above_four_gib_is_there() {
    on_kvm(|artifacts| {
        let script = "echo TOTAL $(grep MemTotal /proc/meminfo); grep RAM /proc/iomem; reboot -f";
        let guest = Guest::boot_with(artifacts, script, |config| config.memory_mib = 5 << 10);
        let (reason, console, log) = guest.end();
        assert_eq!(reason, ExitReason::Ended, "{log}");
        assert!(console.contains("100000000-17fffffff : System RAM"), "{console}");
    });
}

#[test]
fn the_daemon_learns_where_the_machine_is() {
    on_kvm(|artifacts| {
        let mut guest = Guest::boot(artifacts, WAIT);
        guest.wait_for("READY");
        let Response::Description(description) = guest.ask(&Request::Describe {}) else {
            panic!("no description")
        };
        assert_eq!(
            (description.id.as_str(), description.pid),
            ("boot-test", guest.pid())
        );
        assert!(description.timeline.kernel_entered_ns > Some(description.timeline.process_started_ns));
        let Response::Stats(stats) = guest.ask(&Request::Stats {}) else {
            panic!("no counters")
        };
        assert!(
            stats.exits["port_read"] > 10 && stats.exits["port_write"] > 10,
            "{stats:?}"
        );
        println!("exits until user space: {:?}", stats.exits);
    });
}

#[test]
fn a_device_comes_and_goes_while_the_guest_runs() {
    on_kvm(|artifacts| {
        // The guest may look for a device only when the host says so: a rescan between the driver's removal and the VMM's
        // finds the old function again. The host speaks through a disk, which is read anew each time it is opened.
        let script = "echo READY; turn=0; for node in vdb pmem0 vdb; do \
        until [ \"$(head -c 1 /dev/vda)\" = $turn ]; do sleep 0.1; done; \
        until [ -e /dev/$node ]; do echo 1 > /sys/bus/pci/rescan; sleep 0.1; done; \
        echo $turn HOLDS $(head -c 7 /dev/$node); \
        function=$(readlink -f /sys/block/$node/device); \
        until [ -e $function/vendor ] && [ -e $function/config ]; do function=${function%/*}; done; \
        echo 1 > $function/remove; echo $turn REMOVED; turn=$((turn + 1)); done; \
        while true; do sleep 1000; done";
        let turn_disk = tempfile::NamedTempFile::new().unwrap();
        turn_disk.as_file().set_len(4096).unwrap();
        let mut guest = Guest::boot_with(artifacts, script, |config| {
            config.devices.push(Device::Block {
                id: "turn".to_owned(),
                file: FileSource::Path(turn_disk.path().to_owned()),
                read_only: true,
            });
        });
        guest.wait_for("READY");
        let mut addresses = Vec::new();
        let turns = [
            ("vdb", "content-of-the-first"),
            ("pmem0", "mapped!"),
            ("vdb", "CONTENT-again"),
        ];
        for (turn, (node, content)) in turns.into_iter().enumerate() {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(content.as_bytes()).unwrap();
            file.set_len(1 << 20).unwrap();
            let (id, fd) = (format!("{node}-{}", "0".repeat(64)), FileSource::Fd(0));
            let device = match node {
                "vdb" => Device::Block {
                    id: id.clone(),
                    file: fd,
                    read_only: true,
                },
                _ => Device::Pmem {
                    id: id.clone(),
                    file: fd,
                },
            };
            let add = Request::AddDevice { device };
            let Response::Added { pci_address } = guest.ask_with(&add, &[file.as_fd()]) else {
                panic!("the device is not added");
            };
            assert!(
                matches!(guest.ask_with(&add, &[file.as_fd()]), Response::Error { .. }),
                "the id is in use"
            );
            addresses.push(pci_address);
            fs::write(turn_disk.path(), format!("{turn:<4096}")).unwrap();
            guest.wait_for(&format!("{turn} HOLDS {}", &content[..7]));
            guest.wait_for(&format!("{turn} REMOVED"));
            assert_eq!(guest.ask(&Request::RemoveDevice { id }), Response::Done {});
        }
        assert!(
            addresses.iter().all(|address| *address == addresses[0]),
            "the place is free again: {addresses:?}"
        );
        let Response::Description(description) = guest.ask(&Request::Describe {}) else {
            panic!("no description");
        };
        assert_eq!(description.devices.len(), 1, "{description:?}");
    });
}

#[test]
fn a_client_that_misbehaves_harms_nobody() {
    on_kvm(|artifacts| {
        let mut guest = Guest::boot(artifacts, WAIT);
        let talk = |guest: &Guest, bytes: &[u8]| {
            let mut stream = guest.connect();
            // The VMM closes early when a line is too long, so writing may fail.
            drop(stream.write_all(bytes));
            drop(stream.shutdown(Shutdown::Write));
            let mut answer = String::new();
            drop(stream.read_to_string(&mut answer));
            answer
        };
        assert!(talk(&guest, b"nonsense\n").contains("not a request"));
        assert!(talk(&guest, b"{\"op\":\"fly\"}\n").contains("fly"));
        assert!(
            talk(&guest, b"{\"op\":\"stats\"}\n{\"op\":\"describe\"}\n")
                .matches("result")
                .count()
                == 2
        );
        talk(&guest, &vec![b'x'; 1 << 20]);
        let crowd: Vec<_> = (0..20).map(|_| guest.connect()).collect();
        drop(crowd);
        guest.wait_for("READY");
        assert!(matches!(
            guest.ask(&Request::RemoveDevice {
                id: "none".to_owned()
            }),
            Response::Error { .. }
        ));
    });
}
