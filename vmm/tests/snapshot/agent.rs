//! Forks of a guest with the agent: it is reached anew, and after ConfigureSandbox no two of them are the same.

use std::io::{BufReader, Read};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use proto::machine::{FileSource, MachineConfig, Vsock};
use proto::stdio::{AGENT_PORT, READY_PORT};
use tempfile::TempDir;

use super::rpc::{bytes_field, call, open, text_field};
use super::{stop, take};
use crate::devices::vsock::{dial, listen_at};
use crate::guest::{Artifacts, Guest, on_kvm};

/// Fields of the agent's messages.
const BOOT_ID: u8 = 4;
const ENTROPY: u8 = 11;

fn with_vsock(config: &mut MachineConfig, directory: &TempDir) {
    config.vsock = Some(Vsock {
        guest_cid: 3,
        socket: directory.path().join("v"),
    });
}

fn reach(directory: &TempDir) -> BufReader<UnixStream> {
    super::vsock::greeted(dial(directory, AGENT_PORT))
}

fn boot_id(directory: &TempDir) -> String {
    let info = call(&mut reach(directory), "Info", &[]).unwrap();
    text_field(&info, BOOT_ID)
}

#[test]
fn forks_of_an_agent_are_reached_and_told_apart() {
    on_kvm(tell_agents_apart);
}

fn tell_agents_apart(artifacts: &Artifacts) {
    let Some(initramfs) = artifacts.initramfs() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let ready = listen_at(&directory, READY_PORT);
    let start = Instant::now();
    let mut template = Guest::boot_with(artifacts, "", |config| {
        config.initramfs = Some(FileSource::Path(initramfs));
        with_vsock(config, &directory);
    });
    let (mut told, _) = ready.accept().unwrap();
    told.read_to_end(&mut Vec::new()).unwrap();
    println!("the agent is ready after {:?}", start.elapsed());
    let mut old = reach(&directory);
    open(&mut old);
    assert_eq!(boot_id(&directory), "", "nobody has asked the kernel for it");
    let snapshot = take(&mut template, &directory);
    stop(template);

    let mut ids = Vec::new();
    for seed in [1, 2] {
        let place = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let guest = Guest::restore(snapshot.clone(), |config| with_vsock(config, &place));
        drop(guest.connect());
        assert_eq!(boot_id(&place), "");
        println!("a fork's agent has answered after {:?}", start.elapsed());
        let configured = call(
            &mut reach(&place),
            "ConfigureSandbox",
            &bytes_field(ENTROPY, &[seed; 32]),
        );
        assert_eq!(configured, Some(Vec::new()));
        let id = boot_id(&place);
        assert_eq!(id.len(), 36, "{id:?}");
        assert_eq!(boot_id(&place), id);
        ids.push(id);
        stop(guest);
    }
    assert_ne!(ids[0], ids[1]);
}
