//! What kubelet's paths say about a volume: CRI has nothing else that tells a configMap from a hostPath. Names only.

use std::path::{Path, PathBuf};

/// Directory of a plugin's volumes below `<root>/pods/<uid>/volumes`.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
/// Plugins whose volumes kubelet writes with its atomic writer.
const PROJECTED: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~downward-api",
    "kubernetes.io~projected",
    "kubernetes.io~secret",
];

/// A volume of kubelet's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KubeletVolume {
    /// configMap, secret, projected or downwardAPI.
    Projected,
    EmptyDir,
    /// A bind that kubelet made of something inside one of these volumes, whichever exists.
    SubPath {
        empty_dir: PathBuf,
        projected: Vec<PathBuf>,
    },
}

/// `None`: not one of those.
pub(super) fn recognize(path: &Path) -> Option<KubeletVolume> {
    let names: Vec<&str> = path.iter().map(|name| name.to_str().unwrap_or("")).collect();
    match names.as_slice() {
        [.., "pods", _, "volumes", plugin, _] if PROJECTED.contains(plugin) => Some(KubeletVolume::Projected),
        [.., "pods", _, "volumes", EMPTY_DIR, _] => Some(KubeletVolume::EmptyDir),
        [.., "pods", _, "volume-subpaths", volume, _, _] => {
            let volumes = path.ancestors().nth(4)?.join("volumes");
            Some(KubeletVolume::SubPath {
                empty_dir: volumes.join(EMPTY_DIR).join(volume),
                projected: PROJECTED.map(|plugin| volumes.join(plugin).join(volume)).to_vec(),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_volumes_are_known_by_their_paths() {
        let at = |below: &str| recognize(&Path::new("/var/lib/kubelet/pods/u-1").join(below));
        for plugin in PROJECTED {
            assert_eq!(
                at(&format!("volumes/{plugin}/config")),
                Some(KubeletVolume::Projected)
            );
        }
        assert_eq!(
            at("volumes/kubernetes.io~empty-dir/cache"),
            Some(KubeletVolume::EmptyDir)
        );
        let Some(KubeletVolume::SubPath { empty_dir, projected }) = at("volume-subpaths/cache/main/0") else {
            panic!("a sub path");
        };
        assert_eq!(
            empty_dir,
            Path::new("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/cache")
        );
        assert_eq!(projected.len(), 4);
        for other in [
            "volumes/kubernetes.io~csi/v/mount",
            "etc-hosts",
            "volumes/kubernetes.io~secret",
        ] {
            assert_eq!(at(other), None, "{other}");
        }
        assert_eq!(recognize(Path::new("/data/volumes/kubernetes.io~secret/x")), None);
    }
}
