//! What a process of the node under test takes: memory and descriptors, as /proc tells.

use std::path::Path;

use anyhow::{Context, Result};

/// One mapping of /proc/PID/smaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Where it begins.
    pub address: u64,
    /// Size of its addresses, KiB.
    pub size_kib: u64,
    /// Its proportional share of memory, KiB.
    pub pss_kib: u64,
    /// The file's path, a name in brackets, or empty: anonymous memory.
    pub name: String,
}

/// The mappings of a process.
///
/// # Errors
/// When it has ended.
pub fn mappings(pid: u32) -> Result<Vec<Mapping>> {
    Ok(parse_mappings(&fs_err::read_to_string(format!(
        "/proc/{pid}/smaps"
    ))?))
}

/// A line of /proc/PID/status that counts KiB, for example `VmRSS`.
///
/// # Errors
/// When the process has ended or the line is not there.
pub fn status_kib(pid: u32, name: &str) -> Result<u64> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/status"))?;
    field_kib(&text, name).with_context(|| format!("no {name} in the status of process {pid}"))
}

/// The number in a line `Name:   123 kB` of such a text.
#[must_use]
pub fn field_kib(text: &str, name: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

/// How many descriptors a process has open.
///
/// # Errors
/// When it has ended.
pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs_err::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))?.count())
}

fn parse_mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            // "7f5000000000-7f5020000000 rw-p 00000000 00:00 0   name with spaces"
            let name = line.splitn(6, ' ').nth(5).unwrap_or_default().trim().to_owned();
            let (start, _) = first.split_once('-').unwrap_or_default();
            mappings.push(Mapping {
                address: u64::from_str_radix(start, 16).unwrap_or_default(),
                name,
                ..Mapping::default()
            });
        } else if let Some(mapping) = mappings.last_mut() {
            if let Some(size) = field_kib(line, "Size") {
                mapping.size_kib = size;
            } else if let Some(pss) = field_kib(line, "Pss") {
                mapping.pss_kib = pss;
            }
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_have_their_own_numbers() {
        let smaps = "55d0-55d4 r-xp 00001000 08:01 77    /opt/a program\nSize:  16 kB\nRss:  12 kB\nPss:  8 kB\n\
            Pss_Dirty:  1 kB\nVmFlags: rd ex \n7f00-7f80 rw-p 00000000 00:00 0 \nSize:  524288 kB\nPss:  60000 kB\n";
        let wanted = [
            Mapping {
                address: 0x55d0,
                size_kib: 16,
                pss_kib: 8,
                name: "/opt/a program".into(),
            },
            Mapping {
                address: 0x7f00,
                size_kib: 524_288,
                pss_kib: 60_000,
                name: String::new(),
            },
        ];
        assert_eq!(parse_mappings(smaps), wanted);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let status = "VmHWM:\t    9000 kB\nVmRSS:\t    8000 kB\n";
        assert_eq!(field_kib(status, "VmRSS"), Some(8000));
        assert_eq!(field_kib(status, "Vm"), None);
    }
}
