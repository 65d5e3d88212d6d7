//! All connections of the device, their epoll set, and whose turn it is.
//!
//! The muxer has an epoll set of its own, whose one descriptor the event loop watches: sockets come and go here without
//! the loop, tests need no loop, and edge-triggered events remembered in each connection cost no epoll_ctl(2) when the
//! guest has no buffers (nothing spins, nothing is re-armed). Connections take turns: each may send one packet, or one
//! read's worth, before it goes to the end of the row, so none can hold up the others.
//!
//! Tokens name connections in epoll and are never used twice, so a late event of a closed socket finds nobody.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use tracing::{debug, warn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::super::buffers::Segments;
use super::HOST_CID;
use super::connection::{CONNECT_TIMEOUT, Connection, Emission, PayloadRoom};
use super::handshake::{Greeting, read_greeting};
use super::packet::{Header, Operation, Ports, TYPE_STREAM};

/// Connections and greetings at one time; more are refused.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// RSTs without a connection that may wait for room. With more, nothing is taken from the tx queue.
pub(super) const MAX_STRAY_RESETS: usize = 256;
/// How long until a full accept queue, or a full descriptor table, is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// Host ports of connections that the host opens: above what a guest would dial.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Events that one call takes from the epoll set; the rest stay for the next.
const EVENTS_AT_ONCE: usize = 64;

const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const FIRST_TOKEN: u64 = 2;

#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    path: PathBuf,
    listener: UnixListener,
    epoll: Epoll,
    timer: TimerFd,
    connections: HashMap<u64, Entry>,
    by_ports: HashMap<Ports, u64>,
    greeting: HashMap<u64, Greeter>,
    /// Whose turn it is.
    turns: VecDeque<u64>,
    stray_resets: VecDeque<Header>,
    alarms: BTreeSet<(Instant, u64)>,
    /// What the timer is set to.
    timer_set: Option<Instant>,
    next_token: u64,
    next_port: u32,
}

#[derive(Debug)]
struct Entry {
    connection: Connection,
    /// It is in `turns`.
    in_row: bool,
    /// It is in `alarms`, at this time.
    alarm: Option<Instant>,
}

/// A client of the host that has not said which port it wants.
#[derive(Debug)]
struct Greeter {
    socket: UnixStream,
    alarm: Instant,
}

impl Muxer {
    /// Listens at `path`. Nobody is served before the guest's driver is there: clients wait in the accept queue.
    pub(super) fn bind(guest_cid: u64, path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let timer = TimerFd::new().map_err(io::Error::from)?;
        watch(
            &epoll,
            listener.as_raw_fd(),
            EventSet::IN | EventSet::EDGE_TRIGGERED,
            LISTENER,
        )?;
        watch(&epoll, timer.as_raw_fd(), EventSet::IN, TIMER)?;
        Ok(Self {
            guest_cid,
            path: path.to_owned(),
            listener,
            epoll,
            timer,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            greeting: HashMap::new(),
            turns: VecDeque::new(),
            stray_resets: VecDeque::new(),
            alarms: BTreeSet::new(),
            timer_set: None,
            next_token: FIRST_TOKEN,
            next_port: FIRST_HOST_PORT,
        })
    }

    /// Readable when [`Muxer::host_events`] has something to do.
    pub(super) fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// The driver is there: takes the clients that have waited for it.
    pub(super) fn start(&mut self) {
        self.accept();
    }

    /// The driver is gone: every host socket is closed, the listener stays.
    pub(super) fn close_all(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.greeting.clear();
        self.turns.clear();
        self.stray_resets.clear();
        self.alarms.clear();
        self.set_timer();
    }

    /// Where names of connections go on, for a snapshot.
    pub(super) fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Goes on with names that the guest has not seen. Linux finds a connection by the peer and its own port, and one that
    /// was lost is found for as long as its program has not closed it.
    pub(super) fn continue_ports(&mut self, next: u32) {
        self.next_port = next;
    }

    /// Whether another packet of the guest may be taken.
    pub(super) fn accepts_packets(&self) -> bool {
        self.stray_resets.len() < MAX_STRAY_RESETS
    }

    /// A packet of the guest.
    pub(super) fn receive(&mut self, header: &Header, payload: &Segments<'_>) {
        if header.source_cid != self.guest_cid {
            // 5.10.6.4.1 asks the driver for its own CID; there is nobody to answer to.
            debug!(cid = header.source_cid, "vsock: packet with a foreign source");
            return;
        }
        if header.destination_cid != HOST_CID || header.kind != TYPE_STREAM {
            return self.stray(header);
        }
        if let Some(&token) = self.by_ports.get(&header.ports()) {
            if let Some(entry) = self.connections.get_mut(&token) {
                entry.connection.receive(header, payload);
            }
            self.settle(token);
        } else if header.operation == Operation::Request {
            self.open(header);
        } else {
            self.stray(header);
        }
    }

    /// Everything that happened on the host since the last call.
    pub(super) fn host_events(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS_AT_ONCE];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                warn!(%error, "vsock: epoll_wait failed");
                0
            }
        };
        for event in events.iter().take(count) {
            match event.data() {
                LISTENER => self.accept(),
                TIMER => self.expire(),
                token => self.socket_ready(token, event.event_set()),
            }
        }
    }

    /// Whether [`Muxer::emit`] may have a packet.
    pub(super) fn wants_to_emit(&self) -> bool {
        !self.stray_resets.is_empty() || !self.turns.is_empty()
    }

    /// The next packet for the guest.
    pub(super) fn emit<'m>(&mut self, room: &mut impl PayloadRoom<'m>) -> Option<Emission> {
        if let Some(header) = self.stray_resets.pop_front() {
            return Some(Emission { header, payload: 0 });
        }
        while let Some(token) = self.turns.pop_front() {
            let Some(entry) = self.connections.get_mut(&token) else {
                continue;
            };
            entry.in_row = false;
            let emission = entry.connection.emit(room);
            self.settle(token);
            if emission.is_some() {
                return emission;
            }
        }
        None
    }

    /// Open connections, whatever their state.
    #[cfg(test)]
    pub(super) fn connection_count(&self) -> usize {
        self.connections.len() + self.greeting.len()
    }

    fn stray(&mut self, header: &Header) {
        if header.operation != Operation::Reset {
            self.stray_resets.push_back(header.reset_for());
        }
    }

    fn is_full(&self) -> bool {
        self.connections.len() + self.greeting.len() >= MAX_CONNECTIONS
    }

    /// The guest asks for a port of the host.
    fn open(&mut self, header: &Header) {
        if self.is_full() {
            debug!(port = header.destination_port, "vsock: too many connections");
            return self.stray(header);
        }
        let mut connection = Connection::dialling(self.guest_cid, header.ports());
        connection.note_credit(header);
        let token = self.insert(connection);
        self.dial(token);
    }

    /// Connects a dialling connection to the host's listener, or leaves it for later, or gives it up.
    fn dial(&mut self, token: u64) {
        let Some(entry) = self.connections.get_mut(&token) else {
            return;
        };
        let port = entry.connection.ports().host;
        match connect_to(&self.path, port) {
            Ok(socket) => match watch_socket(&self.epoll, &socket, token) {
                Ok(()) => entry.connection.connected(socket),
                Err(error) => {
                    warn!(port, %error, "vsock: epoll refuses a socket");
                    entry.connection.reset();
                }
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.alarms.insert((Instant::now() + RETRY, token));
                self.set_timer();
            }
            Err(error) => {
                debug!(port, %error, "vsock: nobody listens on the host");
                entry.connection.reset();
            }
        }
        self.settle(token);
    }

    /// Takes every waiting client of the host.
    fn accept(&mut self) {
        loop {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // EMFILE and the like: the client stays in the queue and no new edge tells of it.
                    warn!(%error, "vsock: accept failed");
                    self.alarms.insert((Instant::now() + RETRY, LISTENER));
                    return self.set_timer();
                }
            };
            if self.is_full() {
                debug!("vsock: too many connections");
                continue;
            }
            let token = self.new_token();
            let ready = socket
                .set_nonblocking(true)
                .and_then(|()| watch_socket(&self.epoll, &socket, token));
            if let Err(error) = ready {
                warn!(%error, "vsock: epoll refuses a socket");
                continue;
            }
            let alarm = Instant::now() + CONNECT_TIMEOUT;
            self.greeting.insert(token, Greeter { socket, alarm });
            self.alarms.insert((alarm, token));
            self.set_timer();
        }
    }

    fn socket_ready(&mut self, token: u64, events: EventSet) {
        if let Some(entry) = self.connections.get_mut(&token) {
            entry.connection.host_ready(events);
            self.settle(token);
        } else if let Some(greeter) = self.greeting.get(&token) {
            let greeting = read_greeting(&greeter.socket).unwrap_or_else(|error| {
                debug!(%error, "vsock: a client left before its greeting");
                Greeting::Refused
            });
            if greeting == Greeting::Incomplete {
                return;
            }
            if let Some(greeter) = self.greeting.remove(&token) {
                self.alarms.remove(&(greeter.alarm, token));
                if let Greeting::Port(port) = greeting {
                    self.request(token, port, greeter.socket);
                }
            }
        }
    }

    /// A client of the host wants the guest's `port`.
    fn request(&mut self, token: u64, port: u32, socket: UnixStream) {
        // There are at most MAX_CONNECTIONS names taken.
        let host =
            (0..).map(|step| FIRST_HOST_PORT | (self.next_port.wrapping_add(step) & (FIRST_HOST_PORT - 1)));
        let names = host.map(|host| Ports { host, guest: port });
        let Some(ports) = names
            .take(MAX_CONNECTIONS + 1)
            .find(|ports| !self.by_ports.contains_key(ports))
        else {
            return;
        };
        self.next_port = ports.host.wrapping_add(1);
        let connection = Connection::requested(self.guest_cid, ports, socket);
        self.by_ports.insert(ports, token);
        self.connections.insert(
            token,
            Entry {
                connection,
                in_row: false,
                alarm: None,
            },
        );
        self.settle(token);
    }

    fn insert(&mut self, connection: Connection) -> u64 {
        let token = self.new_token();
        self.by_ports.insert(connection.ports(), token);
        self.connections.insert(
            token,
            Entry {
                connection,
                in_row: false,
                alarm: None,
            },
        );
        token
    }

    fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Brings the muxer's own records in line with a connection that was touched.
    fn settle(&mut self, token: u64) {
        let Some(entry) = self.connections.get_mut(&token) else {
            return;
        };
        let ports = entry.connection.ports();
        if entry.connection.is_detached() && self.by_ports.get(&ports) == Some(&token) {
            self.by_ports.remove(&ports);
        }
        let deadline = entry
            .connection
            .deadline()
            .filter(|_| !entry.connection.is_gone());
        if entry.alarm != deadline {
            let old = std::mem::replace(&mut entry.alarm, deadline);
            if let Some(old) = old {
                self.alarms.remove(&(old, token));
            }
            if let Some(new) = deadline {
                self.alarms.insert((new, token));
            }
        }
        if entry.connection.is_gone() {
            self.connections.remove(&token);
        } else if entry.connection.wants_to_emit() && !entry.in_row {
            entry.in_row = true;
            self.turns.push_back(token);
        }
        self.set_timer();
    }

    /// The timer has rung. It is set again rather than read: reading would block if an event before this one has set it,
    /// and setting takes back the ring as well (timerfd_settime(2)).
    fn expire(&mut self) {
        self.timer_set = None;
        let now = Instant::now();
        while let Some(&(time, token)) = self.alarms.first() {
            if time > now {
                break;
            }
            self.alarms.pop_first();
            self.ring(token, now);
        }
        if self.alarms.is_empty() {
            self.timer_set = Some(now);
        }
        self.set_timer();
    }

    fn ring(&mut self, token: u64, now: Instant) {
        if token == LISTENER {
            return self.accept();
        }
        if self.greeting.remove(&token).is_some() {
            debug!("vsock: a client of the host did not say what it wants");
            return;
        }
        let Some(entry) = self.connections.get_mut(&token) else {
            return;
        };
        if entry
            .connection
            .deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            entry.alarm = None;
            entry.connection.expire();
            self.settle(token);
        } else if entry.connection.is_dialling() {
            self.dial(token);
        }
    }

    /// Sets the timer to the first alarm.
    fn set_timer(&mut self) {
        let first = self.alarms.first().map(|(time, _)| *time);
        if first == self.timer_set {
            return;
        }
        self.timer_set = first;
        let result = match first {
            // A timer of 0 would be off.
            Some(time) => {
                let wait = time
                    .saturating_duration_since(Instant::now())
                    .max(Duration::from_millis(1));
                self.timer.reset(wait, None)
            }
            None => self.timer.clear(),
        };
        if let Err(error) = result {
            warn!(%error, "vsock: setting the timer failed");
        }
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            debug!(path = %self.path.display(), %error, "vsock: removing the socket failed");
        }
    }
}

/// `<path>_<port>`
pub(super) fn port_path(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    PathBuf::from(name)
}

/// Whether every port's path fits `sun_path` (unix(7): 108 bytes with the NUL).
pub(super) fn path_fits(path: &Path) -> bool {
    port_path(path, u32::MAX).as_os_str().as_bytes().len() < 108
}

/// A connected non-blocking socket; WouldBlock: the listener's accept queue is full (unix(7), connect(2) EAGAIN).
fn connect_to(path: &Path, port: u32) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(&port_path(path, port))?)?;
    Ok(UnixStream::from(socket))
}

fn watch_socket(epoll: &Epoll, socket: &UnixStream, token: u64) -> io::Result<()> {
    let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    watch(epoll, socket.as_raw_fd(), events, token)
}

fn watch(epoll: &Epoll, descriptor: RawFd, events: EventSet, token: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, descriptor, EpollEvent::new(events, token))
}
