//! One KVM microVM in one process: the Machine of one Sandbox.

mod devices;
