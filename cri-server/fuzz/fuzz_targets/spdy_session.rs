//! What a streaming client sends to a whole SPDY connection whose streams are echoed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cri_server::streaming::testing::converse(bytes));
