//! The kernel's command line: the words that this machine needs, before those of the configuration. Pure.

/// Words for every Machine, each with its reason. A later word wins over an earlier one, so the configuration can
/// change them.
const WORDS: [&str; 7] = [
    // The ring; a kernel that dies before it has that needs earlycon=uart8250,io,0x3f8 from the configuration.
    "console=ttyS0",
    // Mechanism #1 without looking for others; there are no other buses to look for. And no search for chipsets with
    // errors before the real scan: it finds none and costs fifty exits.
    "pci=conf1,noearly",
    // All devices signal by MSI, which needs no IOAPIC; to set its 24 pins up takes the kernel six hundred exits. The UART
    // is heard through the 8259.
    "noapic",
    // Not ten thousand lock prefixes patched out for one running processor, and back in when there is a second: an eighth
    // of the boot.
    "noreplace-smp",
    // Reset through the keyboard controller: one port write that we see at once.
    "reboot=k",
    // After a panic, reset at once: the exit code says what it was.
    "panic=-1",
    // KVM keeps the time stamp counter steady; without this Linux watches it with a timer.
    "tsc=reliable",
];

/// Plugged memory is online at once. The kernel keeps what it cannot move off most of it (three parts in four at most are
/// for movable pages), so that it can be unplugged again.
const HOTPLUG_WORDS: &str = "memhp_default_state=online memory_hotplug.online_policy=auto-movable";

/// All words for a Machine that starts with `boot` of `max` processors, and with memory that can be plugged or without.
pub(crate) fn complete(boot: u8, max: u8, hotplug: bool, configured: &str) -> String {
    let mut line = WORDS.join(" ");
    if boot < max {
        // The others are in the MP table; the agent brings them online.
        line.push_str(&format!(" maxcpus={boot}"));
    }
    if hotplug {
        line.push(' ');
        line.push_str(HOTPLUG_WORDS);
    }
    if !configured.is_empty() {
        line.push(' ');
        line.push_str(configured);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_the_last_word() {
        let line = complete(1, 1, false, "quiet console=null");
        assert!(line.starts_with("console=ttyS0 ") && line.ends_with(" quiet console=null"));
        assert!(!line.contains("maxcpus") && !line.contains("memory_hotplug"));
        let line = complete(1, 1, true, "memhp_default_state=offline");
        assert!(line.ends_with(" memory_hotplug.online_policy=auto-movable memhp_default_state=offline"));
    }

    #[test]
    fn processors_beyond_the_first_are_kept_back() {
        assert!(complete(2, 8, false, "").ends_with(" maxcpus=2"));
    }
}
