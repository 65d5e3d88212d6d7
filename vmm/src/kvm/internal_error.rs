//! What KVM says in the shared page about an internal error.

#![expect(unsafe_code, reason = "the shared page is a C union")]

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_SIMUL_EX, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};

/// One line about an internal error.
pub(crate) fn describe(run: &kvm_run) -> String {
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return format!("none (exit reason {})", run.exit_reason);
    }
    // SAFETY: `exit_reason` says that this is the union's valid member, and every bit pattern is a valid one.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    match internal.suberror {
        KVM_INTERNAL_ERROR_EMULATION => {
            format!(
                "an instruction that KVM had to emulate and cannot{}",
                instruction(&internal.data)
            )
        }
        KVM_INTERNAL_ERROR_SIMUL_EX => "an exception while another one was delivered".to_owned(),
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was delivered".to_owned(),
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
            format!(
                "the processor left the guest for an unknown reason ({:#x})",
                internal.data[0]
            )
        }
        other => format!("suberror {other}"),
    }
}

/// `struct emulation_failure` (linux/kvm.h): flags, then the count and the bytes of the instruction.
fn instruction(data: &[u64; 16]) -> String {
    const HAS_BYTES: u64 = 1;
    if data[0] & HAS_BYTES == 0 {
        return String::new();
    }
    let [count, bytes @ ..] = data[1].to_le_bytes();
    let mut bytes = bytes.to_vec();
    bytes.extend(data[2].to_le_bytes());
    bytes.truncate(usize::from(count).min(15));
    format!(" (bytes {bytes:02x?})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_the_instruction_are_told() {
        let mut data = [0; 16];
        data[0] = 1;
        data[1] = u64::from_le_bytes([3, 0x0F, 0x01, 0xD0, 0xAA, 0, 0, 0]);
        assert_eq!(instruction(&data), " (bytes [0f, 01, d0])");
        data[0] = 0;
        assert_eq!(instruction(&data), "");
    }

    #[test]
    fn another_exit_is_not_mistaken_for_an_internal_error() {
        assert_eq!(describe(&kvm_run::default()), "none (exit reason 0)");
    }
}
