//! What survives the daemon: redb tables with versioned records.
