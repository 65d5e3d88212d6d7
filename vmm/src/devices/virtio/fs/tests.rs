//! The device between a driver that the test plays and a backend that a thread plays (`backend`).

mod backend;
mod virtiofsd;

use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{CountedInterrupt, DriverQueue, WRITE, activation};
use super::super::{Activation, GuestMemory, VirtioDevice};
use super::*;
use crate::config::FsShape;
use crate::event_loop::{DeviceSubscriber, Subscriber};
use crate::memory::layout::RamLayout;
use crate::memory::map_ram;
use backend::{Behaviour, FakeBackend, Heard};

use std::sync::{Arc, Mutex};

const MIB: u64 = 1 << 20;
const REQUEST: u64 = 0x2_0000;
const ANSWER: u64 = 0x2_1000;

fn memory(shared: bool) -> GuestMemory {
    map_ram(RamLayout::new(64 * MIB, 128 * MIB), shared).unwrap()
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
    device: Arc<Mutex<Fs>>,
    events: EventManager<Subscriber>,
    subscription: Option<SubscriberId>,
    backend: FakeBackend,
}

impl Guest {
    fn new(behaviour: Behaviour) -> Self {
        let memory = memory(true);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let backend = FakeBackend::start(theirs, behaviour);
        let device = Fs::new(ours, shape(), &memory).unwrap();
        let drivers = (0..2)
            .map(|queue| DriverQueue::new(&memory, 0x4000 * queue, 128))
            .collect();
        Self {
            memory,
            drivers,
            interrupt: Arc::default(),
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

    /// The driver makes a request with this unique number available on queue 1.
    fn request(&mut self, unique: u64) -> u16 {
        let mut header = [0; 40];
        header[8..16].copy_from_slice(&unique.to_le_bytes());
        self.memory.write_slice(&header, GuestAddress(REQUEST)).unwrap();
        self.drivers[1].add(&[(REQUEST, 40, 0), (ANSWER, 0x100, WRITE)])
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
        1 << 32 | 1 << 28,
        "what both know, and none of vhost-user's own"
    );
}

#[test]
fn the_backend_gets_all_memory_and_every_queue() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let heard = guest.backend.heard();
    let regions: Vec<_> = heard
        .iter()
        .filter_map(|message| match message {
            Heard::Region {
                guest, size, offset, ..
            } => Some((*guest, *size, *offset)),
            _ => None,
        })
        .collect();
    assert_eq!(
        regions,
        [(0, 64 * MIB, 0), (4 << 30, 128 * MIB, 64 * MIB)],
        "with what can be plugged later"
    );
    let names: Vec<_> = heard.iter().map(Heard::name).collect();
    let queue = ["num", "addr", "base", "call", "kick", "enable"];
    let mut expected = vec!["owner", "protocol", "features", "region", "region"];
    expected.extend(queue.iter().chain(&queue));
    assert_eq!(names, expected);
    let host = heard.iter().find_map(|message| match message {
        Heard::Region { guest: 0, host, .. } => Some(*host),
        _ => None,
    });
    let rings = heard.iter().find_map(|message| match message {
        Heard::Rings {
            queue: 1,
            descriptors,
            available,
            used,
        } => Some([*descriptors, *available, *used]),
        _ => None,
    });
    let base = host.unwrap() + 0x4000;
    assert_eq!(rings, Some([base, base + 0x1000, base + 0x2000]));
}

#[test]
fn kicks_go_to_the_backend_and_calls_interrupt_the_driver() {
    let mut guest = Guest::new(Behaviour::Good);
    let activation = guest.activation();
    let kick = Arc::clone(&activation.queues[1].notify);
    guest.device.lock().unwrap().activate(activation).unwrap();
    let subscriber = DeviceSubscriber(Arc::<Mutex<Fs>>::clone(&guest.device));
    guest.events.add_subscriber(Subscriber::Device(subscriber));
    kick.write(1).unwrap();
    guest.backend.wait_for_kick(1);
    guest.backend.call(1);
    guest.turn();
    assert_eq!(guest.interrupt.queue.load(Ordering::Relaxed), 1);
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
    let taken = guest.request(77);
    guest.backend.die();
    guest.turn();
    assert_eq!(
        guest.drivers[1].take_used(),
        [(taken, 16)],
        "what it had not answered"
    );
    assert_eq!(guest.answer(), (16, -5, 77));
    assert!(guest.interrupt.queue.load(Ordering::Relaxed) > 0);

    let later = guest.request(78);
    guest.device.lock().unwrap().fail_all();
    assert_eq!(guest.drivers[1].take_used(), [(later, 16)]);
    assert_eq!(guest.answer(), (16, -5, 78));

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
        let error = Fs::new(ours, shape(), &memory(true)).unwrap_err();
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
    let error = Fs::new(ours, shape(), &memory(true)).unwrap_err();
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

#[test]
fn private_memory_cannot_be_served() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = Fs::new(ours, shape(), &memory(false)).unwrap_err();
    assert!(error.to_string().starts_with("memory_shared: "), "{error}");
}

#[test]
fn rings_across_an_end_of_memory_are_the_drivers_mistake() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.drivers[1] = DriverQueue::new(&guest.memory, 0x8000, 128);
    let mut activation = guest.activation();
    let top = u32::try_from(64 * MIB - 1024).unwrap();
    virtio_queue::QueueT::set_desc_table_address(&mut activation.queues[1].queue, Some(top), Some(0));
    let refused = guest.device.lock().unwrap().activate(activation).unwrap_err();
    assert!(refused.to_string().contains("a ring lies across"), "{refused}");
}
