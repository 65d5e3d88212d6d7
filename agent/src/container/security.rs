//! Capabilities by name, and the rest of a container's confinement, from the request. Pure.

use proto::agent::v1 as wire;

use crate::apparmor;
use crate::error::Failure;
use crate::init::order::{Capabilities, Security};
use crate::seccomp;

/// linux/capability.h, in order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// # Errors
/// `InvalidArgument` or `Unsupported`, naming the field.
pub(super) fn security(security: &wire::Security) -> Result<Security, Failure> {
    let sets = security.capabilities.clone().unwrap_or_default();
    Ok(Security {
        capabilities: Capabilities {
            bounding: set("bounding", &sets.bounding)?,
            effective: set("effective", &sets.effective)?,
            permitted: set("permitted", &sets.permitted)?,
            inheritable: set("inheritable", &sets.inheritable)?,
            ambient: set("ambient", &sets.ambient)?,
        },
        no_new_privileges: security.no_new_privileges,
        seccomp: seccomp::compile(&security.seccomp)?,
        apparmor_profile: apparmor::profile(security)?.to_owned(),
    })
}

fn set(name: &str, capabilities: &[String]) -> Result<u64, Failure> {
    let mut bits = 0;
    for capability in capabilities {
        let number = CAPABILITIES
            .iter()
            .position(|known| known == capability)
            .ok_or_else(|| {
                Failure::invalid(format!(
                    "security.capabilities.{name}: {capability:?} is no capability"
                ))
            })?;
        bits |= 1 << number;
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_bits() {
        assert_eq!(set("bounding", &[]), Ok(0));
        let names = ["CAP_CHOWN", "CAP_MKNOD", "CAP_CHECKPOINT_RESTORE"].map(str::to_owned);
        assert_eq!(set("bounding", &names), Ok(1 | 1 << 27 | 1 << 40));
        let failure = set("ambient", &["CHOWN".to_owned()]).unwrap_err();
        assert!(failure.to_string().contains("ambient"), "{failure}");
    }
}
