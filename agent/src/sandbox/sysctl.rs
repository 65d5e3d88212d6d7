//! Kernel parameters by name, sysctl(8): dots or slashes, below /proc/sys and nowhere else.
//!
//! The guest's kernel is the pod's own, so there is no list of "safe" ones: nothing that is set here leaves the Machine.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use proto::agent::v1::ErrorCode;

use crate::error::{Context as _, Failure};

/// Sets all of them, in the order of their names.
///
/// # Errors
/// `InvalidArgument` for a name that is none, or that this kernel does not have; `System` when it refuses the value.
pub(crate) fn apply(proc: &Path, sysctls: &HashMap<String, String>) -> Result<(), Failure> {
    let mut sysctls: Vec<_> = sysctls.iter().collect();
    sysctls.sort();
    for (name, value) in sysctls {
        let path =
            relative_path(name).ok_or_else(|| Failure::invalid(format!("sysctls: {name:?} is no sysctl")))?;
        let file = proc.join("sys").join(path);
        let set = || -> io::Result<()> {
            fs::OpenOptions::new()
                .write(true)
                .open(&file)?
                .write_all(value.as_bytes())
        };
        match set() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::invalid(format!("sysctls: this kernel has no {name}")));
            }
            set => set.context(ErrorCode::System, || format!("set sysctl {name} to {value:?}"))?,
        }
    }
    Ok(())
}

/// The first separator says which of the two is one; the other is part of a name (`net/ipv4/conf/eth0.5/forwarding`).
fn relative_path(name: &str) -> Option<String> {
    let dots = name.find('.').unwrap_or(usize::MAX) < name.find('/').unwrap_or(usize::MAX);
    let swap = |character: char| match character {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if dots {
        name.chars().map(swap).collect()
    } else {
        name.to_owned()
    };
    let named =
        |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(|byte| byte.is_ascii_graphic());
    path.split('/').all(named).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_lead_to_the_same_file() {
        assert_eq!(
            relative_path("net.ipv4.ip_forward").as_deref(),
            Some("net/ipv4/ip_forward")
        );
        assert_eq!(
            relative_path("net/ipv4/ip_forward").as_deref(),
            Some("net/ipv4/ip_forward")
        );
        let dotted = Some("net/ipv4/conf/eth0.5/forwarding");
        assert_eq!(
            relative_path("net/ipv4/conf/eth0.5/forwarding").as_deref(),
            dotted
        );
        assert_eq!(
            relative_path("net.ipv4.conf.eth0/5.forwarding").as_deref(),
            dotted
        );
    }

    #[test]
    fn names_stay_below_proc_sys() {
        for wrong in ["", "../kernel", "net/../../x", "/etc/passwd", "net..ipv4", "a b"] {
            assert_eq!(relative_path(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn values_are_written_and_unknown_names_refused() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir_all(proc.path().join("sys/net/ipv4")).unwrap();
        fs::write(proc.path().join("sys/net/ipv4/ip_forward"), "0").unwrap();
        let set = |name: &str| apply(proc.path(), &[(name.to_owned(), "1".to_owned())].into());
        set("net.ipv4.ip_forward").unwrap();
        assert_eq!(
            fs::read(proc.path().join("sys/net/ipv4/ip_forward")).unwrap(),
            b"1"
        );
        assert_eq!(
            set("net.ipv4.no_such").unwrap_err().code(),
            ErrorCode::InvalidArgument
        );
    }
}
