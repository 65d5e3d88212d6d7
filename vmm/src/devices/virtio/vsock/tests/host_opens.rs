//! Connections that the host opens.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use super::super::handshake::{Greeting, parse_line};
use super::super::packet::{Operation, Ports};
use super::driver::{Guest, bytes, is_at_end, operations, read_some};

/// Where the guest answers a REQUEST.
fn ports_of(packet: &super::driver::Packet) -> Ports {
    Ports {
        host: packet.header.source_port,
        guest: packet.header.destination_port,
    }
}

#[test]
fn the_greeting_is_a_line() {
    let cases: [(&[u8], Greeting); 12] = [
        (b"", Greeting::Incomplete),
        (b"CONNECT 10", Greeting::Incomplete),
        (b"CONNECT 10\n", Greeting::Port(10)),
        (b"CONNECT 10\r\n", Greeting::Port(10)),
        (b"CONNECT 4294967295\nrest", Greeting::Port(u32::MAX)),
        (b"CONNECT 4294967296\n", Greeting::Refused),
        (b"CONNECT -1\n", Greeting::Refused),
        (b"CONNECT +1\n", Greeting::Refused),
        (b"CONNECT \n", Greeting::Refused),
        (b"connect 1\n", Greeting::Refused),
        (b"\xff\xff\n", Greeting::Refused),
        (b"CONNECT 00000000000001", Greeting::Refused),
    ];
    for (line, expected) in cases {
        assert_eq!(parse_line(line).0, expected, "{line:?}");
    }
}

#[test]
fn the_client_is_answered_with_its_port() {
    let mut guest = Guest::new();
    let mut client = guest.dial(5000);
    // Sent before the answer: it belongs to the guest.
    client.write_all(b"early").unwrap();
    let packets = guest.received();
    assert_eq!(operations(&packets), [Operation::Request]);
    let ports = ports_of(&packets[0]);
    assert_eq!(ports.guest, 5000);
    assert!(packets[0].header.buf_alloc > 0);

    guest.send(ports, Operation::Response);
    assert_eq!(bytes(&guest.received()), b"early");
    guest.send_data(ports, b"data\n");
    let mut lines = BufReader::new(client);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, format!("OK {}\n", ports.host));
    line.clear();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "data\n");
}

#[test]
fn a_port_that_the_guest_refuses_closes_the_client() {
    let mut guest = Guest::new();
    let mut client = guest.dial(5000);
    let ports = ports_of(&guest.received()[0]);
    guest.send(ports, Operation::Reset);
    assert!(is_at_end(&mut client));
    assert_eq!(guest.device.muxer().connection_count(), 0);
}

#[test]
fn a_client_that_gives_up_is_told_to_the_guest() {
    let mut guest = Guest::new();
    let client = guest.dial(5000);
    let ports = ports_of(&guest.received()[0]);
    drop(client);
    let packets = guest.received();
    assert_eq!(operations(&packets), [Operation::Reset]);
    assert_eq!(ports_of(&packets[0]), ports);
    // The guest's answer was on its way.
    guest.send(ports, Operation::Response);
    assert_eq!(operations(&guest.received()), [Operation::Reset]);
}

#[test]
fn a_client_that_speaks_something_else_is_closed() {
    let mut guest = Guest::new();
    let mut client = UnixStream::connect(guest.path()).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert_eq!(operations(&guest.received()), []);
    let mut rest = Vec::new();
    // Bytes that it sent are unread, so this may be a reset instead of an end.
    if client.read_to_end(&mut rest).is_ok() {
        assert_eq!(rest, b"");
    }
    assert_eq!(guest.device.muxer().connection_count(), 0);
}

#[test]
fn a_greeting_may_come_in_pieces() {
    let mut guest = Guest::new();
    let mut client = UnixStream::connect(guest.path()).unwrap();
    for piece in ["CON", "NECT", " 7", "\n"] {
        guest.device.host_pass();
        assert_eq!(operations(&guest.received()), []);
        client.write_all(piece.as_bytes()).unwrap();
    }
    assert_eq!(operations(&guest.received()), [Operation::Request]);
}

#[test]
fn clients_that_came_before_the_driver_are_served() {
    let mut guest = Guest::new();
    guest.power_off();
    let mut client = guest.dial(9);
    guest.reboot();
    let packets = guest.wait_for(1);
    guest.send(ports_of(&packets[0]), Operation::Response);
    assert_eq!(read_some(&mut client, 3), b"OK ");
}

#[test]
fn every_client_has_a_port_of_its_own() {
    let mut guest = Guest::new();
    let _clients: Vec<_> = (0..50).map(|_| guest.dial(9)).collect();
    let mut hosts: Vec<u32> = guest
        .wait_for(50)
        .iter()
        .map(|packet| packet.header.source_port)
        .collect();
    hosts.sort_unstable();
    hosts.dedup();
    assert_eq!(hosts.len(), 50);
}
