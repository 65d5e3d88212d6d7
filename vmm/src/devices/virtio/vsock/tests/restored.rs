//! A guest that comes from a snapshot: it hears first that its connections are lost.

use std::io::Write;

use super::super::super::VirtioDevice;
use super::super::super::{QueueProgress, SavedState};
use super::super::packet::{Operation, Ports};
use super::driver::{Guest, bytes, operations};

const PORTS: Ports = Ports {
    host: 1024,
    guest: 77,
};

#[test]
fn nothing_moves_before_the_guest_knows_that_its_connections_are_lost() {
    let mut guest = Guest::restored();
    let listener = guest.listen(1024);
    let mut client = guest.dial(5000);
    client.write_all(b"early").unwrap();
    guest.send(PORTS, Operation::Request);
    assert_eq!(
        operations(&guest.received()),
        [],
        "there is no buffer for the event yet"
    );
    guest.post_event_buffers(3);
    guest.device.pass();
    let events = guest.take_events();
    assert_eq!(events, [(4, 0), (0, 0), (0, 0)], "one event, the others empty");
    assert_eq!(operations(&guest.received()), [], "the driver is at work on it");

    guest.post_event_buffers(1);
    let packets = guest.received();
    assert_eq!(operations(&packets), [Operation::Request, Operation::Response]);
    assert!(listener.accept().is_ok());
    let host = Ports {
        host: packets[0].header.source_port,
        guest: 5000,
    };
    guest.send(host, Operation::Response);
    assert_eq!(bytes(&guest.received()), b"early");
    guest.post_event_buffers(1);
    guest.device.pass();
    assert_eq!(guest.take_events(), [], "it is told once");
}

#[test]
fn a_driver_without_an_event_queue_cannot_be_told() {
    let mut guest = Guest::restored_deaf();
    let _client = guest.dial(5000);
    assert_eq!(operations(&guest.received()), [Operation::Request]);
}

#[test]
fn a_driver_that_begins_anew_has_nothing_to_hear() {
    let mut guest = Guest::restored();
    guest.reboot();
    let _client = guest.dial(5000);
    assert_eq!(operations(&guest.received()), [Operation::Request]);
}

#[test]
fn names_of_connections_are_not_used_again() {
    let mut first = Guest::new();
    let _client = first.dial(5000);
    let used = first.received()[0].header.source_port;
    let saved = first.device.save().unwrap();
    let progress = |queue: u16| {
        saved
            .progress
            .iter()
            .find(|(number, _)| *number == queue)
            .unwrap()
            .1
    };
    assert_eq!(
        progress(0),
        QueueProgress {
            next_avail: 1,
            next_used: 1
        }
    );
    assert_eq!(progress(2), QueueProgress::default());
    let SavedState::Vsock(own) = saved.own else {
        panic!("{saved:?}");
    };
    let mut second = Guest::restored_from(own);
    second.post_event_buffers(1);
    second.device.pass();
    second.post_event_buffers(1);
    let _client = second.dial(5000);
    assert_eq!(second.received()[0].header.source_port, used + 1);
}
