//! Packets and rings of a guest's vsock driver.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::fuzzing::vsock_packet(input));
