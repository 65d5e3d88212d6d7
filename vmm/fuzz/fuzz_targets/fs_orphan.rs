//! Requests and rings of a guest's file system driver, after its backend has gone.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::fuzzing::fs_orphan(input));
