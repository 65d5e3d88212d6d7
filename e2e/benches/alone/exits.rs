//! What KVM itself counts of a Machine: Documentation/virt/kvm/x86, the files of `/sys/kernel/debug/kvm/PID-FD`.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;

const COUNTERS: &str = "/sys/kernel/debug/kvm";

/// The counters of that process's Machine that are not zero; none where debugfs is not mounted.
pub(crate) fn counted_by_kvm(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut counted = BTreeMap::new();
    if !Path::new(COUNTERS).exists() {
        return Ok(counted);
    }
    for machine in fs_err::read_dir(COUNTERS)? {
        let machine = machine?;
        if !machine
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{pid}-"))
        {
            continue;
        }
        for counter in fs_err::read_dir(machine.path())? {
            let counter = counter?;
            let text = fs_err::read_to_string(counter.path()).unwrap_or_default();
            // Directories of the processors, and histograms, are no numbers.
            if let Some(count) = text.trim().parse().ok().filter(|count| *count > 0) {
                counted.insert(counter.file_name().to_string_lossy().into_owned(), count);
            }
        }
    }
    Ok(counted)
}
