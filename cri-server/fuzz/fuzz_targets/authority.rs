//! What a client of the CRI socket sends, as the filter of `:authority` sees it; the first byte says in pieces of which size.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (first, bytes) = bytes.split_first().unwrap_or((&0, bytes));
    cri_server::fuzzing::authority(bytes, usize::from(*first));
});
