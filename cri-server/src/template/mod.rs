//! Templates: guests that have booted, with the agent ready and nothing of any pod in them, for pods to go on from.
//!
//! ```text
//!              keeper (one task): what is wanted ─▶ sandbox::make_template ─▶ shelf (files) ─▶ Ready
//! RunPodSandbox ─▶ Templates::fork ─┬─ Ready of its shape, parts unchanged ─▶ Fork
//!                                   └─ nothing that fits ─▶ boots cold; the keeper hears of it
//! ```
//!
//! `key` names what a template was made of, `content` what is in it, `rules` decide (pure), `shelf` is its directories, [`Templates`]
//! what is there now. No pod ever waits for a template. The files of one never change, and unlinking them is always right: whoever
//! goes on from them has them mapped or open. One whose files were touched all the same is made anew: nobody goes on from it any more.

mod config;
mod content;
mod keeper;
mod key;
mod pages;
mod rules;
mod shelf;
mod templates;

pub use config::TemplatesConfig;
pub(crate) use keeper::keep;
pub(crate) use key::Shape;
pub(crate) use shelf::Unfinished;
pub(crate) use templates::{Fork, Outcome, TemplateView, Templates};
