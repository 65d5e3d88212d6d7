//! What is refused, and why: files that were cut, changed, exchanged, or written by another version.

use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::snapshot::testing;

fn bytes() -> Vec<u8> {
    encode(&testing::state().unwrap()).unwrap()
}

fn refusal(bytes: &[u8]) -> SnapshotError {
    match decode(bytes) {
        Ok(_) => panic!("{} bytes are taken for a snapshot", bytes.len()),
        Err(error) => error,
    }
}

#[test]
fn a_state_that_was_read_is_the_one_that_was_written() {
    let mut file = tempfile::tempfile().unwrap();
    let bytes = bytes();
    file.write_all(&bytes).unwrap();
    let state = read(&file).unwrap();
    assert_eq!(encode(&state).unwrap(), bytes);
    assert_eq!(state.console, b"Linux version");
    assert_eq!(state.named_devices().count(), 2);
    assert!(bytes.len() < 40_000, "two processors take {} bytes", bytes.len());
}

#[test]
fn hundreds_of_damaged_files_are_each_refused_with_a_reason() {
    let good = bytes();
    let mut variants: Vec<(String, Vec<u8>)> = Vec::new();
    // Cut: everywhere in the head, and all along the body.
    let cuts = (0..HEAD).chain((HEAD..good.len()).step_by(good.len() / 120));
    for length in cuts.chain([good.len() - 1]) {
        variants.push((format!("cut to {length}"), good[..length].to_vec()));
    }
    // One bit changed: each of the head, and all along the body.
    let bits = (0..8 * HEAD).chain((8 * HEAD..8 * good.len()).step_by(8 * good.len() / 300 + 1));
    for bit in bits {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        variants.push((format!("bit {bit} changed"), flipped));
    }
    // Something behind it, and twice the same.
    for tail in [&b"\0"[..], b"more", &good] {
        variants.push((format!("{} bytes more", tail.len()), [&good, tail].concat()));
    }
    // Two parts exchanged.
    let (first, second) = (HEAD..HEAD + 24, HEAD + 6000..HEAD + 6024);
    let mut exchanged = good.clone();
    exchanged[first.clone()].copy_from_slice(&good[second.clone()]);
    exchanged[second].copy_from_slice(&good[first]);
    variants.push(("parts exchanged".to_owned(), exchanged));
    assert!(variants.len() >= 400, "{} variants", variants.len());
    for (what, bytes) in variants {
        let reason = refusal(&bytes).to_string();
        assert!(reason.starts_with("snapshot.state: it"), "{what}: {reason}");
    }
}

#[test]
fn other_files_and_other_versions_are_told_apart() {
    let foreign: [&[u8]; 6] = [
        b"",
        b"#!/bin/sh\n",
        b"\x7fELF\x02\x01\x01",
        &[0; 5000],
        b"clpdmem1",
        b"{}",
    ];
    for bytes in foreign {
        assert!(matches!(refusal(bytes), SnapshotError::Foreign), "{bytes:?}");
    }
    let body = &bytes()[HEAD..];
    for version in [0, FORMAT - 1, FORMAT + 1, 7, u32::MAX] {
        let reason = refusal(&frame(version, body).unwrap());
        assert!(
            matches!(reason, SnapshotError::Format { found, .. } if found == version),
            "{reason}"
        );
    }
    let longer = [body, b"x"].concat();
    let reason = refusal(&frame(FORMAT, &longer).unwrap());
    assert!(matches!(reason, SnapshotError::Trailing(1)), "{reason}");
    let reason = refusal(&frame(FORMAT, &body[..body.len() - 1]).unwrap());
    assert!(matches!(reason, SnapshotError::Content(_)), "{reason}");
}

#[test]
fn a_file_without_end_is_not_read() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(matches!(read(&file), Err(SnapshotError::TooLarge(_))));
}

proptest! {
    #[test]
    fn no_body_with_the_right_checksum_panics(body in prop::collection::vec(any::<u8>(), 0..300)) {
        drop(decode(&frame(FORMAT, &body).unwrap()));
    }

    #[test]
    fn no_changed_body_with_the_right_checksum_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut body = bytes()[HEAD..].to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        drop(decode(&frame(FORMAT, &body).unwrap()));
    }
}
