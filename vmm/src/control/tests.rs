//! The control socket with real clients and a real event loop; a stand-in answers.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use proto::machine::Stats;
use tempfile::TempDir;

use super::*;
use crate::event_loop::Subscriber;

/// Answers every request until its clients have had enough.
struct Server {
    events: EventManager<Subscriber>,
    id: SubscriberId,
    directory: TempDir,
}

impl Server {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let control = ControlServer::listen(&directory.path().join("control")).unwrap();
        let mut events = EventManager::new().unwrap();
        let id = events.add_subscriber(Subscriber::Control(control));
        Self {
            events,
            id,
            directory,
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("control")
    }

    fn control(&mut self) -> &mut ControlServer {
        match self.events.subscriber_mut(self.id) {
            Ok(Subscriber::Control(control)) => control,
            other => panic!("{other:?}"),
        }
    }

    /// Serves while `clients` runs in a thread; returns what it returns.
    fn serve<T: Send + 'static>(
        &mut self,
        mut answer: impl FnMut(Received) -> Response,
        clients: impl FnOnce(std::path::PathBuf) -> T + Send + 'static,
    ) -> T {
        let path = self.path();
        let clients = thread::Builder::new()
            .name("clients".to_owned())
            .spawn(|| clients(path))
            .unwrap();
        while !clients.is_finished() {
            self.events.run_with_timeout(5).unwrap();
            while let Some(received) = self.control().next_request() {
                let to = received.client;
                let response = answer(received);
                let changes = self.control().answer(to, &response);
                apply(changes, &mut self.events.event_ops(self.id).unwrap());
            }
        }
        clients.join().unwrap()
    }
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn done(_: Received) -> Response {
    Response::Done {}
}

const STATS: &[u8] = b"{\"op\":\"stats\"}\n";

#[test]
fn requests_of_one_client_are_answered_in_order() {
    let mut count = 0;
    let text = Server::new().serve(
        |_| {
            count += 1;
            Response::Stats(Stats {
                exits: [("n".to_owned(), count)].into(),
                ..Stats::default()
            })
        },
        |path| {
            let mut stream = connect(&path);
            stream.write_all(&STATS.repeat(3)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        },
    );
    let numbers: Vec<_> = text
        .lines()
        .map(|line| line.matches(char::is_numeric).collect::<String>())
        .collect();
    assert_eq!(numbers, ["1", "2", "3"], "{text}");
}

#[test]
fn descriptors_arrive_with_their_request() {
    let mut lengths = Vec::new();
    Server::new().serve(
        |received| {
            let files = received.descriptors.into_iter().map(File::from);
            lengths.push(
                files
                    .map(|file| file.metadata().unwrap().len())
                    .collect::<Vec<_>>(),
            );
            Response::Done {}
        },
        |path| {
            let mut stream = connect(&path);
            let file = tempfile::tempfile().unwrap();
            file.set_len(7).unwrap();
            let raw = [file.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&raw)];
            stream.write_all(STATS).unwrap();
            let pieces = [IoSlice::new(STATS)];
            sendmsg::<UnixAddr>(stream.as_raw_fd(), &pieces, &rights, MsgFlags::empty(), None).unwrap();
            let mut answers = BufReader::new(stream).lines();
            answers.next().unwrap().unwrap();
            answers.next().unwrap().unwrap();
        },
    );
    assert_eq!(lengths, [vec![], vec![7]]);
}

#[test]
fn too_many_descriptors_are_refused_and_none_is_kept() {
    let answer = Server::new().serve(done, |path| {
        let mut stream = connect(&path);
        let file = tempfile::tempfile().unwrap();
        let raw = [file.as_raw_fd(); 20];
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<UnixAddr>(
            stream.as_raw_fd(),
            &[IoSlice::new(STATS)],
            &rights,
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    assert!(answer.contains("more than 16 descriptors"), "{answer}");
}

#[test]
fn nonsense_is_answered_and_an_endless_line_ends_the_connection() {
    let (nonsense, endless) = Server::new().serve(done, |path| {
        let mut stream = BufReader::new(connect(&path));
        stream.get_mut().write_all(b"{\"op\":\"fly\"}\n").unwrap();
        let mut nonsense = String::new();
        stream.read_line(&mut nonsense).unwrap();
        let mut endless = connect(&path);
        // The other side stops reading in the middle.
        drop(endless.write_all(&vec![b'x'; 1 << 18]));
        let mut text = String::new();
        drop(endless.read_to_string(&mut text));
        (nonsense, text)
    });
    assert!(nonsense.contains("fly"), "{nonsense}");
    assert!(endless.is_empty() || endless.contains("longer than"), "{endless}");
}

#[test]
fn a_crowd_of_clients_is_served_in_turn() {
    let served = Server::new().serve(done, |path| {
        let crowd: Vec<_> = (0..3 * CLIENTS).map(|_| connect(&path)).collect();
        let mut served = 0;
        for mut stream in crowd {
            stream.write_all(STATS).unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            served += usize::from(line.contains("done"));
        }
        served
    });
    assert_eq!(served, 3 * CLIENTS);
}

#[test]
fn a_large_answer_reaches_a_slow_client_whole() {
    let text = "x".repeat(3 << 20);
    let expected = text.len();
    let received = Server::new().serve(
        move |_| Response::Console {
            text: text.clone(),
            dropped: 0,
        },
        |path| {
            let mut stream = connect(&path);
            stream.write_all(b"{\"op\":\"console\"}\n").unwrap();
            thread::sleep(Duration::from_millis(50));
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            line
        },
    );
    assert!(received.len() > expected && received.ends_with("}\n"));
}

#[test]
fn a_socket_that_a_former_process_left_is_replaced_and_a_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    drop(ControlServer::listen(&path).unwrap());
    assert!(path.exists());
    drop(ControlServer::listen(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert!(ControlServer::listen(&path).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
