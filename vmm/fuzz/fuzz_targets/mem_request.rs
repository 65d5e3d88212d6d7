//! Requests and rings of a guest's memory driver (virtio-mem).
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::fuzzing::mem_request(input));
