//! Entry points of the fuzz targets in `cri-server/fuzz` whose modules are nobody else's business: strangers' bytes in, and
//! what must hold afterwards.
//!
//! The rest of them is where its public modules are: `image::testing::fuzz` and `streaming::testing`.

pub use crate::{
    grpc::fuzz::{authority, cri_requests},
    guest::fuzz::agent_answers,
    stdio::fuzz::output_frames,
};
