//! Settings of a host without which everything works, more slowly.

use super::check::Finding;

/// Whether guest memory, which asks for them, gets huge pages.
pub(super) fn huge_pages() -> Finding {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let setting = fs_err::read_to_string(SETTING).unwrap_or_default();
    let detail = match chosen(&setting) {
        Some("always" | "madvise") => "guests get them".to_owned(),
        chosen => format!(
            "guests boot without, which takes longer: write madvise to {SETTING} (it says {})",
            chosen.unwrap_or("nothing")
        ),
    };
    Finding {
        name: "huge pages",
        result: Ok(detail),
    }
}

/// The word in brackets among the words of a setting.
fn chosen(setting: &str) -> Option<&str> {
    let (_, rest) = setting.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

/// Whether a process comes into a cgroup without the wait for a grace period of RCU that Linux has there by default since 6.0
/// (cgroup-v2.rst, favordynmods). A start does so three times: the VMM, virtiofsd, and a thread that KVM makes for each machine.
pub(super) fn cgroup_changes() -> Finding {
    let mounts = fs_err::read_to_string("/proc/self/mounts").unwrap_or_default();
    let detail = match changes_are_favoured(&mounts) {
        Some(true) => "processes change theirs at once",
        Some(false) => {
            "each start waits 20 ms and more for them: mount -o remount,favordynmods /sys/fs/cgroup (Linux 6.0)"
        }
        None => "version 2 is not mounted",
    };
    Finding {
        name: "cgroup changes",
        result: Ok(detail.to_owned()),
    }
}

/// By lines of proc_pid_mounts(5); `None`: there is no cgroup2.
fn changes_are_favoured(mounts: &str) -> Option<bool> {
    let mut cgroups = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (kind, options) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| options.split(',').any(|option| option == "favordynmods"))
    });
    cgroups.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word_of_a_setting_is_in_brackets() {
        assert_eq!(
            chosen("always within_size [advise] never deny force\n"),
            Some("advise")
        );
        assert_eq!(chosen("always"), None);
        assert_eq!(chosen("[half"), None);
    }

    #[test]
    fn the_option_of_cgroup2_is_found() {
        let with =
            |options: &str| format!("proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 {options} 0 0\n");
        assert_eq!(
            changes_are_favoured(&with("rw,nsdelegate,favordynmods")),
            Some(true)
        );
        assert_eq!(changes_are_favoured(&with("rw,nofavordynmods")), Some(false));
        assert_eq!(
            changes_are_favoured("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"),
            None
        );
    }
}
