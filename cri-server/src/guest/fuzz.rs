//! A guest's messages as bytes, through the checks that every answer of its agent passes.

use std::time::Duration;

use prost::Message;
use proto::agent::v1;
use tonic::{Code, Status};

use super::{
    answer::{self, GuestEvent, Phase},
    error::GuestError,
    text,
};
use crate::stats;

const OPERATION: &str = "fuzz";
/// More than this is no header of HTTP/2 to the client's library.
const MAX_HEADER: usize = 4096;
/// Longest text of an error, with all that is put around what the guest said.
const MAX_ERROR: usize = 64 * 1024;

/// Any bytes as the answer of the call that `kind` stands for: an error, or something that keeps to what the daemon relies on.
///
/// # Panics
/// When it does not.
pub fn agent_answers(kind: u8, bytes: &[u8]) {
    match kind % 6 {
        0 => judged(bytes, |answer: v1::WatchEvent| {
            answer::event(OPERATION, answer).map(event)
        }),
        1 => judged(bytes, |answer: v1::StatsResponse| {
            answer::stats(OPERATION, answer).map(stats::fuzz::judge)
        }),
        2 => judged(bytes, |answer: v1::CreateContainerResponse| {
            answer::created(OPERATION, answer).map(|created| limits(&created.actual))
        }),
        3 => judged(bytes, |answer: v1::WaitResponse| {
            answer::exit(OPERATION, answer.exit).map(|exit| ended(&exit))
        }),
        4 => judged(bytes, |answer: v1::UpdateContainerResponse| {
            answer::limits(OPERATION, answer.actual).map(|actual| limits(&actual))
        }),
        // The details of a failed call.
        _ => {
            let code = Code::from_i32((kind / 6).into());
            let (message, details) = bytes.split_at(bytes.len() / 2);
            let message = String::from_utf8_lossy(&message[..message.len().min(MAX_HEADER)]);
            let status = Status::with_details(code, message, details.to_vec().into());
            said(&GuestError::from_status(OPERATION, status, Duration::ZERO));
        }
    }
}

fn judged<M: Message + Default>(bytes: &[u8], judge: impl FnOnce(M) -> Result<(), GuestError>) {
    if let Ok(message) = M::decode(bytes)
        && let Err(error) = judge(message)
    {
        said(&error);
    }
}

fn said(error: &GuestError) {
    let text = crate::sandbox::chain(error);
    assert!(text.len() <= MAX_ERROR, "an error of {} bytes", text.len());
    assert!(!text.chars().any(|letter| letter == '\u{1b}'), "{text:?}");
}

fn event(event: GuestEvent) {
    match event {
        GuestEvent::Snapshot(reports) => {
            for report in reports {
                assert!(text::is_id(&report.container_id));
                if let Phase::Exited { exit, .. } = &report.phase {
                    ended(exit);
                }
            }
        }
        GuestEvent::Exited { container_id, exit } => {
            assert!(text::is_id(&container_id));
            ended(&exit);
        }
        GuestEvent::Oom { container_id } => assert!(text::is_id(&container_id)),
    }
}

fn ended(exit: &answer::Exit) {
    assert!((0..=255).contains(&exit.code) && exit.finished_at_ns >= 0);
    // A byte that is not UTF-8 becomes one of three.
    assert!(exit.termination_message.len() <= 3 * 4096);
}

fn limits(actual: &v1::Resources) {
    for (name, value) in &actual.unified {
        assert!(text::is_id(name) && !value.contains('\n'));
    }
    assert!(!actual.cpuset_cpus.contains('\n') && actual.hugepage_limits.is_empty());
}
