//! The seccomp profile of a container as the JSON of the OCI runtime spec, for the agent to compile.
//!
//! What `RuntimeDefault` means is the runtime's to say. The kernel behind ours serves one pod only, so the profile is a
//! list of what is denied: calls that change the whole guest under the other containers of the pod, or that are known for
//! kernel holes and of no use to programs. What a capability that was asked for needs is left open.

use serde_json::json;

use proto::cri::v1::{SecurityProfile, security_profile::ProfileType};

use crate::sandbox::RequestError;

/// Most bytes of a profile on the host.
const MAX_PROFILE: u64 = 1024 * 1024;

/// Denied with EPERM unless the container has the capability beside it.
const DENIED: [(Option<&str>, &[&str]); 8] = [
    (
        None,
        &[
            "_sysctl",
            "add_key",
            "keyctl",
            "request_key",
            "uselib",
            "userfaultfd",
            "ustat",
            "sysfs",
            "get_kernel_syms",
            "query_module",
            "create_module",
            "nfsservctl",
            "vm86",
            "vm86old",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
        ],
    ),
    (
        Some("CAP_SYS_ADMIN"),
        &[
            "bpf",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "move_pages",
            "open_tree",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setns",
            "swapoff",
            "swapon",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (Some("CAP_SYS_BOOT"), &["kexec_file_load", "kexec_load", "reboot"]),
    (
        Some("CAP_SYS_MODULE"),
        &["delete_module", "finit_module", "init_module"],
    ),
    (Some("CAP_SYS_PACCT"), &["acct"]),
    (Some("CAP_SYS_RAWIO"), &["ioperm", "iopl"]),
    (
        Some("CAP_SYS_TIME"),
        &["clock_adjtime", "clock_settime", "settimeofday", "stime"],
    ),
    (
        Some("CAP_SYS_NICE"),
        &[
            "mbind",
            "migrate_pages",
            "set_mempolicy",
            "set_mempolicy_home_node",
        ],
    ),
];

/// CLONE_NEW* of clone(2): every namespace.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// The profile for the agent; empty is unconfined. `field` is the request's, for messages.
pub(super) async fn profile(
    field: &str,
    wish: Option<&SecurityProfile>,
    capabilities: &[String],
) -> Result<Vec<u8>, RequestError> {
    let Some(wish) = wish else {
        return Ok(Vec::new());
    };
    match ProfileType::try_from(wish.profile_type) {
        Ok(ProfileType::Unconfined) => Ok(Vec::new()),
        Ok(ProfileType::RuntimeDefault) => Ok(runtime_default(capabilities)),
        Ok(ProfileType::Localhost) => read(field, &wish.localhost_ref).await,
        Err(_) => Err(RequestError::invalid(
            format!("{field}.profile_type"),
            format!("{} is no profile type", wish.profile_type),
        )),
    }
}

async fn read(field: &str, path: &str) -> Result<Vec<u8>, RequestError> {
    let field = format!("{field}.localhost_ref");
    if !path.starts_with('/') {
        return Err(RequestError::invalid(
            field,
            format!("{path:?} is no absolute path"),
        ));
    }
    let failed = |error: std::io::Error| RequestError::invalid(field.clone(), error.to_string());
    let metadata = fs_err::tokio::metadata(path).await.map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_PROFILE {
        return Err(RequestError::invalid(
            field,
            format!("{path} is no file of at most {MAX_PROFILE} bytes"),
        ));
    }
    let bytes = fs_err::tokio::read(path).await.map_err(failed)?;
    match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(serde_json::Value::Object(_)) => Ok(bytes),
        Ok(_) | Err(_) => Err(RequestError::invalid(field, format!("{path} is no JSON object"))),
    }
}

fn runtime_default(capabilities: &[String]) -> Vec<u8> {
    let has = |wanted: &str| capabilities.iter().any(|capability| capability == wanted);
    let names: Vec<&str> = DENIED
        .iter()
        .filter(|(capability, _)| capability.is_none_or(|capability| !has(capability)))
        .flat_map(|(_, names)| names.iter().copied())
        .collect();
    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM})];
    if !has("CAP_SYS_ADMIN") {
        // clone3 passes its flags in memory, where seccomp cannot look: ENOSYS makes the C library fall back to clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}));
        for bit in (0..64)
            .map(|bit| 1_u64 << bit)
            .filter(|bit| CLONE_NAMESPACES & bit != 0)
        {
            rules.push(json!({
                "names": ["clone"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": libc::EPERM,
                "args": [{"index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}],
            }));
        }
    }
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": rules,
    });
    profile.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(capabilities: &[&str]) -> String {
        let capabilities: Vec<String> = capabilities.iter().map(|&name| name.to_owned()).collect();
        String::from_utf8(runtime_default(&capabilities)).unwrap()
    }

    #[test]
    fn the_default_denies_what_a_capability_would_open() {
        assert!(denied(&[]).contains("\"mount\"") && denied(&[]).contains("\"reboot\""));
        let admin = denied(&["CAP_SYS_ADMIN"]);
        assert!(!admin.contains("\"mount\"") && !admin.contains("clone3") && admin.contains("\"reboot\""));
        assert!(!denied(&["CAP_SYS_BOOT"]).contains("\"reboot\""));
    }

    #[tokio::test]
    async fn a_profile_of_the_host_is_read_and_a_bad_one_names_its_field() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p.json");
        fs_err::write(&path, "{\"defaultAction\": \"SCMP_ACT_ALLOW\"}").unwrap();
        let wish = |localhost_ref: &str| SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: localhost_ref.to_owned(),
        };
        let good = wish(path.to_str().unwrap());
        assert!(!profile("seccomp", Some(&good), &[]).await.unwrap().is_empty());
        fs_err::write(&path, "[]").unwrap();
        for wish in [good, wish("relative"), wish("/nowhere/p.json")] {
            let error = profile("seccomp", Some(&wish), &[]).await.unwrap_err();
            assert!(error.to_string().starts_with("seccomp.localhost_ref"), "{error}");
        }
        assert!(profile("seccomp", None, &[]).await.unwrap().is_empty());
    }
}
