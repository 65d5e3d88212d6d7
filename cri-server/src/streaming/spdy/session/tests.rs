//! Whole connections over pipes: order, ends, windows, and clients that do not keep to the rules.

use tokio::{
    io::{DuplexStream, ReadHalf, WriteHalf, duplex, split},
    time::sleep,
};

use super::*;
use crate::streaming::spdy::testing::{ClientEvent, SpdyClient};

type TestClient = SpdyClient<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>;

const SOON: Duration = Duration::from_secs(30);

fn connection(pipe: usize) -> (TestClient, Session, Line) {
    let (client, server) = duplex(pipe);
    let line = Line::new(CancellationToken::new());
    let (reader, writer) = split(server);
    let session = Session::start(reader, writer, &line);
    let (reader, writer) = split(client);
    (SpdyClient::new(reader, writer), session, line)
}

async fn next(client: &mut TestClient) -> ClientEvent {
    let event = timeout(SOON, client.next()).await.expect("in time");
    event.unwrap().expect("not the end")
}

/// What comes next besides news of windows.
async fn next_but_windows(client: &mut TestClient) -> ClientEvent {
    loop {
        match next(client).await {
            ClientEvent::Window(..) => {}
            event => return event,
        }
    }
}

#[tokio::test]
async fn a_stream_is_accepted_and_carries_bytes_both_ways() {
    let (mut client, mut session, _) = connection(1024);
    let id = client.open(&[("streamtype", "data")]).await.unwrap();
    client.data(id, b"question", true).await.unwrap();
    let new = session.accept().await.unwrap();
    assert_eq!(
        (new.id, new.header("streamtype"), new.header("port")),
        (1, "data", "")
    );
    let (mut incoming, outgoing) = new.accept().unwrap();
    assert_eq!(incoming.next().await.unwrap(), "question");
    assert_eq!(incoming.next().await, None);
    outgoing.send(Bytes::from_static(b"answer")).await.unwrap();
    outgoing.finish().await.unwrap();
    assert_eq!(next(&mut client).await, ClientEvent::Accepted(1));
    assert_eq!(
        next(&mut client).await,
        ClientEvent::Data(1, "answer".into(), false)
    );
    assert_eq!(next(&mut client).await, ClientEvent::Data(1, "".into(), true));
}

#[tokio::test]
async fn a_stream_that_nobody_wants_is_refused_and_one_that_is_dropped_broken_off() {
    let (mut client, mut session, _) = connection(1024);
    client.open(&[]).await.unwrap();
    drop(session.accept().await.unwrap());
    assert_eq!(next(&mut client).await, ClientEvent::Reset(1));
    client.open(&[]).await.unwrap();
    drop(session.accept().await.unwrap().accept());
    assert_eq!(next(&mut client).await, ClientEvent::Accepted(3));
    assert_eq!(next(&mut client).await, ClientEvent::Reset(3));
    session.refuse_more();
    client.open(&[]).await.unwrap();
    assert_eq!(next(&mut client).await, ClientEvent::Reset(5));
}

#[tokio::test]
async fn a_stream_that_the_client_breaks_off_takes_nothing_more() {
    let (mut client, mut session, _) = connection(1024);
    client.open(&[]).await.unwrap();
    let (mut incoming, outgoing) = session.accept().await.unwrap().accept().unwrap();
    client.reset(1).await.unwrap();
    timeout(SOON, outgoing.broken().cancelled()).await.unwrap();
    assert!(outgoing.send("bytes".into()).await.is_err());
    assert_eq!(incoming.next().await, None);
    client.ping(1).await.unwrap();
    assert_eq!(next(&mut client).await, ClientEvent::Accepted(1));
    assert_eq!(next(&mut client).await, ClientEvent::Pong(1), "the others go on");
}

#[tokio::test]
async fn what_a_handler_has_taken_is_told_to_the_client() {
    let (mut client, mut session, _) = connection(1 << 20);
    client.open(&[]).await.unwrap();
    let (mut incoming, _outgoing) = session.accept().await.unwrap().accept().unwrap();
    assert_eq!(next(&mut client).await, ClientEvent::Accepted(1));
    client.data(1, &[0; 20_000], false).await.unwrap();
    let quiet = timeout(Duration::from_millis(50), client.next()).await;
    assert!(quiet.is_err(), "nothing was taken yet: {quiet:?}");
    let mut taken = 0;
    while taken < 20_000 {
        taken += incoming.next().await.unwrap().len();
    }
    for stream in [0, 1] {
        let ClientEvent::Window(of, delta) = next(&mut client).await else {
            panic!("no window");
        };
        assert_eq!(of, stream);
        assert!((16 * 1024..=20_000).contains(&delta), "{delta}");
    }
}

#[tokio::test]
async fn a_client_that_uses_windows_has_them_kept() {
    let (mut client, mut session, _) = connection(1 << 20);
    client.open(&[]).await.unwrap();
    let (_incoming, outgoing) = session.accept().await.unwrap().accept().unwrap();
    // From the first update on; it opens only the connection's window.
    client.window(0, 1 << 20).await.unwrap();
    client.ping(1).await.unwrap();
    while next(&mut client).await != ClientEvent::Pong(1) {}
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        outgoing.send(vec![7; 200_000].into()).await.unwrap();
        outgoing.finish().await.unwrap();
    });
    let mut received = 0;
    let mut opened = 64 * 1024;
    loop {
        match timeout(Duration::from_millis(200), client.next()).await {
            Ok(event) => match event.unwrap().unwrap() {
                ClientEvent::Data(1, _, true) => break,
                ClientEvent::Data(1, bytes, false) => received += bytes.len(),
                other => panic!("{other:?}"),
            },
            Err(_) => {
                assert_eq!(received, opened, "the window is used, and no more");
                client.window(1, 50_000).await.unwrap();
                opened += 50_000;
            }
        }
    }
    assert_eq!(received, 200_000);
    assert!(opened < 300_000);
}

#[tokio::test]
async fn a_handler_that_does_not_read_stops_the_client() {
    let (mut client, mut session, _) = connection(1024);
    client.open(&[]).await.unwrap();
    let (mut incoming, _outgoing) = session.accept().await.unwrap().accept().unwrap();
    let mut sent = 0;
    let piece = [0; 32 * 1024];
    while timeout(Duration::from_millis(200), client.data(1, &piece, false))
        .await
        .is_ok()
    {
        sent += piece.len();
        assert!(sent < 4 << 20, "{sent} bytes are in memory");
    }
    assert!(incoming.next().await.is_some());
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_handler() {
    let (mut client, mut session, _) = connection(1024);
    client.open(&[]).await.unwrap();
    let (_incoming, outgoing) = session.accept().await.unwrap().accept().unwrap();
    let mut sent = 0;
    while timeout(
        Duration::from_millis(200),
        outgoing.send(vec![0; 32 * 1024].into()),
    )
    .await
    .is_ok()
    {
        sent += 32 * 1024;
        assert!(sent < 4 << 20, "{sent} bytes are in memory");
    }
    assert_eq!(next(&mut client).await, ClientEvent::Accepted(1));
}

#[tokio::test]
async fn pings_come_back_while_a_stream_is_full_of_output() {
    let (mut client, mut session, _) = connection(64 * 1024);
    client.open(&[]).await.unwrap();
    let (_incoming, outgoing) = session.accept().await.unwrap().accept().unwrap();
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        loop {
            if outgoing.send(vec![0; 32 * 1024].into()).await.is_err() {
                return;
            }
        }
    });
    client.ping(7).await.unwrap();
    while next(&mut client).await != ClientEvent::Pong(7) {}
}

#[tokio::test]
async fn goodbye_comes_after_the_last_byte() {
    let (mut client, mut session, line) = connection(1024);
    client.open(&[]).await.unwrap();
    let (_incoming, outgoing) = session.accept().await.unwrap().accept().unwrap();
    let closing = async {
        outgoing.send(vec![1; 100_000].into()).await.unwrap();
        outgoing.finish().await.unwrap();
        session.close().await;
    };
    let reading = async {
        let mut received = 0;
        loop {
            match next_but_windows(&mut client).await {
                ClientEvent::Data(_, bytes, _) => received += bytes.len(),
                ClientEvent::GoAway => return received,
                _ => {}
            }
        }
    };
    let ((), received) = tokio::join!(closing, reading);
    assert_eq!(received, 100_000);
    assert_eq!(client.next().await.unwrap(), None);
    assert!(!line.closed.is_cancelled(), "the client hangs up last");
    drop(client);
    timeout(SOON, line.closed.cancelled()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_closes_the_line() {
    let (mut client, mut session, line) = connection(1024);
    client.open(&[]).await.unwrap();
    let (mut incoming, outgoing) = session.accept().await.unwrap().accept().unwrap();
    drop(client);
    timeout(SOON, line.closed.cancelled()).await.unwrap();
    assert!(session.accept().await.is_none());
    assert_eq!(timeout(SOON, incoming.next()).await.unwrap(), None);
    assert!(outgoing.send("bytes".into()).await.is_err());
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_told_and_cut_off() {
    let nonsense: [&[u8]; 4] = [
        // A ping of 16 MiB.
        b"\x80\x03\0\x06\0\xff\xff\xff",
        // SYN_STREAM with no header block.
        b"\x80\x03\0\x01\0\0\0\x0a\0\0\0\x01\0\0\0\0\0\0",
        // A window update of nothing.
        b"\x80\x03\0\x09\0\0\0\x08\0\0\0\0\0\0\0\0",
        // Version 2.
        b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01",
    ];
    for bytes in nonsense {
        let (mut client, _session, line) = connection(1024);
        client.raw(bytes).await.unwrap();
        client.raw(&[0xff; 2 << 10]).await.ok();
        timeout(SOON, line.closed.cancelled()).await.unwrap();
        let mut told = false;
        while let Ok(Some(event)) = client.next().await {
            told |= event == ClientEvent::GoAway;
        }
        assert!(told, "{bytes:?}");
    }
}

#[tokio::test]
async fn ids_that_do_not_grow_end_the_connection() {
    let (mut client, mut session, line) = connection(1024);
    client.open(&[]).await.unwrap();
    let _accepted = session.accept().await.unwrap().accept();
    let mut bytes = BytesMut::new();
    let mut again = Encoder::new();
    again.syn_stream(1, &Headers::new(), &mut bytes);
    // Only the id is looked at: the header block belongs to another compression.
    client.raw(&bytes).await.unwrap();
    timeout(SOON, line.closed.cancelled()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_opens_streams_and_never_reads_is_cut_off() {
    let (mut client, mut session, line) = connection(1024);
    let mut accepting = JoinSet::new();
    accepting.spawn(async move { while session.accept().await.is_some() {} });
    let flood = async {
        loop {
            let Ok(id) = client.open(&[]).await else { return };
            if client.reset(id).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = flood => {}
        () = line.closed.cancelled() => {}
        () = sleep(SOON) => panic!("the flood goes on"),
    }
}
