//! Rules to classic BPF over `struct seccomp_data`, seccomp(2).
//!
//! The program checks the architecture, loads the call's number and walks ranges of numbers in ascending order: "up to
//! N: do this". Neighbours with the same action are one range. A linear walk is enough, since the kernel remembers which
//! calls are allowed without a look at their arguments and does not run the program for those at all.

use std::collections::BTreeMap;

use crate::error::Failure;
use crate::seccomp::profile::{Action, Argument, Call, Operator, Rules};
use crate::sys::seccomp::Instruction;

/// linux/audit.h, AUDIT_ARCH_X86_64.
const ARCH: u32 = 0xc000_003e;
/// asm/unistd.h, __X32_SYSCALL_BIT: the x32 ABI, which the guest's kernel does not have.
const X32: u32 = 0x4000_0000;
/// BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;

// Offsets in struct seccomp_data; arguments are 64-bit, little-endian.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

// linux/bpf_common.h: class, size, mode and operation bits put together.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// What happens to a range of numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Always(Action),
    Depends(Vec<Instruction>),
}

/// # Errors
/// When the program is longer than the kernel accepts.
pub(super) fn program(rules: &Rules) -> Result<Vec<Instruction>, Failure> {
    let mut program = vec![
        load(OFFSET_ARCH),
        jump(JUMP_EQUAL, ARCH, 1, 0),
        ret(libc::SECCOMP_RET_KILL_PROCESS),
        load(OFFSET_NUMBER),
        jump(JUMP_GREATER_OR_EQUAL, X32, 0, 1),
        ret(libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
    ];
    for (last, outcome) in ranges(rules) {
        let body = match outcome {
            Outcome::Always(action) => vec![ret(action)],
            Outcome::Depends(body) => body,
        };
        if last != u32::MAX {
            // Conditional jumps reach 255 instructions, a body may be longer: so jump over a jump.
            program.push(jump(JUMP_GREATER, last, 0, 1));
            let over = u32::try_from(body.len()).map_err(|_| too_long(body.len()))?;
            program.push(plain(JUMP, over));
        }
        program.extend(body);
    }
    if program.len() > MAX_INSTRUCTIONS {
        return Err(too_long(program.len()));
    }
    Ok(program)
}

fn too_long(len: usize) -> Failure {
    Failure::invalid(format!(
        "security.seccomp: {len} instructions, the kernel takes {MAX_INSTRUCTIONS}"
    ))
}

/// Ascending ranges, each with its last number, that cover every number.
fn ranges(rules: &Rules) -> Vec<(u32, Outcome)> {
    let mut ranges: BTreeMap<u32, Outcome> = BTreeMap::new();
    let mut next = 0;
    for (number, call) in &rules.calls {
        if *number > next {
            ranges.insert(number - 1, Outcome::Always(rules.default));
        }
        ranges.insert(*number, outcome(call, rules.default));
        next = number + 1;
    }
    ranges.insert(u32::MAX, Outcome::Always(rules.default));

    let mut merged: Vec<(u32, Outcome)> = Vec::new();
    for (last, outcome) in ranges {
        match merged.last_mut() {
            Some((end, previous)) if matches!(outcome, Outcome::Always(_)) && *previous == outcome => {
                *end = last;
            }
            _ => merged.push((last, outcome)),
        }
    }
    merged
}

fn outcome(call: &Call, default: Action) -> Outcome {
    let otherwise = call.otherwise.unwrap_or(default);
    if call.conditional.iter().all(|(_, action)| *action == otherwise) {
        return Outcome::Always(otherwise);
    }
    let mut body = Vec::new();
    for (arguments, action) in &call.conditional {
        let mut block = vec![ret(*action)];
        // Each comparison is put in front and, when it fails, jumps over all that follows of this block.
        for argument in arguments.iter().rev() {
            block.splice(0..0, comparison(*argument, block.len()));
        }
        body.extend(block);
    }
    body.push(ret(otherwise));
    Outcome::Depends(body)
}

/// Falls through when the comparison holds, else skips the `rest` instructions after it.
fn comparison(argument: Argument, rest: usize) -> Vec<Instruction> {
    let low = OFFSET_ARGUMENTS + u32::from(argument.index) * 8;
    let high = low + 4;
    let (value_high, value_low) = halves(argument.value);
    // Six comparisons of at most eight instructions: the distance fits a conditional jump.
    let fail = |after: usize| u8::try_from(rest + after).unwrap_or(u8::MAX);
    match argument.op {
        Operator::Equal => vec![
            load(high),
            jump(JUMP_EQUAL, value_high, 0, fail(2)),
            load(low),
            jump(JUMP_EQUAL, value_low, 0, fail(0)),
        ],
        Operator::NotEqual => vec![
            load(high),
            jump(JUMP_EQUAL, value_high, 0, 2),
            load(low),
            jump(JUMP_EQUAL, value_low, fail(0), 0),
        ],
        Operator::MaskedEqual => {
            let (wanted_high, wanted_low) = halves(argument.value_two);
            vec![
                load(high),
                plain(AND, value_high),
                jump(JUMP_EQUAL, wanted_high, 0, fail(3)),
                load(low),
                plain(AND, value_low),
                jump(JUMP_EQUAL, wanted_low, 0, fail(0)),
            ]
        }
        Operator::Greater => ordered(argument.value, low, JUMP_GREATER, true, &fail),
        Operator::GreaterOrEqual => ordered(argument.value, low, JUMP_GREATER_OR_EQUAL, true, &fail),
        Operator::LessOrEqual => ordered(argument.value, low, JUMP_GREATER, false, &fail),
        Operator::Less => ordered(argument.value, low, JUMP_GREATER_OR_EQUAL, false, &fail),
    }
}

/// `argument test value` when `holds`, its opposite otherwise; the high half decides unless it is equal.
fn ordered(value: u64, low: u32, test: u16, holds: bool, fail: &dyn Fn(usize) -> u8) -> Vec<Instruction> {
    let (value_high, value_low) = halves(value);
    let outcome = |yes: bool, after: usize, hold: u8| if yes == holds { hold } else { fail(after) };
    vec![
        load(low + 4),
        jump(JUMP_GREATER, value_high, outcome(true, 3, 3), 0),
        jump(JUMP_EQUAL, value_high, 0, outcome(false, 2, 2)),
        load(low),
        jump(test, value_low, outcome(true, 0, 0), outcome(false, 0, 0)),
    ]
}

fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, (value & u64::from(u32::MAX)) as u32)
}

fn load(offset: u32) -> Instruction {
    plain(LOAD, offset)
}

fn ret(action: Action) -> Instruction {
    plain(RETURN, action)
}

fn plain(code: u16, k: u32) -> Instruction {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        k,
    }
}
