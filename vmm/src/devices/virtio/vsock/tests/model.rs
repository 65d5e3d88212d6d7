//! Random lives of one connection against a model: bytes come out in order and once, windows hold, nothing stays behind.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::super::credit::{BUFFER_BYTES, Credit};
use super::super::packet::{Operation, Ports, SHUTDOWN_BOTH, SHUTDOWN_SEND};
use super::driver::Guest;

const PORTS: Ports = Ports {
    host: 1024,
    guest: 77,
};

#[derive(Debug, Clone)]
enum Step {
    GuestSends(usize),
    GuestReads,
    GuestEndsStream,
    HostSends(usize),
    HostReads(usize),
    HostEndsStream,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1usize..65_536).prop_map(Step::GuestSends),
        4 => Just(Step::GuestReads),
        1 => Just(Step::GuestEndsStream),
        4 => (1usize..65_536).prop_map(Step::HostSends),
        4 => (1usize..200_000).prop_map(Step::HostReads),
        1 => Just(Step::HostEndsStream),
    ]
}

/// What each side sent, read and still may do.
struct Model {
    guest: Guest,
    host: UnixStream,
    guest_sent: Vec<u8>,
    host_read: Vec<u8>,
    host_sent: Vec<u8>,
    guest_read: Vec<u8>,
    /// What the last header allows the guest to have sent in all.
    window: usize,
    guest_ended: bool,
    host_ended: bool,
    shutdown: u32,
    reset: bool,
    next: u8,
}

impl Model {
    fn new() -> Self {
        let mut guest = Guest::new();
        guest.buf_alloc = 100_000;
        let listener = guest.listen(1024);
        let host = guest.open(PORTS, &listener);
        host.set_nonblocking(true).unwrap();
        Self {
            guest,
            host,
            guest_sent: Vec::new(),
            host_read: Vec::new(),
            host_sent: Vec::new(),
            guest_read: Vec::new(),
            window: BUFFER_BYTES as usize,
            guest_ended: false,
            host_ended: false,
            shutdown: 0,
            reset: false,
            next: 0,
        }
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        self.next = self.next.wrapping_add(1);
        vec![self.next; length]
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::GuestSends(length) if !self.guest_ended => {
                let length = (*length).min(self.window - self.guest_sent.len());
                let content = self.bytes(length);
                self.guest.send_data(PORTS, &content);
                self.guest_sent.extend(content);
            }
            Step::HostSends(length) if !self.host_ended => {
                let content = self.bytes(*length);
                let count = self.host.write(&content).unwrap_or(0);
                self.host_sent.extend(&content[..count]);
            }
            Step::GuestReads => {
                self.guest.fwd_cnt = u32::try_from(self.guest_read.len()).unwrap();
                self.guest.send(PORTS, Operation::CreditUpdate);
            }
            Step::HostReads(length) => self.host_reads(*length),
            Step::GuestEndsStream if !self.guest_ended => {
                self.guest_ended = true;
                self.guest.shut_down(PORTS, SHUTDOWN_SEND);
            }
            Step::HostEndsStream if !self.host_ended => {
                self.host_ended = true;
                self.host.shutdown(Shutdown::Write).unwrap();
            }
            _ => {}
        }
        self.guest_receives();
    }

    fn host_reads(&mut self, length: usize) {
        let mut piece = vec![0; length];
        match self.host.read(&mut piece) {
            Ok(count) => self.host_read.extend(&piece[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    fn guest_receives(&mut self) {
        for packet in self.guest.received() {
            let header = packet.header;
            assert!(!self.reset, "a packet behind the end: {header:?}");
            match header.operation {
                Operation::Data => assert_eq!(self.shutdown & SHUTDOWN_SEND, 0, "data behind the end"),
                Operation::Shutdown => self.shutdown |= header.flags,
                Operation::Reset => self.reset = true,
                Operation::CreditUpdate | Operation::CreditRequest => {}
                other => panic!("{other:?}"),
            }
            if header.operation != Operation::Reset {
                let window = (header.fwd_cnt + header.buf_alloc) as usize;
                assert!(window >= self.window, "the window went back");
                self.window = window;
            }
            self.guest_read.extend(packet.payload);
            let in_flight = self.guest_read.len() - self.guest.fwd_cnt as usize;
            assert!(
                in_flight <= self.guest.buf_alloc as usize,
                "the guest's window is overrun"
            );
        }
    }

    /// Both sides read everything, then both end.
    fn finish(&mut self) {
        self.take(&Step::GuestEndsStream);
        self.take(&Step::HostEndsStream);
        for _ in 0..200 {
            self.take(&Step::HostReads(1 << 20));
            if self.shutdown != SHUTDOWN_BOTH && !self.reset {
                self.take(&Step::GuestReads);
            }
        }
        assert_eq!(self.host_read, self.guest_sent);
        assert_eq!(self.guest_read, self.host_sent);
        assert_eq!(self.shutdown, SHUTDOWN_BOTH);
        self.guest.shut_down(PORTS, SHUTDOWN_BOTH);
        self.guest_receives();
        assert!(self.reset);
        assert_eq!(self.guest.device.muxer().connection_count(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_life_of_a_connection_keeps_its_bytes(steps in prop::collection::vec(step(), 0..40)) {
        let mut model = Model::new();
        for step in &steps {
            model.take(step);
        }
        model.finish();
    }

    /// The guest never waits for ever: when everything has been passed on and it believes its window is more than half
    /// full, an update is due.
    #[test]
    fn an_empty_buffer_is_told(lengths in prop::collection::vec(1u32..100_000, 1..100)) {
        let mut credit = Credit::default();
        let mut believed: u32 = 0;
        for length in lengths {
            let length = length.min(BUFFER_BYTES - believed);
            prop_assert!(credit.receive(length).is_ok());
            believed += length;
            credit.forward(length);
            if credit.update_due() {
                credit.announce();
                believed = 0;
            }
            prop_assert!(believed <= BUFFER_BYTES / 2);
        }
    }
}
