//! Requests and rings of a guest's file system driver, and a backend that answers as it likes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::fuzzing::fs_bounce(input));
