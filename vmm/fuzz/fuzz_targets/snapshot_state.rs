//! State files of snapshots.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::fuzzing::snapshot_state(input));
