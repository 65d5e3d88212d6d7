//! A CRI request as any bytes; the first says of which call.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (first, bytes) = bytes.split_first().unwrap_or((&0, bytes));
    cri_server::fuzzing::cri_requests(*first, bytes);
});
