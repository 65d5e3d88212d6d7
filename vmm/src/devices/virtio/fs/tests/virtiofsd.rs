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
use super::{guest_memory, memory, shape};
use crate::event_loop::{DeviceSubscriber, Subscriber};

const LOOKUP: u32 = 1;
const INIT: u32 = 26;
const READ: u32 = 15;
const WRITE_FILE: u32 = 16;
const CREATE: u32 = 35;
const ROOT: u64 = 1;
/// virtiofsd's largest read and write.
const LARGEST: u32 = 1 << 20;
/// Requests lie here, with this much room for each and its answer.
const PLACES: u64 = 0x40_0000;
const PLACE: u64 = 0x40_0000;

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
    unique: u64,
}

/// A request: operation, node, and what follows the header.
type Message<'m> = (u32, u64, &'m [u8]);

impl Driver {
    /// Sends one message to the root directory; returns (error, body).
    fn ask(&mut self, operation: u32, body: &[u8]) -> (i32, Vec<u8>) {
        self.ask_all(&[(operation, ROOT, body)]).remove(0)
    }

    /// Sends messages at once; returns the answers in their order.
    fn ask_all(&mut self, messages: &[Message<'_>]) -> Vec<(i32, Vec<u8>)> {
        let first = self.unique;
        let heads: Vec<_> = (0..)
            .zip(messages)
            .map(|(place, message)| self.post(place, message))
            .collect();
        self.kick.write(1).unwrap();
        let start = Instant::now();
        let mut used = Vec::new();
        while used.len() < heads.len() {
            assert!(start.elapsed() < Duration::from_secs(60), "{used:?} of {heads:?}");
            self.events.run_with_timeout(100).unwrap();
            used.extend(self.queue.take_used());
        }
        let answers = (0..).zip(heads).map(|(place, head)| {
            let (_, length) = used.iter().find(|used| used.0 == head).unwrap();
            let mut answer = vec![0; *length as usize];
            let at = GuestAddress(PLACES + PLACE * place + PLACE / 2);
            self.memory.read_slice(&mut answer, at).unwrap();
            let word = |at: usize| -> [u8; 4] { answer[at..at + 4].try_into().unwrap() };
            assert_eq!(u32::from_le_bytes(word(0)) as usize, answer.len());
            assert_eq!(answer[8..16], (first + place).to_le_bytes());
            (i32::from_le_bytes(word(4)), answer[16..].to_vec())
        });
        answers.collect()
    }

    fn post(&mut self, place: u64, (operation, node, body): &Message<'_>) -> u16 {
        let length = 40 + u32::try_from(body.len()).unwrap();
        let mut message = Vec::new();
        message.extend(length.to_le_bytes());
        message.extend(operation.to_le_bytes());
        message.extend(self.unique.to_le_bytes());
        message.extend(node.to_le_bytes());
        // uid, gid, pid, extensions
        message.extend([0; 16]);
        message.extend(*body);
        self.unique += 1;
        let at = PLACES + PLACE * place;
        self.memory.write_slice(&message, GuestAddress(at)).unwrap();
        // A read's is exact, as Linux's is: virtiofsd fills what it finds.
        let room = if *operation == READ {
            u32::from_le_bytes(body[16..20].try_into().unwrap()) + 16
        } else {
            0x1000
        };
        let answer = at + PLACE / 2;
        // In three pieces, as Linux cuts between header and data.
        self.queue.add(&[
            (at, 40, 0),
            (at + 40, length - 40, 0),
            (answer, 16, WRITE),
            (answer + 16, room - 16, WRITE),
        ])
    }

    /// Makes a file in the root directory; returns (node, handle).
    fn create(&mut self, name: &[u8]) -> (u64, u64) {
        // O_RDWR, mode, umask, flags of FUSE's own.
        let mut body: Vec<u8> = [2_u32, 0o644, 0, 0].map(u32::to_le_bytes).concat();
        body.extend(name);
        let (error, answer) = self.ask(CREATE, &body);
        assert_eq!(error, 0);
        // fuse_entry_out has 128 bytes.
        let word = |at: usize| u64::from_le_bytes(answer[at..at + 8].try_into().unwrap());
        (word(0), word(128))
    }
}

/// What a read or a write begins with.
fn transfer(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    let mut body = [handle, offset].map(u64::to_le_bytes).concat();
    body.extend(size.to_le_bytes());
    body.extend([0; 20]);
    body
}

/// Bytes that tell where they belong.
fn pattern(offset: u64, size: u32) -> Vec<u8> {
    let words =
        (offset / 8..(offset + u64::from(size)) / 8).map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    words.flat_map(u64::to_le_bytes).collect()
}

#[test]
fn large_and_many_requests_at_once_arrive_whole() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("shared")).unwrap();
    let Some(server) = Server::start(directory.path()) else {
        return;
    };
    let memory = guest_memory(192 << 20);
    let device = Fs::new(server.socket.try_clone().unwrap(), shape()).unwrap();
    let device = Arc::new(Mutex::new(device));
    let (mut driver, _interrupt) = start(&device, &memory, 0);
    let max_write = session(&mut driver, &[]);
    assert_eq!(max_write, LARGEST, "what the room of a request is measured by");
    let (node, handle) = driver.create(b"file\0");
    for (size, count) in [(LARGEST, 20), (4096, 31), (LARGEST / 2, 9), (8, 1)] {
        let places: Vec<_> = (0..count).map(|index| u64::from(index * size)).collect();
        let writes: Vec<_> = places
            .iter()
            .map(|at| [transfer(handle, *at, size), pattern(*at, size)].concat())
            .collect();
        let writes: Vec<Message<'_>> = writes.iter().map(|body| (WRITE_FILE, node, &body[..])).collect();
        for (error, body) in driver.ask_all(&writes) {
            assert_eq!((error, &body[..4]), (0, &size.to_le_bytes()[..]));
        }
        let reads: Vec<_> = places.iter().map(|at| transfer(handle, *at, size)).collect();
        let reads: Vec<Message<'_>> = reads.iter().map(|body| (READ, node, &body[..])).collect();
        for ((error, body), at) in driver.ask_all(&reads).into_iter().zip(&places) {
            assert_eq!(error, 0);
            assert!(body == pattern(*at, size), "{size} bytes at {at}");
        }
    }
    let written = fs::read(directory.path().join("shared/file")).unwrap();
    assert!(written == pattern(0, 20 * LARGEST));
}

#[test]
fn the_real_backend_serves_a_directory_until_it_dies() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("shared")).unwrap();
    fs::write(directory.path().join("shared/hello"), "12345").unwrap();
    let names = [&b"hello\0"[..], b"nothing\0"];
    let Some(mut server) = Server::start(directory.path()) else {
        return;
    };
    let memory = memory();
    let device = Fs::new(server.socket.try_clone().unwrap(), shape()).unwrap();
    let device = Arc::new(Mutex::new(device));
    // As after a reset of the driver: the queues are taken back and handed over anew.
    for base in [0, 0x10_0000] {
        let (mut driver, interrupt) = start(&device, &memory, base);
        session(&mut driver, &names);
        assert!(interrupt.queue.load(Ordering::Relaxed) > 0);
        drop(driver);
        device.lock().unwrap().deactivate();
    }
    let (mut driver, _interrupt) = start(&device, &memory, 0x20_0000);
    session(&mut driver, &names);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert_eq!(driver.ask(LOOKUP, b"hello\0").0, -libc::EIO);
    assert_eq!(driver.ask(LOOKUP, b"hello\0").0, -libc::EIO);
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
        unique: 1,
    };
    (driver, interrupt)
}

/// A mount, and files looked for: the first is there, with 5 bytes. Returns the largest write.
fn session(driver: &mut Driver, names: &[&[u8]]) -> u32 {
    // major, minor, max_readahead, flags (FUSE_MAX_PAGES), flags2, unused
    let mut init = [0; 64];
    init[..16].copy_from_slice(&[7, 0, 0, 0, 38, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0x40, 0]);
    let (error, body) = driver.ask(INIT, &init);
    assert_eq!((error, body[0]), (0, 7));
    for (place, name) in names.iter().enumerate() {
        let (error, entry) = driver.ask(LOOKUP, name);
        assert_eq!(error, if place == 0 { 0 } else { -libc::ENOENT });
        if place == 0 {
            // fuse_entry_out: 40 bytes, then fuse_attr: ino, size.
            assert_eq!(entry[48..56], 5_u64.to_le_bytes());
        }
    }
    u32::from_le_bytes(body[20..24].try_into().unwrap())
}
