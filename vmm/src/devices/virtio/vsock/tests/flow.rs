//! Flow control: credit both ways, guests without buffers, readers that stall, many connections.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use super::super::credit::BUFFER_BYTES;
use super::super::muxer::MAX_CONNECTIONS;
use super::super::packet::{HEADER_LENGTH, Operation, Ports, SHUTDOWN_BOTH};
use super::driver::{Guest, RX_BUFFER, bytes, is_at_end, operations, read_some};

const PORTS: Ports = Ports {
    host: 1024,
    guest: 77,
};

/// Bytes that show when one is missing or doubled.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

/// Reads what is there without waiting.
fn drain(socket: &mut UnixStream) -> Vec<u8> {
    socket.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    let mut piece = [0; 16384];
    loop {
        match socket.read(&mut piece) {
            Ok(0) => return bytes,
            Ok(count) => bytes.extend(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return bytes,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn no_more_than_the_guests_window_is_sent() {
    let mut guest = Guest::new();
    guest.buf_alloc = 10_000;
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    let content = pattern(25_000);
    host.write_all(&content).unwrap();

    let mut seen = Vec::new();
    let packets = guest.received();
    seen.extend(bytes(&packets));
    assert_eq!(seen.len(), 10_000);
    assert_eq!(packets.last().unwrap().header.operation, Operation::CreditRequest);
    assert_eq!(operations(&guest.received()), [], "the request is made once");

    for expected in [20_000, 25_000] {
        guest.fwd_cnt += 10_000;
        guest.send(PORTS, Operation::CreditUpdate);
        seen.extend(bytes(&guest.received()));
        assert_eq!(seen.len(), expected);
    }
    assert_eq!(seen, content);
}

#[test]
fn a_window_that_the_guest_makes_up_stops_only_its_stream() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    // It claims to have passed on what it never got.
    guest.fwd_cnt = 1 << 31;
    guest.send(PORTS, Operation::CreditUpdate);
    host.write_all(b"x").unwrap();
    assert_eq!(operations(&guest.received()), [Operation::CreditRequest]);
}

#[test]
fn a_guest_that_ignores_its_credit_is_reset() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    let mut accepted = 0;
    while guest.device.muxer().connection_count() == 1 {
        guest.send_data(PORTS, &[0; 64 * 1024]);
        if guest
            .received()
            .iter()
            .any(|packet| packet.header.operation == Operation::Reset)
        {
            break;
        }
        accepted += 1;
        assert!(accepted < 100, "credit has no end");
    }
    assert_eq!(guest.device.muxer().connection_count(), 0);
    let delivered = drain(&mut host).len();
    assert!(
        accepted * 64 * 1024 >= BUFFER_BYTES as usize,
        "{accepted} packets"
    );
    assert!(delivered > 0);
}

#[test]
fn the_guest_is_told_when_its_credit_comes_back() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut host = guest.open(PORTS, &listener);
    let content = pattern(4 << 20);
    let mut seen = Vec::new();
    let (mut sent, mut window) = (0_usize, BUFFER_BYTES as usize);
    while seen.len() < content.len() {
        // As a driver does: sends only what the last header allows.
        let room = window - sent;
        let piece = room.min(64 * 1024).min(content.len() - sent);
        if piece > 0 {
            guest.send_data(PORTS, &content[sent..sent + piece]);
            sent += piece;
        }
        seen.extend(drain(&mut host));
        for packet in guest.received() {
            assert_eq!(packet.header.operation, Operation::CreditUpdate);
            window = packet.header.fwd_cnt as usize + packet.header.buf_alloc as usize;
        }
        assert!(piece > 0 || sent == content.len() || window > sent || !seen.is_empty());
    }
    assert_eq!(seen, content);
}

#[test]
fn a_credit_request_is_answered() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let _host = guest.open(PORTS, &listener);
    guest.send_data(PORTS, b"12345");
    guest.send(PORTS, Operation::CreditRequest);
    let packets = guest.received();
    assert_eq!(operations(&packets), [Operation::CreditUpdate]);
    assert_eq!(
        (packets[0].header.buf_alloc, packets[0].header.fwd_cnt),
        (BUFFER_BYTES, 5)
    );
}

#[test]
fn a_guest_without_buffers_gets_everything_later() {
    let mut guest = Guest::without_buffers();
    let listener = guest.listen(1024);
    guest.send(PORTS, Operation::Request);
    let (mut host, _) = listener.accept().unwrap();
    let content = pattern(50_000);
    host.write_all(&content).unwrap();
    assert_eq!(operations(&guest.received()), []);
    guest.post_buffers(1);
    assert_eq!(operations(&guest.received_and_kept()), [Operation::Response]);
    guest.post_buffers(2);
    let first = guest.received_and_kept();
    assert_eq!(operations(&first), [Operation::Data, Operation::Data]);
    let payload = RX_BUFFER as usize - HEADER_LENGTH;
    assert_eq!(bytes(&first), content[..2 * payload]);
}

#[test]
fn a_stalled_reader_holds_up_nobody() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let stalled = guest.open(PORTS, &listener);
    let other = Ports { guest: 78, ..PORTS };
    let mut lively = guest.open(other, &listener);
    for _ in 0..3 {
        guest.send_data(PORTS, &[0; 64 * 1024]);
    }
    for _ in 0..50 {
        guest.send_data(other, &[1; 10_000]);
        assert_eq!(read_some(&mut lively, 10_000), [1; 10_000]);
        guest.received();
    }
    // And towards the guest: a stream without credit next to one with.
    drop(stalled);
    assert_eq!(guest.device.muxer().connection_count(), 2);
}

#[test]
fn streams_take_turns() {
    let mut guest = Guest::without_buffers();
    let listener = guest.listen(1024);
    let others: Vec<Ports> = (0..4).map(|guest| Ports { host: 1024, guest }).collect();
    let mut hosts = Vec::new();
    for ports in &others {
        guest.send(*ports, Operation::Request);
        hosts.push(listener.accept().unwrap().0);
    }
    guest.post_buffers(4);
    assert_eq!(guest.received_and_kept().len(), 4);
    for host in &mut hosts {
        host.set_nonblocking(true).unwrap();
        while host.write(&[0; 4096]).is_ok() {}
    }
    guest.post_buffers(100);
    let mut count = [0; 4];
    for packet in guest.received_and_kept() {
        count[packet.header.destination_port as usize] += 1;
    }
    assert!(count.iter().all(|packets| *packets > 0), "{count:?}");
}

#[test]
fn connections_have_a_limit_and_come_back() {
    let mut guest = Guest::new();
    let mut clients = Vec::new();
    for _ in 0..MAX_CONNECTIONS / 2 {
        clients.push(guest.dial(1));
        guest.received();
    }
    // The rest of the table is filled by clients that say nothing.
    for _ in 0..MAX_CONNECTIONS / 2 {
        clients.push(UnixStream::connect(guest.path()).unwrap());
        guest.device.host_pass();
    }
    assert_eq!(guest.device.muxer().connection_count(), MAX_CONNECTIONS);
    let mut refused = guest.dial(1);
    guest.received();
    assert!(refused.read(&mut [0]).map_or(true, |count| count == 0));
    let listener = guest.listen(1024);
    guest.send(PORTS, Operation::Request);
    assert_eq!(operations(&guest.received()), [Operation::Reset]);

    clients.clear();
    // Each REQUEST that is open gets its RST.
    let resets = guest.wait_for(MAX_CONNECTIONS / 2);
    assert!(
        resets
            .iter()
            .all(|packet| packet.header.operation == Operation::Reset)
    );
    while guest.device.muxer().connection_count() > 0 {
        assert_eq!(operations(&guest.received()), []);
    }
    guest.open(PORTS, &listener);
}

#[test]
fn many_connections_at_once_carry_their_own_bytes() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    let mut open: Vec<(Ports, UnixStream)> = Vec::new();
    for port in 0..200 {
        let ports = Ports {
            host: 1024,
            guest: port,
        };
        let host = guest.open(ports, &listener);
        open.push((ports, host));
    }
    for (ports, host) in &mut open {
        host.write_all(&ports.guest.to_le_bytes()).unwrap();
    }
    for packet in guest.wait_for(200) {
        assert_eq!(packet.payload, packet.header.destination_port.to_le_bytes());
    }
    for (ports, host) in &mut open {
        guest.send_data(*ports, &ports.guest.to_le_bytes());
        assert_eq!(read_some(host, 4), ports.guest.to_le_bytes());
        guest.shut_down(*ports, SHUTDOWN_BOTH);
        assert!(is_at_end(host));
        assert_eq!(operations(&guest.received()), [Operation::Reset]);
    }
    assert_eq!(guest.device.muxer().connection_count(), 0);
}
