//! What a driver must not do.

use std::sync::{Arc, OnceLock};

use proptest::prelude::*;

use super::super::super::VirtioDevice;
use super::super::super::testing::{Descriptor, NEXT, WRITE};
use super::super::device::{Vsock, VsockError};
use super::super::muxer::MAX_STRAY_RESETS;
use super::super::packet::{Header, Operation, Ports};
use super::driver::{CID, Guest, is_at_end, operations, read_some};

const PORTS: Ports = Ports {
    host: 1024,
    guest: 77,
};

#[test]
fn packets_without_a_connection_are_reset_but_a_reset_is_not() {
    let mut guest = Guest::new();
    for operation in [
        Operation::Response,
        Operation::Shutdown,
        Operation::Data,
        Operation::CreditUpdate,
        Operation::CreditRequest,
        Operation::Unknown(0),
        Operation::Unknown(99),
    ] {
        guest.send(PORTS, operation);
        assert_eq!(operations(&guest.received()), [Operation::Reset], "{operation:?}");
    }
    guest.send(PORTS, Operation::Reset);
    assert_eq!(operations(&guest.received()), []);
}

#[test]
fn another_socket_type_or_destination_is_reset() {
    let mut guest = Guest::new();
    let _listener = guest.listen(1024);
    let request = guest.header(PORTS, Operation::Request);
    guest.send_header(Header { kind: 2, ..request }, &[]);
    guest.send_header(
        Header {
            destination_cid: 7,
            ..request
        },
        &[],
    );
    let packets = guest.received();
    assert_eq!(operations(&packets), [Operation::Reset, Operation::Reset]);
    assert_eq!(packets[0].header.kind, 2);
    assert_eq!(packets[1].header.source_cid, 7);
}

#[test]
fn a_foreign_source_is_ignored() {
    let mut guest = Guest::new();
    let request = guest.header(PORTS, Operation::Request);
    for source_cid in [0, 2, u64::from(CID) + 1, u64::from(CID) | 1 << 32] {
        guest.send_header(
            Header {
                source_cid,
                ..request
            },
            &[],
        );
    }
    assert_eq!(operations(&guest.received()), []);
}

#[test]
fn a_second_request_ends_the_connection() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    guest.send(PORTS, Operation::Request);
    assert_eq!(operations(&guest.received()), [Operation::Reset]);
    assert!(is_at_end(&mut host));
}

#[test]
fn chains_that_are_no_packets_are_handed_back() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    guest.tx.take_used();
    let too_short: [&[(u64, u32, u16)]; 6] = [
        &[(0x40_0000, 43, 0)],
        &[(0x40_0000, 0, 0)],
        &[(0x40_0000, 44, WRITE)],
        &[(u64::MAX - 10, 44, 0)],
        &[(0xff_fff0, 44, 0)],
        &[(0x40_0000, 44, WRITE), (0x40_0000, 44, 0)],
    ];
    for chain in too_short {
        guest.tx.add(chain);
        guest.device.pass();
        assert_eq!(guest.tx.take_used().len(), 1, "{chain:?}");
    }
    let head = guest.tx.next_descriptor();
    guest.tx.store(
        head,
        Descriptor {
            address: 0x40_0000,
            length: 44,
            flags: NEXT,
            next: head,
        },
    );
    guest.tx.offer(head);
    guest.device.pass();
    assert_eq!(guest.tx.take_used(), [(head, 0)]);
    // A header that promises more than there is.
    guest.send_header(
        Header {
            length: 9,
            ..guest.header(PORTS, Operation::Data)
        },
        b"12345678",
    );

    assert_eq!(operations(&guest.received()), []);
    guest.send_data(PORTS, b"good");
    assert_eq!(read_some(&mut host, 4), b"good");
}

#[test]
fn useless_rx_buffers_are_handed_back_and_no_packet_is_lost() {
    let mut guest = Guest::without_buffers();
    guest.send(PORTS, Operation::Request);
    guest.rx.add(&[(0x10_0000, 4096, 0)]);
    guest.rx.add(&[(0x10_0000, 44, WRITE)]);
    guest.rx.add(&[(u64::MAX, 4096, WRITE)]);
    guest.device.host_pass();
    let lengths: Vec<u32> = guest.rx.take_used().iter().map(|(_, length)| *length).collect();
    assert_eq!(lengths, [0, 0, 0]);
    guest.rx.add(&[(0x10_0000, 20, WRITE), (0x10_0100, 25, WRITE)]);
    guest.device.host_pass();
    assert_eq!(guest.rx.take_used().len(), 1);
}

/// Packets that fit into the tx queue, three descriptors each.
const PENDING: usize = 40;

#[test]
fn a_guest_that_takes_no_resets_is_not_listened_to() {
    let mut guest = Guest::without_buffers();
    for _ in 0..MAX_STRAY_RESETS + PENDING {
        guest.send(PORTS, Operation::Data);
    }
    let taken = guest.tx.take_used().len();
    assert!(
        (MAX_STRAY_RESETS..MAX_STRAY_RESETS + PENDING).contains(&taken),
        "{taken}"
    );
    guest.post_buffers(128);
    let mut resets = 0;
    while resets < MAX_STRAY_RESETS + PENDING {
        let packets = guest.received();
        assert!(!packets.is_empty(), "only {resets} came");
        resets += packets.len();
    }
    assert_eq!(resets, MAX_STRAY_RESETS + PENDING);
}

#[test]
fn an_impossible_ring_index_stops_the_device_until_its_reset() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    guest.tx.set_available(40_000);
    guest.device.pass();
    assert!(is_at_end(&mut host));
    guest.device.pass();
    guest.reboot();
    guest.open(PORTS, &listener);
}

#[test]
fn the_configuration_is_the_cid() {
    let guest = Guest::new();
    let mut data = [0xff; 10];
    guest.device.read_config(0, &mut data);
    assert_eq!(data, [CID as u8, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
}

#[test]
fn bad_configurations_are_refused_by_field() {
    let directory = tempfile::tempdir().unwrap();
    let make = |cid: u32, path: &std::path::Path| Vsock::new(cid, path, Arc::new(OnceLock::new()));
    for cid in [0, 1, 2, u32::MAX] {
        let error = make(cid, &directory.path().join("v")).unwrap_err();
        assert!(error.to_string().contains("guest_cid"), "{error}");
    }
    let long = directory.path().join("x".repeat(100));
    assert!(matches!(make(3, &long), Err(VsockError::PathTooLong(_))));
    assert!(matches!(
        make(3, &directory.path().join("no/v")),
        Err(VsockError::Listen { .. })
    ));
    let taken = directory.path().join("v");
    let first = make(3, &taken).unwrap();
    assert!(matches!(make(3, &taken), Err(VsockError::Listen { .. })));
    drop(first);
    assert!(!taken.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any bytes as packets: no panic, no more connections than the limit, and the device still serves.
    #[test]
    fn any_bytes_are_survived(packets in prop::collection::vec(any::<[u8; 44]>(), 1..40)) {
        let mut guest = Guest::new();
        for packet in packets {
            guest.send_header(Header::decode(&packet), &[0; 100]);
            guest.received();
        }
        let listener = guest.listen(4242);
        guest.open(Ports { host: 4242, guest: 1 }, &listener);
    }

    #[test]
    fn headers_survive_the_wire(bytes in any::<[u8; 44]>()) {
        prop_assert_eq!(Header::decode(&bytes).encode(), bytes);
    }
}
