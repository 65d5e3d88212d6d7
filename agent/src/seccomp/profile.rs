//! The `linux.seccomp` object of the OCI runtime specification, config-linux.md, and what it means call by call.

use std::collections::BTreeMap;

use proto::agent::v1::ErrorCode;
use serde::Deserialize;

use crate::error::Failure;
use crate::seccomp::syscalls;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    default_action: ActionName,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<SyscallRule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SyscallRule {
    names: Vec<String>,
    action: ActionName,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum ActionName {
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

/// One comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Argument {
    pub(super) index: u8,
    pub(super) value: u64,
    /// With [`Operator::MaskedEqual`], `value` is the mask and this what must remain.
    #[serde(default)]
    pub(super) value_two: u64,
    pub(super) op: Operator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// A `SECCOMP_RET_*` value.
pub(super) type Action = u32;

/// What happens to each system call.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) default: Action,
    pub(super) calls: BTreeMap<u32, Call>,
}

/// What happens to one system call.
#[derive(Debug, Default)]
pub(super) struct Call {
    /// Tried in this order; all comparisons of one must hold.
    pub(super) conditional: Vec<(Vec<Argument>, Action)>,
    /// When no condition held; without it, the default.
    pub(super) otherwise: Option<Action>,
}

/// The kernel takes six arguments.
const ARGUMENTS: u8 = 6;
/// linux/seccomp.h: highest errno of SECCOMP_RET_ERRNO.
const MAX_ERRNO: u16 = 4095;

impl Profile {
    /// Resolves names to numbers; the second value are `SECCOMP_FILTER_FLAG_*`.
    pub(super) fn rules(&self) -> Result<(Rules, u32), Failure> {
        let native = ["SCMP_ARCH_X86_64", "SCMP_ARCH_NATIVE"];
        if !self.architectures.is_empty() && !self.architectures.iter().any(|a| native.contains(&a.as_str()))
        {
            return Err(Failure::invalid(
                "security.seccomp.architectures: SCMP_ARCH_X86_64 is not among them",
            ));
        }
        let mut rules = Rules {
            default: action(self.default_action, self.default_errno_ret)?,
            calls: BTreeMap::new(),
        };
        for rule in &self.syscalls {
            rule.add_to(&mut rules)?;
        }
        Ok((rules, self.flags()?))
    }

    fn flags(&self) -> Result<u32, Failure> {
        let mut flags = 0;
        for flag in &self.flags {
            flags |= match flag.as_str() {
                "SECCOMP_FILTER_FLAG_TSYNC" => libc::SECCOMP_FILTER_FLAG_TSYNC,
                "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                other => {
                    let message = format!("security.seccomp.flags: {other} is not supported");
                    return Err(Failure::new(ErrorCode::Unsupported, message));
                }
            } as u32;
        }
        Ok(flags)
    }
}

impl SyscallRule {
    fn add_to(&self, rules: &mut Rules) -> Result<(), Failure> {
        let action = action(self.action, self.errno_ret)?;
        if let Some(argument) = self.args.iter().find(|argument| argument.index >= ARGUMENTS) {
            let message = format!(
                "security.seccomp: {:?} has no argument {}",
                self.names, argument.index
            );
            return Err(Failure::invalid(message));
        }
        for number in self.names.iter().filter_map(|name| syscalls::number(name)) {
            let call = rules.calls.entry(number).or_default();
            if self.args.is_empty() {
                call.otherwise.get_or_insert(action);
            } else if self.same_argument_twice() {
                // runc reads several comparisons of one argument as alternatives, and published profiles rely on it.
                call.conditional
                    .extend(self.args.iter().map(|argument| (vec![*argument], action)));
            } else {
                call.conditional.push((self.args.clone(), action));
            }
        }
        Ok(())
    }

    fn same_argument_twice(&self) -> bool {
        let indices = self.args.iter().map(|argument| argument.index);
        (0..ARGUMENTS).any(|index| indices.clone().filter(|other| *other == index).count() > 1)
    }
}

fn action(name: ActionName, errno: Option<u16>) -> Result<Action, Failure> {
    let data = errno.unwrap_or(libc::EPERM.unsigned_abs() as u16);
    if data > MAX_ERRNO {
        return Err(Failure::invalid(format!(
            "security.seccomp: errnoRet {data} is more than {MAX_ERRNO}"
        )));
    }
    Ok(match name {
        ActionName::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        ActionName::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        ActionName::Trap => libc::SECCOMP_RET_TRAP,
        ActionName::Errno => libc::SECCOMP_RET_ERRNO | u32::from(data),
        ActionName::Trace => libc::SECCOMP_RET_TRACE | u32::from(data),
        ActionName::Allow => libc::SECCOMP_RET_ALLOW,
        ActionName::Log => libc::SECCOMP_RET_LOG,
        ActionName::Notify => {
            let message = "security.seccomp: SCMP_ACT_NOTIFY needs an agent of its own and is not supported";
            return Err(Failure::new(ErrorCode::Unsupported, message));
        }
    })
}
