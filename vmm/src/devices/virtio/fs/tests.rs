//! The device between a driver that the test plays and a backend that a thread plays (`backend`).

mod backend;
mod hostile;
mod ring;
mod virtiofsd;

use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::super::testing::{CountedInterrupt, DriverQueue, WRITE, activation, guest_memory};
use super::super::{Activation, GuestMemory, VirtioDevice};
use super::*;
use crate::config::FsShape;
use crate::event_loop::{DeviceSubscriber, Subscriber};
use backend::{Behaviour, FakeBackend, Heard};

use std::sync::{Arc, Mutex};

const REQUEST: u64 = 0x2_0000;
const ANSWER: u64 = 0x2_1000;
const SPLIT_REQUEST: u64 = 0x2_2000;
const SPLIT_ANSWER: u64 = 0x2_3000;
/// Room for the largest.
const LARGE: u64 = 0x10_0000;

fn memory() -> GuestMemory {
    guest_memory(64 << 20)
}

fn shape() -> FsShape {
    FsShape {
        tag: "data".to_owned(),
        queues: 1,
        queue_size: 128,
    }
}

struct Guest {
    memory: GuestMemory,
    drivers: Vec<DriverQueue>,
    interrupt: Arc<CountedInterrupt>,
    /// The doorbells.
    kicks: Vec<Arc<EventFd>>,
    device: Arc<Mutex<Fs>>,
    events: EventManager<Subscriber>,
    subscription: Option<SubscriberId>,
    backend: FakeBackend,
}

impl Guest {
    fn new(behaviour: Behaviour) -> Self {
        let memory = memory();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let backend = FakeBackend::start(theirs, behaviour);
        let device = Fs::new(ours, shape()).unwrap();
        let drivers = (0..2)
            .map(|queue| DriverQueue::new(&memory, 0x4000 * queue, 128))
            .collect();
        Self {
            memory,
            drivers,
            interrupt: Arc::default(),
            kicks: Vec::new(),
            device: Arc::new(Mutex::new(device)),
            events: EventManager::new().unwrap(),
            subscription: None,
            backend,
        }
    }

    fn activation(&self) -> Activation {
        let drivers: Vec<_> = self.drivers.iter().collect();
        let mut activation = activation(&self.memory, &drivers, 1 << 32);
        activation.interrupt = Arc::<CountedInterrupt>::clone(&self.interrupt);
        activation
    }

    /// As the Machine does it when the driver says DRIVER_OK.
    fn start(&mut self) {
        let activation = self.activation();
        let kicks = activation.queues.iter().map(|queue| Arc::clone(&queue.notify));
        self.kicks = kicks.collect();
        self.device.lock().unwrap().activate(activation).unwrap();
        let subscriber = DeviceSubscriber(Arc::<Mutex<Fs>>::clone(&self.device));
        self.subscription = Some(self.events.add_subscriber(Subscriber::Device(subscriber)));
    }

    /// As the Machine does it when the driver resets.
    fn reset(&mut self) {
        if let Some(id) = self.subscription.take() {
            self.events.remove_subscriber(id).unwrap();
        }
        self.device.lock().unwrap().deactivate();
    }

    fn turn(&mut self) {
        self.events.run_with_timeout(5000).unwrap();
    }

    /// The driver rings for queue 1, and the device looks.
    fn kick(&mut self) {
        self.kicks[1].write(1).unwrap();
        self.turn();
    }

    /// The backend calls for queue 1, and the device looks.
    fn call(&mut self) {
        self.backend.call(1);
        self.turn();
    }

    /// The driver makes a request with this unique number available on queue 1.
    fn request(&mut self, unique: u64) -> u16 {
        let mut header = [0; 40];
        header[8..16].copy_from_slice(&unique.to_le_bytes());
        self.memory.write_slice(&header, GuestAddress(REQUEST)).unwrap();
        self.drivers[1].add(&[(REQUEST, 40, 0), (ANSWER, 0x100, WRITE)])
    }

    /// Likewise, in more descriptors than it needs.
    fn request_split(&mut self, unique: u64) -> u16 {
        let mut header = [0; 40];
        header[8..16].copy_from_slice(&unique.to_le_bytes());
        header[32..].copy_from_slice(b"abcdefgh");
        self.memory
            .write_slice(&header[..13], GuestAddress(SPLIT_REQUEST))
            .unwrap();
        self.memory
            .write_slice(&header[13..], GuestAddress(SPLIT_REQUEST + 0x800))
            .unwrap();
        self.drivers[1].add(&[
            (SPLIT_REQUEST, 13, 0),
            (SPLIT_REQUEST + 0x800, 27, 0),
            (SPLIT_ANSWER, 3, WRITE),
            (SPLIT_ANSWER + 0x800, 0xFD, WRITE),
        ])
    }

    /// A request with so many bytes to read and so many to write.
    fn request_of(&mut self, (readable, writable): (u32, u32)) -> u16 {
        self.drivers[1].add(&[(LARGE, readable, 0), (LARGE, writable, WRITE)])
    }

    fn answer(&self) -> (u32, i32, u64) {
        let read = |at| GuestAddress(ANSWER + at);
        (
            self.memory.read_obj(read(0)).unwrap(),
            self.memory.read_obj(read(4)).unwrap(),
            self.memory.read_obj(read(8)).unwrap(),
        )
    }
}

#[test]
fn the_configuration_is_the_tag_and_the_request_queues() {
    let guest = Guest::new(Behaviour::Good);
    let device = guest.device.lock().unwrap();
    let mut config = [0xFF; 44];
    device.read_config(0, &mut config);
    assert_eq!(&config[..5], b"data\0");
    assert_eq!(config[36..], [1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    assert_eq!(device.queue_max_sizes(), [128, 128]);
    assert_eq!(
        device.features(),
        1 << 32 | 1 << 29 | 1 << 28,
        "the rings that the guest sees are this process's"
    );
}

#[test]
fn the_backend_gets_a_region_of_its_own_and_every_ring() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let heard = guest.backend.kept();
    let names: Vec<_> = heard.iter().map(Heard::name).collect();
    let queue = ["num", "addr", "base", "call", "kick", "enable"];
    let mut expected = vec!["owner", "protocol", "features", "region"];
    expected.extend(queue.iter().chain(&queue));
    assert_eq!(names, expected);
    let region = heard.iter().find_map(|message| match message {
        Heard::Region {
            size, host, offset, ..
        } => Some((*size, *host, *offset)),
        _ => None,
    });
    let (size, host, offset) = region.unwrap();
    assert_eq!(
        (size, offset),
        ((8 << 20) + 66 * 4096, 0),
        "buffers, and two rings"
    );
    let guests = guest.memory.get_host_address(GuestAddress(0)).unwrap().addr() as u64;
    assert!(host + size <= guests || guests + (64 << 20) <= host);
    let rings = heard.iter().find_map(|message| match message {
        Heard::Rings {
            queue: 1,
            descriptors,
            available,
            used,
        } => Some([*descriptors, *available, *used].map(|at| at - host)),
        _ => None,
    });
    let page = 65 * 4096;
    assert_eq!(rings, Some([page, page + 2048, page + 2312]));
    assert_eq!(guest.backend.ring(1).pages(), 0, "nothing is touched");
}

#[test]
fn requests_go_to_the_backend_and_answers_come_back() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let mut ring = guest.backend.ring(1);
    let heads = [guest.request(7), guest.request_split(8)];
    guest.kick();
    guest.backend.wait_for_kick(1);
    let taken = ring.take_all();
    assert_eq!(taken.len(), 2);
    assert!(
        taken
            .iter()
            .all(|taken| taken.request.len() == 40 && taken.answer.1 == 0x100)
    );
    assert_eq!(taken[1].request[8], 8);
    assert_eq!(taken[1].request[32..], *b"abcdefgh");
    // The second first.
    let answer: Vec<u8> = (0..200).collect();
    ring.answer(&taken[1], &answer);
    ring.answer(&taken[0], &[5; 16]);
    guest.call();
    assert_eq!(guest.drivers[1].take_used(), [(heads[1], 200), (heads[0], 16)]);
    assert_eq!(guest.interrupt.queue.load(Ordering::Relaxed), 1);
    let mut seen = [0; 200];
    let first = GuestAddress(SPLIT_ANSWER);
    guest.memory.read_slice(&mut seen[..3], first).unwrap();
    let second = GuestAddress(SPLIT_ANSWER + 0x800);
    guest.memory.read_slice(&mut seen[3..], second).unwrap();
    assert_eq!(seen[..], answer);
}

#[test]
fn a_full_region_makes_the_queue_wait_and_an_answer_continues_it() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let mut ring = guest.backend.ring(1);
    // Of each half a MiB is to be read; sixteen are more than fit, with their headers.
    let large = (1 << 19, 16);
    let heads: Vec<_> = (0..20).map(|_| guest.request_of(large)).collect();
    guest.kick();
    let taken = ring.take_all();
    assert_eq!(taken.len(), 15);
    assert_eq!(guest.drivers[1].take_used(), []);
    ring.answer(&taken[3], &[1; 16]);
    guest.call();
    assert_eq!(guest.drivers[1].take_used(), [(heads[3], 16)]);
    let next = ring.take_all();
    assert_eq!(next.len(), 1, "the room of one");
    for taken in taken
        .iter()
        .filter(|taken| taken.head != next[0].head)
        .chain(&next)
    {
        ring.answer(taken, &[1; 16]);
    }
    guest.call();
    assert_eq!(guest.drivers[1].take_used().len(), 15);
    assert_eq!(ring.take_all().len(), 4);
}

#[test]
fn there_are_no_more_requests_at_the_backend_than_slots() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let mut ring = guest.backend.ring(1);
    for _ in 0..3 {
        let heads: Vec<_> = (0..60).map(|unique| guest.request(unique)).collect();
        guest.kick();
        let mut answered = 0;
        while answered < heads.len() {
            let taken = ring.take_all();
            assert!(!taken.is_empty() && taken.len() <= 64);
            for taken in &taken {
                ring.answer(taken, &[1; 16]);
            }
            answered += taken.len();
            guest.call();
        }
        let used = guest.drivers[1].take_used();
        assert_eq!(used.iter().map(|used| used.0).collect::<Vec<_>>(), heads);
    }
    // A driver that offers one chain again and again, which a ring has no place for.
    let head = guest.request(1);
    (0..100).for_each(|_| guest.drivers[1].offer(head));
    guest.kick();
    assert_eq!(ring.take_all().len(), 64);
}

#[test]
fn buffers_go_back_to_the_host_when_the_device_rests() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let mut ring = guest.backend.ring(1);
    guest.request_of((1 << 19, 16));
    let kept = guest.request(1);
    guest.kick();
    let taken = ring.take_all();
    ring.answer(&taken[0], &[1; 16]);
    guest.call();
    assert!(ring.pages() > 128);
    let start = Instant::now();
    while ring.pages() > 2 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{} pages",
            ring.pages()
        );
        guest.turn();
    }
    assert_eq!(
        ring.pages(),
        2,
        "the ring's, and the one of the request that is not answered"
    );
    ring.answer(&taken[1], &[1; 16]);
    guest.drivers[1].take_used();
    guest.call();
    assert_eq!(guest.drivers[1].take_used(), [(kept, 16)]);
}

#[test]
fn after_a_reset_the_backend_serves_again() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    drop(guest.backend.heard());
    guest.reset();
    let names: Vec<_> = guest.backend.heard().iter().map(Heard::name).collect();
    assert_eq!(names, ["enable", "stop", "enable", "stop"]);
    guest.start();
    let heard = guest.backend.heard();
    assert_eq!(heard.first().map(Heard::name), Some("features"));
    assert_eq!(heard.last().map(Heard::name), Some("enable"));
}

#[test]
fn when_the_backend_dies_requests_fail_and_the_driver_is_told() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let mut ring = guest.backend.ring(1);
    let heads = [75, 76, 77].map(|unique| guest.request(unique));
    guest.kick();
    let late = guest.request(78);
    let taken = ring.take_all();
    ring.answer(&taken[1], &[9; 20]);
    guest.backend.die();
    guest.turn();
    assert_eq!(
        guest.drivers[1].take_used(),
        [(heads[1], 20), (heads[0], 16), (heads[2], 16), (late, 16)],
        "its last words, what it had not answered, and what it never saw"
    );
    assert_eq!(guest.answer(), (16, -5, 78));
    assert!(guest.interrupt.queue.load(Ordering::Relaxed) > 0);

    let later = guest.request(79);
    guest.kick();
    assert_eq!(guest.drivers[1].take_used(), [(later, 16)]);
    assert_eq!(guest.answer(), (16, -5, 79));

    guest.reset();
    guest.start();
    let again = guest.drivers[0].add(&[(REQUEST, 40, 0)]);
    guest.device.lock().unwrap().fail_all();
    assert_eq!(
        guest.drivers[0].take_used(),
        [(again, 0)],
        "FORGET has no room for an answer"
    );
}

#[test]
fn a_backend_that_refuses_memory_is_as_good_as_dead() {
    let mut guest = Guest::new(Behaviour::RefusesMemory);
    let head = guest.request(5);
    guest.start();
    assert_eq!(guest.drivers[1].take_used(), [(head, 16)]);
    assert_eq!(guest.answer(), (16, -5, 5));
}

#[test]
fn a_backend_that_cannot_serve_is_refused_with_the_reason() {
    let refusal = |behaviour| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let _backend = FakeBackend::start(theirs, behaviour);
        let error = Fs::new(ours, shape()).unwrap_err();
        crate::exit::one_line(&error)
    };
    for (behaviour, reason) in [
        (Behaviour::NoProtocolFeatures, "offers no protocol features"),
        (Behaviour::OneQueue, "queues: the backend serves 1, 2 are needed"),
        (Behaviour::HangsUp, "does not introduce itself"),
        (Behaviour::Babbles, "does not introduce itself"),
    ] {
        let text = refusal(behaviour);
        assert!(text.contains(reason), "{behaviour:?}: {text}");
    }
}

#[test]
fn a_silent_backend_is_not_waited_for_without_end() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // An event loop's socket: without a wait the exchange would spin.
    ours.set_nonblocking(true).unwrap();
    let error = Fs::new(ours, shape()).unwrap_err();
    let text = crate::exit::one_line(&error);
    assert!(text.contains("does not introduce itself within 5 s"), "{text}");
    let mut end = [0; 64];
    theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    loop {
        // Its questions, then the end of the connection.
        if std::io::Read::read(&mut &theirs, &mut end).unwrap() == 0 {
            break;
        }
    }
}
