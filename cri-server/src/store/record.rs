//! What became of each request: the shape of the store's JSON. A change of shape is a new `VERSION`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    container::{limits::Limits, state::ContainerState},
    image::RunConfig,
    network::Attachment,
    sandbox::{SandboxState, Timings, VolumeUse},
};

/// A sandbox. Times are nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    pub(crate) created_at: i64,
    pub(crate) state: SandboxState,
    /// Once the network is attached.
    pub(crate) attachment: Option<Attachment>,
    /// How long each phase of its start took.
    pub(crate) timings: Timings,
    /// The end of the console of a Machine that has ended.
    pub(crate) console: String,
}

/// A container. Times are nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    pub(crate) created_at: i64,
    pub(crate) state: ContainerState,
    /// Image id, as `Image::id`.
    pub(crate) image_id: String,
    /// A repository digest of it, or its id.
    pub(crate) image_ref: String,
    /// How the image runs: an exec needs it as long as the container lives, whatever becomes of the image.
    pub(crate) image: RunConfig,
    /// uid, gid, supplemental gids, once the guest has resolved them.
    pub(crate) user: Option<(u32, u32, Vec<u32>)>,
    pub(crate) log_path: Option<PathBuf>,
    /// Host file that the termination message goes to.
    pub(crate) termination_log: Option<PathBuf>,
    /// What it holds of the pod's volumes.
    #[serde(default)]
    pub(crate) volumes: Vec<VolumeUse>,
    /// signal(7)
    pub(crate) stop_signal: u32,
    /// What is asked for since the first update; before, the request says it.
    #[serde(default)]
    pub(crate) updated: Option<Limits>,
    /// The limits as the guest had them when they were set last.
    #[serde(default)]
    pub(crate) shown: Option<Limits>,
}
