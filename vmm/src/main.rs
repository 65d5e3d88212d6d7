//! `clearpod-vmm`: runs one Machine and ends with an exit code that says how it ended.

fn main() {}
