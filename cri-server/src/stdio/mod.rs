//! Byte streams of container processes: log writer, capture, stdin.
