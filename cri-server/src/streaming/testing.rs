//! For tests outside of this crate: the client's end of SPDY, and what fuzz targets call.

pub use super::spdy::testing::{ClientEvent, SpdyClient, converse, decode_frames};
#[cfg(feature = "testing")]
pub use super::websocket::testing::converse_websocket;
