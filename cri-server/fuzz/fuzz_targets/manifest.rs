//! A manifest, index or configuration, as a registry sends it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cri_server::image::testing::fuzz::manifest(bytes));
