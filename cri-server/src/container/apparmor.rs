//! A container's AppArmor profile: the host's, taken to the guest.
//!
//! A kernel keeps what `apparmor_parser` compiled and shows it again as `raw_data`. The guest's kernel takes such a policy as
//! well as the host's, so a profile that an operator has loaded on the node confines a container in a Machine by its name, as
//! it would on the node. The policy is read when the container is created.
//!
//! `RuntimeDefault` is no profile in a Machine. What runtimes on a host want of theirs is to keep a container from what all
//! pods share: mounts, writes to /proc/sys, /sys and /proc/sysrq-trigger, signals to and traces of other pods' processes.
//! No other pod is behind this kernel; and against the containers of its own pod the rest of the confinement denies the
//! same: capabilities, read-only and masked paths, seccomp, namespaces. On the host it is none either.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use proto::cri::v1::{self as cri, security_profile::ProfileType};

use crate::sandbox::RequestError;

/// Largest policy that the agent takes.
const MAX_POLICY: u64 = 2 * 1024 * 1024;
/// Of the file that has a loaded profile's name.
const MAX_NAME: u64 = 4096;
/// Before the name of a profile of the host.
const LOCALHOST: &str = "localhost/";

/// A profile of the host that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// That asks for it.
    pub(super) field: String,
}

/// What is asked for; the new field decides if it is there. `field` is the security context's.
pub(super) fn wanted(
    field: &str,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<Option<Wanted>, RequestError> {
    #[expect(
        deprecated,
        reason = "clients of before CRI 0.26 name their profile only here"
    )]
    let old_name = security.apparmor_profile.as_str();
    let (field, name) = match &security.apparmor {
        Some(profile) => match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::RuntimeDefault | ProfileType::Unconfined) => return Ok(None),
            Ok(ProfileType::Localhost) => {
                let name = profile.localhost_ref.as_str();
                let name = name.strip_prefix(LOCALHOST).unwrap_or(name);
                (format!("{field}.apparmor.localhost_ref"), name)
            }
            Err(_) => {
                let reason = format!("{} is no profile type", profile.profile_type);
                return Err(RequestError::invalid(
                    format!("{field}.apparmor.profile_type"),
                    reason,
                ));
            }
        },
        None if ["", "runtime/default", "unconfined"].contains(&old_name) => return Ok(None),
        None => {
            let field = format!("{field}.apparmor_profile");
            let name = old_name.strip_prefix(LOCALHOST).ok_or_else(|| {
                RequestError::invalid(&field, format!("{old_name:?} is no profile of the host"))
            })?;
            (field, name)
        }
    };
    if name.is_empty() {
        return Err(RequestError::invalid(field, "a profile without a name"));
    }
    Ok(Some(Wanted {
        name: name.to_owned(),
        field,
    }))
}

/// The compiled policy of a profile that is loaded on the host, whose kernel shows AppArmor at `kernel`. Blocks.
pub(super) fn policy(kernel: &Path, wanted: &Wanted) -> Result<Vec<u8>, RequestError> {
    let Wanted { name, field } = wanted;
    let loaded = match std::fs::read_dir(kernel.join("policy/profiles")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = format!(
                "AppArmor is off on this host: there is nothing at {}",
                kernel.display()
            );
            return Err(RequestError::unsupported(field, reason));
        }
        loaded => loaded.map_err(RequestError::failed("read the host's AppArmor profiles"))?,
    };
    let is_wanted = |directory: &Path| {
        read(&directory.join("name"), MAX_NAME)
            .is_ok_and(|bytes| bytes.strip_suffix(b"\n").unwrap_or(&bytes) == name.as_bytes())
    };
    let directory = loaded
        .flatten()
        .map(|entry| entry.path())
        .find(|directory| is_wanted(directory))
        .ok_or_else(|| RequestError::invalid(field, format!("no profile {name:?} is loaded on this host")))?;
    match read(&directory.join("raw_data"), MAX_POLICY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = format!(
                "the host's kernel does not give out the compiled profile {name:?}: \
                 its parameter apparmor.export_binary is off"
            );
            Err(RequestError::unsupported(field, reason))
        }
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            let reason = format!("the compiled profile {name:?} is larger than {MAX_POLICY} bytes");
            Err(RequestError::unsupported(field, reason))
        }
        policy => policy.map_err(RequestError::failed(format!(
            "read the AppArmor profile {name:?}"
        ))),
    }
}

fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if read as u64 > most {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_field(profile_type: ProfileType, localhost_ref: &str) -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext {
            apparmor: Some(cri::SecurityProfile {
                profile_type: profile_type.into(),
                localhost_ref: localhost_ref.to_owned(),
            }),
            ..cri::LinuxContainerSecurityContext::default()
        }
    }

    #[expect(deprecated, reason = "it is under test")]
    fn by_name(name: &str) -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext {
            apparmor_profile: name.to_owned(),
            ..cri::LinuxContainerSecurityContext::default()
        }
    }

    #[test]
    fn the_new_field_wins_and_defaults_are_no_profile() {
        let name = |security: &_| wanted("s", security).unwrap().map(|wanted| wanted.name);
        assert_eq!(name(&by_name("localhost/web")).as_deref(), Some("web"));
        assert_eq!(
            name(&by_field(ProfileType::Localhost, "localhost/a/b")).as_deref(),
            Some("a/b")
        );
        assert_eq!(
            name(&by_field(ProfileType::Localhost, "web")).as_deref(),
            Some("web")
        );
        for none in [
            by_name(""),
            by_name("runtime/default"),
            by_name("unconfined"),
            by_field(ProfileType::RuntimeDefault, ""),
            by_field(ProfileType::Unconfined, "localhost/web"),
        ] {
            assert_eq!(name(&none), None);
        }
        #[expect(deprecated, reason = "it is under test")]
        let both = cri::LinuxContainerSecurityContext {
            apparmor_profile: "localhost/old".to_owned(),
            ..by_field(ProfileType::Localhost, "localhost/new")
        };
        assert_eq!(name(&both).as_deref(), Some("new"));
        for (wrong, field) in [
            (by_name("web"), "s.apparmor_profile"),
            (by_name("localhost/"), "s.apparmor_profile"),
            (by_field(ProfileType::Localhost, ""), "s.apparmor.localhost_ref"),
        ] {
            let text = wanted("s", &wrong).unwrap_err().to_string();
            assert!(text.starts_with(field), "{text}");
        }
    }

    #[test]
    fn the_compiled_policy_is_found_by_the_profiles_name() {
        let kernel = tempfile::tempdir().unwrap();
        let wanted = |name: &str| Wanted {
            name: name.to_owned(),
            field: "f".to_owned(),
        };
        let text = |name: &str| policy(kernel.path(), &wanted(name)).unwrap_err().to_string();
        assert!(text("web").contains("AppArmor is off"), "{}", text("web"));
        for (directory, name, bytes) in [
            ("a.1", "other", Some(1)),
            ("web.2", "web", Some(7)),
            ("hidden.3", "hidden", None),
            ("large.4", "large", Some(MAX_POLICY + 1)),
        ] {
            let directory = kernel.path().join("policy/profiles").join(directory);
            fs_err::create_dir_all(&directory).unwrap();
            fs_err::write(directory.join("name"), format!("{name}\n")).unwrap();
            if let Some(bytes) = bytes {
                let file = fs_err::File::create(directory.join("raw_data")).unwrap();
                file.set_len(bytes).unwrap();
            }
        }
        assert_eq!(policy(kernel.path(), &wanted("web")).unwrap(), [0; 7]);
        assert!(
            text("we").contains("f: no profile \"we\" is loaded"),
            "{}",
            text("we")
        );
        assert!(text("hidden").contains("export_binary"), "{}", text("hidden"));
        assert!(text("large").contains("larger than"), "{}", text("large"));
    }
}
