//! The ids of a pod's user namespace, from CRI's wishes: pure.
//!
//! Kubernetes gives a pod one range of users and one of groups, from 0 on inside. The numbers outside are those of the node; in
//! a Machine they are the guest's, where nothing else has them either, and on volumes they are again the node's.

use proto::{
    agent::v1 as agent,
    cri::v1::{self as cri, NamespaceMode},
};

use crate::sandbox::RequestError;

/// What ids of the namespace are outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// Users.
    pub uids: IdRange,
    /// Groups.
    pub gids: IdRange,
}

/// Ids from 0 on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

impl IdMap {
    /// For the agent.
    pub(crate) fn for_agent(self) -> agent::UserNamespace {
        let range = |range: IdRange| {
            Some(agent::IdRange {
                outside: range.outside,
                length: range.length,
            })
        };
        agent::UserNamespace {
            uids: range(self.uids),
            gids: range(self.gids),
        }
    }
}

/// That of a sandbox, if it wants one. `field` is the namespace options', for messages.
pub(crate) fn of_sandbox(field: &str, wish: &cri::NamespaceOption) -> Result<Option<IdMap>, RequestError> {
    let Some(users) = &wish.userns_options else {
        return Ok(None);
    };
    let field = format!("{field}.userns_options");
    match users.mode() {
        NamespaceMode::Pod => Ok(Some(IdMap {
            uids: range(&format!("{field}.uids"), &users.uids)?,
            gids: range(&format!("{field}.gids"), &users.gids)?,
        })),
        NamespaceMode::Node if users.uids.is_empty() && users.gids.is_empty() => Ok(None),
        NamespaceMode::Node => Err(RequestError::invalid(
            format!("{field}.uids"),
            "NODE is no namespace of its own, and has no mappings",
        )),
        mode @ (NamespaceMode::Container | NamespaceMode::Target) => Err(RequestError::unsupported(
            format!("{field}.mode"),
            format!(
                "{}: the containers of a pod share one user namespace",
                mode.as_str_name()
            ),
        )),
    }
}

/// A container says nothing, or what its sandbox says.
pub(crate) fn check_container(
    field: &str,
    wish: &cri::NamespaceOption,
    sandbox: Option<IdMap>,
) -> Result<(), RequestError> {
    if wish.userns_options.is_some() && of_sandbox(field, wish)? != sandbox {
        let reason = "the sandbox was made with other mappings";
        return Err(RequestError::invalid(format!("{field}.userns_options"), reason));
    }
    Ok(())
}

/// Whether a mount is to show the ids of the pod's namespace. `field` is the mount's.
pub(crate) fn of_mount(
    field: &str,
    mount: &cri::Mount,
    sandbox: Option<IdMap>,
) -> Result<bool, RequestError> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(false);
    }
    let asked = IdMap {
        uids: range(&format!("{field}.uidMappings"), &mount.uid_mappings)?,
        gids: range(&format!("{field}.gidMappings"), &mount.gid_mappings)?,
    };
    if Some(asked) == sandbox {
        return Ok(true);
    }
    Err(RequestError::unsupported(
        format!("{field}.uidMappings"),
        "other mappings than those of the pod's user namespace",
    ))
}

fn range(field: &str, mappings: &[cri::IdMapping]) -> Result<IdRange, RequestError> {
    let [mapping] = mappings else {
        let reason = format!("{} mappings, and one is taken", mappings.len());
        return Err(RequestError::unsupported(field, reason));
    };
    if mapping.container_id != 0 || mapping.length == 0 {
        let reason = format!(
            "{} ids from {} on: 0, root of the container, is not among them",
            mapping.length, mapping.container_id
        );
        return Err(RequestError::unsupported(field, reason));
    }
    // The highest number means "no change" to setresuid(2).
    if u64::from(mapping.host_id) + u64::from(mapping.length) > u64::from(u32::MAX) {
        let reason = format!("there are no {} ids from {} on", mapping.length, mapping.host_id);
        return Err(RequestError::invalid(field, reason));
    }
    Ok(IdRange {
        outside: mapping.host_id,
        length: mapping.length,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn mapping(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
        cri::IdMapping {
            host_id,
            container_id,
            length,
        }
    }

    pub(crate) fn wish(mode: NamespaceMode, mappings: &[cri::IdMapping]) -> cri::NamespaceOption {
        cri::NamespaceOption {
            userns_options: Some(cri::UserNamespace {
                mode: mode.into(),
                uids: mappings.to_vec(),
                gids: mappings.to_vec(),
            }),
            ..cri::NamespaceOption::default()
        }
    }

    pub(crate) fn map(outside: u32, length: u32) -> IdMap {
        let range = IdRange { outside, length };
        IdMap {
            uids: range,
            gids: range,
        }
    }

    #[test]
    fn one_range_with_root_in_it_is_a_namespace() {
        let of = |wish: cri::NamespaceOption| of_sandbox("o", &wish);
        assert_eq!(of(cri::NamespaceOption::default()).unwrap(), None);
        assert_eq!(of(wish(NamespaceMode::Node, &[])).unwrap(), None);
        let one = wish(NamespaceMode::Pod, &[mapping(0, 1000, 100_000)]);
        assert_eq!(of(one).unwrap(), Some(map(1000, 100_000)));
        for (wish, field) in [
            (wish(NamespaceMode::Pod, &[]), "uids"),
            (wish(NamespaceMode::Pod, &[mapping(1, 1000, 10)]), "uids"),
            (wish(NamespaceMode::Pod, &[mapping(0, 1000, 0)]), "uids"),
            (wish(NamespaceMode::Pod, &[mapping(0, u32::MAX, 1)]), "uids"),
            (
                wish(NamespaceMode::Pod, &[mapping(0, 1000, 10), mapping(10, 5000, 10)]),
                "uids",
            ),
            (wish(NamespaceMode::Node, &[mapping(0, 1000, 10)]), "uids"),
            (wish(NamespaceMode::Container, &[]), "mode"),
            (wish(NamespaceMode::Target, &[]), "mode"),
        ] {
            let text = of(wish).unwrap_err().to_string();
            assert!(text.starts_with(&format!("o.userns_options.{field}")), "{text}");
        }
    }

    #[test]
    fn containers_and_mounts_have_the_sandboxs_or_none() {
        let pods = Some(map(1000, 10));
        let same = wish(NamespaceMode::Pod, &[mapping(0, 1000, 10)]);
        let other = wish(NamespaceMode::Pod, &[mapping(0, 2000, 10)]);
        let node = wish(NamespaceMode::Node, &[]);
        check_container("o", &same, pods).unwrap();
        check_container("o", &cri::NamespaceOption::default(), pods).unwrap();
        check_container("o", &node, None).unwrap();
        for (wish, sandbox) in [(&other, pods), (&node, pods), (&same, None)] {
            let text = check_container("o", wish, sandbox).unwrap_err().to_string();
            assert!(text.starts_with("o.userns_options: "), "{text}");
        }
        let mount = |uids: &[cri::IdMapping], gids: &[cri::IdMapping]| cri::Mount {
            uid_mappings: uids.to_vec(),
            gid_mappings: gids.to_vec(),
            ..cri::Mount::default()
        };
        let (ours, others) = ([mapping(0, 1000, 10)], [mapping(0, 2000, 10)]);
        assert!(!of_mount("m", &mount(&[], &[]), pods).unwrap());
        assert!(of_mount("m", &mount(&ours, &ours), pods).unwrap());
        for (mount, sandbox, field) in [
            (mount(&ours, &[]), pods, "gidMappings"),
            (mount(&others, &others), pods, "uidMappings"),
            (mount(&ours, &ours), None, "uidMappings"),
        ] {
            let text = of_mount("m", &mount, sandbox).unwrap_err().to_string();
            assert!(text.starts_with(&format!("m.{field}")), "{text}");
        }
    }
}
