//! What pods can leave behind on a node, as lines of text that two moments can be compared by.

use std::{path::Path, process::Command};

/// Processes, mounts, links, namespaces, cgroups, leases, nat rules and files of the node under test.
pub(crate) fn list(run: &Path, state: &Path) -> Vec<String> {
    let mut traces = Vec::new();
    traces.extend(processes());
    for dir in [
        run.join("machines"),
        state.join("scratch"),
        "/run/netns".into(),
        run.join("cni"),
        run.join("ipam"),
    ] {
        files(&dir, &mut traces);
    }
    // What host-local keeps of a network as long as it exists, whether pods are on it or not.
    let of_the_network = |trace: &String| {
        Path::new(trace).parent() == Some(&run.join("ipam"))
            || trace.ends_with("/lock")
            || trace.contains("/last_reserved_ip")
    };
    traces.retain(|trace| !of_the_network(trace));
    traces.extend(
        lines_with("ip", &["-o", "link"], "veth")
            .into_iter()
            .map(|line| first_words(&line, 2)),
    );
    traces.extend(
        lines_with("iptables-save", &["-t", "nat"], "CNI-")
            .into_iter()
            .filter(|line| {
                // Chains of portmap itself stay; those of pods carry a hash of them.
                !line.contains("CNI-HOSTPORT")
            }),
    );
    let mounts = fs_err::read_to_string("/proc/self/mounts").unwrap_or_default();
    let ours = |line: &&str| line.contains("/run/netns/") || line.contains(&format!("{}/", run.display()));
    traces.extend(mounts.lines().filter(ours).map(str::to_owned));
    cgroups(Path::new("/sys/fs/cgroup"), &mut traces);
    traces.sort();
    traces
}

fn processes() -> Vec<String> {
    let pids = fs_err::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok());
    let names = pids.filter_map(|entry| {
        let name = fs_err::read_to_string(entry.path().join("comm")).ok()?;
        (name.starts_with("clearpod-vmm") || name.trim() == "virtiofsd")
            .then(|| format!("process {}", entry.file_name().display()))
    });
    names.collect()
}

fn files(dir: &Path, into: &mut Vec<String>) {
    for entry in fs_err::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        into.push(entry.path().display().to_string());
        if entry.path().is_dir() {
            files(&entry.path(), into);
        }
    }
}

/// Only directories whose names say that they are ours.
fn cgroups(dir: &Path, into: &mut Vec<String>) {
    for entry in fs_err::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            if path.parent().is_some_and(|parent| parent.ends_with("clearpod")) {
                into.push(format!("cgroup {}", path.display()));
            }
            cgroups(&path, into);
        }
    }
}

fn lines_with(command: &str, args: &[&str], word: &str) -> Vec<String> {
    let output = Command::new(command).args(args).output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    text.lines()
        .filter(|line| line.contains(word))
        .map(str::to_owned)
        .collect()
}

fn first_words(line: &str, count: usize) -> String {
    line.split_whitespace().take(count).collect::<Vec<_>>().join(" ")
}
