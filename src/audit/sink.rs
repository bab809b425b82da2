//! A second place for each record: the journal or syslog. Best effort: it
//! never waits, and what it loses it counts.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use super::record::Event;
use crate::config::AuditAlso;

/// Where systemd's journal takes records (systemd, "Native Journal Protocol").
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Where syslog takes them.
const SYSLOG: &str = "/dev/log";
/// Facility `authpriv` (10), severity `notice` (5): RFC 5424, section 6.2.1.
const PRIORITY: u8 = 10 * 8 + 5;
/// One in so many losses is told in the agent's own log.
const TELL_EVERY: u64 = 1000;

/// A second sink.
pub(super) struct Sink {
    kind: AuditAlso,
    path: PathBuf,
    socket: UnixDatagram,
    lost: u64,
}

impl Sink {
    pub(super) fn new(kind: AuditAlso) -> std::io::Result<Self> {
        let path = match kind {
            AuditAlso::Journald => JOURNAL,
            AuditAlso::Syslog => SYSLOG,
        };
        Self::to(kind, path.into())
    }

    fn to(kind: AuditAlso, path: PathBuf) -> std::io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            kind,
            path,
            socket,
            lost: 0,
        })
    }

    /// Sends one record, or loses it.
    pub(super) fn send(&mut self, seq: u64, event: &Event) {
        let Ok(text) = serde_json::to_string(event) else {
            return;
        };
        // JSON has no line breaks of its own, so the simple form will do.
        let datagram = match self.kind {
            AuditAlso::Journald => format!(
                "SYSLOG_IDENTIFIER=strongroom-audit\nPRIORITY=5\nSTRONGROOM_SEQ={seq}\nMESSAGE={text}\n"
            ),
            AuditAlso::Syslog => format!(
                "<{PRIORITY}>strongroom-audit[{}]: {seq} {text}",
                std::process::id()
            ),
        };
        if let Err(error) = self.socket.send_to(datagram.as_bytes(), &self.path) {
            if self.lost.is_multiple_of(TELL_EVERY) {
                tracing::warn!(%error, lost = self.lost, "audit.also cannot take a record");
            }
            self.lost += 1;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::audit::Kind;

    #[test]
    fn each_kind_gets_its_form_and_what_nobody_takes_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let event = Event::new(Kind::Start).detail("two\nlines");
        for (kind, begins) in [
            (
                AuditAlso::Journald,
                "SYSLOG_IDENTIFIER=strongroom-audit\nPRIORITY=5\nSTRONGROOM_SEQ=7\nMESSAGE={",
            ),
            (AuditAlso::Syslog, "<85>strongroom-audit["),
        ] {
            let mut sink = Sink::to(kind, path.clone()).unwrap();
            sink.send(6, &event);
            assert_eq!(sink.lost, 1, "nobody listened");
            let listener = UnixDatagram::bind(&path).unwrap();
            sink.send(7, &event);
            assert_eq!(sink.lost, 1);
            let mut room = [0; 4096];
            let len = listener.recv(&mut room).unwrap();
            let text = std::str::from_utf8(&room[..len]).unwrap();
            assert!(text.starts_with(begins), "{text}");
            let json = &text[text.find('{').unwrap()..];
            // A line break inside would end the journal's field.
            assert!(!json.trim_end().contains('\n'), "{json}");
            let read: Event = serde_json::from_str(json).unwrap();
            assert_eq!(read, event);
            // One that takes nothing is not waited for.
            for _ in 0..10_000 {
                sink.send(8, &event);
            }
            assert!(sink.lost > 1);
            drop(listener);
            std::fs::remove_file(&path).unwrap();
        }
    }
}
