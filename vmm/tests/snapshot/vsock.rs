//! vsock of guests that go on: old connections are lost on both sides, new ones work, whatever the guest's CID is now.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use proto::machine::{Request, Response, Vsock};

use super::{stop, take};
use crate::devices::vsock::{ECHO, Probed, READY, dial, listen_at};
use crate::guest::{Artifacts, Guest, on_kvm};

fn echoed(client: &mut BufReader<UnixStream>, text: &str) {
    client.get_mut().write_all(text.as_bytes()).unwrap();
    let mut back = vec![0; text.len()];
    client.read_exact(&mut back).unwrap();
    assert_eq!(back, text.as_bytes());
}

pub(super) fn greeted(mut client: BufReader<UnixStream>) -> BufReader<UnixStream> {
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line:?}");
    client
}

#[test]
fn forks_are_reached_by_new_connections_and_have_lost_the_old_ones() {
    on_kvm(reach_forks);
}

fn reach_forks(artifacts: &Artifacts) {
    let directory = tempfile::tempdir().unwrap();
    let ready = listen_at(&directory, READY);
    let start = Instant::now();
    let Probed {
        guest: mut template,
        directory,
    } = Probed::boot(artifacts, directory, "echo", "reboot -f");
    let _ready = ready.accept().unwrap();
    println!("booted and dialled after {:?}", start.elapsed());
    let removed = template.ask(&Request::RemoveDevice {
        id: "program".to_owned(),
    });
    assert_eq!(removed, Response::Done {});
    let mut old = greeted(dial(&directory, ECHO));
    echoed(&mut old, "before");
    let snapshot = take(&mut template, &directory);
    stop(template);
    assert_eq!(old.read(&mut [0; 16]).unwrap(), 0, "its Machine has gone");

    let forks = [10, 11].map(|guest_cid| {
        let place = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let guest = Guest::restore(snapshot.clone(), |config| {
            config.memory_mib = 256;
            config.vsock = Some(Vsock {
                guest_cid,
                socket: place.path().join("v"),
            });
        });
        // Its socket is there before the guest runs, and the client is the first that the guest hears of.
        drop(guest.connect());
        let client = greeted(dial(&place, ECHO));
        println!("a fork answers after {:?}", start.elapsed());
        (guest, place, client)
    });
    let mut consoles = Vec::new();
    for (mut guest, place, mut client) in forks {
        echoed(&mut client, "after");
        guest.wait_for("LOST ");
        let mut others: Vec<_> = (0..8).map(|_| greeted(dial(&place, ECHO))).collect();
        others.iter_mut().for_each(|other| echoed(other, "and more"));
        echoed(&mut client, "still");
        drop((client, others));
        consoles.push(stop(guest));
    }
    for console in consoles {
        // A program that was not waiting yet when it was written down is told so when it comes to read.
        let told = ["Connection reset by peer", "Transport endpoint is not connected"];
        let is_told = |reason: &&str| console.contains(&format!("LOST {reason}"));
        assert!(told.iter().any(is_told), "{console}");
        assert_eq!(console.matches("LOST").count(), 1, "{console}");
    }
}
