//! From a request to the OCI runtime's configuration: what it says, it says in full, because a runtime's defaults are its own.
//! Pure: paths were made and users resolved before.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxSeccomp, Process as OciProcess, Spec};
use proto::agent::v1 as wire;
use proto::agent::v1::ErrorCode;
use serde_json::{Map, Value, json};

use crate::container::plan::check_path;
use crate::error::Failure;
use crate::init::order::{DeviceKind, DeviceNode};
use crate::init::user::Resolved;

/// Version of the OCI runtime specification that is written.
const VERSION: &str = "1.0.2";

/// The PID namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pid {
    New,
    Host,
    /// That of the process whose /proc file this is.
    Of(PathBuf),
}

/// What a container is made of beside its request.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) rootfs: &'a Path,
    pub(super) mounts: Vec<Value>,
    pub(super) root_propagation: Option<&'static str>,
    pub(super) user: &'a Resolved,
    pub(super) pid: Pid,
    /// Below the cgroup root; `None`: it stays where the shim is.
    pub(super) cgroup: Option<&'a Path>,
    /// To be made in /dev, with what may be done with them.
    pub(super) devices: Vec<(DeviceNode, String)>,
}

/// The configuration of a container.
///
/// # Errors
/// `InvalidArgument` or `Unsupported`, naming the field.
pub(super) fn container(request: &wire::CreateContainerRequest, parts: &Parts<'_>) -> Result<Spec, Failure> {
    let security = request.security.clone().unwrap_or_default();
    let process = request
        .process
        .as_ref()
        .ok_or_else(|| Failure::invalid("process: missing"))?;
    for path in &security.masked_paths {
        check_path("security.masked_paths", path)?;
    }
    for path in &security.read_only_paths {
        check_path("security.read_only_paths", path)?;
    }
    let labels = request.host_labels.clone().unwrap_or_default();
    if !security.apparmor_profile.is_empty() {
        let text = "security.apparmor_profile: a host pod's is in host_labels";
        return Err(Failure::invalid(text));
    }
    let mut linux = Map::new();
    linux.insert("namespaces".to_owned(), namespaces(parts, security.privileged));
    linux.insert(
        "resources".to_owned(),
        json!({"devices": device_rules(parts, security.privileged)}),
    );
    linux.insert(
        "devices".to_owned(),
        parts.devices.iter().map(|(node, _)| device(node)).collect(),
    );
    linux.insert("maskedPaths".to_owned(), json!(security.masked_paths));
    linux.insert("readonlyPaths".to_owned(), json!(security.read_only_paths));
    if let Some(cgroup) = parts.cgroup {
        linux.insert("cgroupsPath".to_owned(), json!(Path::new("/").join(cgroup)));
    }
    if let Some(propagation) = parts.root_propagation {
        linux.insert("rootfsPropagation".to_owned(), json!(propagation));
    }
    if !security.seccomp.is_empty() {
        linux.insert("seccomp".to_owned(), seccomp(&security.seccomp)?);
    }
    let spec = json!({
        "ociVersion": VERSION,
        "root": {"path": parts.rootfs, "readonly": request.read_only_rootfs},
        "process": self::process(process, &security, &labels, parts.user)?,
        "mounts": parts.mounts,
        "linux": linux,
    });
    typed(spec)
}

/// A process of a container: its first one, or one more.
///
/// # Errors
/// `InvalidArgument` or `Unsupported`, naming the field.
pub(super) fn process(
    process: &wire::Process,
    security: &wire::Security,
    labels: &wire::HostLabels,
    user: &Resolved,
) -> Result<OciProcess, Failure> {
    let capabilities = security.capabilities.clone().unwrap_or_default();
    let who = &user.credentials;
    let size = process.terminal_size.unwrap_or_default();
    let rlimits = process
        .rlimits
        .iter()
        .map(|limit| json!({"type": limit.kind, "soft": limit.soft, "hard": limit.hard}));
    let mut value = json!({
        "terminal": process.terminal,
        "consoleSize": {"width": size.width, "height": size.height},
        "user": {"uid": who.uid, "gid": who.gid, "additionalGids": who.supplemental_gids},
        "args": process.args,
        "env": environment(process, &user.home)?,
        "cwd": if process.cwd.is_empty() { "/" } else { process.cwd.as_str() },
        "capabilities": {
            "bounding": capabilities.bounding,
            "effective": capabilities.effective,
            "permitted": capabilities.permitted,
            "inheritable": capabilities.inheritable,
            "ambient": capabilities.ambient,
        },
        "rlimits": rlimits.collect::<Vec<_>>(),
        "noNewPrivileges": security.no_new_privileges,
        "oomScoreAdj": process.oom_score_adj,
    });
    for (name, label) in [
        ("apparmorProfile", &labels.apparmor_profile),
        ("selinuxLabel", &labels.selinux_process_label),
    ] {
        if !label.is_empty()
            && let Some(fields) = value.as_object_mut()
        {
            fields.insert(name.to_owned(), json!(label));
        }
    }
    typed(value)
}

/// The runtime's configuration is text, so values that are not UTF-8 cannot be passed on. HOME as login(1) would set it.
fn environment(process: &wire::Process, home: &[u8]) -> Result<Vec<String>, Failure> {
    let mut entries = Vec::new();
    for entry in &process.env {
        let text = String::from_utf8(entry.clone()).map_err(|_| {
            let entry = String::from_utf8_lossy(entry);
            Failure::new(
                ErrorCode::Unsupported,
                format!("process.env: {entry:?} is not UTF-8, which a host pod's runtime cannot take"),
            )
        })?;
        entries.push(text);
    }
    if !entries.iter().any(|entry| entry.starts_with("HOME=")) {
        entries.push(format!("HOME={}", String::from_utf8_lossy(home)));
    }
    Ok(entries)
}

/// Network, IPC and UTS are those of the shim, which the runtime inherits.
fn namespaces(parts: &Parts<'_>, privileged: bool) -> Value {
    let mut namespaces = vec![json!({"type": "mount"})];
    match &parts.pid {
        Pid::New => namespaces.push(json!({"type": "pid"})),
        Pid::Of(path) => namespaces.push(json!({"type": "pid", "path": path})),
        Pid::Host => {}
    }
    // A privileged container sees all of the node's cgroups, as those who run kubelet in one expect.
    if !privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }
    Value::Array(namespaces)
}

/// The runtime adds those that every container has.
fn device_rules(parts: &Parts<'_>, privileged: bool) -> Value {
    if privileged {
        return json!([{"allow": true, "access": "rwm"}]);
    }
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    rules.extend(parts.devices.iter().map(|(node, access)| {
        json!({"allow": true, "type": kind(node), "major": node.major, "minor": node.minor, "access": access})
    }));
    Value::Array(rules)
}

fn device(node: &DeviceNode) -> Value {
    json!({
        "path": node.path,
        "type": kind(node),
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
    })
}

fn kind(node: &DeviceNode) -> &'static str {
    match node.kind {
        DeviceKind::Character => "c",
        DeviceKind::Block => "b",
    }
}

fn seccomp(profile: &[u8]) -> Result<Value, Failure> {
    let profile: Result<LinuxSeccomp, _> = serde_json::from_slice(profile);
    profile
        .and_then(serde_json::to_value)
        .map_err(|error| Failure::invalid(format!("security.seccomp: {error}")))
}

/// Into the specification's types, which check names of capabilities, limits and the like.
fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value)
        .map_err(|error| Failure::invalid(format!("the container's configuration: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::order::Credentials;

    fn request() -> wire::CreateContainerRequest {
        wire::CreateContainerRequest {
            process: Some(wire::Process {
                args: vec!["sh".to_owned()],
                env: vec![b"A=b".to_vec()],
                rlimits: vec![wire::Rlimit {
                    kind: "RLIMIT_NOFILE".to_owned(),
                    soft: 1,
                    hard: 2,
                }],
                oom_score_adj: -5,
                ..wire::Process::default()
            }),
            security: Some(wire::Security {
                capabilities: Some(wire::Capabilities {
                    bounding: vec!["CAP_CHOWN".to_owned()],
                    ..wire::Capabilities::default()
                }),
                seccomp: br#"{"defaultAction": "SCMP_ACT_ALLOW"}"#.to_vec(),
                masked_paths: vec!["/proc/kcore".to_owned()],
                ..wire::Security::default()
            }),
            ..wire::CreateContainerRequest::default()
        }
    }

    fn made(request: &wire::CreateContainerRequest, pid: Pid) -> Result<Value, Failure> {
        let user = Resolved {
            credentials: Credentials {
                uid: 1000,
                gid: 100,
                supplemental_gids: vec![100, 7],
            },
            home: b"/home/me".to_vec(),
        };
        let parts = Parts {
            rootfs: Path::new("/run/pod/rootfs/c1"),
            mounts: Vec::new(),
            root_propagation: Some("rslave"),
            user: &user,
            pid,
            cgroup: Some(Path::new("kubepods/pod1/clearpod-a/pod/c1")),
            devices: Vec::new(),
        };
        container(request, &parts).map(|spec| serde_json::to_value(spec).unwrap())
    }

    #[test]
    fn nothing_is_left_to_the_runtimes_defaults() {
        let spec = made(&request(), Pid::New).unwrap();
        let process = &spec["process"];
        assert_eq!(
            process["user"],
            json!({"uid": 1000, "gid": 100, "additionalGids": [100, 7]})
        );
        assert_eq!(process["env"], json!(["A=b", "HOME=/home/me"]));
        assert_eq!(
            (&process["cwd"], &process["noNewPrivileges"]),
            (&json!("/"), &json!(false))
        );
        assert_eq!(process["capabilities"]["effective"], json!([]));
        assert_eq!(
            process["rlimits"],
            json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}])
        );
        assert_eq!(process["oomScoreAdj"], -5);
        let linux = &spec["linux"];
        assert_eq!(linux["cgroupsPath"], "/kubepods/pod1/clearpod-a/pod/c1");
        assert_eq!(
            linux["resources"]["devices"],
            json!([{"allow": false, "access": "rwm"}])
        );
        assert_eq!(linux["seccomp"]["defaultAction"], "SCMP_ACT_ALLOW");
        assert_eq!(
            (&linux["maskedPaths"], &linux["readonlyPaths"]),
            (&json!(["/proc/kcore"]), &json!([]))
        );
        assert_eq!(linux["rootfsPropagation"], "rslave");
        assert!(spec.get("hostname").is_none(), "{spec}");
    }

    #[test]
    fn namespaces_that_the_shim_holds_are_inherited() {
        let kinds = |pid, privileged| {
            let mut request = request();
            request.security.as_mut().unwrap().privileged = privileged;
            made(&request, pid).unwrap()["linux"]["namespaces"].clone()
        };
        assert_eq!(
            kinds(Pid::New, false),
            json!([{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}])
        );
        assert_eq!(kinds(Pid::Host, true), json!([{"type": "mount"}]));
        let of = Pid::Of("/proc/7/ns/pid".into());
        assert_eq!(
            kinds(of, true),
            json!([{"type": "mount"}, {"type": "pid", "path": "/proc/7/ns/pid"}])
        );
    }

    #[test]
    fn what_the_runtime_would_not_understand_is_refused_by_field() {
        let refused = |change: fn(&mut wire::CreateContainerRequest)| {
            let mut request = request();
            change(&mut request);
            made(&request, Pid::New).unwrap_err().to_string()
        };
        let seccomp = refused(|request| request.security.as_mut().unwrap().seccomp = b"[]".to_vec());
        assert!(seccomp.starts_with("security.seccomp"), "{seccomp}");
        let env = refused(|request| request.process.as_mut().unwrap().env = vec![b"A=\xff".to_vec()]);
        assert!(env.starts_with("process.env"), "{env}");
        let masked =
            refused(|request| request.security.as_mut().unwrap().masked_paths = vec!["x".to_owned()]);
        assert!(masked.starts_with("security.masked_paths"), "{masked}");
    }
}
