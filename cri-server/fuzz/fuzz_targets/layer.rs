//! A layer's tar, as a stranger sends it.
#![no_main]

libfuzzer_sys::fuzz_target!(|tar: &[u8]| cri_server::image::testing::fuzz::layer(tar));
