//! What the store knows about an image: plain data, immutable once published.
//!
//! An [`Image`] is a snapshot: a later pull or removal publishes another one. Paths are derived from the store's root
//! when the catalog is read, so a root that was moved keeps working.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// `sha256:<hex>` of the image's configuration, as Docker and containerd name images.
pub type ImageId = String;

/// One complete image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the configuration.
    pub id: ImageId,
    /// `registry/repository:tag`, sorted. Empty when the image was pulled by digest or its tags moved on.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest`, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes that the layers take on disk.
    pub size: u64,
    /// Whom the processes run as unless the pod says otherwise.
    pub user: ImageUser,
    /// What a container of the image runs by default.
    pub config: RunConfig,
    /// Bottom first, as overlayfs needs them reversed.
    pub layers: Vec<Layer>,
    /// kubelet's garbage collection must leave it alone.
    pub pinned: bool,
}

/// One file system layer, ready to be mapped read-only by a Machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// `sha256:<hex>` of the layer's uncompressed tar, or of what `merge` made of it. Equal layers are one file.
    pub diff_id: String,
    /// The EROFS blob.
    pub path: PathBuf,
    /// Its length in bytes, a multiple of 4096.
    pub size: u64,
}

/// The user an image asks for, split as CRI reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ImageUser {
    /// The image says nothing: root.
    #[default]
    Unset,
    /// A number; a group after a colon is in [`RunConfig::user`].
    Uid(i64),
    /// A name to be looked up in the image's `/etc/passwd`.
    Name(String),
}

impl ImageUser {
    /// Splits `user[:group]`.
    pub(crate) fn parse(user: &str) -> Self {
        let name = user.split_once(':').map_or(user, |(name, _)| name);
        match name.parse::<i64>() {
            _ if name.is_empty() => Self::Unset,
            Ok(uid) if uid >= 0 => Self::Uid(uid),
            _ => Self::Name(name.to_owned()),
        }
    }
}

/// The part of an image's configuration that concerns how it is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    /// As written in the image: `user[:group]`, names or numbers, or empty.
    pub user: String,
    /// A signal's name or number, or empty.
    pub stop_signal: String,
    /// Paths that the image declares as volumes.
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

/// Credentials for one pull, in the fields of CRI's `AuthConfig`. Never printed.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    /// Base64 of `username:password`; used when both above are empty.
    pub auth: String,
    /// Host the credentials are for; empty means the image's registry.
    pub server_address: String,
    /// OAuth2 refresh token for the token server.
    pub identity_token: String,
    /// Bearer token sent to the registry as it is.
    pub registry_token: String,
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// What the store takes of its file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// When it was measured, in nanoseconds since 1970.
    pub timestamp: i64,
    /// Folder that CRI calls the mount point of the image file system.
    pub mountpoint: PathBuf,
    /// Bytes of disk under it.
    pub bytes: u64,
    /// Inodes under it.
    pub inodes: u64,
}

/// Nanoseconds since 1970, as CRI stamps things.
pub(crate) fn now_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_split_as_cri_reports_them() {
        assert_eq!(ImageUser::parse(""), ImageUser::Unset);
        assert_eq!(ImageUser::parse("1002"), ImageUser::Uid(1002));
        assert_eq!(ImageUser::parse("1003:1004"), ImageUser::Uid(1003));
        assert_eq!(
            ImageUser::parse("www-data:1004"),
            ImageUser::Name("www-data".into())
        );
        assert_eq!(ImageUser::parse("-1"), ImageUser::Name("-1".into()));
    }

    #[test]
    fn credentials_are_never_printed() {
        let auth = RegistryAuth {
            username: "joe".into(),
            password: "hunter2".into(),
            auth: "aHVudGVyMg==".into(),
            identity_token: "idtok".into(),
            registry_token: "regtok".into(),
            ..RegistryAuth::default()
        };
        let shown = format!("{auth:?}");
        assert!(shown.contains("joe"));
        for secret in ["hunter2", "aHVudGVyMg", "idtok", "regtok"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }
}
