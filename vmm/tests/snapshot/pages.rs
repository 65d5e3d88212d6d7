//! Pages of guests that go on: which of them are copied, and which are the template's own in one piece.

use std::fs;

use proto::machine::{PageRun, Request, Response};
use tempfile::TempDir;

use super::{COUNT, stop, take};
use crate::guest::{Artifacts, Guest, on_kvm};

/// Where the guest's kernel is linked, by the size of a page.
const TEXT: u64 = (16 << 20) / 4096;

fn copied(guest: &mut Guest) -> Vec<PageRun> {
    match guest.ask(&Request::CopiedPages {}) {
        Response::CopiedPages { runs } => runs,
        other => panic!("{other:?}"),
    }
}

fn holds(runs: &[PageRun], page: u64) -> bool {
    runs.iter()
        .any(|run| (run.first..run.first + run.count).contains(&page))
}

#[test]
fn what_one_guest_has_written_the_next_has_before_it_runs() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir().unwrap();
        let snapshot = template(artifacts, &directory);
        let mut first = Guest::restore(snapshot.clone(), |_| {});
        first.wait_for("AT 10\r");
        let runs = copied(&mut first);
        let pages: u64 = runs.iter().map(|run| run.count).sum();
        println!("{pages} pages in {} runs were copied", runs.len());
        // Its stack and its timer are among them, most of its memory is not.
        assert!((10..8192).contains(&pages), "{runs:?}");
        assert!(!holds(&runs, TEXT), "{runs:?}");
        stop(first);

        let mut with_text = runs;
        with_text.push(PageRun {
            first: TEXT,
            count: 1,
        });
        let mut next = snapshot;
        next.written_soon = with_text;
        let mut second = Guest::restore(next, |_| {});
        assert!(holds(&copied(&mut second), TEXT));
        second.wait_for("AT 20\r");
        stop(second);
    });
}

/// Needs a tmpfs, and Linux 6.1 with huge pages: elsewhere a guest goes on as well, in small pages.
#[test]
fn the_kernels_text_is_in_huge_pages_of_the_template() {
    on_kvm(|artifacts| {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let snapshot = template(artifacts, &directory);
        let mut guest = Guest::restore(snapshot, |_| {});
        guest.wait_for("AT 10\r");
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", guest.pid())).unwrap();
        let mapped = smaps.lines().filter_map(|line| {
            let kib = line.strip_prefix("ShmemPmdMapped:")?.trim().strip_suffix(" kB")?;
            kib.trim().parse::<u64>().ok()
        });
        let kib: u64 = mapped.sum();
        println!("{kib} KiB of the template are mapped in huge pages");
        if collapses() {
            assert!(kib >= 2048, "{smaps}");
        } else {
            println!("SKIPPED: this host's kernel does not make huge pages of a file's on demand");
        }
        stop(guest);
    });
}

/// Whether the kernel is new enough for MADV_COLLAPSE, and has huge pages.
fn collapses() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 1) && fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap()
}

fn template(artifacts: &Artifacts, directory: &TempDir) -> proto::machine::Snapshot {
    let mut template = Guest::boot(artifacts, &format!("{COUNT} count"));
    template.wait_for("AT 5\r");
    let snapshot = take(&mut template, directory);
    stop(template);
    snapshot
}
