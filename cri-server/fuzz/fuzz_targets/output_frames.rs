//! What a guest sends as the output of a process; the first byte says in pieces of which size, and whether on a terminal.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (first, bytes) = bytes.split_first().unwrap_or((&0, bytes));
    cri_server::fuzzing::output_frames(bytes, usize::from(*first / 2), *first % 2 == 1);
});
