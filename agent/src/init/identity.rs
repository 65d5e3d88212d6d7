//! From the agent's power to the container's: limits, groups, user, capabilities, seccomp, in the order that the kernel
//! needs. capabilities(7) and prctl(2) say why each step is where it is.

use proto::agent::v1::ErrorCode;
use rustix::process::{Resource, Rlimit as KernelRlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::error::{Context as _, Failure};
use crate::init::order::{Capabilities, Credentials, Rlimit, Security};
use crate::seccomp::Filter;
use crate::sys;

/// setrlimit(2) resources by the names of the OCI runtime specification.
pub(crate) fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return None,
    })
}

/// Sets the limits; needs CAP_SYS_RESOURCE, so it comes before [`assume`].
///
/// # Errors
/// [`ErrorCode::InvalidArgument`] for a limit that the kernel does not take.
pub(crate) fn limit(rlimits: &[Rlimit]) -> Result<(), Failure> {
    for rlimit in rlimits {
        let name = &rlimit.resource;
        let resource = resource(name).ok_or_else(|| Failure::invalid(format!("unknown rlimit {name}")))?;
        let limits = KernelRlimit {
            current: rlimit.soft,
            maximum: rlimit.hard,
        };
        setrlimit(resource, limits).context(ErrorCode::InvalidArgument, || {
            format!("set {name} to {:?}, at most {:?}", rlimit.soft, rlimit.hard)
        })?;
    }
    Ok(())
}

/// Becomes `user` with no more than `security` grants. Afterwards only execve is left to do.
///
/// # Errors
/// [`ErrorCode::System`], naming the step.
pub(crate) fn assume(user: &Credentials, security: &Security) -> Result<(), Failure> {
    if !security.no_new_privileges {
        // Without no_new_privs a filter needs CAP_SYS_ADMIN, which is about to go; so the filter sees the steps below.
        install(security.seccomp.as_ref())?;
    }
    let capabilities = &security.capabilities;
    drop_bounding(capabilities.bounding)?;
    set_keep_capabilities(true).context(ErrorCode::System, || "keep capabilities".to_owned())?;
    let groups: Vec<Gid> = user
        .supplemental_gids
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    set_thread_groups(&groups).context(ErrorCode::System, || format!("set {} groups", groups.len()))?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).context(ErrorCode::System, || format!("set group {}", user.gid))?;
    set_thread_res_uid(uid, uid, uid).context(ErrorCode::System, || format!("set user {}", user.uid))?;
    set_keep_capabilities(false).context(ErrorCode::System, || "end keeping capabilities".to_owned())?;
    grant(capabilities)?;
    if security.no_new_privileges {
        set_no_new_privs(true).context(ErrorCode::System, || "set no_new_privs".to_owned())?;
        install(security.seccomp.as_ref())?;
    }
    Ok(())
}

fn install(filter: Option<&Filter>) -> Result<(), Failure> {
    let Some(filter) = filter else { return Ok(()) };
    sys::seccomp::install(&filter.program, filter.flags).context(ErrorCode::System, || {
        format!(
            "install a seccomp filter of {} instructions",
            filter.program.len()
        )
    })
}

fn drop_bounding(keep: u64) -> Result<(), Failure> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if keep & (1 << bit) != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // prctl(2): no such capability in this kernel, and none with a higher number.
            Err(rustix::io::Errno::INVAL) => return Ok(()),
            failed @ Err(_) => {
                failed.context(ErrorCode::System, || format!("drop capability {bit}"))?;
            }
        }
    }
    Ok(())
}

fn grant(capabilities: &Capabilities) -> Result<(), Failure> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(capabilities.effective),
        permitted: CapabilitySet::from_bits_retain(capabilities.permitted),
        inheritable: CapabilitySet::from_bits_retain(capabilities.inheritable),
    };
    set_capabilities(None, sets).context(ErrorCode::System, || "set capabilities".to_owned())?;
    clear_ambient_capability_set().context(ErrorCode::System, || "clear ambient capabilities".to_owned())?;
    for bit in (0..u64::BITS).filter(|bit| capabilities.ambient & (1 << bit) != 0) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << bit), true)
            .context(ErrorCode::System, || format!("raise ambient capability {bit}"))?;
    }
    Ok(())
}
