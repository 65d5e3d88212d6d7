//! Loads a device filter and attaches it to a cgroup, `bpf(2)`.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use super::checked;

/// One instruction of extended BPF: `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;

/// The part of `union bpf_attr` that BPF_PROG_LOAD of a device program reads.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The part of `union bpf_attr` that BPF_PROG_ATTACH reads.
#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Attaches `program` to `cgroup`; the kernel asks it at every open and mknod of a device there.
///
/// # Errors
/// What bpf(2) answers: EINVAL or EACCES for a program that the verifier refuses.
pub(crate) fn attach_device_program(cgroup: impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let mut load = LoadAttr {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttr::default()
    };
    // SAFETY: `load` is valid for its size; `insns` and `license` point to memory that outlives the call.
    let fd =
        checked(unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw mut load, size_of::<LoadAttr>()) })?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: BPF_PROG_LOAD returned a new descriptor that nobody else owns.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut attach = AttachAttr {
        target_fd: cgroup.as_fd().as_raw_fd().cast_unsigned(),
        attach_bpf_fd: loaded.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: 0,
    };
    // SAFETY: `attach` is valid for its size and holds descriptors that stay open during the call.
    checked(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw mut attach,
            size_of::<AttachAttr>(),
        )
    })?;
    Ok(())
}
