//! What a streaming client sends, as the decoder sees it; the first byte says in pieces of which size.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (piece, bytes) = bytes.split_first().unwrap_or((&0, bytes));
    cri_server::streaming::testing::decode_frames(bytes, usize::from(*piece));
});
