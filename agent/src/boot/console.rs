//! What the agent says: lines in the kernel's log, which the console and the VMM's ring buffer show. A host pod's shim says it
//! to a file.
//!
//! A subscriber of a few lines instead of tracing-subscriber, which would be a good part of the binary.

use std::error::Error;
use std::fs::File;
use std::io::Write as _;

use proto::agent::v1::ErrorCode;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::clock;
use crate::error::{Context as _, Failure};

/// Writes events, one line each.
struct Log {
    file: File,
    program: &'static str,
    /// Lines begin with their priority, as /dev/kmsg wants them.
    priorities: bool,
}

/// Sends all later events to the kernel's log.
///
/// # Errors
/// `System` when /dev/kmsg cannot be opened.
pub(super) fn open() -> Result<(), Failure> {
    let kmsg = File::options()
        .write(true)
        .open("/dev/kmsg")
        .context(ErrorCode::System, || "open /dev/kmsg".to_owned())?;
    install(Log {
        file: kmsg,
        program: "clearpod-agent",
        priorities: true,
    })
}

/// Sends all later events of `program` to `file`.
///
/// # Errors
/// `System`.
pub(crate) fn open_file(file: File, program: &'static str) -> Result<(), Failure> {
    install(Log {
        file,
        program,
        priorities: false,
    })
}

fn install(log: Log) -> Result<(), Failure> {
    tracing::subscriber::set_global_default(log)
        .map_err(|error| Failure::new(ErrorCode::System, format!("install the log: {error}")))
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let level = *event.metadata().level();
        let mut line = Line(if self.priorities {
            format!("<{}>{}:", priority(level), self.program)
        } else {
            format!("{} {level} {}:", clock::realtime_ns() / 1_000_000, self.program)
        });
        event.record(&mut line);
        if !self.priorities {
            line.0.push('\n');
        }
        // The log is where failures would be reported: there is no other place.
        (&self.file).write_all(line.0.as_bytes()).ok();
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// syslog(3) priorities, facility daemon (3 << 3), as /dev/kmsg wants them in front.
fn priority(level: Level) -> u8 {
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    3 << 3 | severity
}

/// Longest record that the kernel takes, less its own prefix.
const MAX_LINE: usize = 900;

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if self.0.len() > MAX_LINE {
            return;
        }
        // Newlines would begin a new line on the console, in nobody's name.
        let text = if field.name() == "message" {
            format!(" {value:?}")
        } else {
            format!(" {}={value:?}", field.name())
        };
        self.0.push_str(&text.replace(|c: char| c.is_control(), " "));
    }
}

/// Says why the agent cannot go on, with all causes: in the log if there is one yet, else on standard error, which is the
/// console.
pub(crate) fn report(error: &dyn Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    if tracing::dispatcher::has_been_set() {
        tracing::error!(error = %text, "boot failed");
    } else {
        writeln!(std::io::stderr(), "clearpod-agent: boot failed: {text}").ok();
    }
}
