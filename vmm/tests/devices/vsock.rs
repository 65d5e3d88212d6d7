//! vsock between programs: host sockets on one side, a probe under the guest's own vsock driver on the other.
//!
//! Busybox does not speak vsock. The probe is this test's own program: it goes with its libraries to the guest, as a tar
//! archive on a disk, and [`probe`] does there what `CLEARPOD_PROBE` says.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::thread;
use std::time::Instant;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, listen, socket,
};
use proto::machine::{Device, ExitReason, FileSource, Vsock};
use tempfile::TempDir;

use super::{MIB, pattern, value};
use crate::guest::{Artifacts, Guest, PATIENCE, on_kvm};

pub(crate) const READY: u32 = 1;
const BULK: u32 = 2;
const NOBODY: u32 = 3;
pub(crate) const ECHO: u32 = 4;
/// The program is in memory: its disk can go.
const FORGET_DISK: &str = "function=$(readlink -f /sys/block/vda/device); \
    until [ -e $function/vendor ] && [ -e $function/config ]; do function=${function%/*}; done; \
    echo 1 >$function/remove;";
/// Connections at one time.
const CROWD: usize = 12;

/// Not a test unless it runs in a guest.
#[test]
fn probe() {
    let Ok(order) = env::var("CLEARPOD_PROBE") else {
        return;
    };
    match order.as_str() {
        "bulk" => {
            let mut content = Vec::new();
            dial_host(BULK).unwrap().read_to_end(&mut content).unwrap();
            let mut back = dial_host(BULK).unwrap();
            back.write_all(&content).unwrap();
            back.shutdown(Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            back.read_to_end(&mut rest).unwrap();
            println!("\nANSWER {}", String::from_utf8_lossy(&rest));
            println!("\nNOBODY {}", dial_host(NOBODY).unwrap_err());
        }
        "echo" => echo(),
        other => panic!("no such order: {other}"),
    }
}

/// Echoes on every connection to its port, for ever.
fn echo() {
    let listener = vsock_socket();
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, ECHO)).unwrap();
    listen(&listener, Backlog::new(64).unwrap()).unwrap();
    drop(dial_host(READY).unwrap());
    thread::scope(|scope| {
        loop {
            let mut socket = UnixStream::from(super::sys::accept(listener.as_fd()));
            scope.spawn(move || {
                let mut bytes = vec![0; 64 * 1024];
                loop {
                    let count = match socket.read(&mut bytes) {
                        Ok(0) => return,
                        Ok(count) => count,
                        Err(error) => {
                            println!("\nLOST {error}");
                            return;
                        }
                    };
                    socket.write_all(&bytes[..count]).unwrap();
                }
            });
        }
    });
}

fn vsock_socket() -> OwnedFd {
    socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap()
}

/// A unix stream is the type of the standard library for any stream socket that has no address to ask for.
fn dial_host(port: u32) -> nix::Result<UnixStream> {
    let socket = vsock_socket();
    connect(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, port))?;
    Ok(UnixStream::from(socket))
}

/// A Machine whose guest runs [`probe`] with `order`, then `then`.
pub(crate) struct Probed {
    pub(crate) guest: Guest,
    pub(crate) directory: TempDir,
}

impl Probed {
    /// `directory` is where the socket and its listeners are.
    pub(crate) fn boot(artifacts: &Artifacts, directory: TempDir, order: &str, then: &str) -> Self {
        let program = env::current_exe().unwrap();
        let disk = directory.path().join("program.tar");
        let archived = Command::new("tar")
            .arg("-chPf")
            .arg(&disk)
            .args(mapped_files())
            .status()
            .unwrap();
        assert!(archived.success(), "tar");
        let script = format!(
            "tar -xf /dev/vda -C /; {FORGET_DISK} export CLEARPOD_PROBE={order} RUST_BACKTRACE=1; ip link set lo up; \
             {} --exact devices::vsock::probe --nocapture --test-threads=1; {then}",
            program.display()
        );
        let vsock = Vsock {
            guest_cid: 3,
            socket: directory.path().join("v"),
        };
        let guest = Guest::boot_with(artifacts, &script, |config| {
            config.memory_mib = 256;
            config.vsock = Some(vsock);
            config.devices.push(Device::Block {
                id: "program".to_owned(),
                file: FileSource::Path(disk),
                read_only: true,
            });
        });
        Self { guest, directory }
    }

    fn dial(&self, port: u32) -> BufReader<UnixStream> {
        dial(&self.directory, port)
    }
}

/// Connects to `port` of the guest whose vsock is in `directory`.
pub(crate) fn dial(directory: &TempDir, port: u32) -> BufReader<UnixStream> {
    let mut socket = UnixStream::connect(directory.path().join("v")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
    BufReader::new(socket)
}

/// This program, its libraries and the loader of both.
fn mapped_files() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut files: Vec<String> = maps
        .lines()
        .filter_map(|line| line.split_once('/').map(|(_, path)| format!("/{path}")))
        .collect();
    files.sort();
    files.dedup();
    // The loader is looked for where the program says, which may be a link to where it is mapped from.
    files.push("/lib64/ld-linux-x86-64.so.2".to_owned());
    files
}

pub(crate) fn listen_at(directory: &TempDir, port: u32) -> UnixListener {
    UnixListener::bind(directory.path().join(format!("v_{port}"))).unwrap()
}

#[test]
fn the_guest_dials_the_host_and_streams_both_ways() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let listener = listen_at(&directory, BULK);
        let probed = Probed::boot(artifacts, directory, "bulk", "reboot -f");
        let content = pattern(8 * MIB);
        let (mut down, _) = listener.accept().unwrap();
        let start = Instant::now();
        down.write_all(&content).unwrap();
        drop(down);
        let (mut up, _) = listener.accept().unwrap();
        let turned = start.elapsed();
        let mut back = Vec::new();
        up.read_to_end(&mut back).unwrap();
        let elapsed = start.elapsed();
        // Half-closed: the other direction still works.
        up.write_all(b"well done").unwrap();
        drop(up);
        let (reason, console, log) = probed.guest.end();
        assert_eq!(reason, ExitReason::Ended, "{log}{console}");
        assert!(
            back == content,
            "{} of {} bytes came back",
            back.len(),
            content.len()
        );
        assert_eq!(value(&console, "ANSWER "), "well done");
        assert!(value(&console, "NOBODY ").starts_with("ECONNRESET"), "{console}");
        assert_eq!(log, "");
        println!("8 MiB to the guest in {turned:?}, back in {:?}", elapsed - turned);
    });
}

#[test]
fn the_host_dials_the_guest_many_times_at_once() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let ready = listen_at(&directory, READY);
        let probed = Probed::boot(artifacts, directory, "echo", "reboot -f");
        let _ready = ready.accept().unwrap();

        let mut refused = String::new();
        probed.dial(NOBODY).read_line(&mut refused).unwrap();
        assert_eq!(refused, "", "a port without a listener closes the connection");
        // One that never reads must not hold up the others.
        let mut stalled = probed.dial(ECHO);
        stalled
            .get_ref()
            .set_write_timeout(Some(std::time::Duration::from_secs(1)))
            .unwrap();
        while stalled.get_mut().write(&[0; 65_536]).is_ok() {}
        thread::scope(|scope| {
            for number in 0..CROWD {
                let probed = &probed;
                scope.spawn(move || {
                    let mut client = probed.dial(ECHO);
                    let mut line = String::new();
                    client.read_line(&mut line).unwrap();
                    assert!(line.starts_with("OK "), "{line:?}");
                    let content = pattern(256 * 1024 + number);
                    let mut writer = client.get_ref().try_clone().unwrap();
                    scope.spawn(move || {
                        writer.write_all(&pattern(256 * 1024 + number)).unwrap();
                        writer.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut back = Vec::new();
                    client.read_to_end(&mut back).unwrap();
                    assert!(
                        back == content,
                        "connection {number}: {} bytes came back",
                        back.len()
                    );
                });
            }
        });
    });
}
