//! What opens a stdio connection, and its answer: what is understood means itself.
#![no_main]

use proto::stdio::{FRAME_HEADER_LEN, FrameHeader, HELLO_FIXED_LEN, HelloFixed, MAX_FRAME, MAX_ID, Status};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((fixed, rest)) = bytes.split_first_chunk::<HELLO_FIXED_LEN>()
        && let Ok(decoded) = HelloFixed::decode(fixed)
    {
        assert!(decoded.ids_len() <= 2 * MAX_ID);
        if let Ok(hello) = decoded.with_ids(&rest[..rest.len().min(decoded.ids_len())]) {
            let mut again = hello.encode().expect("what was decoded");
            // Nobody reads the byte between.
            again[5] = fixed[5];
            assert!(bytes.starts_with(&again));
        }
    }
    if let Some((header, _)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>()
        && let Ok(decoded) = FrameHeader::decode(*header)
    {
        assert!(decoded.len as usize <= MAX_FRAME);
        assert_eq!(decoded.encode(), *header);
    }
    if let Some(byte) = bytes.first()
        && let Ok(status) = Status::decode(*byte)
    {
        assert_eq!(status.encode(), *byte);
    }
});
