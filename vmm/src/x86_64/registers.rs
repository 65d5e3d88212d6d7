//! Registers with which the first processor enters the kernel by PVH (Xen's PVH direct boot: 32-bit protected mode,
//! flat segments, no paging, EBX = start info), and the two MSRs that firmware would have set.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::kvm::KvmError;
use crate::memory::layout;

const MSR_IA32_MISC_ENABLE: u32 = 0x1A0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;
/// Enabled, default type write-back: with MTRRs off Linux switches its page attributes off too.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
/// The bit of RFLAGS that is always set.
const FLAGS_RESERVED: u64 = 1 << 1;

/// Segment types: execute/read, accessed; read/write, accessed; busy 32-bit TSS.
const CODE: u8 = 0xB;
const DATA: u8 = 0x3;
const TASK: u8 = 0xB;

/// Loads what every processor needs.
pub(crate) fn load_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
    ];
    // Two entries are below the list's limit, so only KVM can refuse.
    let Ok(msrs) = Msrs::from_entries(&entries) else {
        return Ok(());
    };
    let loaded = vcpu
        .set_msrs(&msrs)
        .map_err(KvmError::refused("load model-specific registers"))?;
    if loaded < entries.len() {
        tracing::warn!(
            "KVM loaded {loaded} of {} model-specific registers",
            entries.len()
        );
    }
    Ok(())
}

/// Puts the first processor at the kernel's PVH entry.
pub(crate) fn enter_kernel(vcpu: &VcpuFd, entry: u64) -> Result<(), KvmError> {
    let mut system = vcpu
        .get_sregs()
        .map_err(KvmError::refused("read the system registers"))?;
    enter_protected_mode(&mut system);
    vcpu.set_sregs(&system)
        .map_err(KvmError::refused("load the system registers"))?;
    let general = kvm_regs {
        rip: entry,
        rbx: layout::START_INFO.0,
        rflags: FLAGS_RESERVED,
        ..Default::default()
    };
    vcpu.set_regs(&general)
        .map_err(KvmError::refused("load the registers"))
}

fn enter_protected_mode(system: &mut kvm_sregs) {
    // Selectors are never looked up: the kernel loads a descriptor table of its own before it reloads a segment.
    system.cs = flat(CODE, 0x8);
    let data = flat(DATA, 0x10);
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.tr = kvm_segment {
        type_: TASK,
        s: 0,
        limit: 0x67,
        db: 0,
        g: 0,
        ..flat(TASK, 0x18)
    };
    system.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    system.cr4 = 0;
}

fn flat(type_: u8, selector: u16) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}
