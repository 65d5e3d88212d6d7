//! What each exit from the guest means.

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::VcpuContext;
use super::counters::{ExitCounters, ExitKind};
use crate::exit::GuestEnd;
use crate::kvm::internal_error;

/// What a processor does next.
#[derive(Debug)]
pub(super) enum Next {
    Continue,
    /// The guest's last access is complete, and it has not run since.
    Interrupted,
    End(End),
}

/// The processor cannot go on.
#[derive(Debug)]
pub(super) enum End {
    Guest(GuestEnd),
    /// KVM_EXIT_INTERNAL_ERROR: the details are in the shared page.
    InternalError,
}

/// Runs the guest until it needs us once.
pub(super) fn run_once(vcpu: &mut VcpuFd, context: &VcpuContext) -> Next {
    let VcpuContext { bus, counters, .. } = context;
    let claimed = match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => {
            counters.count(ExitKind::PortRead);
            bus.read_port(port, data)
                .then_some(())
                .ok_or(ExitKind::UnclaimedPort)
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            counters.count(ExitKind::PortWrite);
            bus.write_port(port, data)
                .then_some(())
                .ok_or(ExitKind::UnclaimedPort)
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            counters.count(ExitKind::MemoryRead);
            bus.read_memory(address, data)
                .then_some(())
                .ok_or(ExitKind::UnclaimedMemory)
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            counters.count(ExitKind::MemoryWrite);
            bus.write_memory(address, data)
                .then_some(())
                .ok_or(ExitKind::UnclaimedMemory)
        }
        Ok(VcpuExit::Intr) => return interrupted(counters),
        Ok(other) => {
            counters.count(ExitKind::Other);
            return Next::End(ending(&other));
        }
        Err(error) => match error.errno() {
            // A kick, or a processor that waits for its start-up.
            libc::EINTR | libc::EAGAIN => return interrupted(counters),
            _ => return Next::End(End::Guest(GuestEnd::Failed(format!("KVM_RUN failed: {error}")))),
        },
    };
    if let Err(kind) = claimed {
        counters.count(kind);
    }
    Next::Continue
}

fn interrupted(counters: &ExitCounters) -> Next {
    counters.count(ExitKind::Interrupted);
    Next::Interrupted
}

/// Exits after which the guest does not go on.
fn ending(exit: &VcpuExit<'_>) -> End {
    let unrunnable = |text: String| End::Guest(GuestEnd::Unrunnable(text));
    match exit {
        // The guest resets through the keyboard controller (`command_line`), so this was not its will. Where it happened is not
        // known any more: KVM puts the processor into its initial state first.
        VcpuExit::Shutdown => unrunnable("a triple fault".to_owned()),
        VcpuExit::SystemEvent(kind, _) => match *kind {
            KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET => End::Guest(GuestEnd::Reset),
            KVM_SYSTEM_EVENT_CRASH => unrunnable("the guest reported a crash to KVM".to_owned()),
            other => unrunnable(format!(
                "KVM reported system event {other}, which this VMM does not know"
            )),
        },
        VcpuExit::InternalError => End::InternalError,
        VcpuExit::FailEntry(reason, processor) => unrunnable(format!(
            "KVM could not enter the guest: hardware reason {reason:#x} on host processor {processor}"
        )),
        VcpuExit::MemoryFault { flags, gpa, size } => unrunnable(format!(
            "KVM could not reach {size} bytes of guest memory at {gpa:#x} (flags {flags:#x})"
        )),
        other => unrunnable(format!(
            "the guest left KVM with {other:?}, which this VMM does not know"
        )),
    }
}

/// Completes an end with what KVM left in the shared page and with where the processor stood: one line.
pub(super) fn explain(end: End, vcpu: &mut VcpuFd, index: usize) -> GuestEnd {
    let place = vcpu
        .get_regs()
        .map_or_else(|_| String::new(), |regs| format!(" at rip {:#x}", regs.rip));
    match end {
        End::Guest(GuestEnd::Unrunnable(text)) => GuestEnd::Unrunnable(format!("vcpu{index}{place}: {text}")),
        End::Guest(GuestEnd::Failed(text)) => GuestEnd::Failed(format!("vcpu{index}{place}: {text}")),
        End::Guest(GuestEnd::Reset) => GuestEnd::Reset,
        End::InternalError => {
            let cause = internal_error::describe(vcpu.get_kvm_run());
            GuestEnd::Unrunnable(format!("vcpu{index}{place}: KVM internal error: {cause}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unrunnable(exit: &VcpuExit<'_>) -> String {
        match ending(exit) {
            End::Guest(GuestEnd::Unrunnable(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reset_event_is_the_guests_will_and_a_triple_fault_is_not() {
        let reset = ending(&VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, &[]));
        assert!(matches!(reset, End::Guest(GuestEnd::Reset)), "{reset:?}");
        assert_eq!(unrunnable(&VcpuExit::Shutdown), "a triple fault");
    }

    #[test]
    fn what_kvm_cannot_run_is_told_with_its_numbers() {
        assert!(unrunnable(&VcpuExit::FailEntry(0x8000_0021, 3)).contains("0x80000021 on host processor 3"));
        assert!(
            unrunnable(&VcpuExit::MemoryFault {
                flags: 8,
                gpa: 0x1000,
                size: 4
            })
            .contains("at 0x1000")
        );
        assert!(unrunnable(&VcpuExit::SystemEvent(77, &[])).contains("77"));
        assert!(unrunnable(&VcpuExit::Hlt).contains("Hlt"));
        assert!(matches!(ending(&VcpuExit::InternalError), End::InternalError));
    }
}
