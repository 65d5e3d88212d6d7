//! AppArmor in the guest: a policy that comes compiled with a container is loaded into the guest's kernel, where all
//! containers of the pod share it. The stage then asks for the profile at its execve (`init/mod.rs`).
//!
//! Nothing is ever unloaded: a profile ends with the Machine, and one that comes again replaces what has its name, as
//! `apparmor_parser --replace` does on a node.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use proto::agent::v1::{self as wire, ErrorCode};
use rustix::mount::{MountFlags, mount};

use crate::error::{Context as _, Failure};

/// Largest policy.
const MAX_POLICY: usize = 2 * 1024 * 1024;
/// Longest name that a profile can have and a path in it: what the kernel takes in one write to attr/exec is a page.
const MAX_NAME: usize = 2048;

/// The profile that is asked for, checked.
///
/// # Errors
/// `InvalidArgument`, naming the field.
pub(crate) fn profile(security: &wire::Security) -> Result<&str, Failure> {
    let (name, policy) = (&security.apparmor_profile, &security.apparmor_policy);
    if name.len() > MAX_NAME || name.contains(|character: char| character.is_control()) {
        return Err(Failure::invalid(format!(
            "security.apparmor_profile: {:?} is no name of a profile",
            name.chars().take(MAX_NAME).collect::<String>()
        )));
    }
    if policy.len() > MAX_POLICY || (name.is_empty() && !policy.is_empty()) {
        return Err(Failure::invalid(format!(
            "security.apparmor_policy: {} bytes for profile {name:?}, and {MAX_POLICY} are taken",
            policy.len()
        )));
    }
    Ok(name)
}

/// Loads a policy into the kernel; an empty one is none.
///
/// # Errors
/// `Unsupported` when this kernel has no AppArmor or does not take the policy.
pub(crate) fn load(sysfs: &Path, policy: &[u8]) -> Result<(), Failure> {
    if policy.is_empty() {
        return Ok(());
    }
    let securityfs = sysfs.join("kernel/security");
    let file = securityfs.join("apparmor/.replace");
    if !file.exists() {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("securityfs", &securityfs, "securityfs", flags, None).context(ErrorCode::Mount, || {
            format!("mount securityfs on {}", securityfs.display())
        })?;
    }
    if !file.exists() {
        let text = "security.apparmor_profile: the guest's kernel has AppArmor switched off";
        return Err(Failure::new(ErrorCode::Unsupported, text));
    }
    // The kernel takes a policy in one write.
    let load = || File::options().write(true).open(&file)?.write_all(policy);
    load().context(ErrorCode::Unsupported, || {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        format!(
            "security.apparmor_policy: the guest's kernel {} does not take the compiled policy of {} bytes",
            release.trim(),
            policy.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(profile: &str, policy: usize) -> wire::Security {
        wire::Security {
            apparmor_profile: profile.to_owned(),
            apparmor_policy: vec![1; policy],
            ..wire::Security::default()
        }
    }

    #[test]
    fn names_and_sizes_are_checked() {
        assert_eq!(profile(&security("", 0)), Ok(""));
        assert_eq!(profile(&security("web", MAX_POLICY)), Ok("web"));
        for (wrong, field) in [
            (security("web\nexec unconfined", 1), "apparmor_profile"),
            (security(&"x".repeat(MAX_NAME + 1), 1), "apparmor_profile"),
            (security("web", MAX_POLICY + 1), "apparmor_policy"),
            (security("", 1), "apparmor_policy"),
        ] {
            let failure = profile(&wrong).unwrap_err();
            assert!(
                failure.to_string().starts_with(&format!("security.{field}")),
                "{failure}"
            );
        }
    }

    #[test]
    fn a_policy_is_written_to_the_kernel_in_one_piece() {
        let sysfs = tempfile::tempdir().unwrap();
        let directory = sysfs.path().join("kernel/security/apparmor");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(".replace"), "").unwrap();
        load(sysfs.path(), b"compiled").unwrap();
        assert_eq!(fs::read(directory.join(".replace")).unwrap(), b"compiled");
        load(Path::new("/nonexistent"), b"").unwrap();
    }
}
