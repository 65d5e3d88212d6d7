//! One connection: the state machine between the guest's packets and one unix socket of the host.
//!
//! ```text
//!   guest asks ──▶ Dialling ──┐ (the host's accept queue is full: tried again)
//!        └────────────────────┴─▶ Open ──┬─▶ Closing   host side over; SHUTDOWN told, RST awaited
//!   host asks ───▶ Requested ────▶  │    ├─▶ Draining  guest side over; what it sent still goes to the host
//!                      └────────────┴────┴─▶ Reset     an RST is all that is left to say ──▶ Gone
//! ```
//!
//! The two directions of an open connection end on their own ([`Stream`]). Nothing here blocks: the socket is
//! non-blocking, what it does not take is kept in a backlog that the guest's credit bounds, and a guest that sends more
//! is reset. The muxer owns the connections, tells them what epoll saw and asks them for packets.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, UnixAddr, sendmsg};
use tracing::debug;
use vmm_sys_util::epoll::EventSet;

use super::super::buffers::{Segments, Slice};
use super::super::sys;
use super::credit::Credit;
use super::packet::{Header, Operation, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::stream::{FromHost, Stream, ToHost};

/// How long the guest may take to answer REQUEST, and a full accept queue of the host to get room.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the guest may take to answer SHUTDOWN of both directions (5.10.6.6.1 leaves the time to us).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a host reader may take for what a guest that has closed already sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes that one turn of a connection may move to the guest, so that others get theirs.
const TURN_BYTES: usize = 64 * 1024;

/// Guest memory that a packet's payload can be read into.
pub(super) trait PayloadRoom<'m> {
    /// Room for at most `limit` bytes and at least one, if `limit` is not 0.
    fn payload(&mut self, limit: usize) -> &[Slice<'m>];
}

/// A packet for the guest. The payload is in the room's slices; `header.length` is left to who cuts it to the guest's
/// buffers.
#[derive(Debug)]
pub(super) struct Emission {
    pub(super) header: Header,
    pub(super) payload: usize,
}

#[derive(Debug)]
pub(super) struct Connection {
    guest_cid: u64,
    ports: Ports,
    stage: Stage,
    outbox: Outbox,
    credit: Credit,
    /// SHUTDOWN flags of the guest; permanent once seen (5.10.6.6).
    guest_shutdown: u32,
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    Dialling,
    Requested(UnixStream),
    Open(Stream),
    Closing,
    Draining(Stream),
    Reset,
    Gone,
}

/// Packets without payload that wait for room in the guest's rx queue.
#[derive(Debug, Default)]
struct Outbox {
    reset: bool,
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: Asked,
    /// Flags to be told.
    shutdown: u32,
    /// Flags that were told.
    shutdown_told: u32,
}

/// Whether the guest was asked for its credit since it last told it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Asked {
    #[default]
    No,
    Yes,
}

impl Connection {
    /// The guest asked and a host program listens but has no room in its accept queue.
    pub(super) fn dialling(guest_cid: u64, ports: Ports) -> Self {
        Self {
            guest_cid,
            ports,
            stage: Stage::Dialling,
            outbox: Outbox::default(),
            credit: Credit::default(),
            guest_shutdown: 0,
            deadline: Some(Instant::now() + CONNECT_TIMEOUT),
        }
    }

    /// A host client asked; the guest will be.
    pub(super) fn requested(guest_cid: u64, ports: Ports, socket: UnixStream) -> Self {
        let mut connection = Self::dialling(guest_cid, ports);
        connection.stage = Stage::Requested(socket);
        connection.outbox.request = true;
        connection
    }

    /// The host accepted what the guest asked for.
    pub(super) fn connected(&mut self, socket: UnixStream) {
        self.outbox.response = true;
        self.deadline = None;
        self.stage = Stage::Open(Stream::new(socket));
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// When [`Connection::expire`] is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(super) fn is_dialling(&self) -> bool {
        matches!(self.stage, Stage::Dialling)
    }

    /// To be forgotten.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.stage, Stage::Gone)
    }

    /// The guest knows that the connection is over and may use its ports again.
    pub(super) fn is_detached(&self) -> bool {
        self.is_gone() || matches!(self.stage, Stage::Draining(_)) && !self.outbox.reset
    }

    /// Takes note of the guest's window. Every packet of the connection has it, the first one included.
    pub(super) fn note_credit(&mut self, header: &Header) {
        self.credit.update(header.buf_alloc, header.fwd_cnt);
        if self.credit.available() > 0 {
            self.outbox.credit_request = Asked::No;
        }
    }

    /// A packet of this connection from the guest.
    pub(super) fn receive(&mut self, header: &Header, payload: &Segments<'_>) {
        self.note_credit(header);
        match (&mut self.stage, header.operation) {
            (_, Operation::Reset) => self.guest_reset(),
            (Stage::Gone | Stage::Reset | Stage::Draining(_), _) => {}
            (Stage::Requested(_), Operation::Response) => self.guest_accepted(),
            (Stage::Closing, Operation::Shutdown) => {
                self.guest_shutdown |= header.flags;
                if self.guest_shutdown & SHUTDOWN_BOTH == SHUTDOWN_BOTH {
                    self.reset();
                }
            }
            (Stage::Open(_), Operation::Data) => self.guest_data(payload),
            (Stage::Open(_), Operation::Shutdown) => self.guest_shut_down(header.flags),
            (Stage::Open(_), Operation::CreditRequest) => self.outbox.credit_update = true,
            // On its way before the guest saw our SHUTDOWN.
            (Stage::Closing, Operation::Data | Operation::CreditRequest)
            | (Stage::Open(_) | Stage::Closing, Operation::CreditUpdate) => {}
            (Stage::Dialling | Stage::Requested(_), _)
            | (
                Stage::Open(_) | Stage::Closing,
                Operation::Request | Operation::Response | Operation::Unknown(_),
            ) => {
                debug!(ports = ?self.ports, operation = ?header.operation, "vsock: packet out of order");
                self.reset();
            }
        }
    }

    /// What epoll saw on the socket.
    pub(super) fn host_ready(&mut self, events: EventSet) {
        let (Stage::Open(stream) | Stage::Draining(stream)) = &mut self.stage else {
            if matches!(self.stage, Stage::Requested(_)) && events.contains(EventSet::HANG_UP) {
                // The client gave up; the guest may have opened the connection already.
                self.reset();
            }
            return;
        };
        let over = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        stream.hung_up |= events.contains(EventSet::HANG_UP);
        stream.readable |= over || events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        stream.writable |= over || events.contains(EventSet::OUT);
        self.flush();
    }

    /// Whether [`Connection::emit`] may have a packet.
    pub(super) fn wants_to_emit(&self) -> bool {
        if self.outbox.has_packet() {
            return true;
        }
        match &self.stage {
            Stage::Reset => true,
            Stage::Open(stream) => {
                let readable = stream.readable && stream.from_host == FromHost::Flowing;
                let allowed = self.credit.available() > 0 || self.outbox.credit_request == Asked::No;
                (readable && allowed) || self.credit.update_due()
            }
            Stage::Dialling | Stage::Requested(_) | Stage::Closing | Stage::Draining(_) | Stage::Gone => {
                false
            }
        }
    }

    /// The next packet for the guest, if there is one after all.
    pub(super) fn emit<'m>(&mut self, room: &mut impl PayloadRoom<'m>) -> Option<Emission> {
        if let Some((operation, flags)) = self.next_control() {
            return Some(self.packet(operation, flags, 0));
        }
        if let Some(emission) = self.emit_data(room) {
            return Some(emission);
        }
        if self.outbox.shutdown & !self.outbox.shutdown_told != 0 {
            // Permanent hints, so all of them each time.
            let flags = self.outbox.shutdown;
            self.outbox.shutdown_told = flags;
            return Some(self.packet(Operation::Shutdown, flags, 0));
        }
        let due = std::mem::take(&mut self.outbox.credit_update) || self.credit.update_due();
        (due && matches!(self.stage, Stage::Open(_))).then(|| self.packet(Operation::CreditUpdate, 0, 0))
    }

    /// The deadline has passed.
    pub(super) fn expire(&mut self) {
        debug!(ports = ?self.ports, stage = self.stage.name(), "vsock: timed out");
        match self.stage {
            Stage::Draining(_) => {
                self.stage = if self.outbox.reset {
                    Stage::Reset
                } else {
                    Stage::Gone
                }
            }
            Stage::Dialling | Stage::Requested(_) | Stage::Closing | Stage::Open(_) => self.reset(),
            Stage::Reset | Stage::Gone => {}
        }
        self.deadline = None;
    }

    /// Ends the connection with an RST to the guest; the host's socket is closed.
    pub(super) fn reset(&mut self) {
        self.stage = Stage::Reset;
        self.outbox = Outbox::default();
        self.deadline = None;
    }

    fn next_control(&mut self) -> Option<(Operation, u32)> {
        if matches!(self.stage, Stage::Reset) {
            self.stage = Stage::Gone;
            return Some((Operation::Reset, 0));
        }
        if std::mem::take(&mut self.outbox.reset) {
            return Some((Operation::Reset, 0));
        }
        if std::mem::take(&mut self.outbox.request) {
            return Some((Operation::Request, 0));
        }
        std::mem::take(&mut self.outbox.response).then_some((Operation::Response, 0))
    }

    fn emit_data<'m>(&mut self, room: &mut impl PayloadRoom<'m>) -> Option<Emission> {
        let Stage::Open(stream) = &mut self.stage else {
            return None;
        };
        if !stream.readable || stream.from_host == FromHost::Ended {
            return None;
        }
        let limit = usize::try_from(self.credit.available())
            .unwrap_or(0)
            .min(TURN_BYTES);
        if limit == 0 {
            let asked = std::mem::replace(&mut self.outbox.credit_request, Asked::Yes);
            return (asked == Asked::No).then(|| self.packet(Operation::CreditRequest, 0, 0));
        }
        match sys::read_vectored(stream.socket.as_fd(), room.payload(limit)) {
            Ok(0) => {
                stream.from_host = FromHost::Ended;
                self.outbox.shutdown |= SHUTDOWN_SEND;
                self.close_if_over();
                None
            }
            Ok(count) => Some(self.packet(Operation::Data, 0, count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.readable = false;
                None
            }
            Err(error) => {
                debug!(ports = ?self.ports, %error, "vsock: reading the host's socket failed");
                self.reset();
                self.next_control()
                    .map(|(operation, flags)| self.packet(operation, flags, 0))
            }
        }
    }

    /// A packet of this connection; it carries our credit like every other.
    fn packet(&mut self, operation: Operation, flags: u32, payload: usize) -> Emission {
        let mut header = Header::to_guest(self.guest_cid, self.ports, operation);
        header.flags = flags;
        if operation != Operation::Reset {
            (header.buf_alloc, header.fwd_cnt) = self.credit.announce();
            self.outbox.credit_update = false;
        }
        // At most TURN_BYTES.
        self.credit.send(u32::try_from(payload).unwrap_or(u32::MAX));
        Emission { header, payload }
    }

    fn guest_accepted(&mut self) {
        let Stage::Requested(socket) = std::mem::replace(&mut self.stage, Stage::Gone) else {
            return;
        };
        let answer = format!("OK {}\n", self.ports.host);
        let sent = sendmsg::<UnixAddr>(
            socket.as_raw_fd(),
            &[IoSlice::new(answer.as_bytes())],
            &[],
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        // A socket that nothing was written to has room for a line; anything else is a client that is gone.
        if sent == Ok(answer.len()) {
            self.deadline = None;
            self.stage = Stage::Open(Stream::new(socket));
        } else {
            self.reset();
        }
    }

    fn guest_data(&mut self, payload: &Segments<'_>) {
        let Stage::Open(stream) = &mut self.stage else {
            return;
        };
        // A chain is at most 4 GiB long and the header told the length as u32.
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if let Err(overrun) = self.credit.receive(length) {
            debug!(ports = ?self.ports, error = %overrun, "vsock: credit ignored");
            return self.reset();
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            debug!(ports = ?self.ports, "vsock: data behind the end of the guest's stream");
            return self.reset();
        }
        match stream.accept(payload) {
            Ok(written) => self.credit.forward(written),
            Err(error) => self.host_is_deaf(&error),
        }
    }

    fn guest_shut_down(&mut self, flags: u32) {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        let Stage::Open(stream) = &mut self.stage else {
            return;
        };
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 && stream.from_host == FromHost::Flowing {
            stream.from_host = FromHost::Ended;
            stream.shut_down(Shutdown::Read);
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && stream.to_host == ToHost::Flowing {
            stream.to_host = ToHost::Finishing;
        }
        self.flush();
        if self.guest_shutdown == SHUTDOWN_BOTH && matches!(self.stage, Stage::Open(_)) {
            // Answered at once: whatever the guest sent has arrived here, and a slow reader on the host must not keep the
            // guest's socket lingering.
            self.detach();
            self.outbox.reset = true;
        }
    }

    /// RST: the guest forgot the connection. What it had sent before an orderly end still reaches the host.
    fn guest_reset(&mut self) {
        self.outbox = Outbox::default();
        match &self.stage {
            Stage::Open(stream) if stream.to_host == ToHost::Finishing => self.detach(),
            Stage::Draining(_) => {}
            _ => self.stage = Stage::Gone,
        }
    }

    /// From Open to Draining.
    fn detach(&mut self) {
        if let Stage::Open(stream) = std::mem::replace(&mut self.stage, Stage::Gone) {
            self.outbox = Outbox::default();
            self.stage = Stage::Draining(stream);
            self.deadline = Some(Instant::now() + DRAIN_TIMEOUT);
        }
    }

    /// Writes the backlog as far as the socket takes it, and draws the consequences.
    fn flush(&mut self) {
        let (Stage::Open(stream) | Stage::Draining(stream)) = &mut self.stage else {
            return;
        };
        let (written, result) = stream.flush();
        self.credit.forward(written);
        if let Err(error) = result {
            self.host_is_deaf(&error);
        }
        let (Stage::Open(stream) | Stage::Draining(stream)) = &mut self.stage else {
            return;
        };
        if stream.to_host == ToHost::Finishing && stream.is_flushed() {
            stream.to_host = ToHost::Ended;
            stream.shut_down(Shutdown::Write);
        }
        self.close_if_over();
    }

    /// Nobody reads the socket any more: the backlog is dropped, the guest is told.
    fn host_is_deaf(&mut self, error: &io::Error) {
        let (Stage::Open(stream) | Stage::Draining(stream)) = &mut self.stage else {
            return;
        };
        debug!(ports = ?self.ports, %error, "vsock: the host does not read");
        // As if it had been passed on, so that the guest's window stays open until it has seen the SHUTDOWN.
        let dropped = stream.give_up_writing();
        self.credit.forward(dropped);
        self.outbox.shutdown |= SHUTDOWN_RECEIVE;
        self.close_if_over();
    }

    /// Closes the host's socket when neither direction has anything left to do.
    fn close_if_over(&mut self) {
        match &self.stage {
            Stage::Open(stream) => {
                let deaf = stream.to_host == ToHost::Ended || stream.hung_up;
                if self.guest_shutdown == SHUTDOWN_BOTH && stream.to_host == ToHost::Ended {
                    self.reset();
                } else if stream.from_host == FromHost::Ended && deaf {
                    self.outbox.shutdown |= SHUTDOWN_BOTH;
                    self.stage = Stage::Closing;
                    self.deadline = Some(Instant::now() + CLOSE_TIMEOUT);
                }
            }
            Stage::Draining(stream) if stream.to_host == ToHost::Ended => {
                self.stage = if self.outbox.reset {
                    Stage::Reset
                } else {
                    Stage::Gone
                };
                self.outbox = Outbox::default();
                self.deadline = None;
            }
            _ => {}
        }
    }
}

impl Stage {
    fn name(&self) -> &'static str {
        match self {
            Self::Dialling => "dialling",
            Self::Requested(_) => "requested",
            Self::Open(_) => "open",
            Self::Closing => "closing",
            Self::Draining(_) => "draining",
            Self::Reset => "reset",
            Self::Gone => "gone",
        }
    }
}

impl Outbox {
    fn has_packet(&self) -> bool {
        self.reset
            || self.request
            || self.response
            || self.credit_update
            || self.shutdown & !self.shutdown_told != 0
    }
}
