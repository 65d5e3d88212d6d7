//! The pod's user namespace: one for all of its containers, made when the sandbox is configured.
//!
//! Root of a container is then an ordinary user of the guest, and owns what belongs to the pod alone:
//!
//! | kind | belongs to the user namespace, since |
//! |---|---|
//! | network, IPC, UTS | made with it; the agent itself moves in, so that all that it does for the pod (addresses, sysctls, host name, forwarded connections, counters) happens there. So root may bind port 80, ping, and with CAP_NET_ADMIN change interfaces |
//! | mount, cgroup | made a second time by each container's stage when it has entered the namespace (`init/user_namespace.rs`): root may mount with CAP_SYS_ADMIN, and may not undo what was mounted for it |
//! | PID | not: the stage is its first process and needs rights that only the guest's own user namespace has. A container with CAP_SYS_ADMIN cannot mount a second /proc for it; in a PID namespace of its own it can |
//!
//! Files: layers and what the agent keeps are mounted with mapped ids (`init/rootfs.rs`, `init/mounts.rs`); what is made anew
//! is made by the root of the namespace; volumes of the host arrive mapped. /sys and what belongs to the guest is nobody's.
//!
//! Interfaces are moved before the agent moves, and found by their index from then on: sysfs shows those of the namespace
//! that it was mounted in.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use proto::agent::v1::{self as wire, ErrorCode};
use rustix::thread::{
    CapabilitySets, LinkNameSpaceType, Uid, move_into_link_name_space, set_capabilities, set_thread_res_uid,
};

use crate::disk::pci::PciAddress;
use crate::error::{Context as _, Failure};
use crate::init::order::{IdMap, IdRange};
use crate::sys;
use crate::sys::clone::Spawned;

/// ip-sysctl.rst: its ids are those of the user namespace of whoever writes.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// The namespace of a configured pod that has one.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    pub(crate) map: IdMap,
    namespace: OwnedFd,
    /// Indices of the interfaces that were moved.
    interfaces: HashMap<PciAddress, u32>,
}

/// A user namespace and those that belong to it, before anybody is in them.
#[derive(Debug)]
pub(crate) struct Fresh {
    map: IdMap,
    user: OwnedFd,
    pub(crate) network: OwnedFd,
    ipc: OwnedFd,
    uts: OwnedFd,
}

/// # Errors
/// `InvalidArgument`, naming the field.
pub(crate) fn id_map(wanted: &wire::UserNamespace) -> Result<IdMap, Failure> {
    let range = |name: &str, range: Option<&wire::IdRange>| {
        let range = range
            .filter(|range| range.length > 0)
            .ok_or_else(|| Failure::invalid(format!("user_namespace.{name}: no ids")))?;
        // The highest number means "no change" to setresuid(2).
        let end = u64::from(range.outside) + u64::from(range.length);
        if end > u64::from(u32::MAX) {
            return Err(Failure::invalid(format!(
                "user_namespace.{name}: {} ids from {} on are too many",
                range.length, range.outside
            )));
        }
        Ok(IdRange {
            outside: range.outside,
            length: range.length,
        })
    };
    Ok(IdMap {
        uids: range("uids", wanted.uids.as_ref())?,
        gids: range("gids", wanted.gids.as_ref())?,
    })
}

/// Kernel parameters as they are set from outside. Of those that containers are given one has ids in it: groups that may ping.
/// A range may end beyond the last group of the namespace, where nobody is.
///
/// # Errors
/// `InvalidArgument`, naming the parameter.
pub(crate) fn sysctls(
    wanted: &HashMap<String, String>,
    map: IdMap,
) -> Result<HashMap<String, String>, Failure> {
    let outside = wanted.iter().map(|(name, value)| {
        if name.replace('/', ".") != PING_GROUPS {
            return Ok((name.clone(), value.clone()));
        }
        let numbers: Vec<u32> = value
            .split_whitespace()
            .map_while(|number| number.parse().ok())
            .collect();
        let range = match *numbers.as_slice() {
            // "1 0": nobody, as the kernel's own default has it.
            [first, last] if first > last => Some((first, last)),
            [first, last] => map
                .gids
                .outside(first)
                .zip(map.gids.outside(last.min(map.gids.length - 1))),
            _ => None,
        };
        let (first, last) = range.ok_or_else(|| {
            Failure::invalid(format!(
                "sysctls: {name}: {value:?} are no groups of the pod's user namespace"
            ))
        })?;
        Ok((name.clone(), format!("{first} {last}")))
    });
    outside.collect()
}

/// Makes the namespaces.
///
/// # Errors
/// `System`.
pub(crate) fn make(map: IdMap) -> Result<Fresh, Failure> {
    let others = libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let process = sys::user_namespace::spawn_waiting(others)
        .context(ErrorCode::System, || "make a user namespace".to_owned())?;
    let made = take(&process, map);
    // The namespaces live as long as their descriptors; the reaper takes the process.
    sys::signal::send(&process.pidfd, libc::SIGKILL).ok();
    made.context(ErrorCode::System, || "set up the user namespace".to_owned())
}

fn take(process: &Spawned, map: IdMap) -> io::Result<Fresh> {
    let at = |name: &str| format!("/proc/{}/{name}", process.pid);
    let line = |range: IdRange| format!("0 {} {}\n", range.outside, range.length);
    fs::write(at("uid_map"), line(map.uids))?;
    fs::write(at("gid_map"), line(map.gids))?;
    let open = |kind: &str| File::open(at(&format!("ns/{kind}"))).map(OwnedFd::from);
    Ok(Fresh {
        map,
        user: open("user")?,
        network: open("net")?,
        ipc: open("ipc")?,
        uts: open("uts")?,
    })
}

impl Fresh {
    /// Moves the agent in. Only the calling thread moves, which has to be the one that everything happens on.
    ///
    /// # Errors
    /// `System`.
    pub(crate) fn enter(self, interfaces: HashMap<PciAddress, u32>) -> Result<UserNamespace, Failure> {
        for (namespace, kind) in [
            (&self.network, LinkNameSpaceType::Network),
            (&self.ipc, LinkNameSpaceType::InterProcessCommunication),
            (&self.uts, LinkNameSpaceType::HostNameAndNISDomainName),
        ] {
            move_into_link_name_space(namespace.as_fd(), Some(kind)).context(ErrorCode::System, || {
                format!("enter the pod's {kind:?} namespace")
            })?;
        }
        Ok(UserNamespace {
            map: self.map,
            namespace: self.user,
            interfaces,
        })
    }
}

impl UserNamespace {
    /// Sets kernel parameters as the namespace's root, to whom those of its IPC namespace belong: not even the guest's root
    /// may write them. On a thread of its own, which keeps what the agent is capable of, for those of the guest.
    ///
    /// # Errors
    /// What `work` answers, and `System`.
    pub(crate) fn as_root(&self, work: impl FnOnce() -> Result<(), Failure> + Send) -> Result<(), Failure> {
        let become_root = || -> io::Result<()> {
            let before = rustix::thread::capabilities(None)?;
            let (agent, root) = (Uid::ROOT, Uid::from_raw(self.map.uids.outside));
            set_thread_res_uid(agent, root, agent)?;
            let effective = before.permitted;
            Ok(set_capabilities(None, CapabilitySets { effective, ..before })?)
        };
        let act = move || {
            become_root().context(ErrorCode::System, || "become the pod's root".to_owned())?;
            work()
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("pod-root".to_owned());
            let thread = thread.spawn_scoped(scope, act).context(ErrorCode::System, || {
                "start the thread of the pod's root".to_owned()
            })?;
            thread.join().unwrap_or_else(|_| {
                Err(Failure::new(
                    ErrorCode::System,
                    "the thread of the pod's root panicked",
                ))
            })
        })
    }

    /// For setns(2) and mount_setattr(2).
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    pub(crate) fn interface(&self, address: &PciAddress) -> Option<u32> {
        self.interfaces.get(address).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(outside: u32, length: u32) -> Option<wire::IdRange> {
        Some(wire::IdRange { outside, length })
    }

    #[test]
    fn groups_in_a_sysctl_are_those_of_inside() {
        let range = IdRange {
            outside: 1000,
            length: 65_536,
        };
        let map = IdMap {
            uids: range,
            gids: range,
        };
        let set = |name: &str, value: &str| sysctls(&[(name.to_owned(), value.to_owned())].into(), map);
        let ping = |value: &str| set(PING_GROUPS, value).map(|set| set[PING_GROUPS].clone());
        assert_eq!(ping("0\t7").unwrap(), "1000 1007");
        assert_eq!(ping("0 2147483647").unwrap(), "1000 66535");
        assert_eq!(ping("1 0").unwrap(), "1 0");
        for wrong in ["", "0", "65536 65540", "0 x", "0 1 2"] {
            let failure = ping(wrong).unwrap_err();
            assert!(failure.to_string().contains(PING_GROUPS), "{failure}");
        }
        assert_eq!(
            set("net/ipv4/ping_group_range", "0 0").unwrap()["net/ipv4/ping_group_range"],
            "1000 1000"
        );
        assert_eq!(set("kernel.msgmax", "0 7").unwrap()["kernel.msgmax"], "0 7");
    }

    #[test]
    fn ranges_are_checked_and_translate_ids() {
        let wanted = |uids, gids| id_map(&wire::UserNamespace { uids, gids });
        let map = wanted(range(1000, 65_536), range(2000, 10)).unwrap();
        assert_eq!(map.uids.outside(0), Some(1000));
        assert_eq!(map.uids.outside(65_535), Some(66_535));
        assert_eq!(map.uids.outside(65_536), None);
        assert_eq!(map.gids.outside(9), Some(2009));
        for (uids, gids, field) in [
            (None, range(1, 1), "uids"),
            (range(1, 1), None, "gids"),
            (range(1, 0), range(1, 1), "uids"),
            (range(1, 1), range(u32::MAX, 1), "gids"),
        ] {
            let failure = wanted(uids, gids).unwrap_err();
            assert!(failure.to_string().contains(field), "{failure}");
        }
    }
}
