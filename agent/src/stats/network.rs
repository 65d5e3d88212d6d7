//! Counters of the pod's network interfaces.

use std::path::Path;

use proto::agent::v1::InterfaceStats;

use crate::cgroup::files::text;

/// proc_pid_net(5), net/dev: two lines of headings, then "name: 8 receive counters, 8 transmit counters".
pub(crate) fn interfaces(proc: &Path) -> Vec<InterfaceStats> {
    text(&proc.join("net/dev"))
        .lines()
        .filter_map(interface)
        .filter(|interface| interface.name != "lo")
        .collect()
}

fn interface(line: &str) -> Option<InterfaceStats> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<u64> = counters
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let [
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        _,
        _,
        _,
        _,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = *counters.as_slice()
    else {
        return None;
    };
    Some(InterfaceStats {
        name: name.trim().to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn counters_are_read_by_column() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("net")).unwrap();
        let text = "Inter-|   Receive    |  Transmit\n face |bytes packets|bytes packets\n\
            lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n broken: 1 2\n";
        fs::write(proc.path().join("net/dev"), text).unwrap();
        let [eth0] = interfaces(proc.path()).try_into().unwrap();
        assert_eq!(
            (eth0.name.as_str(), eth0.rx_bytes, eth0.rx_dropped),
            ("eth0", 10, 4)
        );
        assert_eq!(
            (eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped),
            (50, 6, 7, 8)
        );
    }
}
