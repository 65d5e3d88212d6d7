//! Profiles are compiled and their programs run by an interpreter of classic BPF, as the kernel would.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proto::agent::v1::ErrorCode;

use super::*;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const X86_64: u32 = 0xc000_003e;

fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [number, arch, 0, 0].to_vec();
    data.extend(
        arguments
            .iter()
            .flat_map(|a| [(*a & 0xffff_ffff) as u32, (*a >> 32) as u32]),
    );
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let Instruction {
            code,
            jump_true,
            jump_false,
            k,
        } = program[at];
        at += 1;
        let branch = |taken: bool| usize::from(if taken { jump_true } else { jump_false });
        match code {
            0x20 => accumulator = data[k as usize / 4],
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn compiled(json: &str) -> Vec<Instruction> {
    compile(json.as_bytes()).unwrap().unwrap().program
}

fn verdict(program: &[Instruction], name: &str, arguments: [u64; 6]) -> u32 {
    run(program, X86_64, syscalls::number(name).unwrap(), arguments)
}

#[test]
fn an_allow_list_allows_what_it_names() {
    let program = compiled(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
            "syscalls":[{"names":["read","write","no_such_call","openat2"],"action":"SCMP_ACT_ALLOW"},
                        {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#,
    );
    for name in ["read", "write", "openat2"] {
        assert_eq!(verdict(&program, name, [0; 6]), ALLOW, "{name}");
    }
    for name in ["open", "mseal", "mount"] {
        assert_eq!(verdict(&program, name, [0; 6]), EPERM, "{name}");
    }
    assert_eq!(verdict(&program, "clone3", [0; 6]), libc::SECCOMP_RET_ERRNO | 38);
    assert_eq!(
        run(&program, 0x4000_0003, 1, [0; 6]),
        libc::SECCOMP_RET_KILL_PROCESS
    );
    assert_eq!(
        run(&program, X86_64, 0x4000_0000, [0; 6]),
        libc::SECCOMP_RET_ERRNO | 38
    );
    assert_eq!(
        run(&program, X86_64, u32::MAX, [0; 6]),
        libc::SECCOMP_RET_ERRNO | 38
    );
}

#[test]
fn arguments_are_compared_in_all_64_bits() {
    // Docker's default: clone only without new namespaces, socket but not AF_VSOCK.
    let program = compiled(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["clone"],"action":"SCMP_ACT_ALLOW",
             "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
            {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":40,"op":"SCMP_CMP_NE"}]}]}"#,
    );
    assert_eq!(
        verdict(&program, "clone", [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
        ALLOW
    );
    assert_eq!(
        verdict(&program, "clone", [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]),
        EPERM
    );
    assert_eq!(verdict(&program, "socket", [1, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&program, "socket", [40, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(verdict(&program, "socket", [40 | 1 << 32, 0, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn comparisons_of_one_argument_are_alternatives_and_of_several_are_not() {
    let program = compiled(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[
                {"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},
            {"names":["ioctl"],"action":"SCMP_ACT_ALLOW","args":[
                {"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":1,"value":8,"op":"SCMP_CMP_GE"}]}]}"#,
    );
    assert_eq!(verdict(&program, "personality", [8, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&program, "personality", [7, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(verdict(&program, "ioctl", [0, 8, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&program, "ioctl", [1, 8, 0, 0, 0, 0]), EPERM);
    assert_eq!(verdict(&program, "ioctl", [0, 7, 0, 0, 0, 0]), EPERM);
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    for (json, code) in [
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, ErrorCode::Unsupported),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_NEW"]}"#,
            ErrorCode::Unsupported,
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_ARM"]}"#,
            ErrorCode::InvalidArgument,
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#,
            ErrorCode::InvalidArgument,
        ),
        (r#"{"defaultAction":"allow"}"#, ErrorCode::InvalidArgument),
        ("{", ErrorCode::InvalidArgument),
    ] {
        assert_eq!(compile(json.as_bytes()).unwrap_err().code(), code, "{json}");
    }
    assert_eq!(compile(b""), Ok(None));
}

fn holds(op: &str, argument: u64, value: u64, value_two: u64) -> bool {
    match op {
        "NE" => argument != value,
        "LT" => argument < value,
        "LE" => argument <= value,
        "EQ" => argument == value,
        "GE" => argument >= value,
        "GT" => argument > value,
        _ => argument & value == value_two,
    }
}

/// Numbers that differ in one half only, or not at all.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..3u64, 0..3u64).prop_map(|(high, low)| high << 32 | low)
    ]
}

proptest! {
    #[test]
    fn programs_decide_as_the_rules_say(
        op in prop::sample::select(vec!["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]),
        op2 in prop::sample::select(vec!["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]),
        values in [word(), word(), word(), word()],
        arguments in [word(), word()],
    ) {
        let [v0, w0, v1, w1] = values;
        let program = compiled(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["mmap"],"action":"SCMP_ACT_ALLOW","args":[
                {{"index":2,"value":{v0},"valueTwo":{w0},"op":"SCMP_CMP_{op}"}},
                {{"index":5,"value":{v1},"valueTwo":{w1},"op":"SCMP_CMP_{op2}"}}]}}]}}"#
        ));
        let expected = holds(op, arguments[0], v0, w0) && holds(op2, arguments[1], v1, w1);
        let got = verdict(&program, "mmap", [9, 9, arguments[0], 9, 9, arguments[1]]);
        prop_assert_eq!(got, if expected { ALLOW } else { EPERM });
    }

    #[test]
    fn every_number_gets_its_own_action(chosen in prop::collection::btree_map(0u32..450, 0u32..4, 0..200)) {
        let action = |errno: u32| libc::SECCOMP_RET_ERRNO | errno;
        let calls: BTreeMap<u32, profile::Call> = chosen
            .iter()
            .map(|(number, errno)| (*number, profile::Call { conditional: vec![], otherwise: Some(action(*errno)) }))
            .collect();
        let program = compile::program(&profile::Rules { default: ALLOW, calls }).unwrap();
        for number in 0..451 {
            let expected = chosen.get(&number).map_or(ALLOW, |errno| action(*errno));
            prop_assert_eq!(run(&program, X86_64, number, [0; 6]), expected);
        }
    }
}
