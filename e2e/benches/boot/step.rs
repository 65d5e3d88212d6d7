//! A boot as it is, and boots for which one thing that makes it shorter is undone.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
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
    vmm: PathBuf,
    command_line: &'static str,
    huge_pages: bool,
    pub(crate) times: Figures,
    /// Of the last boot: those that KVM counted, and those that reached the VMM.
    pub(crate) exits: BTreeMap<String, u64>,
}

/// Words that the VMM puts on each command line. Linux has no word that takes one of them back, so the VMM of such a step is a
/// copy in which the word is spelt otherwise, which Linux does not know.
const UNDONE: [(&str, &str, &str); 3] = [
    ("without noreplace-smp", "noreplace-smp", "xoreplace-smp"),
    ("without noapic", "noapic", "xoapic"),
    ("without pci=noearly", "conf1,noearly", "conf1,xoearly"),
];

/// [`AS_IT_IS`] first; copies of `vmm` go to `scratch`.
pub(crate) fn all(vmm: &Path, scratch: &Path) -> Result<Vec<Step>> {
    let step = |name, vmm: &Path, command_line, huge_pages| Step {
        name,
        vmm: vmm.to_owned(),
        command_line,
        huge_pages,
        times: Figures::default(),
        exits: BTreeMap::new(),
    };
    let mut steps = vec![
        step(AS_IT_IS, vmm, COMMAND_LINE, true),
        step("without huge pages", vmm, COMMAND_LINE, false),
        step("without quiet", vmm, "", true),
    ];
    let program = fs_err::read(vmm)?;
    for (name, word, other) in UNDONE {
        let copy = scratch.join(other);
        fs_err::write(&copy, with_other_word(&program, word, other)?)?;
        fs_err::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
        steps.push(step(name, &copy, COMMAND_LINE, true));
    }
    Ok(steps)
}

fn with_other_word(program: &[u8], word: &str, other: &str) -> Result<Vec<u8>> {
    ensure!(word.len() == other.len(), "{word} and {other} differ in length");
    let mut copy = program.to_vec();
    let mut found = false;
    for start in 0..copy.len().saturating_sub(word.len()) {
        let place = copy.get_mut(start..start + word.len());
        if let Some(place) = place.filter(|place| *place == word.as_bytes()) {
            place.copy_from_slice(other.as_bytes());
            found = true;
        }
    }
    ensure!(found, "the VMM does not have the word {word}");
    Ok(copy)
}

impl Step {
    pub(crate) fn forget(&mut self) {
        self.times = Figures::default();
    }

    pub(crate) fn boot(&mut self, payload: &Payload) -> Result<()> {
        // The VMM inherits it.
        prctl::set_thp_disable(!self.huge_pages).context("PR_SET_THP_DISABLE")?;
        let booted = alone::clearpod_vmm(&self.vmm, payload, self.command_line, &mut self.times);
        prctl::set_thp_disable(false).context("PR_SET_THP_DISABLE")?;
        self.exits = booted?;
        Ok(())
    }
}
