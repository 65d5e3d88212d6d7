//! From a request to what a stage will do: every check that needs nothing but the request. Pure.

use proto::agent::v1 as wire;
use proto::agent::v1::ErrorCode;

use crate::container::process::terminal_size;
use crate::container::registry::check_id;
use crate::container::security;
use crate::error::Failure;
use crate::init::identity;
use crate::init::order::{DeviceKind, DeviceNode, ProcessOrder, Rlimit, Security, UserSpec};

/// The kernel's range of oom_score_adj, proc_pid_oom_score_adj(5).
pub(super) const OOM_SCORE_ADJ: std::ops::RangeInclusive<i32> = -1000..=1000;

/// Which PID namespace a container lives in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PidPlan {
    Own,
    Pod,
    OfContainer(String),
}

/// # Errors
/// `InvalidArgument`, naming the field.
pub(super) fn pid_namespace(namespaces: &wire::Namespaces) -> Result<PidPlan, Failure> {
    match namespaces.pid() {
        wire::PidNamespace::Container => Ok(PidPlan::Own),
        wire::PidNamespace::Pod => Ok(PidPlan::Pod),
        wire::PidNamespace::Node => {
            let text = "namespaces.pid: NODE is for host pods";
            Err(Failure::new(ErrorCode::Unsupported, text))
        }
        wire::PidNamespace::Target => {
            check_id("namespaces.pid_target", &namespaces.pid_target)?;
            Ok(PidPlan::OfContainer(namespaces.pid_target.clone()))
        }
    }
}

/// # Errors
/// `InvalidArgument`, naming the field.
pub(crate) fn process(process: &wire::Process, security: Security) -> Result<ProcessOrder, Failure> {
    if process.args.first().is_none_or(String::is_empty) {
        return Err(Failure::invalid("process.args: no program"));
    }
    if !OOM_SCORE_ADJ.contains(&process.oom_score_adj) {
        return Err(Failure::invalid(format!(
            "process.oom_score_adj: {} is not within {OOM_SCORE_ADJ:?}",
            process.oom_score_adj
        )));
    }
    if let Some(entry) = process
        .env
        .iter()
        .find(|entry| !entry.contains(&b'=') || entry.contains(&0))
    {
        let text = format!(
            "process.env: {:?} is not KEY=value",
            String::from_utf8_lossy(entry)
        );
        return Err(Failure::invalid(text));
    }
    let cwd = if process.cwd.is_empty() {
        "/"
    } else {
        process.cwd.as_str()
    };
    check_path("process.cwd", cwd)?;
    let size = process.terminal_size.unwrap_or_default();
    let terminal = process
        .terminal
        .then(|| terminal_size("process.terminal_size", size))
        .transpose()?;
    Ok(ProcessOrder {
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: cwd.to_owned(),
        user: user(process.user.as_ref()),
        terminal,
        rlimits: process.rlimits.iter().map(rlimit).collect::<Result<_, _>>()?,
        oom_score_adj: process.oom_score_adj,
        security,
        id_map: None,
    })
}

fn user(user: Option<&wire::User>) -> UserSpec {
    let user = user.cloned().unwrap_or_default();
    UserSpec {
        spec: user.spec,
        gid: user.gid,
        supplemental_gids: user.supplemental_gids,
        strict_groups: user.strict_groups,
    }
}

fn rlimit(rlimit: &wire::Rlimit) -> Result<Rlimit, Failure> {
    if identity::resource(&rlimit.kind).is_none() {
        return Err(Failure::invalid(format!(
            "process.rlimits: {:?} is no limit",
            rlimit.kind
        )));
    }
    if rlimit.soft > rlimit.hard {
        return Err(Failure::invalid(format!(
            "process.rlimits: {}: soft {} is more than hard {}",
            rlimit.kind, rlimit.soft, rlimit.hard
        )));
    }
    // getrlimit(2): RLIM_INFINITY is all ones.
    let finite = |value: u64| (value != u64::MAX).then_some(value);
    Ok(Rlimit {
        resource: rlimit.kind.clone(),
        soft: finite(rlimit.soft),
        hard: finite(rlimit.hard),
    })
}

/// A device given by its numbers; a raw block volume's are found out by `create.rs`.
///
/// # Errors
/// `InvalidArgument`, naming `field`.
pub(crate) fn device(field: &str, device: &wire::Device) -> Result<DeviceNode, Failure> {
    check_path(&format!("{field}.path"), &device.path)?;
    let kind = match device.kind.as_str() {
        "c" => DeviceKind::Character,
        "b" => DeviceKind::Block,
        _ if device.disk.is_some() => DeviceKind::Block,
        other => {
            return Err(Failure::invalid(format!(
                "{field}.kind: {other:?} is neither \"c\" nor \"b\""
            )));
        }
    };
    Ok(DeviceNode {
        path: device.path.clone(),
        kind,
        major: device.major,
        minor: device.minor,
        mode: if device.mode == 0 {
            0o660
        } else {
            device.mode & 0o777
        },
        uid: device.uid,
        gid: device.gid,
    })
}

/// # Errors
/// `InvalidArgument`, naming `field`.
pub(crate) fn check_path(field: &str, path: &str) -> Result<(), Failure> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(())
    } else {
        Err(Failure::invalid(format!("{field}: {path:?} is no absolute path")))
    }
}

/// What a request asks for, as far as it can be decided without touching anything.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) process: ProcessOrder,
    pub(super) pid_namespace: PidPlan,
    pub(super) privileged: bool,
    pub(super) apparmor_policy: Vec<u8>,
    pub(super) mounts: Vec<wire::Mount>,
    pub(super) masked_paths: Vec<String>,
    pub(super) read_only_paths: Vec<String>,
    pub(super) termination_log: Option<String>,
}

impl Plan {
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the field.
    pub(super) fn new(request: &wire::CreateContainerRequest) -> Result<Self, Failure> {
        let wire_security = request.security.clone().unwrap_or_default();
        let wire_process = request
            .process
            .as_ref()
            .ok_or_else(|| Failure::invalid("process: missing"))?;
        if request.layers.is_empty() {
            return Err(Failure::invalid("layers: there is none"));
        }
        for path in &wire_security.masked_paths {
            check_path("security.masked_paths", path)?;
        }
        for path in &wire_security.read_only_paths {
            check_path("security.read_only_paths", path)?;
        }
        let log = &request.termination_log_path;
        if !log.is_empty() {
            check_path("termination_log_path", log)?;
        }
        Ok(Self {
            process: process(wire_process, security::security(&wire_security)?)?,
            pid_namespace: pid_namespace(
                request
                    .namespaces
                    .as_ref()
                    .unwrap_or(&wire::Namespaces::default()),
            )?,
            privileged: wire_security.privileged,
            apparmor_policy: wire_security.apparmor_policy,
            mounts: super::mount_plan::complete(&request.mounts, wire_security.privileged),
            masked_paths: wire_security.masked_paths,
            read_only_paths: wire_security.read_only_paths,
            termination_log: (!log.is_empty()).then(|| log.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh() -> wire::Process {
        wire::Process {
            args: vec!["sh".to_owned()],
            ..wire::Process::default()
        }
    }

    fn refused(change: impl FnOnce(&mut wire::Process)) -> String {
        let mut wanted = sh();
        change(&mut wanted);
        let failure = process(&wanted, Security::default()).unwrap_err();
        assert_eq!(failure.code(), ErrorCode::InvalidArgument);
        failure.to_string()
    }

    #[test]
    fn a_minimal_process_is_enough() {
        let order = process(&sh(), Security::default()).unwrap();
        assert_eq!((order.cwd.as_str(), order.terminal), ("/", None));
    }

    #[test]
    fn refusals_name_the_field() {
        assert!(refused(|p| p.args.clear()).starts_with("process.args"));
        assert!(refused(|p| p.cwd = "tmp".to_owned()).starts_with("process.cwd"));
        assert!(refused(|p| p.env = vec![b"NO_EQUALS".to_vec()]).starts_with("process.env"));
        assert!(refused(|p| p.env = vec![b"A=\0".to_vec()]).starts_with("process.env"));
        assert!(refused(|p| p.oom_score_adj = 1001).starts_with("process.oom_score_adj"));
        let limit = |kind: &str, soft, hard| wire::Rlimit {
            kind: kind.to_owned(),
            soft,
            hard,
        };
        assert!(refused(|p| p.rlimits = vec![limit("RLIMIT_X", 1, 1)]).contains("RLIMIT_X"));
        assert!(refused(|p| p.rlimits = vec![limit("RLIMIT_NOFILE", 2, 1)]).contains("RLIMIT_NOFILE"));
        assert!(
            refused(|p| {
                p.terminal = true;
                p.terminal_size = Some(wire::TerminalSize {
                    width: 70_000,
                    height: 1,
                });
            })
            .starts_with("process.terminal_size")
        );
    }

    #[test]
    fn infinity_is_all_ones() {
        let limit = wire::Rlimit {
            kind: "RLIMIT_CORE".to_owned(),
            soft: 1,
            hard: u64::MAX,
        };
        let limit = rlimit(&limit).unwrap();
        assert_eq!((limit.soft, limit.hard), (Some(1), None));
    }
}
