//! Images for a [`TestRegistry`](super::TestRegistry): layers, configuration, manifest.

use std::io::Write as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How a layer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A complete image: blobs by digest, and the manifest's bytes.
#[derive(Debug, Clone)]
pub struct TestImage {
    pub manifest: Vec<u8>,
    pub media_type: String,
    pub config_digest: String,
    /// `sha256:…` and bytes, the configuration included; layers in order before it.
    pub blobs: Vec<(String, Vec<u8>)>,
}

impl TestImage {
    /// An image of one gzip layer that says nothing about how it is run.
    pub fn of_layer(tar: &[u8]) -> Self {
        Self::new(&[(tar, Compression::Gzip)], &json!({}))
    }

    /// `run` is the `config` object of the image's configuration.
    pub fn new(layers: &[(&[u8], Compression)], run: &Value) -> Self {
        Self::for_platform(layers, run, "amd64")
    }

    pub fn for_platform(layers: &[(&[u8], Compression)], run: &Value, architecture: &str) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest(tar)).collect();
        let config = json!({
            "os": "linux", "architecture": architecture, "config": run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes();
        let mut blobs = Vec::new();
        let mut descriptors = Vec::new();
        for (tar, compression) in layers {
            let (bytes, suffix) = compress(tar, *compression);
            descriptors.push(json!({
                "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
                "digest": digest(&bytes), "size": bytes.len(),
            }));
            blobs.push((digest(&bytes), bytes));
        }
        let config_digest = digest(&config);
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest, "size": config.len(),
            },
            "layers": descriptors,
        });
        blobs.push((config_digest.clone(), config));
        Self {
            manifest: manifest.to_string().into_bytes(),
            media_type: media_type.to_owned(),
            config_digest,
            blobs,
        }
    }

    pub fn manifest_digest(&self) -> String {
        digest(&self.manifest)
    }
}

/// `sha256:…` of bytes.
pub(super) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn compress(tar: &[u8], compression: Compression) -> (Vec<u8>, &'static str) {
    match compression {
        Compression::None => (tar.to_vec(), ""),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).expect("in memory");
            (encoder.finish().expect("in memory"), "+gzip")
        }
        Compression::Zstd => (zstd::encode_all(tar, 1).expect("in memory"), "+zstd"),
    }
}
