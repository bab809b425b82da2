//! Structured logs on standard error: for a reader on a terminal, JSON lines
//! otherwise. Every line names the process's role and id, since three kinds
//! of process write into the same journal.

use std::fmt;
use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Names the level, in `tracing_subscriber::EnvFilter`'s syntax.
const LEVEL_VARIABLE: &str = "STRONGROOM_LOG";

/// cryptoki complains of every code that it has no name for, in words that
/// help nobody; our own errors have the code and the call.
const QUIET: &str = "cryptoki::error=off";

/// Starts the log of this process, whose `role` is `supervisor`, `server` or
/// `token-worker`; `ps` calls the process so too. Calling it twice does no
/// harm.
pub fn init(role: &'static str) {
    name_process(role);
    let (filter, complaint) = match std::env::var(LEVEL_VARIABLE) {
        Err(_) => (info().parse_lossy(""), None),
        Ok(text) => match info().parse(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (info().parse_lossy(""), Some(error.to_string())),
        },
    };
    let filter = match QUIET.parse() {
        Ok(quiet) => filter.add_directive(quiet),
        Err(_) => filter,
    };
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal);
    let pid = std::process::id();
    // A second call finds the first one's subscriber in place.
    let _ = if terminal {
        let format = Format::default().without_time();
        builder
            .fmt_fields(DefaultFields::new())
            .event_format(Human { role, pid, format })
            .try_init()
    } else {
        // A request has one span: the list of them would say it twice.
        let format = Format::default().json().with_span_list(false);
        builder
            .fmt_fields(JsonFields::new())
            .event_format(Lines { role, pid, format })
            .try_init()
    };
    if let Some(error) = complaint {
        tracing::warn!(error, "{LEVEL_VARIABLE} is not a log level; using info");
    }
}

fn info() -> tracing_subscriber::filter::Builder {
    EnvFilter::builder().with_default_directive(LevelFilter::INFO.into())
}

/// The children run `/proc/self/exe`; without this `ps` would call them `exe`.
fn name_process(role: &str) {
    // The kernel keeps 15 bytes.
    if let Ok(name) = std::ffi::CString::new(format!("sr-{role}")) {
        let _ = rustix::thread::set_name(&name);
    }
}

/// `2026-01-01T00:00:00Z server[42] INFO target: message key=value`.
struct Human {
    role: &'static str,
    pid: u32,
    format: Format<tracing_subscriber::fmt::format::Full, ()>,
}

impl<S, N> FormatEvent<S, N> for Human
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        SystemTime.format_time(&mut writer)?;
        write!(writer, " {}[{}] ", self.role, self.pid)?;
        self.format.format_event(context, writer, event)
    }
}

/// `{"role":"server","pid":42,"timestamp":…}`.
struct Lines {
    role: &'static str,
    pid: u32,
    format: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.format
            .format_event(context, Writer::new(&mut line), event)?;
        // The library has no place for constant fields: put them first.
        let rest = line.strip_prefix('{').ok_or(fmt::Error)?;
        write!(
            writer,
            "{{\"role\":\"{}\",\"pid\":{},{rest}",
            self.role, self.pid
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_json_line_has_role_pid_and_the_spans_fields() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .fmt_fields(JsonFields::new())
            .event_format(Lines {
                role: "server",
                pid: 42,
                format: Format::default().json(),
            })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("request", id = "r1");
            let _in = span.enter();
            tracing::info!(bytes = 3, "stored \"it\"");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(line["role"], "server");
        assert_eq!(line["pid"], 42);
        assert_eq!(line["fields"]["message"], "stored \"it\"");
        assert_eq!(line["span"]["id"], "r1");
    }
}
