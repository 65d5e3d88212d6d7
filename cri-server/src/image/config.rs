//! The `[image]` section of the configuration: where images are kept, how registries are reached, what is too much.
//!
//! Plain data with defaults that suit a node. [`ImageStore::open`](super::ImageStore::open) checks it and names the
//! field that is wrong.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

/// Everything the image store can be told.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageConfig {
    /// Folder of the store: the catalog, `layers/`, and temporary files of running pulls.
    pub root: PathBuf,
    /// Mirrors and TLS per registry, by the host that image names carry (`docker.io`, `gcr.io`, `127.0.0.1:5000`).
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Layers downloaded at the same time, over all pulls.
    pub max_concurrent_downloads: usize,
    /// Seconds to establish a connection.
    pub connect_timeout_seconds: u64,
    /// Seconds without a byte from a registry before the transfer counts as cut.
    pub idle_timeout_seconds: u64,
    /// Tries of one request that made no progress, before a transient fault becomes the pull's error.
    pub max_attempts: u32,
    /// Images never offered for removal by kubelet: references as in `crictl pull`.
    pub pinned: Vec<String>,
    /// What is chosen from an image index: `os/architecture`.
    pub platform: String,
    /// What an image may cost before it is refused.
    pub limits: Limits,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/clearpod/images"),
            registries: BTreeMap::new(),
            max_concurrent_downloads: 3,
            connect_timeout_seconds: 10,
            idle_timeout_seconds: 60,
            max_attempts: 5,
            pinned: Vec::new(),
            platform: "linux/amd64".to_owned(),
            limits: Limits::default(),
        }
    }
}

/// How images of one registry host are fetched.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Tried in this order, before the registry itself.
    pub endpoints: Vec<EndpointConfig>,
    /// Never ask the registry itself: only the endpoints above.
    pub endpoints_only: bool,
}

/// One server that answers for a registry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointConfig {
    /// `http://` or `https://`, host, optional port, and optionally a path put before `/v2/`.
    pub url: String,
    /// PEM file with certificate authorities to trust beside the host's own.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Accept any certificate. For test set-ups.
    #[serde(default)]
    pub skip_verify: bool,
    /// Send the pod's pull secret to this server although its host is not the registry's.
    #[serde(default)]
    pub send_credentials: bool,
}

/// Upper bounds of what one image may make this node do. An image is input from strangers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of a manifest or index.
    pub manifest_bytes: u64,
    /// Bytes of an image's configuration.
    pub config_bytes: u64,
    /// Layers of one image.
    pub layers: usize,
    /// Bytes of one layer when unpacked, holes included.
    pub layer_bytes: u64,
    /// Files, directories and other entries of one layer.
    pub layer_entries: u64,
    /// Bytes of names, link targets and extended attributes of one layer: they are held in memory while it is unpacked.
    pub layer_metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            manifest_bytes: 4 * MIB,
            config_bytes: 8 * MIB,
            layers: 127,
            layer_bytes: 128 << 30,
            layer_entries: 1_000_000,
            layer_metadata_bytes: 256 * MIB,
        }
    }
}
