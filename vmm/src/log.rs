//! Log lines on stderr: what the daemon keeps beside the console. One line per event, no colours, no clock (whoever
//! reads stderr stamps it).

use std::fmt::Write as _;
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Writes events of `level` and above.
#[derive(Debug)]
pub struct StderrLog {
    level: Level,
}

impl StderrLog {
    /// Spans are not used in this program, so they are not kept.
    #[must_use]
    pub fn new(level: Level) -> Self {
        Self { level }
    }
}

impl Subscriber for StderrLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("clearpod-vmm: {}:", event.metadata().level()));
        event.record(&mut line);
        line.0.push('\n');
        // One write, so that lines of several threads do not mix. If stderr is gone there is nobody to tell.
        drop(std::io::stderr().write_all(line.0.as_bytes()));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Line {
    fn append(&mut self, field: &Field, value: std::fmt::Arguments<'_>) {
        let start = self.0.len();
        // Writing to a String does not fail.
        let result = match field.name() {
            "message" => write!(self.0, " {value}"),
            name => write!(self.0, " {name}={value}"),
        };
        debug_assert!(result.is_ok());
        // What is logged may quote the guest or an error of several lines: one event stays one line.
        if self.0[start..].contains(char::is_control) {
            let clean = self.0[start..].replace(char::is_control, " ");
            self.0.replace_range(start.., &clean);
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.append(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.append(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.append(field, format_args!("{}", crate::exit::one_line(value)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps the lines that `StderrLog` would write.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl Subscriber for Kept {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            StderrLog::new(Level::INFO).enabled(metadata)
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn an_event_is_one_line_with_its_fields_and_causes() {
        let kept = Kept::default();
        tracing::subscriber::with_default(kept.clone(), || {
            let cause = std::io::Error::other("disk\nfull");
            tracing::warn!(
                error = &cause as &dyn std::error::Error,
                id = "a\x1b[31m",
                "cannot write"
            );
            tracing::debug!("not asked for");
        });
        assert_eq!(
            *kept.0.lock().unwrap(),
            [" cannot write error=disk full id=a [31m"]
        );
    }
}
