//! What a guest answers or tells; the first byte says to which call.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (first, bytes) = bytes.split_first().unwrap_or((&0, bytes));
    cri_server::fuzzing::agent_answers(*first, bytes);
});
