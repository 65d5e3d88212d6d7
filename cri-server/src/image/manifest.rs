//! Manifests, indexes and configurations: parsed from strangers' JSON, checked, reduced to what a pull needs.
//!
//! OCI image-spec (manifest.md, image-index.md, config.md) and Docker's v2 schema 2, which differ in media types only.
//! Unknown fields are ignored, as the spec demands; unknown media types are refused by name.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{digest::Digest, record::RunConfig};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// All of these are tars; how one is compressed is seen in its first bytes, as other runtimes do it, because images with
/// a wrong suffix exist.
const LAYERS: [&str; 10] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Why a document is not used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DocumentFault {
    Malformed(String),
    MediaType(String),
    NoPlatform { available: String },
}

fn malformed(reason: impl Into<String>) -> DocumentFault {
    DocumentFault::Malformed(reason.into())
}

/// Digest and length of something to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// What stands behind a reference.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Manifest {
    /// The manifest for our platform is one step further.
    Index(Descriptor),
    Image {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
}

/// The part of an image's configuration that we use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ImageSpec {
    pub(crate) run: RunConfig,
    /// Digests of the uncompressed layers, bottom first.
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl RawPlatform {
    fn shown(&self) -> String {
        let variant = self.variant.as_ref().filter(|variant| !variant.is_empty());
        match variant {
            Some(variant) => format!("{}/{}/{variant}", self.os, self.architecture),
            None => format!("{}/{}", self.os, self.architecture),
        }
    }
}

impl RawDescriptor {
    fn checked(&self) -> Result<Descriptor, DocumentFault> {
        let digest =
            Digest::parse(&self.digest).ok_or_else(|| malformed(format!("digest {:?}", self.digest)))?;
        Ok(Descriptor {
            digest,
            size: self.size,
        })
    }
}

/// Reads a manifest or index. `content_type` is what the server called it; `platform` is `os/architecture`.
pub(crate) fn parse(
    bytes: &[u8],
    content_type: &str,
    platform: &str,
    max_layers: usize,
) -> Result<Manifest, DocumentFault> {
    let raw: RawManifest = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    let media_type = raw.media_type.as_deref().unwrap_or(content_type);
    if raw.schema_version != 2 {
        return Err(DocumentFault::MediaType(format!(
            "{media_type} (schema {})",
            raw.schema_version
        )));
    }
    // A document that reads as both could show one image to a scanner and another to us (CVE-2021-41190).
    if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
        return Err(malformed("is both an index and a manifest"));
    }
    match media_type {
        OCI_INDEX | DOCKER_INDEX => select(
            &raw.manifests
                .ok_or_else(|| malformed("index without manifests"))?,
            platform,
        ),
        OCI_MANIFEST | DOCKER_MANIFEST => image(&raw, max_layers),
        other => Err(DocumentFault::MediaType(other.to_owned())),
    }
}

fn select(manifests: &[RawDescriptor], platform: &str) -> Result<Manifest, DocumentFault> {
    let candidates: Vec<&RawDescriptor> = manifests
        .iter()
        .filter(|one| {
            [OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_INDEX].contains(&one.media_type.as_str())
        })
        .collect();
    // `v1` is how some builders spell the architecture's base level.
    let is_base = |variant: Option<&str>| matches!(variant, None | Some("" | "v1"));
    let chosen = candidates
        .iter()
        .find(|one| {
            one.platform.as_ref().is_some_and(|found| {
                format!("{}/{}", found.os, found.architecture) == platform
                    && is_base(found.variant.as_deref())
            })
        })
        .or_else(|| match candidates.as_slice() {
            // Nothing to choose from: the configuration will tell the platform.
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        });
    match chosen {
        Some(chosen) => Ok(Manifest::Index(chosen.checked()?)),
        None => {
            let available = candidates.iter().take(20).map(|one| {
                one.platform
                    .as_ref()
                    .map_or_else(|| "one without platform".to_owned(), RawPlatform::shown)
            });
            let available = available.collect::<Vec<_>>().join(", ");
            Err(DocumentFault::NoPlatform {
                available: if available.is_empty() {
                    "nothing".to_owned()
                } else {
                    available
                },
            })
        }
    }
}

fn image(raw: &RawManifest, max_layers: usize) -> Result<Manifest, DocumentFault> {
    let config = raw
        .config
        .as_ref()
        .ok_or_else(|| malformed("manifest without config"))?;
    if !CONFIGS.contains(&config.media_type.as_str()) {
        return Err(DocumentFault::MediaType(config.media_type.clone()));
    }
    let layers = raw
        .layers
        .as_deref()
        .ok_or_else(|| malformed("manifest without layers"))?;
    if layers.is_empty() {
        return Err(malformed("image has no layers"));
    }
    if layers.len() > max_layers {
        return Err(malformed(format!(
            "{} layers, at most {max_layers} are allowed",
            layers.len()
        )));
    }
    if let Some(foreign) = layers
        .iter()
        .find(|layer| !LAYERS.contains(&layer.media_type.as_str()))
    {
        return Err(DocumentFault::MediaType(foreign.media_type.clone()));
    }
    Ok(Manifest::Image {
        config: config.checked()?,
        layers: layers
            .iter()
            .map(RawDescriptor::checked)
            .collect::<Result<_, _>>()?,
    })
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// Go writes absent lists as `null`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

/// Reads a configuration whose digest was verified, for a manifest with `layers` layers.
pub(crate) fn parse_config(bytes: &[u8], layers: usize, platform: &str) -> Result<ImageSpec, DocumentFault> {
    let raw: RawImage = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    let found = format!("{}/{}", raw.os, raw.architecture);
    if found != platform {
        return Err(DocumentFault::NoPlatform { available: found });
    }
    let diff_ids = raw
        .rootfs
        .diff_ids
        .unwrap_or_default()
        .iter()
        .map(|id| Digest::parse(id).ok_or_else(|| malformed(format!("diff_id {id:?}"))))
        .collect::<Result<Vec<_>, _>>()?;
    if diff_ids.len() != layers {
        return Err(malformed(format!(
            "{} diff_ids for {layers} layers",
            diff_ids.len()
        )));
    }
    let run = raw.config.unwrap_or_default();
    Ok(ImageSpec {
        run: RunConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            stop_signal: run.stop_signal.unwrap_or_default(),
            volumes: run.volumes.unwrap_or_default().into_keys().collect(),
            labels: run.labels.unwrap_or_default(),
        },
        diff_ids,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLATFORM: &str = "linux/amd64";

    fn descriptor(media_type: &str, of: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": Digest::of(of.as_bytes()).to_string(), "size": of.len()})
    }

    fn for_platform(of: &str, architecture: &str, variant: Option<&str>) -> serde_json::Value {
        let mut entry = descriptor(OCI_MANIFEST, of);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        if let Some(variant) = variant {
            entry["platform"]["variant"] = json!(variant);
        }
        entry
    }

    fn read(value: &serde_json::Value) -> Result<Manifest, DocumentFault> {
        parse(value.to_string().as_bytes(), "", PLATFORM, 127)
    }

    #[test]
    fn an_index_yields_our_platform_at_its_base_level() {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            for_platform("arm", "arm64", Some("v8")),
            for_platform("fast", "amd64", Some("v3")),
            for_platform("base", "amd64", None),
        ]});
        let Ok(Manifest::Index(chosen)) = read(&index) else {
            panic!("no choice")
        };
        assert_eq!(chosen.digest, Digest::of(b"base"));
    }

    #[test]
    fn an_index_without_our_platform_says_what_it_has() {
        let index = json!({"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": [
            for_platform("a", "arm64", Some("v8")), for_platform("s", "s390x", None),
        ]});
        let expected = DocumentFault::NoPlatform {
            available: "linux/arm64/v8, linux/s390x".into(),
        };
        assert_eq!(read(&index), Err(expected));
    }

    #[test]
    fn documents_that_are_not_images_are_refused_by_name() {
        let layer = descriptor(LAYERS[1], "layer");
        let config = descriptor(CONFIGS[0], "config");
        let base =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
        assert!(read(&base).is_ok());

        let mut helm = base.clone();
        helm["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        assert_eq!(
            read(&helm),
            Err(DocumentFault::MediaType(
                "application/vnd.cncf.helm.config.v1+json".into()
            ))
        );

        let mut brotli = base.clone();
        brotli["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+brotli");
        assert!(matches!(read(&brotli), Err(DocumentFault::MediaType(name)) if name.ends_with("+brotli")));

        let mut both = base.clone();
        both["manifests"] = json!([]);
        assert!(matches!(read(&both), Err(DocumentFault::Malformed(_))));

        let mut escape = base.clone();
        escape["layers"][0]["digest"] = json!("sha256:../../etc/passwd");
        assert!(matches!(read(&escape), Err(DocumentFault::Malformed(_))));

        let schema1 = json!({"schemaVersion": 1, "name": "x", "fsLayers": []});
        assert!(matches!(read(&schema1), Err(DocumentFault::MediaType(_))));
    }

    #[test]
    fn configurations_with_null_lists_are_read() {
        let id = Digest::of(b"layer").to_string();
        let config = json!({"os": "linux", "architecture": "amd64",
            "config": {"Cmd": null, "Env": ["A=b"], "User": "www-data:1004", "Volumes": {"/data": {}}, "Labels": null},
            "rootfs": {"type": "layers", "diff_ids": [id]}});
        let spec = parse_config(config.to_string().as_bytes(), 1, PLATFORM).expect("valid");
        assert_eq!(spec.run.user, "www-data:1004");
        assert_eq!(spec.run.volumes, ["/data"]);
        assert_eq!(spec.diff_ids, [Digest::of(b"layer")]);
        assert!(matches!(
            parse_config(config.to_string().as_bytes(), 2, PLATFORM),
            Err(DocumentFault::Malformed(_))
        ));
        assert!(matches!(
            parse_config(config.to_string().as_bytes(), 1, "linux/arm64"),
            Err(DocumentFault::NoPlatform { .. })
        ));
    }
}
