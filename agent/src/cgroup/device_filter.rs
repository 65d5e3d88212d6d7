//! Which devices a container may open: the allow list of the OCI runtime specification as a cgroup device program.
//!
//! Containers may have CAP_MKNOD, so not seeing a node in /dev protects nothing; the scratch disk holds every container's
//! files. The kernel asks the program (cgroup-v2.rst, "Device controller") with the access, the kind and the numbers.

use crate::init::order::{DeviceKind, DeviceNode};
use crate::sys::bpf::Instruction;

/// `None` matches every minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowed {
    kind: DeviceKind,
    major: u32,
    minor: Option<u32>,
}

const fn character(major: u32, minor: u32) -> Allowed {
    Allowed {
        kind: DeviceKind::Character,
        major,
        minor: Some(minor),
    }
}

/// null zero full random urandom tty console ptmx, and the pseudo terminals of /dev/pts; numbers as in devices.txt.
const DEFAULT: [Allowed; 9] = [
    character(1, 3),
    character(1, 5),
    character(1, 7),
    character(1, 8),
    character(1, 9),
    character(5, 0),
    character(5, 1),
    character(5, 2),
    Allowed {
        kind: DeviceKind::Character,
        major: 136,
        minor: None,
    },
];

// struct bpf_cgroup_dev_ctx: access_type (access << 16 | kind), major, minor; 32 bits each. linux/bpf.h.
const ACCESS_AND_KIND: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;
const KIND_BLOCK: i32 = 1;
const KIND_CHARACTER: i32 = 2;
const ACCESS_MKNOD: i32 = 1;

// Opcodes of linux/bpf.h: class, source and operation put together.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

// Registers: 0 is the answer, 1 the context.
const KIND_REGISTER: u8 = 2;
const ACCESS_REGISTER: u8 = 3;
const MAJOR_REGISTER: u8 = 4;
const MINOR_REGISTER: u8 = 5;

/// The program for a container that was given `devices`. mknod alone is always allowed: a node that cannot be opened
/// does no harm, and package managers make them.
pub(crate) fn program(devices: &[DeviceNode]) -> Vec<Instruction> {
    let mut program = vec![
        load(KIND_REGISTER, ACCESS_AND_KIND),
        instruction(MOVE_REGISTER, ACCESS_REGISTER | KIND_REGISTER << 4, 0, 0),
        instruction(AND, KIND_REGISTER, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS_REGISTER, 0, 16),
        load(MAJOR_REGISTER, MAJOR),
        load(MINOR_REGISTER, MINOR),
        instruction(JUMP_NOT_EQUAL, ACCESS_REGISTER, 2, ACCESS_MKNOD),
    ];
    program.extend(answer(1));
    let asked = devices.iter().map(|device| Allowed {
        kind: device.kind,
        major: device.major,
        minor: Some(device.minor),
    });
    for allowed in DEFAULT.into_iter().chain(asked) {
        program.extend(allow(allowed));
    }
    program.extend(answer(0));
    program
}

fn allow(allowed: Allowed) -> Vec<Instruction> {
    let kind = match allowed.kind {
        DeviceKind::Character => KIND_CHARACTER,
        DeviceKind::Block => KIND_BLOCK,
    };
    let mut checks = vec![
        (KIND_REGISTER, kind),
        (MAJOR_REGISTER, allowed.major.cast_signed()),
    ];
    checks.extend(allowed.minor.map(|minor| (MINOR_REGISTER, minor.cast_signed())));
    let mut rest = i16::try_from(checks.len()).unwrap_or(i16::MAX) + 1;
    let mut program = Vec::new();
    for (register, value) in checks {
        // Over the checks that follow and over the answer.
        program.push(instruction(JUMP_NOT_EQUAL, register, rest, value));
        rest -= 1;
    }
    program.extend(answer(1));
    program
}

fn answer(value: i32) -> [Instruction; 2] {
    [instruction(MOVE, 0, 0, value), instruction(EXIT, 0, 0, 0)]
}

fn load(register: u8, offset: i16) -> Instruction {
    instruction(LOAD_WORD, register | 1 << 4, offset, 0)
}

fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers,
        offset,
        immediate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u32 = 2;

    /// Runs the program on `(access, kind, major, minor)` as the kernel would.
    fn allows(program: &[Instruction], access: u32, kind: i32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind as u32, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        loop {
            let Instruction {
                code,
                registers: named,
                offset,
                immediate,
            } = program[at];
            let (to, from) = (usize::from(named & 15), usize::from(named >> 4));
            at += 1;
            match code {
                LOAD_WORD => registers[to] = u64::from(context[offset as usize / 4]),
                MOVE => registers[to] = immediate as u64,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= immediate as u64,
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_NOT_EQUAL if registers[to] != immediate as u64 => at += offset as usize,
                JUMP_NOT_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn only_the_listed_devices_can_be_opened() {
        let disk = DeviceNode {
            path: "/dev/xvda".to_owned(),
            kind: DeviceKind::Block,
            major: 254,
            minor: 16,
            mode: 0o660,
            uid: 0,
            gid: 0,
        };
        let program = program(&[disk]);
        let character = |major, minor| allows(&program, READ, KIND_CHARACTER, major, minor);
        assert!(character(1, 3) && character(5, 2) && character(136, 0) && character(136, 77));
        assert!(!character(1, 1), "/dev/mem");
        assert!(
            !character(254, 16),
            "the block device's numbers, but a character device"
        );
        assert!(allows(&program, READ, KIND_BLOCK, 254, 16));
        assert!(!allows(&program, READ, KIND_BLOCK, 254, 0));
        assert!(!allows(&program, READ, KIND_BLOCK, 1, 3));
        assert!(allows(&program, ACCESS_MKNOD as u32, KIND_BLOCK, 254, 0));
        assert!(!allows(&program, READ | ACCESS_MKNOD as u32, KIND_BLOCK, 254, 0));
    }
}
