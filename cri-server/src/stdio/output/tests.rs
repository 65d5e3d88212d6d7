//! The output client against an agent that a test scripts byte by byte: hostile frames, cut connections, cancelled reads.

use proptest::prelude::*;
use proto::stdio::{HELLO_FIXED_LEN, HelloFixed};
use tokio::net::UnixListener;

use super::*;
use crate::{machine::Layout, sys::unix_socket};

struct Agent {
    _directory: tempfile::TempDir,
    dialer: Dialer,
    listener: UnixListener,
}

fn agent() -> Agent {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path(), "m").unwrap();
    layout.create().unwrap();
    Agent {
        dialer: Dialer::new(&layout),
        listener: unix_socket::listen(&layout.vsock()).unwrap(),
        _directory: directory,
    }
}

impl Agent {
    fn output(&self, offset: u64) -> Output {
        let process = ProcessId {
            container_id: "c".to_owned(),
            exec_id: None,
        };
        Output::new(self.dialer.clone(), process, false, offset)
    }

    /// Accepts a connection and answers its hello; returns it with the wanted offset and, after `Ok`, what is acknowledged.
    async fn accept(&self, status: Status) -> (UnixStream, u64, u64) {
        loop {
            // A client that is cancelled while it connects goes away, as one that is killed.
            if let Ok(accepted) = self.try_accept(status).await {
                return accepted;
            }
        }
    }

    async fn try_accept(&self, status: Status) -> io::Result<(UnixStream, u64, u64)> {
        let (mut stream, _) = self.listener.accept().await?;
        let mut dial = [0; b"CONNECT 1026\n".len()];
        stream.read_exact(&mut dial).await?;
        stream.write_all(b"OK 1\n").await?;
        let mut fixed = [0; HELLO_FIXED_LEN];
        stream.read_exact(&mut fixed).await?;
        let fixed = HelloFixed::decode(&fixed).unwrap();
        let mut ids = vec![0; fixed.ids_len()];
        stream.read_exact(&mut ids).await?;
        let hello = fixed.with_ids(&ids).unwrap();
        assert_eq!((hello.role, hello.container_id.as_str()), (Role::Output, "c"));
        stream.write_all(&[status.encode()]).await?;
        let acknowledged = if status == Status::Ok {
            stream.read_u64_le().await?
        } else {
            0
        };
        Ok((stream, hello.offset, acknowledged))
    }
}

fn frame(stream: Stream, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        stream,
        len: u32::try_from(payload.len()).unwrap(),
    };
    [&header.encode()[..], payload].concat()
}

/// Everything up to the end, per stream.
async fn read_all(output: &mut Output) -> Result<[Vec<u8>; 2], OutputError> {
    let mut seen = [Vec::new(), Vec::new()];
    loop {
        match output.next().await? {
            OutputEvent::Data { stream, bytes } => {
                seen[usize::from(stream == Stream::Stderr)].extend_from_slice(&bytes);
            }
            OutputEvent::StreamEnd(_) => {}
            OutputEvent::End => return Ok(seen),
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_inside_a_frame_is_resumed_behind_what_was_delivered() {
    let agent = agent();
    let mut output = agent.output(100);
    let serve = async {
        let (mut stream, offset, _) = agent.accept(Status::Ok).await;
        assert_eq!(offset, 100);
        let whole = frame(Stream::Stdout, b"0123456789");
        stream.write_all(&whole[..FRAME_HEADER_LEN + 4]).await.unwrap();
        drop(stream);
        let (mut stream, offset, _) = agent.accept(Status::Ok).await;
        assert_eq!(offset, 104);
        stream.write_all(&frame(Stream::Stdout, b"456789")).await.unwrap();
        stream.write_all(&frame(Stream::Stderr, b"!")).await.unwrap();
        // An agent that says it twice.
        for stream_end in [Stream::Stdout, Stream::Stdout, Stream::Stderr] {
            stream.write_all(&frame(stream_end, b"")).await.unwrap();
        }
        stream
    };
    let (seen, _stream) = tokio::join!(read_all(&mut output), serve);
    assert_eq!(seen.unwrap(), [b"0123456789".to_vec(), b"!".to_vec()]);
    assert_eq!(output.offset(), 111);
}

#[tokio::test]
async fn a_lost_acknowledgement_is_told_again_on_the_next_connection() {
    let agent = agent();
    let mut output = agent.output(0);
    let consume = async {
        output.next().await.unwrap();
        output.acknowledge(5).await;
        output.next().await.unwrap();
    };
    let serve = async {
        let (mut stream, _, acknowledged) = agent.accept(Status::Ok).await;
        assert_eq!(acknowledged, 0);
        stream.write_all(&frame(Stream::Stdout, b"12345")).await.unwrap();
        // The connection breaks without the acknowledgement having been read.
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(stream);
        let (mut stream, offset, acknowledged) = agent.accept(Status::Ok).await;
        assert_eq!((offset, acknowledged), (5, 5));
        stream.write_all(&frame(Stream::Stdout, b"6")).await.unwrap();
        stream
    };
    tokio::join!(consume, serve);
}

#[tokio::test]
async fn frames_that_are_too_long_or_of_no_stream_end_the_output() {
    for bytes in [[1, 1, 0, 1, 0], [3, 1, 0, 0, 0], [1, 0xff, 0xff, 0xff, 0xff]] {
        let agent = agent();
        let mut output = agent.output(0);
        let serve = async {
            let (mut stream, _, _) = agent.accept(Status::Ok).await;
            stream.write_all(&bytes).await.unwrap();
            stream
        };
        let (event, _stream) = tokio::join!(output.next(), serve);
        assert!(matches!(event, Err(OutputError::Protocol { .. })), "{event:?}");
    }
}

#[tokio::test]
async fn refusals_are_told_with_the_process() {
    for (status, text) in [
        (Status::NotFound, "the guest has no output of process c"),
        (
            Status::OffsetGone,
            "the output of process c from byte 7 on is not kept any more",
        ),
        (
            Status::NoStdin,
            "the guest's stdio of process c breaks the protocol",
        ),
    ] {
        let agent = agent();
        let mut output = agent.output(7);
        let (event, _) = tokio::join!(output.next(), agent.accept(status));
        assert_eq!(event.unwrap_err().to_string(), text);
    }
}

#[tokio::test]
async fn an_end_without_end_frames_is_a_lost_connection() {
    let agent = agent();
    let mut output = agent.output(0);
    let serve = async {
        let (mut stream, _, _) = agent.accept(Status::Ok).await;
        stream.write_all(&frame(Stream::Stdout, b"a")).await.unwrap();
        stream.write_all(&frame(Stream::Stdout, b"")).await.unwrap();
        drop(stream);
        agent.accept(Status::Ok).await.1
    };
    let consume = async {
        output.next().await.unwrap();
        assert_eq!(
            output.next().await.unwrap(),
            OutputEvent::StreamEnd(Stream::Stdout)
        );
        tokio::time::timeout(Duration::from_millis(200), output.next())
            .await
            .unwrap_err();
    };
    let (offset, ()) = tokio::join!(serve, consume);
    assert_eq!(offset, 1);
}

#[tokio::test]
async fn when_the_guest_has_ended_what_it_sent_is_delivered_and_nothing_is_waited_for() {
    let agent = agent();
    let mut output = agent.output(0);
    let serve = async {
        let (mut stream, _, _) = agent.accept(Status::Ok).await;
        stream
            .write_all(&frame(Stream::Stdout, b"last words"))
            .await
            .unwrap();
        stream
            .write_all(&frame(Stream::Stdout, b"lost")[..7])
            .await
            .unwrap();
    };
    output.guest_has_ended();
    let (first, ()) = tokio::join!(output.next(), serve);
    assert!(matches!(first, Ok(OutputEvent::Data { bytes, .. }) if bytes == "last words"));
    assert!(matches!(output.next().await, Ok(OutputEvent::Data { bytes, .. }) if bytes == "lo"));
    drop(agent);
    assert!(matches!(output.next().await, Err(OutputError::GuestEnded { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Frames cut anywhere, connections cut anywhere, reads cancelled anywhere: each byte once and in order.
    #[test]
    fn every_byte_is_delivered_once(
        payloads in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..300)), 0..12),
        cuts in prop::collection::vec(0_usize..400, 0..8),
        patience in 1_u64..8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let agent = agent();
            let all: Vec<(Stream, u8)> = payloads.iter().flat_map(|(stderr, bytes)| {
                let stream = if *stderr { Stream::Stderr } else { Stream::Stdout };
                bytes.iter().map(move |byte| (stream, *byte))
            }).collect();
            let serve = async {
                let mut cuts = cuts.iter();
                let mut streams = Vec::new();
                loop {
                    let (mut stream, offset, _) = agent.accept(Status::Ok).await;
                    let rest = &all[usize::try_from(offset).unwrap()..];
                    let mut wire: Vec<u8> = rest
                        .chunk_by(|(left, _), (right, _)| left == right)
                        .flat_map(|run| frame(run[0].0, &run.iter().map(|(_, byte)| *byte).collect::<Vec<_>>()))
                        .collect();
                    wire.extend(frame(Stream::Stdout, b""));
                    wire.extend(frame(Stream::Stderr, b""));
                    if let Some(cut) = cuts.next().filter(|cut| **cut < wire.len()) {
                        drop(stream.write_all(&wire[..*cut]).await);
                    } else {
                        drop(stream.write_all(&wire).await);
                        streams.push(stream);
                    }
                }
            };
            let consume = async {
                let mut output = agent.output(0);
                let mut seen = Vec::new();
                loop {
                    // Some calls are cancelled before they are done.
                    let impatient = timeout(Duration::from_millis(patience), output.next()).await;
                    match impatient {
                        Err(_) => tokio::task::yield_now().await,
                        Ok(event) => match event.unwrap() {
                            OutputEvent::Data { stream, bytes } => seen.extend(bytes.iter().map(|byte| (stream, *byte))),
                            OutputEvent::StreamEnd(_) => {}
                            OutputEvent::End => return seen,
                        },
                    }
                }
            };
            let seen = tokio::select! {
                seen = consume => seen,
                () = serve => Vec::new(),
                () = sleep(Duration::from_secs(60)) => panic!("no end within a minute"),
            };
            assert!(seen == all);
        });
    }
}
