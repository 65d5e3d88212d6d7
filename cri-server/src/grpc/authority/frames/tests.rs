use proptest::prelude::*;

use super::*;

/// `:method POST`, `:authority` with that value, which enters the table, and `:path /` after it.
fn fields(authority: &str) -> Vec<u8> {
    let length = u8::try_from(authority.len()).unwrap();
    [&[0x83, 0x41, length][..], authority.as_bytes(), &[0x84]].concat()
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = Header {
        length: payload.len(),
        kind,
        flags,
        stream: [0, 0, 0, 1],
    };
    header.write(&mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &frames.concat()].concat()
}

/// The fields as `with_plain_authority` leaves them.
fn plain(authority: &str) -> Vec<u8> {
    with_plain_authority(&fields(authority)).unwrap().unwrap()
}

#[test]
fn only_the_authority_changes_however_the_bytes_arrive() {
    let settings = frame(4, 0, &[0, 3, 0, 0, 0, 100]);
    let data = frame(0, 1, &[0; 20_000]);
    let bytes = connection(&[
        settings.clone(),
        frame(HEADERS, END_HEADERS, &fields("/run/x.sock")),
        data.clone(),
        frame(HEADERS, END_HEADERS | 1, &[0xbe]),
    ]);
    let expected = connection(&[
        settings,
        frame(HEADERS, END_HEADERS, &plain("/run/x.sock")),
        data,
        frame(HEADERS, END_HEADERS | 1, &[0xbe]),
    ]);
    for piece in [1, 2, 7, 100, 8192, bytes.len()] {
        assert_eq!(rewritten(&bytes, piece), expected, "in pieces of {piece}");
    }
}

#[test]
fn a_block_in_many_padded_frames_becomes_one_frame_with_its_priority() {
    let fields = fields("%2Frun%2Fx.sock");
    let (before, after) = fields.split_at(5);
    let padded = [&[3][..], &[0, 0, 0, 0, 200], before, &[0; 3]].concat();
    let bytes = connection(&[
        frame(HEADERS, PADDED | PRIORITY | 1, &padded),
        frame(CONTINUATION, 0, &[]),
        frame(CONTINUATION, END_HEADERS, after),
    ]);
    let payload = [&[0, 0, 0, 0, 200][..], &plain("%2Frun%2Fx.sock")].concat();
    let expected = connection(&[frame(HEADERS, PRIORITY | END_HEADERS | 1, &payload)]);
    assert_eq!(rewritten(&bytes, bytes.len()), expected);
    assert_eq!(rewritten(&bytes, 1), expected);
}

#[test]
fn a_long_block_stays_in_frames_of_the_allowed_size() {
    let mut fields = fields("/run/x.sock");
    // A field "a" with a value of as many bytes as fit into two frames.
    fields.extend_from_slice(&[0x00, 0x01, b'a', 0x7f, 0x81, 0xfd, 0x00]);
    fields.extend(vec![b'v'; 0x7f + 1 + 0x7d * 128]);
    let (first, second) = fields.split_at(10_000);
    let bytes = connection(&[frame(HEADERS, 0, first), frame(CONTINUATION, END_HEADERS, second)]);
    let out = rewritten(&bytes, 1000);
    let rest = &out[PREFACE.len()..];
    let header = Header::read(rest).unwrap();
    assert!(header.length <= MAX_PAYLOAD);
    let block = Block::read(rest).unwrap();
    assert_eq!(Some(block.fields), with_plain_authority(&fields).unwrap());
}

#[test]
fn what_is_wrong_passes_as_it_is() {
    let good = frame(HEADERS, END_HEADERS, &fields("/run/x.sock"));
    let wrong: [(&str, Vec<u8>); 7] = [
        ("HTTP/1", [b"GET / HTTP/1.1\r\n\r\n", &good[..]].concat()),
        (
            "a block that another frame breaks off",
            connection(&[
                frame(HEADERS, 0, &fields("/x")),
                frame(0, 0, b"data"),
                good.clone(),
            ]),
        ),
        (
            "more padding than payload",
            connection(&[frame(HEADERS, PADDED | END_HEADERS, &[9, 0x83]), good.clone()]),
        ),
        (
            "a field that is cut off",
            connection(&[frame(HEADERS, END_HEADERS, &[0x41, 20, b'x']), good.clone()]),
        ),
        (
            "a frame that is too long",
            connection(&[
                frame(HEADERS, END_HEADERS, &vec![0; MAX_PAYLOAD + 1]),
                good.clone(),
            ]),
        ),
        (
            "a block without an end",
            connection(&vec![frame(HEADERS, 0, &fields("/x")); 2]),
        ),
        ("a connection that is cut off", connection(&[good[..15].to_vec()])),
    ];
    for (what, bytes) in wrong {
        assert_eq!(rewritten(&bytes, 10), bytes, "{what}");
    }
}

#[test]
fn what_waits_is_bounded() {
    let (mut rewriter, mut out) = (Rewriter::new(), Vec::new());
    rewriter.push(&connection(&[frame(HEADERS, 0, &[0x83])]), &mut out);
    let more = frame(CONTINUATION, 0, &[0x86; 1000]);
    for _ in 0..1000 {
        rewriter.push(&more, &mut out);
        assert!(rewriter.waiting.len() <= MAX_BLOCK + more.len());
    }
    assert_eq!(rewriter.place, Place::Transparent);
}

proptest! {
    #[test]
    fn any_bytes_come_out_the_same_whatever_the_pieces(
        bytes in proptest::collection::vec((0u8..12, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
        piece in 1usize..50,
    ) {
        let frames: Vec<_> = bytes.iter().map(|(kind, flags, payload)| frame(*kind, *flags, payload)).collect();
        let bytes = connection(&frames);
        let whole = rewritten(&bytes, bytes.len());
        prop_assert!(whole.len() <= bytes.len() * 2);
        prop_assert_eq!(rewritten(&bytes, piece), whole);
    }
}
