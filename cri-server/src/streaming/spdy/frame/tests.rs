//! Frames against their encoder, in pieces of any size, and bytes that are none.

use proptest::prelude::*;

use super::*;

/// Everything that comes out of `bytes`, which arrive in pieces; data of one frame is joined.
fn frames(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, SpdyError> {
    let mut decoder = Decoder::new();
    let mut frames: Vec<Frame> = Vec::new();
    let mut unfinished: Option<(u32, Vec<u8>)> = None;
    for piece in bytes.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);
        while let Some(frame) = decoder.next()? {
            match frame {
                Frame::Data { stream, fin, bytes } => {
                    let (of, so_far) = unfinished.get_or_insert((stream, Vec::new()));
                    assert_eq!(*of, stream);
                    so_far.extend_from_slice(&bytes);
                    if decoder.data.is_none() {
                        let whole = unfinished.take().unwrap().1;
                        frames.push(Frame::Data {
                            stream,
                            fin,
                            bytes: whole.into(),
                        });
                    } else {
                        assert!(!fin, "the end is told with the last piece");
                    }
                }
                other => frames.push(other),
            }
        }
    }
    Ok(frames)
}

fn headers(value: &str) -> Headers {
    Headers::from([("streamtype".to_owned(), value.to_owned())])
}

fn frame() -> impl Strategy<Value = Frame> {
    let stream = 1..=MASK;
    prop_oneof![
        (stream.clone(), "[a-z]{0,20}").prop_map(|(stream, value)| Frame::SynStream {
            stream,
            fin: false,
            headers: headers(&value),
        }),
        (
            stream.clone(),
            any::<bool>(),
            prop::collection::vec(any::<u8>(), 0..200)
        )
            .prop_map(|(stream, fin, bytes)| Frame::Data {
                stream,
                fin,
                bytes: bytes.into(),
            }),
        stream.clone().prop_map(|stream| Frame::Reset { stream }),
        any::<u32>().prop_map(|id| Frame::Ping { id }),
        Just(Frame::GoAway),
        (0..=MASK, 0..=MASK).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
        stream.prop_map(|stream| Frame::SynReply {
            stream,
            fin: false,
            headers: Headers::new(),
        }),
    ]
}

fn encode(encoder: &mut Encoder, frame: &Frame, out: &mut BytesMut) {
    match frame {
        Frame::SynStream { stream, headers, .. } => encoder.syn_stream(*stream, headers, out),
        Frame::SynReply { stream, .. } => encoder.syn_reply(*stream, out),
        Frame::Data { stream, fin, bytes } => {
            data(*stream, bytes.len(), *fin, out);
            out.extend_from_slice(bytes);
        }
        Frame::Reset { stream } => reset(*stream, ResetReason::Cancel, out),
        Frame::Ping { id } => ping(*id, out),
        Frame::GoAway => go_away(0, GoAwayReason::Done, out),
        Frame::WindowUpdate { stream, delta } => window_update(*stream, *delta, out),
        Frame::Settings { .. } | Frame::Headers { .. } => unreachable!("the strategy makes none"),
    }
}

proptest! {
    #[test]
    fn frames_survive_the_wire_in_any_pieces(
        sent in prop::collection::vec(frame(), 0..20),
        piece in 1usize..300,
    ) {
        let (mut encoder, mut bytes) = (Encoder::new(), BytesMut::new());
        for frame in &sent {
            encode(&mut encoder, frame, &mut bytes);
        }
        prop_assert_eq!(frames(&bytes, piece).unwrap(), sent);
    }

    #[test]
    fn any_bytes_are_frames_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000), piece in 1usize..100) {
        crate::streaming::testing::decode_frames(&bytes, piece);
    }

    /// As above, but behind a plausible header, so that the payloads are reached.
    #[test]
    fn any_payload_is_a_frame_or_refused(
        kind in 0u16..12,
        flags in any::<u8>(),
        payload in prop::collection::vec(any::<u8>(), 0..64),
        length in prop::option::of(0usize..80),
    ) {
        let mut bytes = BytesMut::new();
        control(kind, flags, length.unwrap_or(payload.len()), &mut bytes);
        bytes.extend_from_slice(&payload);
        crate::streaming::testing::decode_frames(&bytes, 1000);
    }

    /// The same bytes to a whole connection.
    #[test]
    fn any_conversation_ends(
        sent in prop::collection::vec(frame(), 0..10),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
    ) {
        let (mut encoder, mut bytes) = (Encoder::new(), BytesMut::new());
        for frame in &sent {
            encode(&mut encoder, frame, &mut bytes);
        }
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        crate::streaming::testing::converse(&bytes);
    }

    /// A good conversation with some of its bytes changed.
    #[test]
    fn a_changed_conversation_is_frames_or_refused(
        sent in prop::collection::vec(frame(), 1..10),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10),
    ) {
        let (mut encoder, mut bytes) = (Encoder::new(), BytesMut::new());
        for frame in &sent {
            encode(&mut encoder, frame, &mut bytes);
        }
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        crate::streaming::testing::decode_frames(&bytes, 1000);
    }
}

#[test]
fn settings_tell_the_initial_window() {
    let settings = |entries: &[(u32, u32)]| {
        let mut bytes = BytesMut::new();
        control(kind::SETTINGS, 0, 4 + 8 * entries.len(), &mut bytes);
        bytes.put_u32(u32::try_from(entries.len()).unwrap());
        for (id, value) in entries {
            bytes.put_u32(*id);
            bytes.put_u32(*value);
        }
        frames(&bytes, 1000).unwrap()
    };
    for (entries, initial_window) in [
        (&[][..], None),
        (&[(4, 100)], None),
        // With a flag in front of the id.
        (&[(4, 100), (0x0100_0007, 65_536)], Some(65_536)),
    ] {
        assert_eq!(settings(entries), [Frame::Settings { initial_window }]);
    }
}

#[test]
fn what_cannot_be_is_refused_by_its_reason() {
    let control = |kind, length: usize, payload: &[u8]| {
        let mut bytes = BytesMut::new();
        super::control(kind, 0, length, &mut bytes);
        bytes.extend_from_slice(payload);
        frames(&bytes, 1000)
    };
    let wrong_length = |kind, length| Err(SpdyError::Length { kind, length });
    assert_eq!(control(kind::PING, 3, b"abc"), wrong_length(kind::PING, 3));
    assert_eq!(control(kind::GOAWAY, 0, b""), wrong_length(kind::GOAWAY, 0));
    assert_eq!(
        control(kind::SYN_STREAM, 4, b"abcd"),
        wrong_length(kind::SYN_STREAM, 4)
    );
    assert_eq!(
        control(kind::SETTINGS, 4, b"\xff\xff\xff\xff"),
        wrong_length(kind::SETTINGS, 4)
    );
    let length = MAX_CONTROL + 1;
    assert_eq!(
        control(kind::SYN_STREAM, length, b""),
        Err(SpdyError::TooLong {
            kind: kind::SYN_STREAM,
            length
        })
    );
    assert_eq!(
        frames(b"\x80\x02\0\x06\0\0\0\x04abcd", 1000),
        Err(SpdyError::Version(2))
    );
    assert_eq!(
        control(99, 4, b"abcd"),
        Ok(Vec::new()),
        "unknown kinds are skipped"
    );
}
