//! Connections that the guest opens, and how connections end.

use std::io::{Read, Write};
use std::net::Shutdown;

use super::super::packet::{Operation, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::driver::{Guest, bytes, is_at_end, operations, read_some};

const PORTS: Ports = Ports {
    host: 1024,
    guest: 77,
};

#[test]
fn bytes_go_both_ways() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    assert_eq!(guest.first_connection.get(), None);
    let mut host = guest.open(PORTS, &listener);
    assert!(guest.first_connection.get().is_some_and(|time| *time > 0));

    guest.send_data(PORTS, b"from the guest");
    assert_eq!(read_some(&mut host, 14), b"from the guest");
    host.write_all(b"from the host").unwrap();
    let packets = guest.received();
    assert_eq!(operations(&packets), [Operation::Data]);
    assert_eq!(
        packets[0].header.ports(),
        Ports {
            host: 77,
            guest: 1024
        }
    );
    assert_eq!(bytes(&packets), b"from the host");
}

#[test]
fn a_port_that_nobody_listens_on_is_reset() {
    let mut guest = Guest::new();
    guest.send(PORTS, Operation::Request);
    let packets = guest.received();
    assert_eq!(operations(&packets), [Operation::Reset]);
    assert_eq!(packets[0].header.source_port, 1024);
    assert_eq!(packets[0].header.destination_port, 77);
    assert_eq!(guest.device.muxer().connection_count(), 0);
}

#[test]
fn a_full_accept_queue_of_the_host_is_waited_for() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let second = Ports { guest: 78, ..PORTS };
    guest.send(PORTS, Operation::Request);
    guest.send(second, Operation::Request);
    assert_eq!(operations(&guest.received()), [Operation::Response]);
    let _first = listener.accept().unwrap();
    let packets = guest.wait_for(1);
    assert_eq!(operations(&packets), [Operation::Response]);
    assert_eq!(packets[0].header.destination_port, 78);
}

#[test]
fn the_host_ends_its_stream_and_still_reads() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let packets = guest.received();
    assert_eq!(operations(&packets), [Operation::Data, Operation::Shutdown]);
    assert_eq!(packets[1].header.flags, SHUTDOWN_SEND);

    guest.send_data(PORTS, b"answer");
    assert_eq!(read_some(&mut host, 6), b"answer");
    guest.shut_down(PORTS, SHUTDOWN_BOTH);
    assert_eq!(operations(&guest.received()), [Operation::Reset]);
    assert!(is_at_end(&mut host));
    assert_eq!(guest.device.muxer().connection_count(), 0);
}

#[test]
fn the_guest_ends_its_stream_and_still_reads() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    guest.send_data(PORTS, b"question");
    guest.shut_down(PORTS, SHUTDOWN_SEND);
    assert_eq!(read_some(&mut host, 8), b"question");
    assert!(is_at_end(&mut host));

    host.write_all(b"answer").unwrap();
    drop(host);
    let packets = guest.received();
    assert_eq!(bytes(&packets), b"answer");
    assert_eq!(operations(&packets), [Operation::Data, Operation::Shutdown]);
    assert_eq!(packets[1].header.flags, SHUTDOWN_BOTH);
    guest.send(PORTS, Operation::Reset);
    assert_eq!(guest.device.muxer().connection_count(), 0);
}

#[test]
fn a_guest_that_will_not_receive_stops_the_host() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    guest.shut_down(PORTS, SHUTDOWN_RECEIVE);
    let error = host.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    guest.send_data(PORTS, b"still sending");
    assert_eq!(read_some(&mut host, 13), b"still sending");
    assert_eq!(operations(&guest.received()), []);
}

#[test]
fn a_host_that_closes_is_told_to_the_guest_behind_its_data() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    host.write_all(&[7; 10_000]).unwrap();
    drop(host);
    let packets = guest.received();
    assert_eq!(bytes(&packets), [7; 10_000]);
    assert_eq!(packets.last().unwrap().header.operation, Operation::Shutdown);
    assert_eq!(packets.last().unwrap().header.flags, SHUTDOWN_BOTH);
    guest.shut_down(PORTS, SHUTDOWN_BOTH);
    assert_eq!(operations(&guest.received()), [Operation::Reset]);
    assert_eq!(guest.device.muxer().connection_count(), 0);
}

#[test]
fn what_the_guest_sent_before_it_closed_reaches_a_slow_reader() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    let mut sent = 0;
    for _ in 0..10 {
        // More than the socket takes, within the credit.
        guest.send_data(PORTS, &[sent; 40_000]);
        sent += 1;
    }
    guest.shut_down(PORTS, SHUTDOWN_BOTH);
    let packets = guest.received();
    assert_eq!(packets.last().unwrap().header.operation, Operation::Reset);
    assert_eq!(guest.device.muxer().connection_count(), 1);
    // The guest may use its ports again at once.
    let mut again = guest.open(PORTS, &listener);

    for value in 0..sent {
        let mut piece = Vec::new();
        while piece.len() < 40_000 {
            let wanted = (40_000 - piece.len()).min(10_000);
            piece.extend(read_some(&mut host, wanted));
            guest.device.host_pass();
        }
        assert_eq!(piece, [value; 40_000]);
    }
    assert!(is_at_end(&mut host));
    guest.device.host_pass();
    assert_eq!(guest.device.muxer().connection_count(), 1);
    guest.send_data(PORTS, b"again");
    assert_eq!(read_some(&mut again, 5), b"again");
}

#[test]
fn a_reset_of_the_guest_closes_the_host() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    guest.send(PORTS, Operation::Reset);
    assert!(is_at_end(&mut host));
    assert_eq!(operations(&guest.received()), []);
    assert_eq!(guest.device.muxer().connection_count(), 0);
}

#[test]
fn a_reboot_closes_every_socket_and_the_listener_stays() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut first = guest.open(PORTS, &listener);
    let mut waiting = guest.dial(5);
    guest.device.host_pass();
    guest.reboot();
    assert!(is_at_end(&mut first));
    // What it said is unread, so this may be a reset instead of an end.
    assert!(waiting.read(&mut [0]).map_or(true, |count| count == 0));
    assert_eq!(guest.device.muxer().connection_count(), 0);
    let mut second = guest.open(PORTS, &listener);
    guest.send_data(PORTS, b"hello");
    assert_eq!(read_some(&mut second, 5), b"hello");
}
