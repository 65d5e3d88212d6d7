//! Wires the daemon from its configuration: which store, network, launcher and image store; then serves.
