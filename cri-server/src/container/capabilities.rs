//! A container's capabilities from CRI's wishes: pure.

use std::collections::BTreeSet;

use proto::{agent::v1 as agent, cri::v1 as cri};

use crate::sandbox::RequestError;

/// Those that Docker and containerd give to every container.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The other ones of linux/capability.h.
const OTHER: [&str; 27] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_NET_ADMIN",
    "CAP_NET_BROADCAST",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// ALL adds or drops everything; then single names are added, then dropped. Inheritable is empty but for ambient ones: a
/// file's inheritable bits must not raise what an unprivileged process has (CVE-2022-24769).
pub(super) fn sets(
    wish: Option<&cri::Capability>,
    privileged: bool,
) -> Result<agent::Capabilities, RequestError> {
    let everything = || DEFAULT.into_iter().chain(OTHER).collect::<BTreeSet<_>>();
    let wish = wish.cloned().unwrap_or_default();
    let add = names("add_capabilities", &wish.add_capabilities)?;
    let drop = names("drop_capabilities", &wish.drop_capabilities)?;
    let ambient = names("add_ambient_capabilities", &wish.add_ambient_capabilities)?;
    let mut have: BTreeSet<&str> = DEFAULT.into();
    if privileged || add.all {
        have = everything();
    }
    if drop.all && !privileged {
        have.clear();
    }
    have.extend(&add.single);
    if !privileged {
        have.retain(|name| !drop.single.contains(name));
    }
    let ambient = if ambient.all { have.clone() } else { ambient.single };
    have.extend(&ambient);
    let list = |set: &BTreeSet<&str>| set.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    Ok(agent::Capabilities {
        bounding: list(&have),
        effective: list(&have),
        permitted: list(&have),
        inheritable: list(&ambient),
        ambient: list(&ambient),
    })
}

#[derive(Debug, Default)]
struct Names {
    all: bool,
    single: BTreeSet<&'static str>,
}

fn names(field: &str, wishes: &[String]) -> Result<Names, RequestError> {
    let mut names = Names::default();
    for wish in wishes {
        let upper = wish.to_ascii_uppercase();
        let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let known = DEFAULT.into_iter().chain(OTHER);
        match known
            .into_iter()
            .find(|name| name.strip_prefix("CAP_") == Some(plain))
        {
            _ if plain == "ALL" => names.all = true,
            Some(name) => {
                names.single.insert(name);
            }
            None => {
                return Err(RequestError::invalid(
                    format!("linux.security_context.capabilities.{field}"),
                    format!("{wish:?} is no capability"),
                ));
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounding(add: &[&str], drop: &[&str], privileged: bool) -> Vec<String> {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let wish = cri::Capability {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            add_ambient_capabilities: Vec::new(),
        };
        sets(Some(&wish), privileged).unwrap().bounding
    }

    #[test]
    fn names_are_added_and_dropped_with_or_without_their_prefix() {
        assert_eq!(bounding(&[], &[], false), DEFAULT);
        let with = bounding(&["NET_ADMIN", "cap_bpf"], &["CHOWN"], false);
        assert!(with.contains(&"CAP_NET_ADMIN".to_owned()) && with.contains(&"CAP_BPF".to_owned()));
        assert!(!with.contains(&"CAP_CHOWN".to_owned()));
    }

    #[test]
    fn all_is_everything_or_nothing() {
        assert_eq!(bounding(&["ALL"], &[], false).len(), 41);
        assert_eq!(bounding(&["CHOWN"], &["ALL"], false), ["CAP_CHOWN"]);
        assert_eq!(bounding(&["ALL"], &["CHOWN"], false).len(), 40);
        assert_eq!(bounding(&[], &["ALL"], true).len(), 41);
    }

    #[test]
    fn an_ambient_capability_is_in_every_set() {
        let wish = cri::Capability {
            add_ambient_capabilities: vec!["NET_ADMIN".to_owned()],
            ..cri::Capability::default()
        };
        let sets = sets(Some(&wish), false).unwrap();
        for set in [
            &sets.bounding,
            &sets.effective,
            &sets.permitted,
            &sets.inheritable,
            &sets.ambient,
        ] {
            assert!(set.contains(&"CAP_NET_ADMIN".to_owned()));
        }
        assert_eq!(sets.inheritable.len(), 1);
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_field() {
        let wish = cri::Capability {
            drop_capabilities: vec!["FLY".to_owned()],
            ..cri::Capability::default()
        };
        let error = sets(Some(&wish), false).unwrap_err().to_string();
        assert!(
            error.contains("drop_capabilities") && error.contains("FLY"),
            "{error}"
        );
    }
}
