//! The control socket: the daemon's way to a running Machine. Lines of JSON with descriptors; see `proto::machine`.
//!
//! Here is only the traffic: `line` cuts the byte stream into requests, `client` moves bytes. What a request does is
//! the Machine's business (`machine::requests`), which answers through [`ControlServer::answer`].

mod client;
mod line;
mod sys;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::line::feed;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use event_manager::{EventOps, EventSet, Events};
use proto::machine::{Request, Response};

use self::client::{Client, Progress};

/// Clients at the same time; more wait in the socket's backlog.
const CLIENTS: usize = 8;
/// Token of the listening socket; clients count from 1.
const LISTENER: u32 = 0;

/// A client of the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientId(u32);

/// A request and the descriptors that came with it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) client: ClientId,
    pub(crate) request: Request,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// The listening socket and its clients.
#[derive(Debug)]
pub(crate) struct ControlServer {
    listener: UnixListener,
    clients: BTreeMap<ClientId, Client>,
    next: u32,
    requests: VecDeque<Received>,
}

impl ControlServer {
    /// Listens at `path`; what a former process left there is replaced.
    pub(crate) fn listen(path: &Path) -> io::Result<Self> {
        if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            clients: BTreeMap::new(),
            next: LISTENER,
            requests: VecDeque::new(),
        })
    }

    /// The oldest request that nobody has taken yet.
    pub(crate) fn next_request(&mut self) -> Option<Received> {
        self.requests.pop_front()
    }

    /// Sends `response` to a client, as far as its socket takes it now. What is to be watched from now on is returned.
    #[must_use]
    pub(crate) fn answer(&mut self, to: ClientId, response: &Response) -> Vec<Watch> {
        // A client that has gone gets nothing.
        let Some(client) = self.clients.get_mut(&to) else {
            return Vec::new();
        };
        client.answer(response);
        self.advance(to, EventSet::OUT)
    }

    /// Sends what is left of answers, waiting for the clients: the process is about to end.
    pub(crate) fn finish(&mut self) {
        self.clients.values_mut().for_each(Client::finish);
    }

    pub(crate) fn watch(&self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        ops.add(Events::with_data(&self.listener, LISTENER, EventSet::IN))
    }

    pub(crate) fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let changes = match events.data() {
            LISTENER => self.accept(),
            token => self.advance(ClientId(token), events.event_set()),
        };
        apply(changes, ops);
    }

    fn accept(&mut self) -> Vec<Watch> {
        let mut changes = Vec::new();
        while self.clients.len() < CLIENTS {
            let accepted = self.listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return changes,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client of the control socket");
                    return changes;
                }
            };
            self.next = self.next.checked_add(1).unwrap_or(LISTENER + 1);
            let id = ClientId(self.next);
            changes.push(Watch::Add(Events::with_data(&stream, id.0, EventSet::IN)));
            self.clients.insert(id, Client::new(stream));
        }
        // Full: level-triggered, so the listener would wake the loop for ever.
        changes.push(Watch::Change(Events::with_data(
            &self.listener,
            LISTENER,
            EventSet::empty(),
        )));
        changes
    }

    /// Moves a client's bytes and takes its complete lines; forgets it when it is done.
    fn advance(&mut self, id: ClientId, ready: EventSet) -> Vec<Watch> {
        let Some(client) = self.clients.get_mut(&id) else {
            return Vec::new();
        };
        let progress = client.advance(ready);
        while let Some(line) = client.next_line() {
            match line {
                Ok((request, descriptors)) => {
                    self.requests.push_back(Received {
                        client: id,
                        request,
                        descriptors,
                    });
                }
                Err(message) => client.answer(&Response::Error { message }),
            }
        }
        match client.wanted() {
            Some(wanted) if progress == Progress::Open => {
                vec![Watch::Change(Events::with_data_raw(
                    client.as_raw_fd(),
                    id.0,
                    wanted,
                ))]
            }
            _ => {
                let listen = Events::with_data(&self.listener, LISTENER, EventSet::IN);
                let gone = self.clients.remove(&id).map(Watch::Remove);
                gone.into_iter().chain([Watch::Change(listen)]).collect()
            }
        }
    }
}

/// A change of what the event loop watches for the control socket.
#[derive(Debug)]
pub(crate) enum Watch {
    Add(Events),
    Change(Events),
    /// The client is closed after it is no longer watched.
    Remove(Client),
}

/// Carries changes out.
pub(crate) fn apply(changes: Vec<Watch>, ops: &mut EventOps<'_>) {
    for change in changes {
        let result = match &change {
            Watch::Add(events) => ops.add(*events),
            Watch::Change(events) => ops.modify(*events),
            Watch::Remove(client) => ops.remove(Events::empty_raw(client.as_raw_fd())),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "control socket: {change:?}");
        }
    }
}

#[cfg(test)]
mod tests;
