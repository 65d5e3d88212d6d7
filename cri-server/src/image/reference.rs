//! Image references, normalised as Docker and containerd do: `busybox` is `docker.io/library/busybox:latest`.
//!
//! Only names: which server answers for a registry host is decided in `registry`. A reference with both tag and digest
//! keeps the digest alone, as containerd does, because the digest is what gets pulled.

use std::fmt;

use super::{digest::Digest, error::ReferenceError};

const DEFAULT_REGISTRY: &str = "docker.io";
/// Name that old clients used for Docker Hub.
const LEGACY_REGISTRY: &str = "index.docker.io";
/// Bytes of `registry/repository`, as the distribution project limits it.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A fully spelled reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    registry: String,
    repository: String,
    version: Version,
}

/// Which manifest of the repository is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Result<Self, ReferenceError> {
        let refuse = |reason| ReferenceError {
            reference: text.to_owned(),
            reason,
        };
        if text.len() > MAX_NAME + MAX_TAG + 80 {
            return Err(refuse("is too long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(
                    Digest::parse(digest)
                        .ok_or_else(|| refuse("has a digest that is not sha256:<64 hex>"))?,
                ),
            ),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to the registry's port.
        let tag_at = rest.rfind(':').filter(|at| !rest[*at..].contains('/'));
        let (name, tag) = match tag_at {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse("has a malformed tag"));
        }
        let (registry, repository) = split_registry(name);
        if !is_registry(&registry) {
            return Err(refuse("has a malformed registry host"));
        }
        if !repository.split('/').all(is_path_component) {
            return Err(refuse(
                "has a repository that is not lower-case letters, digits and separators",
            ));
        }
        if registry.len() + repository.len() >= MAX_NAME {
            return Err(refuse("has a name longer than 255 bytes"));
        }
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, Some(tag)) => Version::Tag(tag.to_owned()),
            (None, None) => Version::Tag("latest".to_owned()),
        };
        Ok(Self {
            registry,
            repository,
            version,
        })
    }

    /// Host (and port) as it stands in the image's name.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    pub(crate) fn version(&self) -> &Version {
        &self.version
    }

    /// `registry/repository:tag`, when there is a tag.
    pub(crate) fn repo_tag(&self) -> Option<String> {
        match &self.version {
            Version::Tag(_) => Some(self.to_string()),
            Version::Digest(_) => None,
        }
    }

    /// `registry/repository@digest` for the manifest that was found under this reference.
    pub(crate) fn repo_digest(&self, manifest: &Digest) -> String {
        format!("{}/{}@{manifest}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

/// The first component is a registry only if it looks like a host: a dot, a port, `localhost`, or an upper-case letter.
fn split_registry(name: &str) -> (String, String) {
    let looks_like_host = |part: &str| {
        part.contains(['.', ':']) || part == "localhost" || part.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == LEGACY_REGISTRY {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

/// Letters, digits, dots, dashes, an optional port; or an IPv6 address in brackets.
fn is_registry(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.is_empty() || port.parse::<u16>().is_err()) {
        return false;
    }
    match name.strip_prefix('[') {
        Some(address) => address
            .strip_suffix(']')
            .is_some_and(|a| a.parse::<std::net::Ipv6Addr>().is_ok()),
        None => name.split('.').all(|label| {
            let bytes = label.as_bytes();
            !label.is_empty()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
                && bytes.first() != Some(&b'-')
                && bytes.last() != Some(&b'-')
        }),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` of the distribution spec.
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

/// `[\w][\w.-]{0,127}` of the distribution spec.
fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_spelled_out_as_docker_does() {
        for (given, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("joe/tool", "docker.io/joe/tool:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            (
                "127.0.0.1:5000/demo/busybox",
                "127.0.0.1:5000/demo/busybox:latest",
            ),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("gcr.io/a/b__c/d-e--f.g:V_1.x-y", "gcr.io/a/b__c/d-e--f.g:V_1.x-y"),
        ] {
            assert_eq!(Reference::parse(given).expect(given).to_string(), full);
        }
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let reference = Reference::parse(&format!("gcr.io/x:y@sha256:{HEX}")).expect("valid");
        assert_eq!(reference.to_string(), format!("gcr.io/x@sha256:{HEX}"));
        assert_eq!(reference.repo_tag(), None);
    }

    #[test]
    fn malformed_references_are_refused() {
        for bad in [
            "",
            ":",
            "@",
            "UPPER",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a@sha256:12",
            "a b",
            "gcr.io:x/y",
            "gcr.io:99999/y",
            "-a.io/x",
            "a..b.c/x",
            "a___b",
            "a._b",
            "../etc",
            "gcr.io/../x",
            "gcr.io/x?y",
            "gcr.io/x#y",
            "é",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(Reference::parse(&"a".repeat(300)).is_err());
    }
}
