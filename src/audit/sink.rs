//! A second place for each record: the journal or syslog. Best effort: it
//! never waits, and what it loses it counts.

use std::os::unix::net::UnixDatagram;

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
    socket: UnixDatagram,
    lost: u64,
}

impl Sink {
    pub(super) fn new(kind: AuditAlso) -> std::io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            kind,
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
        let (path, datagram) = match self.kind {
            AuditAlso::Journald => (
                JOURNAL,
                format!(
                    "SYSLOG_IDENTIFIER=strongroom-audit\nPRIORITY=5\nSTRONGROOM_SEQ={seq}\nMESSAGE={text}\n"
                ),
            ),
            AuditAlso::Syslog => (
                SYSLOG,
                format!(
                    "<{PRIORITY}>strongroom-audit[{}]: {seq} {text}",
                    std::process::id()
                ),
            ),
        };
        if let Err(error) = self.socket.send_to(datagram.as_bytes(), path) {
            if self.lost.is_multiple_of(TELL_EVERY) {
                tracing::warn!(%error, lost = self.lost, "audit.also cannot take a record");
            }
            self.lost += 1;
        }
    }
}
