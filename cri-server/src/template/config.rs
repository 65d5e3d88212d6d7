//! `[machine.templates]` of the configuration.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

/// Whether pods go on from templates, and where these are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemplatesConfig {
    /// Without them every pod boots a kernel of its own.
    pub enabled: bool,
    /// Parent of the templates; `templates` below the run directory when unset, which is memory on most hosts: a fork's first
    /// touch of a page is then no read of a disk. A template takes about as much as a guest that has just booted.
    pub directory: Option<PathBuf>,
    /// Shapes of Machines (memory, processors, room to grow) that have one at a time. That of pods without limits always has.
    pub most: usize,
    /// How long a template's guest may take, before it is written, to report its free memory to the host, which each fork had to do
    /// otherwise. It takes 8 s with 512 MiB; pods boot until then.
    pub rest_seconds: u64,
}

impl Default for TemplatesConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            directory: None,
            most: 3,
            rest_seconds: 60,
        }
    }
}

impl TemplatesConfig {
    pub(crate) fn rest(&self) -> Duration {
        Duration::from_secs(self.rest_seconds)
    }

    /// Checks what the types cannot: the field's dotted name, and what is wrong.
    pub(crate) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self
            .directory
            .as_ref()
            .is_some_and(|directory| !directory.is_absolute())
        {
            return Err(("machine.templates.directory", "must be an absolute path"));
        }
        if self.most == 0 {
            return Err((
                "machine.templates.most",
                "must be at least 1; enabled = false turns them off",
            ));
        }
        Ok(())
    }
}
