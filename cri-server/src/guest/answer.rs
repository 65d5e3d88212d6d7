//! The agent's answers as the daemon uses them, after they were checked: a guest may send any bytes. Pure.

use proto::agent::v1;

use super::{error::GuestError, text};

/// Longest termination message of a container, bytes (CRI's limit for kubelet).
const MAX_TERMINATION_MESSAGE: usize = 4096;
/// Most containers of one sandbox that are believed.
const MAX_CONTAINERS: usize = 4096;
/// Most supplemental groups of one process: NGROUPS_MAX is 65536, nobody's container has so many.
const MAX_GROUPS: usize = 4096;

/// Most network interfaces of a guest, and disks of one container in it, that are believed.
const MAX_INTERFACES: usize = 64;
const MAX_DEVICES: usize = 64;
/// Most files of `unified`, and most bytes of one or of a list of processors.
const MAX_UNIFIED: usize = 128;
const MAX_LIMIT: usize = 1024;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It was killed because its cgroup had no memory left.
    pub oom_killed: bool,
    /// When, nanoseconds since the epoch, by the guest's clock.
    pub finished_at_ns: i64,
    /// What the container left in its termination log, at most 4 KiB; bytes that are not UTF-8 are replaced.
    pub termination_message: String,
}

/// A container as the guest knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerReport {
    /// Its id.
    pub container_id: String,
    /// How far it is.
    pub phase: Phase,
}

/// How far a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It waits to be started.
    Created,
    /// It runs.
    Running {
        /// Nanoseconds since the epoch, by the guest's clock.
        started_at_ns: i64,
    },
    /// It has ended.
    Exited {
        /// Nanoseconds since the epoch, by the guest's clock; 0: it never ran.
        started_at_ns: i64,
        /// How.
        exit: Exit,
    },
}

/// What a watch of the guest tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// Every container there is, at the beginning and after each lost connection: it replaces all that was known.
    Snapshot(Vec<ContainerReport>),
    /// A container's init process has ended.
    Exited {
        /// Which.
        container_id: String,
        /// How.
        exit: Exit,
    },
    /// A process of a container was killed for memory; the container goes on.
    Oom {
        /// Which.
        container_id: String,
    },
}

/// A container that was created.
#[derive(Debug, Clone, PartialEq)]
pub struct Created {
    /// Process id in the guest.
    pub pid: u32,
    /// What its user resolved to: uid, gid, supplemental gids.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// The limits that its cgroup has.
    pub actual: v1::Resources,
}

pub(super) fn exit(operation: &'static str, exit: Option<v1::Exit>) -> Result<Exit, GuestError> {
    let exit = exit.ok_or_else(|| GuestError::invalid(operation, "an end without an exit"))?;
    if !(0..=255).contains(&exit.code) || !(0..=64).contains(&exit.signal) {
        let what = format!("exit code {} with signal {}", exit.code, exit.signal);
        return Err(GuestError::invalid(operation, what));
    }
    let message = &exit.termination_message;
    let start = message.len().saturating_sub(MAX_TERMINATION_MESSAGE);
    Ok(Exit {
        code: exit.code,
        signal: (exit.signal != 0).then_some(exit.signal),
        oom_killed: exit.oom_killed,
        finished_at_ns: moment(operation, exit.finished_at_ns)?,
        termination_message: String::from_utf8_lossy(message.get(start..).unwrap_or_default()).into_owned(),
    })
}

/// Nanoseconds since the epoch; CRI counts them signed.
pub(super) fn moment(operation: &'static str, ns: u64) -> Result<i64, GuestError> {
    i64::try_from(ns).map_err(|_| GuestError::invalid(operation, format!("a time of {ns} ns")))
}

pub(super) fn created(
    operation: &'static str,
    answer: v1::CreateContainerResponse,
) -> Result<Created, GuestError> {
    let user = answer
        .user
        .map(|user| (user.uid, user.gid, user.supplemental_gids));
    if let Some((_, _, groups)) = &user
        && groups.len() > MAX_GROUPS
    {
        let what = format!("{} supplemental groups", groups.len());
        return Err(GuestError::invalid(operation, what));
    }
    Ok(Created {
        pid: answer.pid,
        user,
        actual: limits(operation, answer.actual)?,
    })
}

/// Limits as a cgroup has them; an agent that says nothing has none to tell.
pub(super) fn limits(
    operation: &'static str,
    actual: Option<v1::Resources>,
) -> Result<v1::Resources, GuestError> {
    let mut actual = actual.unwrap_or_default();
    if actual.unified.len() > MAX_UNIFIED {
        let what = format!("{} files of a cgroup", actual.unified.len());
        return Err(GuestError::invalid(operation, what));
    }
    for name in actual.unified.keys() {
        check_name(operation, name)?;
    }
    for text in actual
        .unified
        .values_mut()
        .chain([&mut actual.cpuset_cpus, &mut actual.cpuset_mems])
    {
        *text = text::one_line(text, MAX_LIMIT);
    }
    // Nobody asks for them.
    actual.hugepage_limits.clear();
    Ok(actual)
}

pub(super) fn stats(
    operation: &'static str,
    stats: v1::StatsResponse,
) -> Result<v1::StatsResponse, GuestError> {
    moment(operation, stats.timestamp_ns)?;
    let devices = stats.containers.iter().map(|container| container.devices.len());
    for (count, most, what) in [
        (stats.containers.len(), MAX_CONTAINERS, "containers"),
        (stats.interfaces.len(), MAX_INTERFACES, "interfaces"),
        (devices.max().unwrap_or(0), MAX_DEVICES, "disks of a container"),
    ] {
        if count > most {
            return Err(GuestError::invalid(operation, format!("{count} {what}")));
        }
    }
    for container in &stats.containers {
        check_name(operation, &container.container_id)?;
        let mut named = container.devices.iter().filter(|device| !device.name.is_empty());
        named.try_for_each(|device| check_name(operation, &device.name))?;
    }
    for interface in &stats.interfaces {
        check_name(operation, &interface.name)?;
    }
    Ok(stats)
}

fn check_name(operation: &'static str, name: &str) -> Result<(), GuestError> {
    if text::is_id(name) {
        return Ok(());
    }
    let what = format!("the name {:?}", text::one_line(name, 64));
    Err(GuestError::invalid(operation, what))
}

pub(super) fn event(operation: &'static str, event: v1::WatchEvent) -> Result<GuestEvent, GuestError> {
    use v1::watch_event::Event;
    match event.event {
        Some(Event::Snapshot(snapshot)) if snapshot.containers.len() > MAX_CONTAINERS => {
            let what = format!("{} containers", snapshot.containers.len());
            Err(GuestError::invalid(operation, what))
        }
        Some(Event::Snapshot(snapshot)) => {
            let containers = snapshot.containers.into_iter();
            let reports: Result<_, _> = containers.map(|state| report(operation, state)).collect();
            Ok(GuestEvent::Snapshot(reports?))
        }
        Some(Event::Exited(exited)) => Ok(GuestEvent::Exited {
            container_id: id(operation, exited.container_id)?,
            exit: exit(operation, exited.exit)?,
        }),
        Some(Event::Oom(oom)) => Ok(GuestEvent::Oom {
            container_id: id(operation, oom.container_id)?,
        }),
        None => Err(GuestError::invalid(operation, "an event of no kind")),
    }
}

fn report(operation: &'static str, state: v1::ContainerState) -> Result<ContainerReport, GuestError> {
    let started_at_ns = moment(operation, state.started_at_ns)?;
    let phase = match state.phase() {
        v1::ContainerPhase::Created => Phase::Created,
        v1::ContainerPhase::Running => Phase::Running { started_at_ns },
        v1::ContainerPhase::Exited => Phase::Exited {
            started_at_ns,
            exit: exit(operation, state.exit)?,
        },
        v1::ContainerPhase::Unspecified => {
            return Err(GuestError::invalid(
                operation,
                format!("container phase {}", state.phase),
            ));
        }
    };
    Ok(ContainerReport {
        container_id: id(operation, state.container_id)?,
        phase,
    })
}

fn id(operation: &'static str, id: String) -> Result<String, GuestError> {
    if text::is_id(&id) {
        Ok(id)
    } else {
        let what = format!("container id {:?}", text::one_line(&id, 64));
        Err(GuestError::invalid(operation, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32, signal: i32) -> v1::Exit {
        v1::Exit {
            code,
            signal,
            oom_killed: false,
            finished_at_ns: 1,
            termination_message: Vec::new(),
        }
    }

    #[test]
    fn exits_that_no_kernel_gives_are_refused() {
        for (code, signal) in [(-1, 0), (256, 0), (0, -1), (0, 65)] {
            assert!(
                exit("wait", Some(ended(code, signal))).is_err(),
                "{code} {signal}"
            );
        }
        assert!(exit("wait", None).is_err());
        let late = v1::Exit {
            finished_at_ns: u64::MAX,
            ..ended(0, 0)
        };
        assert!(exit("wait", Some(late)).is_err());
        assert_eq!(exit("wait", Some(ended(137, 9))).unwrap().signal, Some(9));
    }

    #[test]
    fn the_end_of_a_long_termination_message_is_kept() {
        let message = [vec![b'a'; 9000], b"the end\xff".to_vec()].concat();
        let exit = exit(
            "wait",
            Some(v1::Exit {
                termination_message: message,
                ..ended(1, 0)
            }),
        )
        .unwrap();
        assert!(exit.termination_message.ends_with("the end\u{fffd}"));
        assert_eq!(exit.termination_message.chars().count(), MAX_TERMINATION_MESSAGE);
    }

    #[test]
    fn statistics_with_strange_names_or_too_many_of_anything_are_refused() {
        let container = |id: &str| v1::ContainerStats {
            container_id: id.to_owned(),
            ..v1::ContainerStats::default()
        };
        let of = |containers| v1::StatsResponse {
            containers,
            ..v1::StatsResponse::default()
        };
        stats("stats", of(vec![container("c1")])).unwrap();
        let mut disk = container("c1");
        disk.devices = vec![v1::DeviceIo::default(); 2];
        stats("stats", of(vec![disk.clone()])).unwrap();
        disk.devices[1].name = "../vda".to_owned();
        let mut disks = container("c1");
        disks.devices = vec![v1::DeviceIo::default(); 65];
        let interface = v1::InterfaceStats {
            name: "eth0\"}".to_owned(),
            ..v1::InterfaceStats::default()
        };
        let mut future = of(Vec::new());
        future.timestamp_ns = u64::MAX;
        let mut interfaces = of(Vec::new());
        interfaces.interfaces = vec![interface];
        for bad in [
            of(vec![container("a/b")]),
            of(vec![container("c"); 4097]),
            of(vec![disk]),
            of(vec![disks]),
            interfaces,
            future,
        ] {
            assert!(stats("stats", bad).is_err());
        }
    }

    #[test]
    fn limits_are_short_lines() {
        let with = |name: &str, value: &str| v1::Resources {
            cpuset_cpus: "0\n".to_owned(),
            unified: [(name.to_owned(), value.to_owned())].into(),
            ..v1::Resources::default()
        };
        let actual = limits("update", Some(with("memory.high", &"x".repeat(5000)))).unwrap();
        assert_eq!(actual.cpuset_cpus, "0 ");
        assert!(actual.unified["memory.high"].len() <= MAX_LIMIT + 3);
        assert!(limits("update", Some(with("memory/high", ""))).is_err());
        assert_eq!(limits("update", None).unwrap(), v1::Resources::default());
    }

    #[test]
    fn events_with_strange_ids_or_of_no_kind_are_refused() {
        use v1::watch_event::Event;
        let strange = v1::WatchEvent {
            event: Some(Event::Oom(v1::ContainerOom {
                container_id: "../../etc".to_owned(),
            })),
        };
        let error = event("watch", strange).unwrap_err();
        assert!(error.to_string().contains("../../etc"), "{error}");
        assert!(event("watch", v1::WatchEvent { event: None }).is_err());
    }
}
