//! Which system calls a container may make: the profile that the agent compiles, in the OCI runtime specification's JSON.

use std::path::Path;

use proto::{agent::v1 as agent, cri::v1 as cri};
use serde_json::{Value, json};

use super::{SpecError, security::field};

/// A seccomp profile is some tens of KiB.
const MAX_PROFILE: u64 = 1024 * 1024;

/// What RuntimeDefault denies to processes without CAP_SYS_ADMIN: calls that change the whole Machine. The kernel checks
/// capabilities for most of them too; this keeps their code out of reach.
const DENIED: [&str; 52] = [
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "migrate_pages",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "set_mempolicy_home_node",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "sysfs",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "vhangup",
];
/// CLONE_NEW* of clone(2): NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: [u64; 7] = [
    0x0002_0000,
    0x0200_0000,
    0x0400_0000,
    0x0800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
];
const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

/// OCI JSON for the agent; empty: unconfined.
pub(super) fn profile(
    context: &cri::LinuxContainerSecurityContext,
    capabilities: &agent::Capabilities,
) -> Result<Vec<u8>, SpecError> {
    use cri::security_profile::ProfileType;
    // Deprecated in CRI in favour of `seccomp`, and still sent beside it.
    #[expect(deprecated, reason = "clients of older CRI versions send only this one")]
    let legacy = context.seccomp_profile_path.as_str();
    let (kind, path) = match (&context.seccomp, legacy) {
        (Some(profile), _) => (profile.profile_type(), profile.localhost_ref.as_str()),
        (None, "" | "unconfined") => (ProfileType::Unconfined, ""),
        (None, "runtime/default" | "docker/default") => (ProfileType::RuntimeDefault, ""),
        (None, path) => (
            ProfileType::Localhost,
            path.strip_prefix("localhost/").unwrap_or(path),
        ),
    };
    match kind {
        _ if context.privileged => Ok(Vec::new()),
        ProfileType::Unconfined => Ok(Vec::new()),
        ProfileType::RuntimeDefault => Ok(default_profile(capabilities).to_string().into_bytes()),
        ProfileType::Localhost => localhost_profile(path),
    }
}

fn localhost_profile(path: &str) -> Result<Vec<u8>, SpecError> {
    let name = field("seccomp.localhost_ref");
    let bad = |problem: String| SpecError::invalid(name.clone(), problem);
    if !Path::new(path).is_absolute() {
        return Err(bad(format!("{path:?} is not absolute")));
    }
    let size = fs_err::metadata(path)
        .map_err(|error| bad(error.to_string()))?
        .len();
    if size > MAX_PROFILE {
        return Err(bad(format!("{path}: {size} bytes, more than {MAX_PROFILE}")));
    }
    let text = fs_err::read(path).map_err(|error| bad(error.to_string()))?;
    serde_json::from_slice::<Value>(&text).map_err(|error| bad(format!("{path}: {error}")))?;
    Ok(text)
}

/// RuntimeDefault. Not a list of everything that is allowed: the Machine is the boundary, and new system calls work.
fn default_profile(capabilities: &agent::Capabilities) -> Value {
    let mut rules = Vec::new();
    if !capabilities.bounding.iter().any(|name| name == "CAP_SYS_ADMIN") {
        rules.push(json!({"names": DENIED.as_slice(), "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM}));
        rules.extend(NAMESPACE_FLAGS.iter().map(|flag| {
            json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM,
                "args": [{"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}]})
        }));
        // clone3 passes its flags in memory, where a filter cannot look; ENOSYS makes libc fall back to clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": rules})
}
