//! What pods and containers use, measured in their guests, as CRI tells it.
//!
//! `gather` asks guests, `credible` bounds what they say, `sample` makes rates of two measurements; `usage` and `metrics`
//! convert. All but `gather` is pure.

mod credible;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod fixture;
#[cfg(feature = "testing")]
pub(crate) mod fuzz;
mod gather;
pub(crate) mod metrics;
mod sample;
mod usage;

pub(crate) use gather::{Measured, gather, measure};
pub(crate) use sample::Samples;
pub(crate) use usage::{Figures, container_stats, sandbox_stats};
