//! Whether a sandbox runs on the host, and in which of its namespaces. Pure, but for [`evidence`].

use std::collections::HashMap;

use proto::cri::v1::{self as cri, NamespaceMode};

use super::HostPodsConfig;
use crate::{id_map, machine::Layout, sandbox::RequestError};

/// What a sandbox has in the place of a pause container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A virtual machine.
    Machine,
    /// A shim on the host.
    Host(HostPlan),
}

/// A sandbox on the host. Its PID namespace is each container's own affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostPlan {
    /// Else it has a network of its own, as every pod.
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
}

/// `field` is the security context's, for messages.
pub(crate) fn choose(
    field: &str,
    security: &cri::LinuxSandboxSecurityContext,
    config: &HostPodsConfig,
) -> Result<Kind, RequestError> {
    let wish = security.namespace_options.clone().unwrap_or_default();
    let host = of_options(&wish);
    if let Some(name) = asked_for(&wish).next() {
        if !config.enabled {
            return Err(RequestError::unsupported(
                format!("{field}.namespace_options.{name}"),
                "NODE: a pod in a virtual machine cannot share a namespace of the host; \
                 `enabled = true` in [host_pods] of the configuration runs such pods on the host",
            ));
        }
        return Ok(Kind::Host(host));
    }
    // Who has a user namespace wants nothing of the host's, and is privileged over what that owns.
    let own_users = wish
        .userns_options
        .as_ref()
        .is_some_and(|users| users.mode() != NamespaceMode::Node);
    if security.privileged && config.privileged && !own_users {
        return Ok(Kind::Host(host));
    }
    Ok(Kind::Machine)
}

/// The kind of a sandbox that was started before: the configuration may have changed since, and what is there decides.
pub(crate) fn evidence(security: &cri::LinuxSandboxSecurityContext, layout: &Layout) -> Kind {
    let wish = security.namespace_options.clone().unwrap_or_default();
    if layout.shim_config().exists() || asked_for(&wish).next().is_some() {
        Kind::Host(of_options(&wish))
    } else {
        Kind::Machine
    }
}

fn of_options(wish: &cri::NamespaceOption) -> HostPlan {
    HostPlan {
        host_network: wish.network() == NamespaceMode::Node,
        host_ipc: wish.ipc() == NamespaceMode::Node,
    }
}

/// Names of the host's namespaces that are asked for.
fn asked_for(wish: &cri::NamespaceOption) -> impl Iterator<Item = &'static str> {
    let modes = [
        ("network", wish.network()),
        ("pid", wish.pid()),
        ("ipc", wish.ipc()),
    ];
    modes
        .into_iter()
        .filter(|(_, mode)| *mode == NamespaceMode::Node)
        .map(|(name, _)| name)
}

/// A pod with namespaces of the host cannot have a user namespace: kubelet does not ask for it either. `field` is the
/// namespace options', for messages.
pub(crate) fn refuse_user_namespace(field: &str, wish: &cri::NamespaceOption) -> Result<(), RequestError> {
    if id_map::of_sandbox(field, wish)?.is_some() {
        let reason = "POD: not together with a namespace of the host";
        return Err(RequestError::unsupported(
            format!("{field}.userns_options.mode"),
            reason,
        ));
    }
    Ok(())
}

/// Refuses kernel parameters that would be set for the whole host: those of a namespace that the pod shares with it, and those
/// that no namespace has.
pub(crate) fn sysctls(
    field: &str,
    sysctls: &HashMap<String, String>,
    host: HostPlan,
) -> Result<(), RequestError> {
    let mut names: Vec<&String> = sysctls.keys().collect();
    names.sort();
    for name in names {
        let dotted = name.replace('/', ".");
        let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| dotted.starts_with(prefix));
        // ipc_namespaces(7)
        let ipc = is(&["kernel.shm", "kernel.msg", "fs.mqueue."]) || dotted == "kernel.sem";
        let reason = if is(&["net."]) {
            host.host_network
                .then_some("the pod is in the host's network namespace")
        } else if ipc {
            host.host_ipc.then_some("the pod is in the host's IPC namespace")
        } else {
            Some("it is not in a namespace: it would be set for the whole host")
        };
        if let Some(reason) = reason {
            return Err(RequestError::unsupported(format!("{field}[{name}]"), reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(enabled: bool, privileged: bool) -> HostPodsConfig {
        HostPodsConfig {
            enabled,
            privileged,
            ..HostPodsConfig::default()
        }
    }

    fn security(
        network: NamespaceMode,
        pid: NamespaceMode,
        privileged: bool,
    ) -> cri::LinuxSandboxSecurityContext {
        cri::LinuxSandboxSecurityContext {
            namespace_options: Some(cri::NamespaceOption {
                network: network.into(),
                pid: pid.into(),
                ..cri::NamespaceOption::default()
            }),
            privileged,
            ..cri::LinuxSandboxSecurityContext::default()
        }
    }

    const OWN: NamespaceMode = NamespaceMode::Pod;
    const NODE: NamespaceMode = NamespaceMode::Node;

    #[test]
    fn only_namespaces_of_the_host_and_the_second_switch_lead_to_the_host() {
        let chosen = |security: &_, config: &_| choose("f", security, config).unwrap();
        let on = config(true, false);
        assert_eq!(
            chosen(&security(OWN, NamespaceMode::Container, false), &on),
            Kind::Machine
        );
        assert_eq!(chosen(&security(OWN, OWN, true), &on), Kind::Machine);
        let own_network = Kind::Host(HostPlan {
            host_network: false,
            host_ipc: false,
        });
        assert_eq!(chosen(&security(OWN, NODE, false), &on), own_network);
        assert_eq!(
            chosen(&security(OWN, OWN, true), &config(true, true)),
            own_network
        );
        let mut users = security(OWN, OWN, true);
        users.namespace_options.as_mut().unwrap().userns_options = Some(cri::UserNamespace::default());
        assert_eq!(chosen(&users, &config(true, true)), Kind::Machine);
        let Kind::Host(host) = chosen(&security(NODE, OWN, false), &on) else {
            panic!("a pod with the host's network is a host pod");
        };
        assert!(host.host_network && !host.host_ipc);
    }

    #[test]
    fn until_it_is_on_a_refusal_names_field_and_switch() {
        let error = choose(
            "config.linux.security_context",
            &security(OWN, NODE, true),
            &config(false, false),
        );
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("config.linux.security_context.namespace_options.pid"),
            "{error}"
        );
        assert!(
            error.contains("enabled = true") && error.contains("[host_pods]"),
            "{error}"
        );
    }

    #[test]
    fn a_sysctl_of_a_shared_namespace_is_refused() {
        let host = |host_network, host_ipc| HostPlan {
            host_network,
            host_ipc,
        };
        let set = |name: &str, host| {
            sysctls(
                "sysctls",
                &HashMap::from([(name.to_owned(), "1".to_owned())]),
                host,
            )
        };
        set("net.ipv4.ip_forward", host(false, true)).unwrap();
        set("net/ipv4/ip_forward", host(true, false)).unwrap_err();
        set("kernel.shm_rmid_forced", host(true, false)).unwrap();
        let error = set("kernel.sem", host(false, true)).unwrap_err().to_string();
        assert!(error.contains("sysctls[kernel.sem]"), "{error}");
        set("kernel.panic", host(false, false)).unwrap_err();
        set("vm.overcommit_memory", host(false, false)).unwrap_err();
    }
}
