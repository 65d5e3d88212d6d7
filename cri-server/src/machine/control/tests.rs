//! The control client against a socket that answers what a test says.

use std::os::fd::AsFd as _;

use super::*;

struct Vmm {
    _directory: tempfile::TempDir,
    client: ControlClient,
    listener: tokio::net::UnixListener,
}

fn vmm() -> Vmm {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path(), "m").unwrap();
    layout.create().unwrap();
    let listener = unix_socket::listen(&layout.control()).unwrap();
    Vmm {
        client: ControlClient::new(&layout).with_deadline(Duration::from_secs(5)),
        _directory: directory,
        listener,
    }
}

impl Vmm {
    async fn answer(&self, bytes: &[u8]) -> String {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        // The client may have gone at its limit.
        drop(stream.write_all(bytes).await);
        line
    }
}

#[tokio::test]
async fn an_added_device_tells_its_address() {
    let vmm = vmm();
    let file = tempfile::tempfile().unwrap();
    let device = Device::Pmem {
        id: "layer-1".to_owned(),
        file: FileSource::Fd(0),
    };
    let descriptors = [file.as_fd()];
    let (added, line) = tokio::join!(
        vmm.client.add_device(device, &descriptors),
        vmm.answer(b"{\"result\":\"added\",\"pci_address\":\"0000:00:05.0\"}\n")
    );
    assert_eq!(added.unwrap(), "0000:00:05.0");
    assert!(line.contains("layer-1"));
}

#[tokio::test]
async fn a_wish_for_memory_says_how_much_and_is_refused_with_the_reason() {
    let vmm = vmm();
    let (resized, line) = tokio::join!(
        vmm.client.resize_memory(256),
        vmm.answer(b"{\"result\":\"done\"}\n")
    );
    resized.unwrap();
    assert_eq!(line, "{\"op\":\"resize_memory\",\"plugged_mib\":256}\n");
    let (refused, _) = tokio::join!(
        vmm.client.resize_memory(3),
        vmm.answer(b"{\"result\":\"error\",\"message\":\"plugged_mib: 3 is no multiple of 2\"}\n")
    );
    let text = refused.unwrap_err().to_string();
    assert_eq!(
        text,
        "resize the memory: the VMM refused: plugged_mib: 3 is no multiple of 2"
    );
}

#[tokio::test]
async fn a_guest_is_halted_and_written_to_the_files_that_were_sent() {
    let vmm = vmm();
    let (paused, line) = tokio::join!(vmm.client.pause(), vmm.answer(b"{\"result\":\"done\"}\n"));
    paused.unwrap();
    assert_eq!(line, "{\"op\":\"pause\"}\n");
    let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let (written, line) = tokio::join!(
        vmm.client
            .snapshot(files[0].as_fd(), files[1].as_fd(), "kernel 1"),
        vmm.answer(b"{\"result\":\"error\",\"message\":\"memory: cannot write it\"}\n")
    );
    assert_eq!(
        line,
        "{\"op\":\"snapshot\",\"memory\":{\"fd\":0},\"state\":{\"fd\":1},\"origin\":\"kernel 1\"}\n"
    );
    let text = written.unwrap_err().to_string();
    assert_eq!(
        text,
        "write the guest down: the VMM refused: memory: cannot write it"
    );
}

#[tokio::test]
async fn answers_that_are_wrong_are_errors_that_say_so() {
    let vmm = vmm();
    let cases: [(&[u8], &str); 5] = [
        (
            b"{\"result\":\"error\",\"message\":\"no\\u001b[2J\\nroom\"}\n",
            "stop: the VMM refused: no [2J room",
        ),
        (
            b"{\"result\":\"added\",\"pci_address\":\"x\"}\n",
            "stop: the VMM's answer is not understood: it answered with an added device",
        ),
        (
            b"hello\n",
            "stop: the VMM's answer is not understood: expected value at line 1 column 1",
        ),
        (b"{\"result\":\"done\"}", "stop: talk to the VMM through"),
        (b"", "stop: talk to the VMM through"),
    ];
    for (answer, expected) in cases {
        let (result, _) = tokio::join!(vmm.client.stop(), vmm.answer(answer));
        let text = result.unwrap_err().to_string();
        assert!(text.starts_with(expected), "{text}");
    }
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let vmm = vmm();
    let endless = vec![b'x'; usize::try_from(MAX_RESPONSE).unwrap() + 1];
    let (result, _) = tokio::join!(vmm.client.console(10), vmm.answer(&endless));
    assert!(
        matches!(result, Err(ControlError::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidData)
    );
}

#[tokio::test]
async fn a_silent_vmm_meets_the_deadline_and_a_missing_one_as_well() {
    let vmm = vmm();
    let client = vmm.client.clone().with_deadline(Duration::from_millis(50));
    assert!(matches!(
        client.describe().await,
        Err(ControlError::Timeout { .. })
    ));
    let missing = ControlClient {
        socket: client.socket.with_extension("missing"),
        ..client
    };
    assert!(matches!(missing.describe().await, Err(ControlError::Io { .. })));
}
