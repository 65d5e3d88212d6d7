//! Requests and rings of a guest's disk driver.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::fuzzing::block_request(input));
