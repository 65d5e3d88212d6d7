//! The device with the real virtiofsd (`CLEARPOD_VIRTIOFSD`, or `virtiofsd` on the PATH) behind it and a driver that speaks a
//! few words of FUSE (linux/fuse.h). No KVM.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::super::super::testing::{CountedInterrupt, DriverQueue, WRITE, activation};
use super::super::super::{GuestMemory, VirtioDevice};
use super::super::Fs;
use super::{ANSWER, REQUEST, memory, shape};
use crate::event_loop::{DeviceSubscriber, Subscriber};

const LOOKUP: u32 = 1;
const INIT: u32 = 26;
const ROOT: u64 = 1;

/// A virtiofsd over a directory. Killed when dropped.
struct Server {
    child: Child,
    socket: UnixStream,
}

impl Server {
    /// `None`, said aloud, where there is none; a panic where `CLEARPOD_REQUIRE` names it.
    fn start(directory: &Path) -> Option<Self> {
        let program = std::env::var_os("CLEARPOD_VIRTIOFSD").unwrap_or_else(|| "virtiofsd".into());
        let path = directory.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let listener = OwnedFd::from(listener);
        nix::fcntl::fcntl(
            &listener,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )
        .unwrap();
        let started = Command::new(program)
            .arg(format!("--fd={}", listener.as_raw_fd()))
            .arg(format!("--shared-dir={}", directory.join("shared").display()))
            .args(["--sandbox=none", "--log-level=error"])
            .spawn();
        let child = match started {
            Ok(child) => child,
            Err(error) => {
                let required = std::env::var("CLEARPOD_REQUIRE").unwrap_or_default();
                assert!(
                    !required.split(',').any(|need| need == "virtiofsd"),
                    "CLEARPOD_REQUIRE asks for virtiofsd: {error}"
                );
                eprintln!("SKIPPED, needs virtiofsd: {error}");
                return None;
            }
        };
        let socket = UnixStream::connect(path).unwrap();
        Some(Self { child, socket })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The driver's side of the request queue.
struct Driver {
    memory: GuestMemory,
    queue: DriverQueue,
    kick: Arc<EventFd>,
    events: EventManager<Subscriber>,
}

impl Driver {
    /// Sends one message to the root directory; returns (error, body).
    fn ask(&mut self, unique: u64, operation: u32, body: &[u8]) -> (i32, Vec<u8>) {
        let length = 40 + u32::try_from(body.len()).unwrap();
        let mut message = Vec::new();
        message.extend(length.to_le_bytes());
        message.extend(operation.to_le_bytes());
        message.extend(unique.to_le_bytes());
        message.extend(ROOT.to_le_bytes());
        // uid, gid, pid, extensions
        message.extend([0; 16]);
        message.extend(body);
        self.memory.write_slice(&message, GuestAddress(REQUEST)).unwrap();
        let head = self.queue.add(&[(REQUEST, length, 0), (ANSWER, 0x1000, WRITE)]);
        self.kick.write(1).unwrap();
        let start = Instant::now();
        let used = loop {
            let used = self.queue.take_used();
            if !used.is_empty() {
                break used;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no answer");
            self.events.run_with_timeout(100).unwrap();
        };
        assert_eq!(used[0].0, head);
        let mut answer = vec![0; used[0].1 as usize];
        self.memory.read_slice(&mut answer, GuestAddress(ANSWER)).unwrap();
        let word = |at: usize| -> [u8; 4] { answer[at..at + 4].try_into().unwrap() };
        assert_eq!(u32::from_le_bytes(word(0)) as usize, answer.len());
        assert_eq!(answer[8..16], unique.to_le_bytes());
        (i32::from_le_bytes(word(4)), answer[16..].to_vec())
    }
}

#[test]
fn the_real_backend_serves_a_directory_until_it_dies() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("shared")).unwrap();
    fs::write(directory.path().join("shared/hello"), "12345").unwrap();
    let Some(mut server) = Server::start(directory.path()) else {
        return;
    };
    let memory = memory(true);
    let device = Fs::new(server.socket.try_clone().unwrap(), shape(), &memory).unwrap();
    let device = Arc::new(Mutex::new(device));
    // As after a reset of the driver: the queues are taken back and handed over anew.
    for base in [0, 0x10_0000] {
        let (mut driver, interrupt) = start(&device, &memory, base);
        session(&mut driver);
        assert!(interrupt.queue.load(Ordering::Relaxed) > 0);
        drop(driver);
        device.lock().unwrap().deactivate();
    }
    let (mut driver, _interrupt) = start(&device, &memory, 0x20_0000);
    session(&mut driver);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert_eq!(driver.ask(4, LOOKUP, b"hello\0").0, -libc::EIO);
    assert_eq!(driver.ask(5, LOOKUP, b"hello\0").0, -libc::EIO);
}

/// A driver with its rings from `base` on.
fn start(device: &Arc<Mutex<Fs>>, memory: &GuestMemory, base: u64) -> (Driver, Arc<CountedInterrupt>) {
    let urgent = DriverQueue::new(memory, base, 128);
    let queue = DriverQueue::new(memory, base + 0x4000, 128);
    let mut activation = activation(memory, &[&urgent, &queue], 1 << 32);
    let interrupt = Arc::new(CountedInterrupt::default());
    activation.interrupt = Arc::<CountedInterrupt>::clone(&interrupt);
    let kick = Arc::clone(&activation.queues[1].notify);
    device.lock().unwrap().activate(activation).unwrap();
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(Subscriber::Device(DeviceSubscriber(Arc::<Mutex<Fs>>::clone(
        device,
    ))));
    let driver = Driver {
        memory: memory.clone(),
        queue,
        kick,
        events,
    };
    (driver, interrupt)
}

/// A mount, and two files looked for.
fn session(driver: &mut Driver) {
    // major, minor, max_readahead, flags, flags2, unused
    let mut init = [0; 64];
    init[..8].copy_from_slice(&[7, 0, 0, 0, 38, 0, 0, 0]);
    let (error, body) = driver.ask(1, INIT, &init);
    assert_eq!((error, body[0]), (0, 7));
    let (error, entry) = driver.ask(2, LOOKUP, b"hello\0");
    assert_eq!(error, 0);
    // fuse_entry_out: 40 bytes, then fuse_attr: ino, size.
    assert_eq!(entry[48..56], 5_u64.to_le_bytes());
    assert_eq!(driver.ask(3, LOOKUP, b"nothing\0").0, -libc::ENOENT);
    driver.events.run_with_timeout(1000).unwrap();
}
