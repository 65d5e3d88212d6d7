//! One KVM microVM in one process: the Machine of one Sandbox.
//!
//! ```text
//! config ── Plan ──▶ boot ── Machine ──▶ machine (event loop) ── Ending ──▶ exit code
//!              └───▶ boot::restore ──┘      └── snapshot ──▶ memory and state files
//! ```
//!
//! | thread       | does                                                                            |
//! |--------------|---------------------------------------------------------------------------------|
//! | main         | the event loop: devices, control socket, signals; owns the Machine              |
//! | vcpu0, ...   | run the guest; answer its port and memory accesses (`bus`); none while paused   |
//! | blk-ID       | one per active disk: its requests                                               |
//! | vhost-user   | one exchange with a file system's backend; the event loop waits, 5 s at most    |
//!
//! Invariants: a vCPU thread never waits for the event loop (it posts a `Message`), except for the lock of a device that is
//! being started or stopped. Lock order: PCI bus, device, MSI-X table. Everything below `pci` and `devices` takes the guest for hostile. `unsafe` is in `kvm`, `memory`, `files` and
//! the `sys` modules only. No async runtime, no path but those of the configuration and /dev/kvm.

mod boot;
mod bus;
mod clock;
mod config;
mod control;
mod devices;
mod event_loop;
mod exit;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod kvm;
pub mod log;
mod machine;
mod memory;
mod pci;
mod snapshot;
mod vcpu;
mod x86_64;

use std::path::Path;

use proto::machine::ExitReason;

use self::boot::BootError;
use self::config::Beginning;
pub use self::exit::Ending;

/// Runs the Machine that the file at `config` describes, until it ends.
#[must_use]
pub fn run(config: &Path) -> Ending {
    let process_started = clock::monotonic_ns();
    files::allow_many();
    let (plan, beginning) = match config::load(config) {
        Ok(planned) => planned,
        Err(error) => return ending(ExitReason::BadConfig, &error),
    };
    let machine = match &beginning {
        Beginning::Boot(payload) => boot::boot(plan, payload, process_started),
        Beginning::Snapshot(files) => boot::restore(plan, files, process_started),
    };
    // The guest has what it needs of the files.
    drop(beginning);
    match machine {
        Ok(machine) => machine.run(),
        Err(error @ BootError::Snapshot(_)) => ending(ExitReason::SnapshotRefused, &error),
        Err(error) => ending(ExitReason::Failed, &error),
    }
}

fn ending(reason: ExitReason, error: &dyn std::error::Error) -> Ending {
    Ending {
        reason,
        detail: exit::one_line(error),
    }
}
