//! The seccomp profile of a container as the JSON of the OCI runtime spec, for the agent to compile.
//!
//! What `RuntimeDefault` means is the runtime's to say. The kernel behind a Machine serves one pod only, so there the profile
//! is a list of what is denied: calls that change the whole guest under the other containers of the pod, or that are known
//! for kernel holes and of no use to programs. The kernel behind a host pod is everybody's: there the profile is a list of
//! what is allowed (`allowed`), and a call that is newer than the list does not exist. In both, what a capability that was
//! asked for needs is left open.

mod allowed;

use std::collections::BTreeSet;

use serde_json::{Value, json};

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
/// Address families from 38 on, socket(2): AF_ALG is the kernel's ciphers, AF_XDP comes after AF_VSOCK, which is not in any
/// namespace: it reaches the host and its virtual machines.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// Execution domains that setarch(8) knows for this machine, and the question which one holds, personality(2).
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];

/// Whose kernel a container's calls reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    Guest,
    Host,
}

/// The profile for the agent; empty is unconfined. `field` is the request's, for messages.
pub(super) async fn profile(
    field: &str,
    wish: Option<&SecurityProfile>,
    capabilities: &[String],
    kernel: Kernel,
) -> Result<Vec<u8>, RequestError> {
    let Some(wish) = wish else {
        return Ok(Vec::new());
    };
    match ProfileType::try_from(wish.profile_type) {
        Ok(ProfileType::Unconfined) => Ok(Vec::new()),
        Ok(ProfileType::RuntimeDefault) => Ok(match kernel {
            Kernel::Guest => guest_default(capabilities),
            Kernel::Host => host_default(capabilities),
        }),
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

/// Everything but what is denied.
fn guest_default(capabilities: &[String]) -> Vec<u8> {
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

/// Nothing but what is allowed. What is known and denied is EPERM, as without the capability for it; anything else is
/// ENOSYS, so that programs do without.
fn host_default(capabilities: &[String]) -> Vec<u8> {
    let has = |wanted: &str| capabilities.iter().any(|capability| capability == wanted);
    let denied = DENIED.into_iter();
    let more = allowed::BY_CAPABILITY.into_iter();
    let by_capability = denied.chain(more.map(|(capability, names)| (Some(capability), names)));
    let (granted, refused): (Vec<_>, Vec<_>) =
        by_capability.partition(|(capability, _)| capability.is_some_and(has));
    let names = |groups: Vec<(Option<&str>, &'static [&'static str])>| -> BTreeSet<&'static str> {
        groups
            .iter()
            .flat_map(|(_, names)| names.iter().copied())
            .collect()
    };
    let (granted, mut refused) = (names(granted), names(refused));
    // A call can come with one of several capabilities.
    refused.retain(|name| !granted.contains(name));
    let always: Vec<&str> = allowed::ALWAYS.concat();
    let mut rules = vec![
        json!({"names": always, "action": "SCMP_ACT_ALLOW"}),
        json!({"names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM}),
    ];
    if !granted.is_empty() {
        rules.push(json!({"names": granted, "action": "SCMP_ACT_ALLOW"}));
    }
    rules.extend(by_argument(has("CAP_SYS_ADMIN")));
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": rules,
    });
    profile.to_string().into_bytes()
}

/// Calls that are allowed with some arguments. An argument of another value is ENOSYS, too: that is what a kernel without
/// the feature says.
fn by_argument(admin: bool) -> Vec<Value> {
    let when = |name: &str, value: u64, value_two: u64, op: &str| {
        json!({
            "names": [name],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": value, "valueTwo": value_two, "op": op}],
        })
    };
    let mut rules = vec![
        when("socket", AF_ALG, 0, "SCMP_CMP_LT"),
        when("socket", AF_ALG + 1, 0, "SCMP_CMP_EQ"),
        when("socket", AF_VSOCK, 0, "SCMP_CMP_GT"),
    ];
    rules.extend(PERSONALITIES.map(|value| when("personality", value, 0, "SCMP_CMP_EQ")));
    if admin {
        rules.push(json!({"names": ["clone", "clone3"], "action": "SCMP_ACT_ALLOW"}));
    } else {
        // Without a clone3 the C library takes clone, whose flags can be seen.
        rules.push(when("clone", CLONE_NAMESPACES, 0, "SCMP_CMP_MASKED_EQ"));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(capabilities: &[&str]) -> Vec<String> {
        capabilities.iter().map(|&name| name.to_owned()).collect()
    }

    fn denied(capabilities: &[&str]) -> String {
        String::from_utf8(guest_default(&names(capabilities))).unwrap()
    }

    /// Actions of the rules that name a call without looking at its arguments.
    fn on_host(capabilities: &[&str], call: &str) -> Vec<String> {
        let profile: Value = serde_json::from_slice(&host_default(&names(capabilities))).unwrap();
        let rules = profile["syscalls"].as_array().unwrap().clone();
        let named = rules.iter().filter(|rule| {
            rule["args"].is_null() && rule["names"].as_array().unwrap().iter().any(|name| name == call)
        });
        named
            .map(|rule| rule["action"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn on_the_host_a_call_is_allowed_denied_or_unknown_and_never_two_of_them() {
        const ALLOW: [&str; 1] = ["SCMP_ACT_ALLOW"];
        const DENY: [&str; 1] = ["SCMP_ACT_ERRNO"];
        assert_eq!(on_host(&[], "openat"), ALLOW);
        assert_eq!(on_host(&[], "mount"), DENY);
        assert_eq!(on_host(&["CAP_SYS_ADMIN"], "mount"), ALLOW);
        assert_eq!(
            on_host(&["CAP_BPF"], "bpf"),
            ALLOW,
            "one of two capabilities is enough"
        );
        assert_eq!(on_host(&["CAP_SYS_ADMIN"], "io_uring_setup"), DENY);
        assert_eq!(on_host(&[], "clone3"), [""; 0]);
        assert_eq!(on_host(&["CAP_SYS_ADMIN"], "clone3"), ALLOW);
        assert_eq!(on_host(&["CAP_SYS_ADMIN"], "call_of_the_future"), [""; 0]);
        let denied: Vec<&str> = DENIED
            .iter()
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        let both: Vec<_> = allowed::ALWAYS
            .concat()
            .into_iter()
            .filter(|name| denied.contains(name))
            .collect();
        assert_eq!(both, [""; 0]);
        let always = allowed::ALWAYS.concat();
        assert_eq!(
            always.iter().collect::<BTreeSet<_>>().len(),
            always.len(),
            "one is there twice"
        );
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
        assert!(
            !profile("seccomp", Some(&good), &[], Kernel::Guest)
                .await
                .unwrap()
                .is_empty()
        );
        fs_err::write(&path, "[]").unwrap();
        for wish in [good, wish("relative"), wish("/nowhere/p.json")] {
            let error = profile("seccomp", Some(&wish), &[], Kernel::Guest)
                .await
                .unwrap_err();
            assert!(error.to_string().starts_with("seccomp.localhost_ref"), "{error}");
        }
        assert!(
            profile("seccomp", None, &[], Kernel::Host)
                .await
                .unwrap()
                .is_empty()
        );
    }
}
