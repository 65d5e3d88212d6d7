//! A vhost-user backend of a few lines: notes what it hears, answers what must be answered. The messages are those of the
//! specification (QEMU docs/interop/vhost-user.rst), read and written here by hand. It serves nothing of its own accord: the
//! test does what it likes to its rings (`ModelRing`).

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::ring::ModelRing;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const NEED_REPLY: u32 = 8;
const REPLY: u32 = 1 | 4;
/// protocol features, virtio 1, indirect descriptors, and one that the front end does not know.
const FEATURES: u64 = 1 << 30 | 1 << 32 | 1 << 28 | 1 << 40;
/// MQ and REPLY_ACK.
const PROTOCOL: u64 = 1 | 8;

/// What kind of backend it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    Good,
    NoProtocolFeatures,
    OneQueue,
    HangsUp,
    Babbles,
    RefusesMemory,
}

/// A message that it got.
#[derive(Debug)]
pub(super) enum Heard {
    Named(&'static str),
    Region {
        guest: u64,
        size: u64,
        host: u64,
        offset: u64,
        memory: File,
    },
    Rings {
        queue: u32,
        descriptors: u64,
        available: u64,
        used: u64,
    },
    Event {
        name: &'static str,
        queue: usize,
        /// An eventfd.
        event: File,
    },
}

impl Heard {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Named(name) | Self::Event { name, .. } => name,
            Self::Region { .. } => "region",
            Self::Rings { .. } => "addr",
        }
    }
}

/// The backend's thread, seen from the test.
pub(super) struct FakeBackend {
    heard: Receiver<Heard>,
    kept: Vec<Heard>,
    socket: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl FakeBackend {
    pub(super) fn start(socket: UnixStream, behaviour: Behaviour) -> Self {
        let (sender, heard) = channel();
        let ours = socket.try_clone().unwrap();
        let thread = thread::Builder::new().name("fake-backend".to_owned());
        let thread = thread.spawn(move || {
            while serve(&socket, behaviour, &sender).is_some() {}
            // Fails only where the front end was first.
            drop(socket.shutdown(Shutdown::Both));
        });
        Self {
            heard,
            kept: Vec::new(),
            socket: ours,
            thread: Some(thread.unwrap()),
        }
    }

    /// Everything since the last time: the front end has waited for each of them.
    pub(super) fn heard(&mut self) -> Vec<Heard> {
        self.kept.drain(..).chain(self.heard.try_iter()).collect()
    }

    /// Likewise, and it is kept for what asks for parts of it.
    pub(super) fn kept(&mut self) -> &[Heard] {
        self.kept.extend(self.heard.try_iter());
        &self.kept
    }

    /// Waits until the driver's notification has arrived.
    pub(super) fn wait_for_kick(&mut self, queue: usize) {
        let start = Instant::now();
        while self.event("kick", queue).read(&mut [0; 8]).is_err() {
            assert!(start.elapsed() < Duration::from_secs(5), "no kick");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The newest rings of this queue.
    pub(super) fn ring(&mut self, number: usize) -> ModelRing {
        self.kept();
        let region = self.kept.iter().rev().find_map(|message| match message {
            Heard::Region {
                guest, host, memory, ..
            } => Some((*guest, *host, memory.try_clone().unwrap())),
            _ => None,
        });
        let (guest, host, memory) = region.unwrap();
        let rings = self.kept.iter().rev().find_map(|message| match message {
            Heard::Rings {
                queue,
                descriptors,
                available,
                used,
            } if *queue as usize == number => Some([*descriptors, *available, *used].map(|at| at - host)),
            _ => None,
        });
        ModelRing::new(memory, guest, rings.unwrap())
    }

    /// Says that buffers were used.
    pub(super) fn call(&mut self, queue: usize) {
        self.event("call", queue).write_all(&1_u64.to_ne_bytes()).unwrap();
    }

    /// As a process that was killed.
    pub(super) fn die(&mut self) {
        self.socket.shutdown(Shutdown::Both).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }

    /// Waits until the front end has hung up.
    pub(super) fn ended(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }

    fn event(&mut self, wanted: &str, number: usize) -> &File {
        let mut events = self.kept().iter().rev().filter_map(|message| match message {
            Heard::Event { name, queue, event } if *name == wanted && *queue == number => Some(event),
            _ => None,
        });
        events.next().unwrap()
    }
}

impl Drop for FakeBackend {
    fn drop(&mut self) {
        // Both fail where it has died in the test.
        drop(self.socket.shutdown(Shutdown::Both));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// One message; `None` at the end.
fn serve(socket: &UnixStream, behaviour: Behaviour, heard: &Sender<Heard>) -> Option<()> {
    let (request, flags, body, descriptor) = receive(socket)?;
    let word = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
    let number = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
    let tell = |message| heard.send(message).unwrap_or_default();
    let event = |name| Heard::Event {
        name,
        queue: (word(0) & 0xFF) as usize,
        event: descriptor.as_ref().unwrap().try_clone().unwrap(),
    };
    let mut answer: Option<Vec<u8>> = None;
    let mut refused = 0_u64;
    match request {
        1 if behaviour == Behaviour::HangsUp => return None,
        1 if behaviour == Behaviour::Babbles => answer = Some(vec![0; 5]),
        1 if behaviour == Behaviour::NoProtocolFeatures => {
            answer = Some((FEATURES & !(1 << 30)).to_le_bytes().into());
        }
        1 => answer = Some(FEATURES.to_le_bytes().into()),
        2 => tell(Heard::Named("features")),
        3 => tell(Heard::Named("owner")),
        5 => {
            refused = u64::from(behaviour == Behaviour::RefusesMemory);
            for region in 0..number(0) as usize {
                let at = 8 + 32 * region;
                let [guest, size, host, offset] = [0, 8, 16, 24].map(|field| word(at + field));
                tell(Heard::Region {
                    guest,
                    size,
                    host,
                    offset,
                    memory: descriptor.as_ref().unwrap().try_clone().unwrap(),
                });
            }
        }
        8 => tell(Heard::Named("num")),
        9 => tell(Heard::Rings {
            queue: number(0),
            descriptors: word(8),
            used: word(16),
            available: word(24),
        }),
        10 => tell(Heard::Named("base")),
        11 => {
            tell(Heard::Named("stop"));
            answer = Some([&body[..4], &[0; 4]].concat());
        }
        12 => tell(event("kick")),
        13 => tell(event("call")),
        15 => answer = Some((PROTOCOL | 1 << 20).to_le_bytes().into()),
        16 => {
            assert_eq!(word(0), PROTOCOL, "only what both know");
            tell(Heard::Named("protocol"));
        }
        17 => {
            let queues: u64 = if behaviour == Behaviour::OneQueue { 1 } else { 8 };
            answer = Some(queues.to_le_bytes().into());
        }
        18 => tell(Heard::Named("enable")),
        other => panic!("message {other}"),
    }
    if answer.is_none() && flags & NEED_REPLY != 0 {
        answer = Some(refused.to_le_bytes().into());
    }
    if let Some(answer) = answer {
        let length = u32::try_from(answer.len()).unwrap();
        let header = [request, REPLY, length].map(u32::to_le_bytes).concat();
        let mut socket = socket;
        // The front end may have gone in the meantime.
        socket.write_all(&[header, answer].concat()).ok()?;
    }
    Some(())
}

/// Request, flags, body, and the first descriptor that came with it.
fn receive(socket: &UnixStream) -> Option<(u32, u32, Vec<u8>, Option<File>)> {
    let mut header = [0; 12];
    let (bytes, descriptor) = socket.recv_with_fd(&mut header).ok()?;
    let [request, flags, length] =
        [0, 4, 8].map(|at| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()));
    let mut body = vec![0; length as usize];
    let mut socket = socket;
    socket.read_exact(&mut body).ok().filter(|()| bytes == 12)?;
    Some((request, flags, body, descriptor))
}
