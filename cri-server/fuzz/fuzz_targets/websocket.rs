//! What a streaming client sends over a WebSocket whose channels are echoed; the first byte says in which protocol.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (first, bytes) = bytes.split_first().unwrap_or((&0, bytes));
    cri_server::streaming::testing::converse_websocket(*first, bytes);
});
