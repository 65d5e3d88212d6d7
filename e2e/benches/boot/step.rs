//! A boot as it is, and boots for which one thing that makes it shorter is undone.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use e2e::Figures;
use nix::sys::prctl;

use crate::alone::{self, COMMAND_LINE, Payload};

pub(crate) const AS_IT_IS: &str = "as it is";

/// One way to boot, and what was measured of it.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// Of its own; none: as it is.
    kernel: Option<PathBuf>,
    command_line: &'static str,
    huge_pages: bool,
    pub(crate) times: Figures,
    /// Of the last boot: those that KVM counted, and those that reached the VMM.
    pub(crate) exits: BTreeMap<String, u64>,
}

/// Words that the VMM puts on each command line. Linux has no word that takes one of them back, so the kernel of such a step is a
/// copy that does not know the word: it is spelt otherwise there.
const UNDONE: [(&str, &str, &str); 3] = [
    ("without noreplace-smp", "noreplace-smp", "xoreplace-smp"),
    ("without noapic", "noapic", "xoapic"),
    ("without pci=noearly", "noearly", "xoearly"),
];

/// [`AS_IT_IS`] first; copies of `kernel` go to `scratch`.
pub(crate) fn all(kernel: &Path, scratch: &Path) -> Result<Vec<Step>> {
    let step = |name, kernel, command_line, huge_pages| Step {
        name,
        kernel,
        command_line,
        huge_pages,
        times: Figures::default(),
        exits: BTreeMap::new(),
    };
    let mut steps = vec![
        step(AS_IT_IS, None, COMMAND_LINE, true),
        step("without huge pages", None, COMMAND_LINE, false),
        step("without quiet", None, "", true),
    ];
    let program = fs_err::read(kernel)?;
    for (name, word, other) in UNDONE {
        let copy = scratch.join(other);
        fs_err::write(&copy, with_other_word(&program, word, other)?)?;
        steps.push(step(name, Some(copy), COMMAND_LINE, true));
    }
    Ok(steps)
}

/// Only where it stands alone, as a string of C's.
fn with_other_word(program: &[u8], word: &str, other: &str) -> Result<Vec<u8>> {
    ensure!(word.len() == other.len(), "{word} and {other} differ in length");
    let alone = format!("\0{word}\0").into_bytes();
    let mut copy = program.to_vec();
    let mut found = false;
    for start in 0..copy.len().saturating_sub(alone.len()) {
        let place = copy.get_mut(start..start + alone.len());
        if let Some(place) = place.filter(|place| *place == alone) {
            place.copy_from_slice(format!("\0{other}\0").as_bytes());
            found = true;
        }
    }
    ensure!(found, "the kernel does not have the word {word}");
    Ok(copy)
}

impl Step {
    pub(crate) fn forget(&mut self) {
        self.times = Figures::default();
    }

    pub(crate) fn boot(&mut self, vmm: &Path, payload: &Payload) -> Result<()> {
        let mut payload = payload.clone();
        if let Some(kernel) = &self.kernel {
            payload.kernel.clone_from(kernel);
        }
        // The VMM inherits it.
        prctl::set_thp_disable(!self.huge_pages).context("PR_SET_THP_DISABLE")?;
        let booted = alone::clearpod_vmm(vmm, &payload, self.command_line, &mut self.times);
        prctl::set_thp_disable(false).context("PR_SET_THP_DISABLE")?;
        self.exits = booted?;
        Ok(())
    }
}
