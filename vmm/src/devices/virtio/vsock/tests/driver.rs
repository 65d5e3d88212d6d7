//! A guest's vsock driver in the test's hands: sends any packet, and collects what the device sends.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::super::super::testing::{self, DriverQueue, WRITE};
use super::super::super::{GuestMemory, VirtioDevice};
use super::super::HOST_CID;
use super::super::device::{SavedVsock, Vsock};
use super::super::packet::{HEADER_LENGTH, Header, Operation, Ports, TYPE_STREAM};

pub(super) const CID: u32 = 42;
const QUEUE: u16 = 128;
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x40_0000;
/// Like Linux's, one page.
pub(super) const RX_BUFFER: u32 = 4096;
const TX_BUFFER: u64 = 0x1_1000;
const EVENT_BUFFERS: u64 = 0x4_0000;

/// A packet that came to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

pub(super) struct Guest {
    pub(super) device: Vsock,
    pub(super) memory: GuestMemory,
    pub(super) rx: DriverQueue,
    pub(super) tx: DriverQueue,
    events: DriverQueue,
    pub(super) first_connection: Arc<OnceLock<u64>>,
    directory: tempfile::TempDir,
    tx_slot: u64,
    /// The guest's window, as it tells it.
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Guest {
    /// With a driver and a full rx queue.
    pub(super) fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.post_buffers(QUEUE);
        guest
    }

    /// With a driver that comes from a snapshot. Its rx queue is full, its event queue empty.
    pub(super) fn restored() -> Self {
        Self::restored_from(SavedVsock::default())
    }

    pub(super) fn restored_from(saved: SavedVsock) -> Self {
        Self::restored_with(saved, true)
    }

    /// Likewise, with an event queue that it has not enabled.
    pub(super) fn restored_deaf() -> Self {
        Self::restored_with(SavedVsock::default(), false)
    }

    fn restored_with(saved: SavedVsock, hears: bool) -> Self {
        let mut guest = Self::offered();
        guest.device = guest.device.restored(saved);
        let queues = [&guest.rx, &guest.tx, &guest.events];
        let mut activation = testing::activation(&guest.memory, &queues, 0);
        activation.queues[2].queue.set_ready(hears);
        guest.device.activate(activation).unwrap();
        guest.post_buffers(QUEUE);
        guest
    }

    /// With a driver that has not posted anything.
    pub(super) fn without_buffers() -> Self {
        let mut guest = Self::offered();
        guest.activate();
        guest
    }

    fn offered() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let first_connection = Arc::new(OnceLock::new());
        let path = directory.path().join("v");
        let device = Vsock::new(CID, &path, Arc::clone(&first_connection)).unwrap();
        let memory = testing::guest_memory(0x100_0000);
        let rx = DriverQueue::new(&memory, 0x1_0000, QUEUE);
        let tx = DriverQueue::new(&memory, 0x2_0000, QUEUE);
        let events = DriverQueue::new(&memory, 0x3_0000, 16);
        Self {
            device,
            memory,
            rx,
            tx,
            events,
            first_connection,
            directory,
            tx_slot: 0,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
        }
    }

    pub(super) fn activate(&mut self) {
        let queues = [&self.rx, &self.tx, &self.events];
        self.device
            .activate(testing::activation(&self.memory, &queues, 0))
            .unwrap();
    }

    /// As after a reboot: new rings, and the device reset.
    pub(super) fn reboot(&mut self) {
        self.device.deactivate();
        self.rx = DriverQueue::new(&self.memory, 0x5_0000, QUEUE);
        self.tx = DriverQueue::new(&self.memory, 0x6_0000, QUEUE);
        self.activate();
        self.post_buffers(QUEUE);
    }

    /// The driver has gone.
    pub(super) fn power_off(&mut self) {
        self.device.deactivate();
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("v")
    }

    /// A host program that listens on `port`.
    pub(super) fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.directory.path().join(format!("v_{port}"))).unwrap()
    }

    /// A host client that has said which port it wants.
    pub(super) fn dial(&self, port: u32) -> UnixStream {
        let mut client = UnixStream::connect(self.path()).unwrap();
        client.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        client
    }

    pub(super) fn post_buffers(&mut self, count: u16) {
        for _ in 0..count {
            let head = self.rx.next_descriptor();
            self.rx.add(&[(
                RX_BUFFERS + u64::from(RX_BUFFER) * u64::from(head),
                RX_BUFFER,
                WRITE,
            )]);
        }
    }

    pub(super) fn post_event_buffers(&mut self, count: u16) {
        for _ in 0..count {
            let at = EVENT_BUFFERS + 8 * u64::from(self.events.next_descriptor());
            self.memory.write_obj(u32::MAX, GuestAddress(at)).unwrap();
            self.events.add(&[(at, 4, WRITE)]);
        }
    }

    /// The events that have come: length and number, which is 0 where there is none.
    pub(super) fn take_events(&mut self) -> Vec<(u32, u32)> {
        let used = self.events.take_used().into_iter();
        used.map(|(head, length)| {
            let at = GuestAddress(EVENT_BUFFERS + 8 * u64::from(head));
            let number = if length == 0 {
                0
            } else {
                self.memory.read_obj(at).unwrap()
            };
            (length, number)
        })
        .collect()
    }

    pub(super) fn header(&self, ports: Ports, operation: Operation) -> Header {
        Header {
            source_cid: u64::from(CID),
            destination_cid: HOST_CID,
            source_port: ports.guest,
            destination_port: ports.host,
            length: 0,
            kind: TYPE_STREAM,
            operation,
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    /// Sends a packet and lets the device run.
    pub(super) fn send(&mut self, ports: Ports, operation: Operation) {
        self.send_header(self.header(ports, operation), &[]);
    }

    pub(super) fn shut_down(&mut self, ports: Ports, flags: u32) {
        self.send_header(
            Header {
                flags,
                ..self.header(ports, Operation::Shutdown)
            },
            &[],
        );
    }

    pub(super) fn send_data(&mut self, ports: Ports, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap();
        self.send_header(
            Header {
                length,
                ..self.header(ports, Operation::Data)
            },
            payload,
        );
    }

    pub(super) fn send_header(&mut self, header: Header, payload: &[u8]) {
        let slot = TX_BUFFERS + TX_BUFFER * self.tx_slot;
        self.tx_slot = (self.tx_slot + 1) % 64;
        self.memory
            .write_slice(&header.encode(), GuestAddress(slot))
            .unwrap();
        self.memory
            .write_slice(payload, GuestAddress(slot + 0x1000))
            .unwrap();
        // In three pieces: a device must not care.
        let (first, second) = payload.split_at(payload.len() / 3);
        let header_length = u32::try_from(HEADER_LENGTH).unwrap();
        let first_length = u32::try_from(first.len()).unwrap();
        let second_length = u32::try_from(second.len()).unwrap();
        self.tx.add(&[
            (slot, header_length, 0),
            (slot + 0x1000, first_length, 0),
            (slot + 0x1000 + u64::from(first_length), second_length, 0),
        ]);
        self.device.pass();
    }

    /// Every packet that has come; the buffers go back to the rx queue.
    pub(super) fn received(&mut self) -> Vec<Packet> {
        let packets = self.received_and_kept();
        // Buffers are used in order here, so the oldest ones go back first.
        self.post_buffers(u16::try_from(packets.len()).unwrap());
        packets
    }

    /// Every packet that has come; their buffers stay with the driver.
    pub(super) fn received_and_kept(&mut self) -> Vec<Packet> {
        // A new client is three events after each other: accepted, heard, answered.
        for _ in 0..3 {
            self.device.host_pass();
        }
        let mut packets = Vec::new();
        for (head, length) in self.rx.take_used() {
            let mut bytes = vec![0; length as usize];
            let address = GuestAddress(RX_BUFFERS + u64::from(RX_BUFFER) * u64::from(head));
            self.memory.read_slice(&mut bytes, address).unwrap();
            let header = Header::decode(bytes[..HEADER_LENGTH].try_into().unwrap());
            assert_eq!(header.length as usize + HEADER_LENGTH, bytes.len(), "{header:?}");
            packets.push(Packet {
                header,
                payload: bytes.split_off(HEADER_LENGTH),
            });
        }
        packets
    }

    /// Runs the device until `count` packets have come.
    pub(super) fn wait_for(&mut self, count: usize) -> Vec<Packet> {
        let mut packets = Vec::new();
        let until = Instant::now() + Duration::from_secs(5);
        while packets.len() < count {
            assert!(Instant::now() < until, "only these packets came: {packets:?}");
            packets.extend(self.received());
            std::thread::sleep(Duration::from_millis(1));
        }
        packets
    }

    /// Opens a connection from the guest to `listener`.
    pub(super) fn open(&mut self, ports: Ports, listener: &UnixListener) -> UnixStream {
        self.send(ports, Operation::Request);
        let (socket, _) = listener.accept().unwrap();
        assert_eq!(operations(&self.received()), [Operation::Response]);
        socket
    }
}

pub(super) fn operations(packets: &[Packet]) -> Vec<Operation> {
    packets.iter().map(|packet| packet.header.operation).collect()
}

/// The payload of all data packets in a row.
pub(super) fn bytes(packets: &[Packet]) -> Vec<u8> {
    packets.iter().flat_map(|packet| packet.payload.clone()).collect()
}

pub(super) fn read_some(socket: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

/// Whether the other side has closed or shut down, with nothing left to read.
pub(super) fn is_at_end(socket: &mut UnixStream) -> bool {
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    matches!(socket.read(&mut [0]), Ok(0))
}
