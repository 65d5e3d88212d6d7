//! Frames and rings of a guest's network driver.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::fuzzing::net_tx(input));
