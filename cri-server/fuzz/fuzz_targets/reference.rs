//! An image reference, as a pod names it.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| cri_server::image::testing::fuzz::reference(text));
