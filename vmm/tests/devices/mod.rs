//! The data devices under a real guest's drivers. Needs what `boot.rs` needs, and root for the tap.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking, says aloud that it skips, and tells the host from within a guest"
)]

mod memory;
mod sys;
mod virtiofs;
pub(crate) mod vsock;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use proto::machine::{Device, ExitReason, FileSource};

use self::sys::open_tap;
use crate::guest::{Guest, on_kvm};

const MIB: usize = 1 << 20;

/// Bytes that show when one is missing, doubled or in the wrong place.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// The word behind `name` on the console.
fn value<'c>(console: &'c str, name: &str) -> &'c str {
    let line = console.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} on the console:\n{console}"))
        .trim()
}

fn md5(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bytes");
    fs::write(&path, bytes).unwrap();
    let output = Command::new("md5sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn a_disk_keeps_what_a_file_system_writes() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let formatted = Command::new("mkfs.ext4").arg("-q").arg(&path).status().unwrap();
        assert!(formatted.success(), "mkfs.ext4");
        let script = "echo SERIAL $(cat /sys/block/vda/serial); \
        mkdir /m && mount -t ext4 /dev/vda /m && \
        dd if=/dev/urandom of=/m/file bs=64k count=64 2>/dev/null; \
        echo BEFORE $(md5sum </m/file); umount /m; echo 3 >/proc/sys/vm/drop_caches; \
        mount -t ext4 /dev/vda /m; echo AFTER $(md5sum </m/file); \
        umount /m; blkdiscard /dev/vda && echo LEFT $(tr -d '\\0' </dev/vda | wc -c); reboot -f";
        let disk = path.clone();
        let guest = Guest::boot_with(artifacts, script, |config| {
            config.devices.push(Device::Block {
                id: "scratch".to_owned(),
                file: FileSource::Path(disk),
                read_only: false,
            });
        });
        let (reason, console, log) = guest.end();
        assert_eq!(reason, ExitReason::Ended, "{log}{console}");
        assert_eq!(value(&console, "SERIAL "), "scratch");
        assert_eq!(value(&console, "BEFORE "), value(&console, "AFTER "));
        assert_eq!(value(&console, "LEFT "), "0");
        assert_eq!(log, "");
    });
}

#[test]
fn layers_are_read_only_by_block_and_by_pmem() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("layer");
        let content = pattern(5 * MIB);
        fs::write(&path, &content).unwrap();
        let script = "echo BLOCK $(md5sum </dev/vda); echo PMEM $(head -c 5242880 /dev/pmem0 | md5sum); \
        echo SIZE $(cat /sys/block/pmem0/size); echo RO $(cat /sys/block/vda/ro); \
        echo x | dd of=/dev/vda 2>/dev/null || echo REFUSED vda; reboot -f";
        let layer = path.clone();
        let guest = Guest::boot_with(artifacts, script, |config| {
            config.devices.push(Device::Block {
                id: "by-block".to_owned(),
                file: FileSource::Path(layer.clone()),
                read_only: true,
            });
            config.devices.push(Device::Pmem {
                id: "by-pmem".to_owned(),
                file: FileSource::Path(layer),
            });
        });
        let (reason, console, log) = guest.end();
        assert_eq!(reason, ExitReason::Ended, "{log}{console}");
        let expected = md5(&content);
        assert!(value(&console, "BLOCK ").starts_with(&expected), "{console}");
        assert!(value(&console, "PMEM ").starts_with(&expected), "{console}");
        assert_eq!(value(&console, "SIZE "), (6 * MIB / 512).to_string());
        assert_eq!(value(&console, "RO "), "1");
        assert_eq!(value(&console, "REFUSED "), "vda");
        assert!(fs::read(&path).unwrap() == content, "the layer was changed");
    });
}

/// A tap of its own network, gone with its descriptor.
pub(crate) struct Network {
    pub(crate) tap: OwnedFd,
    pub(crate) host: String,
    pub(crate) guest: String,
}

impl Network {
    /// `None`, said aloud, without root; a panic where `CLEARPOD_REQUIRE` names it.
    pub(crate) fn new(number: u8) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            let required = std::env::var("CLEARPOD_REQUIRE").unwrap_or_default();
            assert!(
                !required.split(',').any(|need| need == "root"),
                "this test needs root"
            );
            eprintln!("SKIPPED, needs root for a tap");
            return None;
        }
        let name = format!("clpt{number}");
        let tap = open_tap(&name);
        let network = Self {
            tap,
            host: format!("10.199.{number}.1"),
            guest: format!("10.199.{number}.2"),
        };
        for arguments in [
            format!("addr add {}/24 dev {name}", network.host),
            format!("link set {name} up"),
        ] {
            let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(status.success(), "ip {arguments}");
        }
        Some(network)
    }

    pub(crate) fn card(&self) -> Device {
        Device::Net {
            id: "eth0".to_owned(),
            tap: FileSource::Fd(u32::try_from(self.tap.as_raw_fd()).unwrap()),
            mac: "02:00:00:00:00:2a".to_owned(),
        }
    }

    fn set_up(&self) -> String {
        format!("ip addr add {}/24 dev eth0; ip link set eth0 up; ", self.guest)
    }
}

#[test]
fn a_card_carries_small_and_large_frames_both_ways() {
    on_kvm(|artifacts| {
        let Some(network) = Network::new(1) else {
            return;
        };
        let listener = TcpListener::bind((network.host.as_str(), 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = network.host.clone();
        let script = format!(
            "{} echo MAC $(cat /sys/class/net/eth0/address); ping -c 3 -s 1400 {host} | grep received; \
         nc {host} {port} </dev/null >/got; echo GOT $(md5sum </got); nc {host} {port} </got; \
         head -1 /proc/net/dev >/dev/null; echo ERRORS $(cat /sys/class/net/eth0/statistics/rx_errors); reboot -f",
            network.set_up()
        );
        let card = network.card();
        let guest = Guest::boot_with(artifacts, &script, |config| config.devices.push(card));
        let content = pattern(8 * MIB);
        let (mut down, _) = listener.accept().unwrap();
        down.write_all(&content).unwrap();
        down.shutdown(Shutdown::Write).unwrap();
        let (mut up, _) = listener.accept().unwrap();
        let mut back = Vec::new();
        up.read_to_end(&mut back).unwrap();
        drop((down, up));
        let (reason, console, log) = guest.end();
        assert_eq!(reason, ExitReason::Ended, "{log}{console}");
        assert_eq!(value(&console, "MAC "), "02:00:00:00:00:2a");
        assert!(console.contains("3 packets received"), "{console}");
        assert!(value(&console, "GOT ").starts_with(&md5(&content)), "{console}");
        assert!(
            back == content,
            "{} of {} bytes came back",
            back.len(),
            content.len()
        );
        assert_eq!(value(&console, "ERRORS "), "0");
        assert_eq!(log, "");
    });
}
