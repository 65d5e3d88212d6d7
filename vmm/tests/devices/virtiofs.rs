//! virtio-fs with virtiofsd (`CLEARPOD_VIRTIOFSD`, or `virtiofsd` on the PATH), which also has to die.

use std::env;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use proto::machine::{Device, ExitReason, FileSource, Request, Response};

use super::value;
use crate::guest::{Guest, on_kvm};

/// A virtiofsd over a directory, and the connection to it.
fn serve(directory: &Path) -> (Child, UnixStream) {
    let program = env::var_os("CLEARPOD_VIRTIOFSD").unwrap_or_else(|| "virtiofsd".into());
    let path = directory.join("fs.sock");
    let listener = OwnedFd::from(UnixListener::bind(&path).unwrap());
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let child = Command::new(program)
        .arg(format!("--fd={}", listener.as_raw_fd()))
        .arg(format!("--shared-dir={}", directory.join("shared").display()))
        .args(["--sandbox=none", "--log-level=error"])
        .spawn();
    let child = child.unwrap_or_else(|error| panic!("virtiofsd, which deploy/lib/bundle makes: {error}"));
    (child, UnixStream::connect(path).unwrap())
}

fn add_volume() -> Request {
    Request::AddDevice {
        device: Device::Fs {
            id: "volume".to_owned(),
            socket: FileSource::Fd(0),
            tag: "data".to_owned(),
            queues: 1,
            queue_size: 128,
        },
    }
}

#[test]
fn a_directory_of_the_host_appears_while_the_guest_runs_and_fails_with_its_server() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let shared = directory.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("hello"), "from the host").unwrap();
        let script = "echo READY; \
        until mount -t virtiofs data /mnt 2>/dev/null; do echo 1 >/sys/bus/pci/rescan; sleep 0.2; done; \
        echo READ $(cat /mnt/hello); dd if=/dev/urandom of=/mnt/large bs=64k count=64 2>/dev/null; \
        echo SUM $(md5sum </mnt/large); mkdir /mnt/sub && echo x >/mnt/sub/file && echo WRITTEN; \
        i=0; until stat /mnt/no$i 2>&1 | grep -q 'Input/output error'; do i=$((i+1)); sleep 0.1; done; \
        echo BROKEN; umount /mnt && echo UNMOUNTED; reboot -f";
        let mut guest = Guest::boot(artifacts, script);
        guest.wait_for("READY");
        let (mut server, socket) = serve(directory.path());
        let added = guest.ask_with(&add_volume(), &[socket.as_fd()]);
        assert!(matches!(added, Response::Added { .. }), "{added:?}");
        drop(socket);
        let console = guest.wait_for("WRITTEN");
        assert_eq!(value(&console, "READ "), "from the host");
        let written = fs::read(shared.join("large")).unwrap();
        assert!(
            value(&console, "SUM ").starts_with(&super::md5(&written)),
            "{console}"
        );
        assert_eq!(fs::read_to_string(shared.join("sub/file")).unwrap(), "x\n");

        server.kill().unwrap();
        server.wait().unwrap();
        let (reason, console, log) = guest.end();
        assert_eq!(reason, ExitReason::Ended, "{log}{console}");
        assert!(console.contains("BROKEN"), "{console}");
        assert!(console.contains("UNMOUNTED"), "{console}");
        assert!(log.contains("the backend has gone"), "{log}");
    });
}
