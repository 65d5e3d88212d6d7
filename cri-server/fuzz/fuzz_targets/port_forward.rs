//! What opens a forwarded connection, and its answer: what is understood means itself.
#![no_main]

use proto::port_forward::{Answer, Hello};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((message, _)) = bytes.split_first_chunk() else {
        return;
    };
    if let Ok(hello) = Hello::decode(*message) {
        assert!(hello.port > 0);
        assert_eq!(hello.encode()[..6], message[..6]);
    }
    if let Some((message, _)) = bytes.split_first_chunk()
        && let Ok(answer) = Answer::decode(*message)
    {
        assert_eq!(answer.encode(), *message);
    }
});
