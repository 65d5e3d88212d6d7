//! Pages and rings of a guest's balloon driver.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmm::fuzzing::balloon_pages(input));
