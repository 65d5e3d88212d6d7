//! The card against a datagram socket in place of a tap, with a driver that the test plays.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use event_manager::EventSet;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;
use proptest::prelude::*;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP,
};
use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{self, Descriptor, DriverQueue, NEXT, WRITE};
use super::super::{GuestMemory, VirtioDevice};
use super::Net;
use super::header::{HEADER_LENGTH, MAX_FRAME, checked};

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFER: u64 = 0x8_0000;

struct Card {
    memory: GuestMemory,
    rx: DriverQueue,
    tx: DriverQueue,
    net: Net,
    wire: UnixDatagram,
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];

impl Card {
    fn new(features: u64) -> Self {
        Self::with_send_buffer(features, 1 << 20)
    }

    /// The socket in place of the tap takes about so many bytes of frames.
    fn with_send_buffer(features: u64, bytes: usize) -> Self {
        let memory = testing::guest_memory(0x100_0000);
        let rx = DriverQueue::new(&memory, 0x1_0000, 256);
        let tx = DriverQueue::new(&memory, 0x2_0000, 256);
        let (wire, tap) = UnixDatagram::pair().unwrap();
        wire.set_nonblocking(true).unwrap();
        setsockopt(&wire, SndBuf, &(1 << 20)).unwrap();
        setsockopt(&tap, SndBuf, &bytes).unwrap();
        let mut net = Net::on_socket(MAC, OwnedFd::from(tap)).unwrap();
        net.activate(testing::activation(&memory, &[&rx, &tx], features))
            .unwrap();
        Self {
            memory,
            rx,
            tx,
            net,
            wire,
        }
    }

    fn post(&mut self, count: usize, length: u32) {
        for _ in 0..count {
            let head = u64::from(self.rx.next_descriptor());
            self.rx
                .add(&[(RX_BUFFERS + 0x1_1000 * (head % 200), length, WRITE)]);
        }
    }

    /// A frame comes on the wire.
    fn arrive(&self, frame: &[u8]) {
        let mut datagram = vec![0; HEADER_LENGTH];
        datagram.extend(frame);
        assert_eq!(self.wire.send(&datagram).unwrap(), datagram.len());
    }

    /// Frames that the guest got, by the counts in their headers.
    fn received(&mut self) -> Vec<Vec<u8>> {
        self.net.receive();
        let mut frames = Vec::new();
        let mut used = self.rx.take_used().into_iter();
        while let Some((head, length)) = used.next() {
            let mut bytes = self.buffer(head, length);
            let count = u16::from_le_bytes([bytes[10], bytes[11]]);
            for _ in 1..count {
                let (head, length) = used.next().expect("as many buffers as the header tells");
                bytes.extend(self.buffer(head, length));
            }
            frames.push(bytes.split_off(HEADER_LENGTH));
        }
        frames
    }

    fn buffer(&self, head: u16, length: u32) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        let address = RX_BUFFERS + 0x1_1000 * (u64::from(head) % 200);
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// The guest sends a header and a frame in pieces of `piece` bytes.
    fn send(&mut self, header: [u8; HEADER_LENGTH], frame: &[u8], piece: usize) {
        let mut bytes = header.to_vec();
        bytes.extend(frame);
        self.memory.write_slice(&bytes, GuestAddress(TX_BUFFER)).unwrap();
        let chain: Vec<(u64, u32, u16)> = (0..bytes.len())
            .step_by(piece)
            .map(|from| {
                (
                    TX_BUFFER + from as u64,
                    u32::try_from(piece.min(bytes.len() - from)).unwrap(),
                    0,
                )
            })
            .collect();
        self.tx.add(&chain);
        self.net.transmit();
        assert_eq!(self.tx.take_used().len(), 1);
    }

    fn sent(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; MAX_FRAME];
        let count = self.wire.recv(&mut bytes).ok()?;
        bytes.truncate(count);
        Some(bytes)
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn a_large_frame_fills_several_buffers() {
    let mut card = Card::new(MERGEABLE);
    card.post(100, 1536);
    let frame = pattern(60_000);
    card.arrive(&frame);
    card.arrive(&[1; 60]);
    assert_eq!(card.received(), [frame, vec![1; 60]]);
    assert_eq!(card.net.wanted(), EventSet::IN);
}

#[test]
fn every_frame_length_around_buffer_ends_is_whole() {
    let mut card = Card::new(MERGEABLE);
    for length in (14..80).chain(170..230) {
        card.post(30, 100);
        let frame = pattern(length);
        card.arrive(&frame);
        assert_eq!(card.received(), [frame], "{length}");
        let left: usize = 30 - (length + HEADER_LENGTH).div_ceil(100);
        // Fresh rings for each length would hide lost buffers: the rest is used up here.
        for _ in 0..left {
            card.arrive(&[0; 14]);
        }
        assert_eq!(card.received().len(), left);
    }
}

#[test]
fn a_frame_waits_for_buffers_and_the_tap_is_not_watched() {
    let mut card = Card::new(MERGEABLE);
    let frame = pattern(5000);
    card.arrive(&frame);
    card.arrive(&[2; 100]);
    assert_eq!(card.received(), [] as [Vec<u8>; 0]);
    assert_eq!(card.net.wanted(), EventSet::empty());
    card.post(2, 1500);
    assert_eq!(card.received(), [] as [Vec<u8>; 0]);
    assert_eq!(card.net.wanted(), EventSet::empty());
    card.post(2, 1500);
    assert_eq!(card.received(), std::slice::from_ref(&frame));
    card.post(1, 1500);
    assert_eq!(card.received(), [vec![2; 100]]);
}

#[test]
fn without_merged_buffers_each_frame_has_one() {
    let mut card = Card::new(0);
    card.post(3, 1526);
    card.arrive(&[1; 1514]);
    card.arrive(&[2; 1515]);
    card.arrive(&[3; 60]);
    // The second is longer than the buffer and lost; the buffer is not.
    assert_eq!(card.received(), [vec![1; 1514], vec![3; 60]]);
    card.arrive(&[4; 60]);
    assert_eq!(card.received(), [vec![4; 60]]);
}

#[test]
fn a_full_queue_of_tiny_buffers_does_not_block_the_card() {
    let mut card = Card::new(MERGEABLE);
    card.post(256, 20);
    card.arrive(&pattern(6000));
    card.arrive(&[1; 14]);
    assert_eq!(card.received(), [vec![1; 14]]);
}

#[test]
fn frames_go_out_whole_however_they_are_cut() {
    let mut card = Card::new(0);
    let frame = pattern(3000);
    for piece in [3012, 1000, 100, 20] {
        card.send([0; HEADER_LENGTH], &frame, piece);
        let sent = card.sent().unwrap();
        assert_eq!(sent[..HEADER_LENGTH], [0; HEADER_LENGTH]);
        assert_eq!(sent[HEADER_LENGTH..], frame);
    }
    let largest = pattern(MAX_FRAME - HEADER_LENGTH);
    card.send([0; HEADER_LENGTH], &largest, 4096);
    assert_eq!(card.sent().unwrap()[HEADER_LENGTH..], largest);
}

#[test]
fn what_is_no_frame_is_not_sent() {
    let mut card = Card::new(0);
    card.send([0; HEADER_LENGTH], &[0; 13], 100);
    card.send([0; HEADER_LENGTH], &vec![0; MAX_FRAME - HEADER_LENGTH + 1], 4096);
    for chain in [(TX_BUFFER, 100, WRITE), (u64::MAX - 5, 100, 0), (TX_BUFFER, 0, 0)] {
        card.tx.add(&[chain]);
    }
    let head = card.tx.next_descriptor();
    card.tx.store(
        head,
        Descriptor {
            address: TX_BUFFER,
            length: 100,
            flags: NEXT,
            next: head,
        },
    );
    card.tx.offer(head);
    card.net.transmit();
    assert_eq!(card.tx.take_used().len(), 4);
    assert_eq!(card.sent(), None);
}

#[test]
fn a_full_tap_is_waited_for_and_no_frame_is_lost() {
    const FRAMES: u64 = 100;
    let mut card = Card::with_send_buffer(0, 4096);
    for number in 0..FRAMES {
        let address = TX_BUFFER + 0x40 * number;
        card.memory
            .write_slice(&[0; HEADER_LENGTH], GuestAddress(address))
            .unwrap();
        card.memory.write_obj(number, GuestAddress(address + 12)).unwrap();
        card.tx.add(&[(address, 60, 0)]);
    }
    card.net.transmit();
    assert_eq!(
        card.net.wanted() & EventSet::OUT,
        EventSet::OUT,
        "the socket takes {FRAMES} frames at once"
    );
    let mut sent = Vec::new();
    while sent.len() < 100 {
        let frame = card.sent().expect("a frame");
        sent.push(u64::from_le_bytes(frame[12..20].try_into().unwrap()));
        card.net.transmit();
    }
    assert_eq!(sent, (0..FRAMES).collect::<Vec<_>>());
    assert_eq!(card.net.wanted() & EventSet::OUT, EventSet::empty());
    assert_eq!(card.tx.take_used().len(), 100);
}

#[test]
fn headers_may_ask_for_what_was_negotiated_only() {
    let header = |flags: u32, gso: u32| {
        let mut header = [7; HEADER_LENGTH];
        header[0] = u8::try_from(flags).unwrap();
        header[1] = u8::try_from(gso).unwrap();
        header
    };
    let offloads = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
    assert_eq!(
        checked(header(0, 0), 0),
        Some([0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0])
    );
    assert_eq!(checked(header(1, 0), 0), None);
    assert_eq!(checked(header(1, 0), offloads).map(|header| header[0]), Some(1));
    assert_eq!(checked(header(0xfe, 0), 0).map(|header| header[0]), Some(0));
    assert_eq!(checked(header(0, VIRTIO_NET_HDR_GSO_TCPV4), 0), None);
    assert!(checked(header(1, VIRTIO_NET_HDR_GSO_TCPV4), offloads).is_some());
    assert_eq!(checked(header(1, VIRTIO_NET_HDR_GSO_TCPV6), offloads), None);
    assert_eq!(checked(header(1, VIRTIO_NET_HDR_GSO_UDP), u64::MAX), None);
    assert_eq!(
        checked(header(1, VIRTIO_NET_HDR_GSO_TCPV4 | 0x80), offloads),
        None
    );
    assert_eq!(checked(header(0, 0x80), u64::MAX), None);
}

#[test]
fn the_configuration_is_address_and_link() {
    let net = Card::new(0).net;
    let mut config = [0xff; 10];
    net.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 10, 1, 0, 0xff, 0xff]);
}

#[test]
fn an_impossible_ring_index_stops_the_card_until_its_reset() {
    let mut card = Card::new(MERGEABLE);
    card.tx.set_available(30_000);
    card.net.transmit();
    card.arrive(&[1; 60]);
    card.net.receive();
    card.net.deactivate();
    card.rx = DriverQueue::new(&card.memory, 0x3_0000, 256);
    card.tx = DriverQueue::new(&card.memory, 0x4_0000, 256);
    let activation = testing::activation(&card.memory, &[&card.rx, &card.tx], MERGEABLE);
    card.net.activate(activation).unwrap();
    card.post(50, 1536);
    assert_eq!(card.received(), [vec![1; 60]]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Frames of any length into buffers of any length come out whole, in order and once.
    #[test]
    fn frames_are_kept(
        frames in prop::collection::vec(14_usize..9000, 1..12),
        buffers in prop::collection::vec(13_u32..4000, 1..12),
    ) {
        let mut card = Card::new(MERGEABLE);
        let mut expected = Vec::new();
        let mut seen = Vec::new();
        for (number, length) in frames.iter().enumerate() {
            let frame = vec![u8::try_from(number).unwrap(); *length];
            card.arrive(&frame);
            expected.push(frame);
        }
        for _ in 0..20 {
            for buffer in &buffers {
                card.post(1, *buffer);
            }
            seen.extend(card.received());
        }
        let total: u64 = buffers.iter().map(|length| u64::from(*length)).sum::<u64>() * 20;
        // With too little room in all, a prefix.
        prop_assert_eq!(&seen[..], &expected[..seen.len()]);
        if total > 200_000 {
            prop_assert_eq!(seen.len(), expected.len());
        }
    }
}
